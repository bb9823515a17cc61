"""Files of a stage's folder: how they come into being, and how damage to them is found."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.stage import CorruptInputError

if TYPE_CHECKING:
    import pyarrow as pa

Number = TypeVar("Number", bound=np.generic)

FITTED = "fitted.json"
"""Digests of what a fit left, written last; `fitted` checks them."""
_BLOCK = 1 << 20


def save(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file aside, sync it and rename it, so that a file that exists is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # the name by which a run clears what a kill left
    try:
        write(aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must last too
    finally:
        os.close(folder)


def save_json(path: Path, value: object) -> None:
    """Save a value as indented JSON."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    save(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def save_frame(path: Path, frame: pl.DataFrame) -> None:
    """Save a frame as Parquet of plain Arrow types, with page checksums by which a flipped byte is found."""
    import pyarrow.parquet as pq  # 0.1 s to load, which naming a stage must not cost

    table = plain_table(frame)

    def into(aside: Path) -> None:
        with pq.ParquetWriter(aside, table.schema, compression="zstd", write_page_checksum=True) as file:
            if table.num_rows:  # `datasets` cannot read a row group without rows
                file.write_table(table)

    save(path, into)


def plain_table(frame: pl.DataFrame) -> pa.Table:
    """A frame as an Arrow table of plain types, because polars' own large ones show as `LargeList` in `datasets`."""
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
    """Columns of a Parquet file of the run, in the order asked for; page checksums are verified.

    Raises:
        CorruptInputError: the file is not there, cannot be read whole, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = None if columns is None else list(columns)
    try:
        table = pq.read_table(path, columns=wanted, page_checksum_verification=True, partitioning=None)
        frame = pl.from_arrow(table.select(wanted) if wanted else table)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise _corrupt(path, error) from error
    del table
    pa.default_memory_pool().release_unused()  # Arrow would keep what was unpacked
    assert isinstance(frame, pl.DataFrame)  # noqa: S101  a table is never a Series
    return frame


def rows(path: Path) -> int:
    """Rows of a Parquet file of the run, from its footer.

    Raises:
        CorruptInputError: the footer cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _corrupt(path, error) from error


def read_json(path: Path) -> Any:  # noqa: ANN401  whatever was saved
    """A JSON file that the stage saved.

    Raises:
        CorruptInputError: it is not there, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _corrupt(path, error) from error


def _corrupt(path: Path, error: Exception) -> CorruptInputError:
    why = "it is not there" if isinstance(error, FileNotFoundError) else (str(error).splitlines() or ["no message"])[0]
    return CorruptInputError(path, why)


def seal(folder: Path, left: Iterable[str]) -> None:
    """Write down the digests of what a fit left, as its last step: of each file, and of the digests themselves."""
    files = {name: _digest(folder / name) for name in sorted(left)}
    save_json(folder / FITTED, {"files": files, "digest": _of(files)})


def fitted(folder: Path) -> None:
    """Check that what a fit left is as it left it.

    Raises:
        CorruptInputError: a file is not there or is another; it is named.
    """
    found = read_json(folder / FITTED)
    files = found.get("files") if isinstance(found, dict) else None
    if not isinstance(files, dict) or found.get("digest") != _of(files):
        raise CorruptInputError(folder / FITTED, "it holds other digests than were written")
    for name, digest in files.items():
        try:
            now = _digest(folder / name)
        except OSError as error:
            raise _corrupt(folder / name, error) from error
        if now != digest:
            raise CorruptInputError(folder / name, f"its digest is {now}, {digest} when it was written")


def _of(files: dict[str, str]) -> str:
    return hashlib.blake2b(json.dumps(files).encode(), digest_size=8).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        state: Any = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8))
    return str(state.hexdigest())


@contextmanager
def scratch(folder: Path, name: str) -> Iterator[Path]:
    """An empty folder `.<name>.<pid>.scratch` for files that are not kept; what killed processes left goes first."""
    for left in folder.glob(f".{name}.*.scratch"):
        shutil.rmtree(left)
    aside = folder / f".{name}.{os.getpid()}.scratch"
    aside.mkdir(parents=True)
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)  # it may have been renamed: then it is kept


def zeros(path: Path, kind: type[Number], size: int) -> NDArray[Number]:
    """A column of zeros in a new file, mapped, its room on disk taken now.

    Writing to a sparse mapped file on a full disk would end the process with SIGBUS.

    Raises:
        OSError: the disk is full.
    """
    if not size:
        path.touch()
        return np.empty(0, kind)
    length = size * np.dtype(kind).itemsize
    with path.open("w+b") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, length)
        else:  # macOS: blocks of zeros take their room too
            for begin in range(0, length, _BLOCK):
                file.write(bytes(min(_BLOCK, length - begin)))
    return np.memmap(path, kind, "r+", shape=(size,))
