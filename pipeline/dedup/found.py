"""What `refine dedup` found, and how it is written: ids, rows, removed ones with the one kept for them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.dedup.columns import Columns, Texts
from pipeline.sources import SourceError
from stages.dedup.keep import Kept

STEP = 1 << 20
"""Row numbers made at once."""


@dataclass(frozen=True)
class Found:
    """What was found, of which rows.

    Attributes:
        columns: the file that is read.
        texts: the texts of what it is compared with, if anything, and its own.
        ids: the column of ids of each of these corpora, none where they have row numbers.
        kept: of all these texts.
        start: where the file's own begin.
    """

    columns: Columns
    texts: Texts
    ids: Sequence[str | None]
    kept: Kept
    start: int

    def mask(self) -> NDArray[np.bool_]:
        """Whether each row of the file is kept."""
        return self.kept.mask()[self.start :]

    def every_id(self) -> Iterator[pl.Series]:
        """Ids of all texts, in parts; row numbers from 0 where there is no such column."""
        for corpus, name, count in zip(self.texts.corpora, self.ids, self.texts.counts, strict=True):
            if name is not None:
                for part in corpus.parts(pl.Schema({name: pl.String()})):
                    yield part[name].rename("id").fill_null("")
                continue
            for at in range(0, count, STEP):
                yield pl.Series("id", np.arange(at, min(at + STEP, count))).cast(pl.String)

    def own_ids(self) -> Iterator[pl.Series]:
        """Ids of the file's rows, in parts."""
        begin = 0
        for ids in self.every_id():
            begin += len(ids)
            if begin > self.start:
                yield ids.tail(begin - self.start)

    def of(self, rows: NDArray[np.int64]) -> pl.Series:
        """Ids of some of all texts; they ascend."""
        return gathered(self.every_id(), rows)


def write_ids(found: Found, path: Path) -> None:
    """Write kept ids, one a line.

    Raises:
        SourceError: an id has a line break.
    """
    mask, begin = found.mask(), 0
    with path.open("wb") as file:
        for ids in found.own_ids():
            chosen = ids.filter(pl.Series(mask[begin : begin + len(ids)]))
            begin += len(ids)
            if chosen.str.contains_any(["\n", "\r"]).any():
                raise SourceError(
                    f"an id of the column {found.ids[-1]!r} has a line break: write --kept to a .parquet file"
                )
            chosen.to_frame().write_csv(file, include_header=False, quote_style="never")


def write_removed(found: Found, path: Path) -> None:
    """Write id, duplicate_of and jaccard (float32) of each removed row."""
    rows = found.start + np.flatnonzero(~found.mask())
    others, at = np.unique(found.kept.of[rows], return_inverse=True)
    pl.DataFrame(
        {
            "id": found.of(rows),
            "duplicate_of": found.of(others).gather(at),
            "jaccard": found.kept.jaccard[rows],
        }
    ).write_parquet(path)


def write_rows(found: Found, path: Path) -> None:
    """Write the chosen rows, all columns; Parquet keeps its schema.

    Raises:
        SourceError: a file cannot be read, or lacks a column of the first.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns, mask = found.columns, found.mask()
    schema = columns.whole_schema()
    begin, writer = 0, None
    try:
        for part in columns.parts(schema):
            chosen = part.filter(pl.Series(mask[begin : begin + len(part)])).to_arrow()
            begin += len(part)
            writer = writer or pq.ParquetWriter(path, chosen.schema, compression="zstd")
            if chosen.num_rows:
                writer.write_table(chosen)
        writer = writer or pq.ParquetWriter(path, pa.schema([]))
    finally:
        if writer:
            writer.close()


def gathered(parts: Iterator[pl.Series], rows: NDArray[np.int64]) -> pl.Series:
    """Some rows of a column in parts; they ascend."""
    begin, taken = 0, [pl.Series("found", [], pl.String)]
    with contextlib.suppress(StopIteration):
        while len(rows):
            part = next(parts)
            count = int(np.searchsorted(rows, begin + len(part)))
            taken.append(part.gather(rows[:count] - begin).alias("found"))
            rows, begin = rows[count:], begin + len(part)
    return pl.concat(taken)
