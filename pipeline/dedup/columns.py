"""Columns of a Parquet or JSON file, or of a folder of them, in batches of bounded memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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
        """The columns of a file or of the files in a folder.

        Raises:
            SourceError: there is no file of records.
        """
        if path.is_dir():
            return cls(str(path), record_files(path))
        if not readers.files(path, RECORDS):
            raise SourceError(f"{path}: expected an existing file or folder, ending in {', '.join(RECORDS)}")
        return cls(str(path), (path,))

    def schema(self) -> pl.Schema:
        """Columns of the first file. Those of JSON are the fields of its first records, of type Unknown.

        Raises:
            SourceError: the file cannot be read.
        """
        path = self.paths[0]
        with _reading(path):
            if _is_parquet(path):
                return pl.scan_parquet(path).collect_schema()
            return pl.Schema(dict.fromkeys(readers.fields(path), pl.Unknown()))

    def whole_schema(self) -> pl.Schema:
        """Columns with their types. Types in JSON are inferred from all records.

        Raises:
            SourceError: a file cannot be read.
        """
        if all(map(_is_parquet, self.paths)):
            return self.schema()
        union = pl.DataFrame()
        for path in self.paths:
            with _reading(path):
                for frame in readers.frames(path, size=BATCH_BYTES):
                    union = pl.concat([union, frame.clear()], how="diagonal_relaxed")
        return union.schema

    def parts(self, schema: pl.Schema) -> Iterator[pl.DataFrame]:
        """Columns of all rows in batches, cast to the types in `schema`. A field that a JSON record lacks is null.

        Raises:
            SourceError: a file cannot be read, or a Parquet file lacks a column.
        """
        for path in self.paths:
            with _reading(path):
                yield from _parquet(path, schema) if _is_parquet(path) else readers.frames(path, schema, BATCH_BYTES)


def _is_parquet(path: Path) -> bool:
    return readers.ending(path) == ".parquet"


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
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


@dataclass
class Texts:
    """A column of texts of one or more corpora that can be iterated repeatedly. Null becomes the empty text.

    Attributes:
        corpora: the corpora, read one after the other.
        name: the column.
        most: maximum size in bytes of texts that are kept in memory; larger ones are read again.
        tell: called with the number of rows read so far.
        counts: the number of rows of each corpus, known after the first iteration.
    """

    corpora: Sequence[Columns]
    name: str
    most: int = 1 << 28
    tell: Callable[[int], None] | None = None
    counts: list[int] = field(default_factory=list)
    _kept: list[pl.Series] = field(default_factory=list)
    _whole: bool = False

    def __iter__(self) -> Iterator[pl.Series]:
        if self._whole:
            yield from self._kept
            return
        self._kept, self.counts, size = [], [], 0.0
        for corpus in self.corpora:
            self.counts.append(0)
            for part in corpus.parts(pl.Schema({self.name: pl.String()})):
                texts = part[self.name].fill_null("")
                self.counts[-1] += len(texts)
                size += texts.estimated_size()
                self._kept = [*self._kept, texts] if size <= self.most else []
                if self.tell:
                    self.tell(sum(self.counts))
                yield texts
        self._whole = size <= self.most
