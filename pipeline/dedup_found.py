"""What `refine dedup` found, and how it is written: ids, rows, removed ones with the one kept for them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.columns import Columns, Texts
from pipeline.sources import SourceError
from stages.greedy import Kept


@dataclass(frozen=True)
class Found:
    """What was found, of which rows."""

    columns: Columns
    texts: Texts
    id: str | None
    kept: Kept

    def ids(self) -> Iterator[pl.Series]:
        """Ids in parts; row numbers from 0 where there is no such column."""
        if self.id is None:
            step = 1 << 20
            total = len(self.kept.of)
            yield from (
                pl.Series("id", np.arange(at, min(at + step, total))).cast(pl.String) for at in range(0, total, step)
            )
            return
        for part in self.columns.parts(pl.Schema({self.id: pl.String()})):
            yield part[self.id].rename("id").fill_null("")

    def of(self, rows: NDArray[np.int64]) -> pl.Series:
        """Ids of rows, in ascending order without repeats."""
        return gathered(self.ids(), rows)


def write_ids(found: Found, path: Path) -> None:
    mask, begin = found.kept.mask(), 0
    with path.open("wb") as file:
        for ids in found.ids():
            chosen = ids.filter(pl.Series(mask[begin : begin + len(ids)]))
            begin += len(ids)
            if chosen.str.contains_any(["\n", "\r"]).any():
                raise SourceError(f"an id of the column {found.id!r} has a line break: write --kept to a .parquet file")
            chosen.to_frame().write_csv(file, include_header=False, quote_style="never")


def write_removed(found: Found, path: Path) -> None:
    rows = np.flatnonzero(~found.kept.mask())
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

    columns, mask = found.columns, found.kept.mask()
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
