"""The paths of a run, in a folder or in a bucket."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.store.bucket import Bucket, cache_of, url_of
from stages.files import attach, fetch

PARTS = ("raw", "repaired", "signals", "decisions", "refined", "rejected", "quarantine", "kept")
"""Subfolders of a run."""
SHARD = re.compile(r"\d{5,}\.parquet")
"""File name of a shard."""


class RunFolderError(Exception):
    """A folder is not the run or experiment that was expected, or is in use; the message says what to do."""


@dataclass(frozen=True)
class Store:
    """The paths of one run. A file that exists is complete. Of a run in a bucket, the folder is a cache."""

    folder: Path
    bucket: Bucket | None = None

    @classmethod
    def at(cls, place: Path) -> Store:
        """The run in a folder, or at a URL such as s3://bucket/run."""
        url = url_of(place)
        return cls(place) if url is None else cls(cache_of(url), Bucket(url))

    @property
    def name(self) -> str:
        """What a user calls it: its folder or URL."""
        return self.bucket.url if self.bucket else str(self.folder)

    def __reduce__(self) -> tuple[Callable[..., Store], tuple[Path | str]]:
        """A worker may be on another machine, where the cache has a folder of its own, and reads and writes at once."""
        return (_mounted, (self.bucket.url,)) if self.bucket else (Store, (self.folder,))

    def here(self, path: Path) -> Path:
        """A file of the run that another machine names, as a file of this one."""
        if not self.bucket or path.is_relative_to(self.folder):
            return path
        parts = path.parts
        mark = self.folder.parent.name
        return self.folder.joinpath(*parts[parts.index(mark) + 2 :]) if mark in parts else path

    def mount(self) -> Store:
        """Let this process read and write its files; returns the store."""
        if self.bucket:
            attach(self.bucket)
        return self

    @property
    def source(self) -> Path:
        """The source and how it is cut; written before any shard."""
        return self.folder / "source.json"

    @property
    def shard_list(self) -> Path:
        """The raw shards with their rows; written when ingest is complete."""
        return self.folder / "raw" / "shards.json"

    @property
    def progress(self) -> Path:
        """What an ingest of a stream has counted up to its last shard; removed when it is complete."""
        return self.folder / "raw" / "progress.json"

    @property
    def plan(self) -> Path:
        """The plan that made the decisions."""
        return self.folder / "plan.toml"

    @property
    def manifest(self) -> Path:
        """Counts and versions; written last, so that its existence means that the run is complete."""
        return self.folder / "manifest.json"

    @property
    def card(self) -> Path:
        """The dataset card."""
        return self.folder / "README.md"

    def raw(self, shard: str) -> Path:
        """The conversations of a shard as ingested; `read_frame` adds what the file leaves out."""
        return self.folder / "raw" / shard

    def repaired(self, shard: str) -> Path:
        """The conversations of a shard as repaired, with the column `repairs`."""
        return self.folder / "repaired" / shard

    def measured(self, shard: str, trims: Sequence[str]) -> Path:
        """The conversations of a shard as stages measure them: raw, unless there are repairs."""
        return self.repaired(shard) if trims else self.raw(shard)

    def decisions(self, shard: str) -> Path:
        """One row per conversation of a shard: id, keep, reason, duplicate_of, jaccard, one boolean per rule."""
        return self.folder / "decisions" / shard

    def refined(self, shard: str) -> Path:
        """The kept conversations of a shard."""
        return self.folder / "refined" / shard

    def rejected(self, shard: str) -> Path:
        """The dropped conversations of a shard, with their reasons."""
        return self.folder / "rejected" / shard

    def quarantine(self, shard: str) -> Path:
        """The unreadable rows of a shard."""
        return self.folder / "quarantine" / shard

    @property
    def kept(self) -> Path:
        """The kept records as they came, in files named like the source's."""
        return self.folder / "kept"

    def stage(self, key: str) -> Path:
        """The folder of a stage; `key` is "<stage>-<digest>"."""
        return self.folder / "signals" / key

    def shards(self) -> list[str]:
        """Names of the raw shards, in order; raises `RunFolderError` if the shard list is damaged."""
        names = [str(shard["name"]) for shard in read_json(self.shard_list)["shards"]]
        if strange := [name for name in names if not SHARD.fullmatch(name)]:
            raise RunFolderError(f"{self.shard_list} names a shard {strange[0]!r}: remove it and start the run again")
        return names


def _mounted(url: str) -> Store:
    return Store.at(Path(url)).mount()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of the run; raises `RunFolderError` if it holds no JSON object."""
    try:
        value = json.loads(fetch(path).read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise TypeError(f"a {type(value).__name__}, expected an object")  # noqa: TRY301  said below
    except (ValueError, TypeError, RecursionError) as error:
        raise RunFolderError(f"{path} is not valid JSON ({error}): remove it and start the run again") from error
    return value
