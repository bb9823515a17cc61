"""A bucket whose files a folder of this machine caches: s3://, gs:// and az://, by obstore.

A PUT is atomic and a listing is consistent (S3 since December 2020), so an object that exists is complete. Endpoint and
credentials come from the usual variables, such as AWS_ENDPOINT_URL and AWS_ACCESS_KEY_ID.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

URL = re.compile(r"(s3|gs|az):/+([^/].*?)/*")
"""A bucket and a prefix; `Path` makes one slash of two."""
CACHE = "REFINE_CACHE"
"""Environment variable with the folder of the caches; by default that of the user."""
CACHE_BYTES = 50 << 30
"""Size of a cache in bytes above which a worker removes the shards that were read longest ago."""
MULTIPART = 256 << 20
"""Size of a file in bytes above which it is uploaded in parts; the object appears when all are there."""
PATIENCE = timedelta(minutes=5)
"""Time in which a request that fails, for example because the server asks to slow down, is repeated."""
SHARD = re.compile(r"\d{5,}\.parquet")
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
"""Environment variables with the credentials, by the scheme of a URL."""
ENDPOINTS = {"s3": "AWS_ENDPOINT_URL", "gs": "GOOGLE_BASE_URL", "az": "AZURE_STORAGE_ENDPOINT"}
"""Environment variable with the address of another server than the provider's own, by the scheme of a URL."""
_NO_BUCKET = re.compile("NoSuchBucket|ContainerNotFound")


class PlaceError(Exception):
    """A bucket is missing, cannot be reached or written, or ignores conditions; the message says what to do."""


def url_of(path: Path | str) -> str | None:
    """The URL that a path stands for; None if it is a path of this machine."""
    match = URL.fullmatch(str(path))
    return f"{match[1]}://{match[2]}" if match else None


def check_local(*paths: Path | str | None) -> None:
    """Refuse a URL in the place of a path that is written to, by a PlaceError: only a run may be in a bucket."""
    for url in (url_of(path) for path in paths if path is not None):
        if url is not None:
            raise PlaceError(f"{url} is a URL, expected a path: only `refine run` writes to a bucket")


def cache_of(url: str) -> Path:
    """The folder that caches a URL on this machine."""
    from platformdirs import user_cache_dir

    root = Path(os.environ.get(CACHE) or Path(user_cache_dir("refine")) / "buckets")
    return root / hashlib.blake2b(url.encode(), digest_size=8).hexdigest() / url.rpartition("/")[2]


@dataclass(frozen=True)
class Bucket:
    """The objects below a URL, as files of a folder; picklable."""

    url: str

    @property
    def folder(self) -> Path:
        """The folder that caches them on this machine."""
        return cache_of(self.url)

    def name(self, path: Path) -> str:
        """The name of a file's object below the URL."""
        return path.relative_to(self.folder).as_posix()

    def fetch(self, path: Path) -> None:
        """Make a file equal to its object; no object is FileNotFoundError.

        The server is asked once between two listings, and the object is read only if it has changed.
        """
        obstore = _library()

        if path in _CURRENT.get(self.url, ()) and path.exists():
            return
        known = self._etag(path)
        try:
            with _explained(self.url):
                options: Any = {"if_none_match": known} if known else {}
                found = obstore.get(_connect(self.url), self.name(path), options=options)
        except obstore.exceptions.NotModifiedError:
            found = None
        except FileNotFoundError:
            path.unlink(missing_ok=True)
            raise FileNotFoundError(2, "there is no such object", f"{self.url}/{self.name(path)}") from None
        if found is not None and (known is None or found.meta["e_tag"] != known):  # a server may ignore the condition
            self._download(found, path)
        else:
            for used in (path, self._mark(path)):
                os.utime(used)
            _CURRENT.setdefault(self.url, set()).add(path)

    def _download(self, found: Any, path: Path) -> None:  # noqa: ANN401  obstore's GetResult
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
        try:
            with aside.open("wb") as file, _explained(self.url):
                for part in found.stream():
                    file.write(part)
            if aside.stat().st_size != found.meta["size"]:
                raise PlaceError(f"{self.url}/{self.name(path)} broke off while it was read: start again")
            self._mark(path).unlink(missing_ok=True)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        self._remember(path, found.meta["e_tag"])
        _prune(self.folder, CACHE_BYTES, found.meta["size"])

    def _mark(self, path: Path) -> Path:
        """The file, outside the folder, that holds the entity tag of the object that a file is equal to."""
        return self.folder.parent / ".etags" / self.name(path)

    def _etag(self, path: Path) -> str | None:
        try:
            return self._mark(path).read_text(encoding="utf-8") or None if path.is_file() else None
        except OSError:
            return None

    def _remember(self, path: Path, etag: str | None) -> None:
        """Say that a file is equal to the object with this entity tag."""
        mark = self._mark(path)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(etag or "", encoding="utf-8")
        _CURRENT.setdefault(self.url, set()).add(path)

    def forget(self, path: Path) -> None:
        """Say that a file is about to differ from its object."""
        self._mark(path).unlink(missing_ok=True)
        _CURRENT.get(self.url, set()).discard(path)

    def publish(self, path: Path) -> None:
        """Store a file as its object, unless it is equal to it already."""
        obstore = _library()

        size, mark = path.stat().st_size, self._mark(path)
        if mark.exists() and mark.stat().st_mtime_ns >= path.stat().st_mtime_ns:
            return
        with _explained(self.url):
            put = obstore.put(_connect(self.url), self.name(path), path, use_multipart=size > MULTIPART)
        self._remember(path, put["e_tag"])
        if (sizes := _SIZES.get(self.url)) is not None:
            sizes[self.name(path)] = size

    def remove(self, path: Path) -> None:
        """Remove a file and its object, if there are any."""
        obstore = _library()

        path.unlink(missing_ok=True)
        self.forget(path)
        with _explained(self.url), contextlib.suppress(FileNotFoundError):
            obstore.delete(_connect(self.url), self.name(path))
        self.sizes().pop(self.name(path), None)

    def create(self, name: str, content: bytes) -> bool:
        """Store an object unless there is one of that name; returns whether it was stored."""
        obstore = _library()

        try:
            with _explained(self.url):
                obstore.put(_connect(self.url), name, content, mode="create")
        except obstore.exceptions.AlreadyExistsError:
            return False
        return True

    def put(self, name: str, content: bytes) -> None:
        """Store a small object."""
        obstore = _library()

        with _explained(self.url):
            obstore.put(_connect(self.url), name, content)

    def get(self, name: str) -> bytes | None:
        """Content of a small object; None if there is none."""
        obstore = _library()

        with contextlib.suppress(FileNotFoundError), _explained(self.url):
            return bytes(obstore.get(_connect(self.url), name).bytes())
        return None

    def changed(self, name: str) -> datetime | None:
        """When an object was stored, by the server's clock; None if there is none."""
        obstore = _library()

        with contextlib.suppress(FileNotFoundError), _explained(self.url):
            found: datetime = obstore.head(_connect(self.url), name)["last_modified"]
            return found
        return None

    def sizes(self) -> dict[str, int]:
        """Size of each object by name, as last listed, with the changes of this process since then."""
        if self.url not in _SIZES:
            self.refresh()
        return _SIZES[self.url]

    def refresh(self, path: Path | None = None) -> None:
        """List the objects again, by default all, else those in a folder: other machines may have written some."""
        obstore = _library()

        prefix = "" if path is None or path == self.folder else f"{self.name(path)}/"
        sizes, current = _SIZES.setdefault(self.url, {}), _CURRENT.setdefault(self.url, set())
        current.difference_update([path for path in current if self.name(path).startswith(prefix)])
        for name in [name for name in sizes if name.startswith(prefix)]:
            del sizes[name]
        with _explained(self.url):
            for part in obstore.list(_connect(self.url), prefix.rstrip("/") or None):
                sizes.update((each["path"], each["size"]) for each in part)

    def pull(self) -> Path:
        """Fetch all objects, and remove the files of those that are gone; returns the folder."""
        self.tidy()
        for name in self.sizes():
            if not name.startswith("."):
                self.fetch(self.folder / name)
        return self.folder

    def tidy(self) -> None:
        """List the objects, and remove the files of those that are gone."""
        self.refresh()
        for path in self.folder.rglob("*"):
            if path.is_file() and self.name(path) not in self.sizes():
                path.unlink(missing_ok=True)

    def check(self) -> None:
        """Refuse a bucket that is missing or cannot be written, or a server that ignores If-None-Match."""
        obstore = _library()

        probe = f".probe/{uuid4().hex}"
        with _explained(self.url):
            quick = _connect(self.url, timedelta(seconds=10))
            obstore.list(quick, ".probe").collect()
            obstore.put(quick, probe, b"1", mode="create")
        try:
            twice = self.create(probe, b"2")
        finally:
            with _explained(self.url):
                obstore.delete(quick, probe)
        if twice:
            raise PlaceError(
                f"the server of {self.url} ignores If-None-Match, so that two runs could write the same files: use one "
                "with conditional writes (AWS S3, Google, Azure, MinIO, R2), or a folder"
            )


_CURRENT: dict[str, set[Path]] = {}
"""Files by URL that are equal to their objects, as this process has seen since it last listed them."""
_SIZES: dict[str, dict[str, int]] = {}
"""Sizes of objects by URL and name, as this process knows them."""


def _library() -> Any:  # noqa: ANN401  a module
    """The module obstore, which comes with an extra."""
    try:
        import obstore
    except ImportError as error:
        raise PlaceError("a bucket needs the package obstore: start `pip install 'refine[s3]'`") from error
    return obstore


@lru_cache(maxsize=64)
def _connect(url: str, patience: timedelta = PATIENCE) -> Any:  # noqa: ANN401  one of obstore's stores
    from obstore.store import from_url

    insecure = os.environ.get(ENDPOINTS[url[:2]], "").startswith("http://")
    retry: Any = {"retry_timeout": patience, "max_retries": max(int(patience.total_seconds()) // 10, 2)}
    more: Any = {"disable_bulk_delete": True} if url.startswith("s3:") else {}  # not every server has it
    with _explained(url):
        return from_url(url, **more, client_options={"allow_http": insecure, "timeout": "120s"}, retry_config=retry)


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turn an error of the server or the network into one sentence."""
    exceptions = _library().exceptions
    try:
        yield
    except (exceptions.AlreadyExistsError, exceptions.NotModifiedError):
        raise
    except (exceptions.BaseError, FileNotFoundError, OSError, ValueError) as error:
        text = str(error)
        if isinstance(error, FileNotFoundError) and not _NO_BUCKET.search(text):
            raise
        raise PlaceError(_sentence(url, text, error)) from error


def _sentence(url: str, text: str, error: Exception) -> str:
    """What an error of a request means, and what to do."""
    from obstore import exceptions

    scheme, name = url.split("/", maxsplit=1)[0][:-1], url.split("/")[2]
    why = re.sub(r"\s+", " ", text.split("Debug source", maxsplit=1)[0])[:300].strip()
    if _NO_BUCKET.search(text):
        return (
            f"there is no bucket {name!r} at the server of {url}: create it, or check its name and {ENDPOINTS[scheme]}"
        )
    if "169.254." in text or "Account must" in text:
        return f"no credentials for {url}: set {CREDENTIALS[scheme]}, or give the machine a role"
    if re.search("redential|AccessKey|ReadPem", text):
        return f"the credentials for {url} cannot be used ({why}): check {CREDENTIALS[scheme]}"
    if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError) or "403 Forbidden" in text:
        return f"{url} cannot be read and written with these credentials: allow listing, reading, writing and deleting"
    again = "and start the same command again"
    return f"{url} cannot be reached ({why}): check the network and {ENDPOINTS[scheme]}, {again}"


_FETCHED: dict[Path, int] = {}
"""Bytes that this process has fetched since a cache was last looked through."""


def _prune(folder: Path, most: int, size: int) -> None:
    """Remove the shards that were used longest ago, once a cache is too large; it is looked through now and then."""
    _FETCHED[folder] = _FETCHED.get(folder, 0) + size
    if _FETCHED[folder] < most // 20:
        return
    _FETCHED[folder] = 0
    shards = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in folder.rglob("*.parquet"))
    excess = sum(size for _, size, _ in shards) - most
    for _, bytes_, path in shards:
        if excess <= 0:
            break
        if SHARD.fullmatch(path.name):
            path.unlink(missing_ok=True)
            excess -= bytes_
