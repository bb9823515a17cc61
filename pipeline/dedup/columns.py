"""Columns of Parquet or JSON files, in batches; a file that cannot be read, or lacks a column, is a `SourceError`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pipeline.sources import SourceError, record_files
from stages import readers
from stages.readers import RECORDS, UnreadableFileError
from stages.stage import reason

BATCH_BYTES = 1 << 25
"""Target size of a batch in bytes."""
BATCH_ROWS = 1000
"""Number of rows of the first batch from Parquet, before the size of a row is known."""


@dataclass(frozen=True)
class Columns:
    """The rows of some files, numbered consecutively."""

    name: str
    paths: tuple[Path, ...]

    @classmethod
    def of(cls, path: Path) -> Columns:
        """The columns of a file or of the files in a folder; raises `SourceError` if there is no file of records."""
        if path.is_dir():
            return cls(str(path), record_files(path))
        if not readers.files(path, RECORDS):
            raise SourceError(f"{path}: expected an existing file or folder, ending in {', '.join(RECORDS)}")
        return cls(str(path), (path,))

    def schema(self) -> pl.Schema:
        """Columns of the first file. Those of JSON are the fields of its first records, of type Unknown."""
        path = self.paths[0]
        with reading(path):
            if _is_parquet(path):
                return pl.scan_parquet(path).collect_schema()
            return pl.Schema(dict.fromkeys(readers.fields(path), pl.Unknown()))

    def whole_schema(self) -> pl.Schema:
        """Columns with their types. Types in JSON are inferred from all records."""
        if all(map(_is_parquet, self.paths)):
            return self.schema()
        union = pl.DataFrame()
        for path in self.paths:
            with reading(path):
                for frame in readers.frames(path, size=BATCH_BYTES):
                    union = pl.concat([union, frame.clear()], how="diagonal_relaxed")
        return union.schema

    def parts(self, schema: pl.Schema) -> Iterator[pl.DataFrame]:
        """Columns of all rows in batches, cast to the types in `schema`. A field that a JSON record lacks is null."""
        for path in self.paths:
            with reading(path):
                yield from _parquet(path, schema) if _is_parquet(path) else readers.frames(path, schema, BATCH_BYTES)


def _is_parquet(path: Path) -> bool:
    return readers.ending(path) == ".parquet"


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Name the file in errors of reading."""
    try:
        yield
    except UnreadableFileError as error:
        raise SourceError(f"{path} {error}: repair it, or choose another file") from error
    except (pl.exceptions.PolarsError, OSError) as error:
        raise SourceError(f"{path} cannot be read ({reason(error)}): repair it, or choose another file") from error


def _parquet(path: Path, schema: pl.Schema) -> Iterator[pl.DataFrame]:
    """Slices of rows: only the pages of a slice are decoded."""
    rows, begin = BATCH_ROWS, 0
    table = pl.scan_parquet(path)
    columns = table.collect_schema()
    if missing := [name for name in schema if name not in columns]:
        raise SourceError(f"{path} has no column {missing[0]!r}, which the first file has")
    table = table.select(pl.col(name).cast(kind) for name, kind in schema.items())
    while len(part := table.slice(begin, rows).collect()):
        yield part
        begin += len(part)
        rows = max(1, min(100 * BATCH_ROWS, int(BATCH_BYTES * len(part) / max(1, part.estimated_size()))))
