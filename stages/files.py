"""Files of a run and of a stage: written atomically, read with checks that detect damage.

What reads a file raises `CorruptInputError` if it is missing or damaged.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeVar
from uuid import uuid4

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.stage import RAW, CorruptInputError, reason

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

Number = TypeVar("Number", bound=np.generic)


class Mirror(Protocol):
    """What keeps the files of a folder elsewhere, such as in a bucket: the folder is a cache of it."""

    @property
    def folder(self) -> Path:
        """The folder."""

    def fetch(self, path: Path) -> None:
        """Make a file equal to what is kept, or raise `FileNotFoundError`."""

    def forget(self, path: Path) -> None:
        """Say that a file is about to differ from what is kept."""

    def publish(self, path: Path) -> None:
        """Keep what a file holds now, unless that is kept already."""

    def remove(self, path: Path) -> None:
        """Remove a file, here and there, if it exists."""

    def sizes(self) -> Mapping[str, int]:
        """Bytes of what is kept, by path relative to the folder."""

    def refresh(self, path: Path) -> None:
        """Look again at what is kept of a folder, since other machines may have written there."""


_MIRRORS: dict[Path, Mirror] = {}


def attach(mirror: Mirror) -> None:
    """From now on, let this process read and write the files of a folder through a mirror."""
    _MIRRORS[mirror.folder] = mirror


def detach(folder: Path) -> None:
    """Read and write the files of a folder as such again."""
    _MIRRORS.pop(folder, None)


def _mirror(path: Path) -> Mirror | None:
    """The mirror that keeps a file, if there is one; none keeps a hidden file, such as one in a scratch folder."""
    for folder, mirror in _MIRRORS.items():
        if path.is_relative_to(folder):
            return None if _is_hidden(path.relative_to(folder).parts) else mirror
    return None


def _is_hidden(parts: Iterable[str]) -> bool:
    return any(part.startswith(".") for part in parts)


def fetch(path: Path) -> Path:
    """A file, as it is kept; the path itself."""
    if mirror := _mirror(path):
        mirror.fetch(path)
    return path


def exists(path: Path) -> bool:
    """Whether a file, or a folder with a file in it, is there."""
    if not (mirror := _mirror(path)):
        return path.exists()
    name, sizes = path.relative_to(mirror.folder).as_posix(), mirror.sizes()
    return name in sizes or any(each.startswith(f"{name}/") for each in sizes)


def present(path: Path) -> Path | None:
    """A file as it is kept; None if it is not, whatever was listed before."""
    try:
        return path if fetch(path).exists() else None
    except FileNotFoundError:
        return None


def remove(path: Path) -> None:
    """Remove a file, if it exists."""
    if mirror := _mirror(path):
        mirror.remove(path)
    else:
        path.unlink(missing_ok=True)


def sizes_in(folder: Path, *, anew: bool = False) -> dict[str, int]:
    """Bytes of each visible file below a folder, by path relative to it; `anew` also those of other machines."""
    if not (mirror := _mirror(folder)):
        files = (path for path in folder.rglob("*") if path.is_file())
        found = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    else:
        if anew:
            mirror.refresh(folder)
        prefix = "" if folder == mirror.folder else f"{folder.relative_to(mirror.folder).as_posix()}/"
        sizes = mirror.sizes().items()
        found = {name.removeprefix(prefix): size for name, size in sizes if name.startswith(prefix)}
    return {name: size for name, size in found.items() if not _is_hidden(name.split("/"))}


def publish_new(folder: Path) -> None:
    """Keep the files of a folder that were not written by `save`, such as those of a library."""
    if mirror := _mirror(folder):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not _is_hidden(path.relative_to(mirror.folder).parts):
                mirror.publish(path)


CONVERSATIONS = "refine.conversations"
"""Key in the footer of a file that leaves out what its messages hold already; see `save_conversations`."""
_SPOKEN = pl.element().struct.field("content")
_FIRST = _SPOKEN.filter(pl.element().struct.field("role") == "user").first()
_ASKED = pl.col("messages").list.eval(_FIRST).list.first().fill_null("")
DERIVED = {
    "text": pl.col("messages").list.eval(_SPOKEN).list.join("\n").alias("text"),
    "prompt": pl.coalesce("prompt", _ASKED),
}
"""The columns of `RAW` that are made from the messages when such a file is read."""

FITTED = "fitted.json"
"""Name of the file with the digests of a fit's files. It is written last."""
GROUP = 1 << 20
"""Maximum number of rows of a row group."""
_BLOCK = 1 << 20


def save(path: Path, write: Callable[[Path], object]) -> None:
    """Write a temporary file beside `path`, sync it and rename it, so that an existing file is always complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid4().hex}.tmp")  # a later run removes files of this pattern
    try:
        write(aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        if mirror := _mirror(path):
            mirror.forget(path)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # makes the rename durable
    finally:
        os.close(folder)
    if mirror:
        mirror.publish(path)


def save_json(path: Path, value: object, *, indent: int = 2, end: str = "\n") -> None:
    """Save a value as indented JSON, with `end` after the last bracket."""
    text = json.dumps(value, indent=indent, ensure_ascii=False) + end
    save(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def save_frame(path: Path, frame: pl.DataFrame, metadata: Mapping[str, str] | None = None) -> None:
    """Save a frame as Parquet with plain Arrow types, page checksums, and `metadata` in the footer.

    Empty metadata and None give different bytes.
    """
    save_parts(path, frame.schema, [frame], metadata)


def save_parts(
    path: Path, schema: pl.Schema, parts: Iterable[pl.DataFrame], metadata: Mapping[str, str] | None = None
) -> None:
    """Save frames of a schema as `save_frame` saves them together, if all but the last have `GROUP` rows."""
    import pyarrow.parquet as pq  # takes 0.1 s to import, and `refine --help` must not wait for it

    kinds = plain_table(pl.DataFrame(schema=schema)).schema
    if metadata is not None:
        kinds = kinds.with_metadata(dict(metadata))

    def into(aside: Path) -> None:
        with pq.ParquetWriter(aside, kinds, compression="zstd", write_page_checksum=True) as file:
            for part in parts:
                if part.height:  # `datasets` cannot read a row group without rows
                    file.write_table(plain_table(part).replace_schema_metadata(kinds.metadata), GROUP)

    save(path, into)


def save_conversations(path: Path, frame: pl.DataFrame, metadata: Mapping[str, str]) -> None:
    """Save a shard of conversations without a second copy of its texts.

    `text` is left out, and a prompt is null if it is the first message of the user, or empty and there is none.
    `read_frame` gives both back.
    """
    prompt = pl.when(pl.col("prompt") != _ASKED).then("prompt").alias("prompt")
    save_frame(path, frame.with_columns(prompt).drop("text"), {CONVERSATIONS: "2", **metadata})


def plain_table(frame: pl.DataFrame) -> pa.Table:
    """A frame as an Arrow table of plain types, because `datasets` shows polars' large types as `LargeList`."""
    import pyarrow as pa

    table = frame.to_arrow()
    return table.cast(pa.schema([pa.field(field.name, _plain(field.type)) for field in table.schema]))


def _plain(kind: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_large_list(kind):
        return pa.list_(_plain(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _plain(field.type)) for field in kind])
    return kind


def read_frame(path: Path, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """Read columns of a Parquet file, in the order given, and verify its page checksums.

    Of a raw or repaired shard, these are columns of `RAW`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = None if columns is None else list(columns)
    try:  # pq.read_table would import pandas: 0.4 s
        with pq.ParquetFile(fetch(path), page_checksum_verification=True) as file:
            derived = CONVERSATIONS.encode() in (file.metadata.metadata or {})
            stored = _stored(names) if names and derived else names
            table = file.read(stored)
        frame = pl.from_arrow(table.select(stored) if stored else table)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise _corrupt(path, error) from error
    del table
    pa.default_memory_pool().release_unused()  # Arrow would keep the decompressed pages
    assert isinstance(frame, pl.DataFrame)  # noqa: S101  a table is never a Series
    return with_derived(frame, names) if derived else frame


Frame = TypeVar("Frame", pl.DataFrame, pl.LazyFrame)


def with_derived(frame: Frame, names: Sequence[str] | None = None) -> Frame:
    """Conversations with the columns that `save_conversations` leaves out; by default all columns, as in `RAW`."""
    if not names:
        there: dict[str, None] = dict.fromkeys([*frame.collect_schema().names(), *DERIVED])
        names = [*(name for name in RAW if name in there), *(name for name in there if name not in RAW)]
    return frame.with_columns(DERIVED[name] for name in DERIVED if name in names).select(names)


def _stored(names: Sequence[str]) -> list[str]:
    """The columns of a file from which some columns are made."""
    more = ["messages"] if DERIVED.keys() & set(names) else []
    return [name for name in dict.fromkeys([*names, *more]) if name != "text"]


def read_batches(path: Path, size: int = 1 << 16) -> Iterator[pl.DataFrame]:
    """Read a Parquet file in batches of at most `size` rows, and verify its page checksums."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(fetch(path), page_checksum_verification=True) as file:
            for batch in file.iter_batches(size):
                yield pl.DataFrame(batch)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _corrupt(path, error) from error


class Frames:
    """Frames of a schema in a temporary file; together they are one frame, which is mapped and takes no memory."""

    def __init__(self, folder: Path | None, schema: pl.Schema) -> None:
        import pyarrow as pa

        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed when all is mapped
        self._writer = pa.ipc.new_stream(self._file, _views(pl.DataFrame(schema=schema)).schema)

    def add(self, frame: pl.DataFrame) -> None:
        """Add a frame, before `whole` is read."""
        self._writer.write_table(_views(frame))

    @cached_property
    def whole(self) -> pl.DataFrame:
        """All of them, one after the other."""
        import pyarrow as pa

        self._writer.close()
        buffer = pa.py_buffer(mapped(self._file, np.uint8))
        frame = pl.from_arrow(pa.ipc.open_stream(buffer).read_all(), rechunk=False)
        self._file.close()  # the mapping stays
        assert isinstance(frame, pl.DataFrame)  # noqa: S101  a table is never a Series
        return frame


def _views(frame: pl.DataFrame) -> pa.Table:
    """A frame as an Arrow table with polars' own types, which are mapped without a copy."""
    return frame.to_arrow(compat_level=pl.CompatLevel.newest())


def rows(path: Path) -> int:
    """Number of rows of a Parquet file, from its footer."""
    return int(_footer(path).num_rows)


def footer(path: Path) -> dict[str, str]:
    """Key-value metadata of a Parquet file."""
    metadata = _footer(path).metadata or {}
    return {key.decode(): value.decode() for key, value in metadata.items() if key != b"ARROW:schema"}


def _footer(path: Path) -> pq.FileMetaData:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_metadata(fetch(path))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _corrupt(path, error) from error


def read_json(path: Path) -> Any:  # noqa: ANN401  any JSON
    try:
        return json.loads(fetch(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _corrupt(path, error) from error


def _corrupt(path: Path, error: Exception) -> CorruptInputError:
    return CorruptInputError(path, "it is not there" if isinstance(error, FileNotFoundError) else reason(error))


def seal(folder: Path, names: Iterable[str]) -> None:
    """Write `fitted.json`, the digests of the files that a fit wrote, as the last step of the fit."""
    files = {name: _digest(folder / name) for name in sorted(names)}
    save_json(folder / FITTED, {"files": files, "digest": _of(files)}, indent=1, end="")


def check_fitted(folder: Path) -> None:
    """Check the files that a fit wrote against `fitted.json`."""
    seals = read_json(folder / FITTED)
    files = seals.get("files") if isinstance(seals, dict) else None
    if not isinstance(files, dict) or seals.get("digest") != _of(files):
        raise CorruptInputError(folder / FITTED, "its digests have changed since it was written")
    for name, digest in files.items():
        try:
            now = _digest(folder / name)
        except OSError as error:
            raise _corrupt(folder / name, error) from error
        if now != digest:
            raise CorruptInputError(folder / name, f"its digest is {now}, and was {digest} when it was written")


def _of(files: dict[str, str]) -> str:
    return hashlib.blake2b(json.dumps(files).encode(), digest_size=8).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        state: Any = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8))
    return str(state.hexdigest())


@contextmanager
def scratch(folder: Path, name: str) -> Iterator[Path]:
    """A new folder `.<name>.<pid>.scratch` for temporary files; those of processes that were killed are removed."""
    for left in folder.glob(f".{name}.*.scratch"):
        shutil.rmtree(left)
    aside = folder / f".{name}.{os.getpid()}.scratch"
    aside.mkdir(parents=True)
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)  # the caller may have renamed it in order to keep it


def mapped(file: Path | IO[bytes], kind: type[Number]) -> NDArray[Number]:
    """A file of numbers as a memory-mapped array, which can be changed if the file is open."""
    if isinstance(file, Path):
        return np.memmap(file, kind, "r") if file.stat().st_size else np.empty(0, kind)
    file.flush()
    return np.memmap(file, kind, "r+") if os.fstat(file.fileno()).st_size else np.empty(0, kind)


def in_file(values: NDArray[Number], folder: Path | None) -> NDArray[Number]:
    """The same numbers, mapped from a temporary file, so that they take no memory; they can be changed."""
    with tempfile.TemporaryFile(dir=folder) as file:
        values.tofile(file)
        return mapped(file, values.dtype.type).reshape(values.shape)


def zeros(path: Path, kind: type[Number], size: int) -> NDArray[Number]:
    """A memory-mapped array of zeros in a new file, its disk space allocated up front (`OSError` if the disk is full).

    Writing to a sparse mapped file on a full disk would end the process with SIGBUS.
    """
    if not size:
        path.touch()
        return np.empty(0, kind)
    length = size * np.dtype(kind).itemsize
    with path.open("w+b") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, length)
        else:  # macOS: written blocks of zeros are allocated
            for begin in range(0, length, _BLOCK):
                file.write(bytes(min(_BLOCK, length - begin)))
    return np.memmap(path, kind, "r+", shape=(size,))
