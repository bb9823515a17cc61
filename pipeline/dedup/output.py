"""Files of `refine dedup`: the kept rows or their ids, and each removed row with the kept one that it repeats."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.dedup.texts import Ids, Texts, is_json, reading
from pipeline.sources import SourceError
from stages import readers
from stages.dedup.keep import Selection

STEP = 1 << 20
"""Number of row numbers that are made at once."""


@dataclass(frozen=True)
class Result:
    """The decision about each text.

    Attributes:
        texts: those of the earlier corpus, if any, and the file's own.
        ids: those of each corpus; none if its rows are numbered.
        kept: of all these texts.
    """

    texts: Texts
    ids: Sequence[Ids | None]
    kept: Selection

    @property
    def start(self) -> int:
        """The first of the file's own texts."""
        return sum(self.texts.counts[:-1])

    def mask(self) -> NDArray[np.bool_]:
        """Whether each row of the file is kept."""
        return self.kept.mask()[self.start :]

    def ids_of(self, at: int) -> Iterator[pl.Series]:
        """Ids of a corpus, in parts; row numbers from 0 if it has no column of ids."""
        ids, count = self.ids[at], self.texts.counts[at]
        if ids is not None:
            return iter(ids)
        cuts = range(0, count, STEP)
        return (pl.Series("id", np.arange(cut, min(cut + STEP, count))).cast(pl.String) for cut in cuts)

    def id_of(self, rows: NDArray[np.int64]) -> pl.Series:
        """Ids of some of all texts; `rows` ascend."""
        return gather_rows(chain.from_iterable(map(self.ids_of, range(len(self.ids)))), rows)


def write_ids(result: Result, path: Path) -> None:
    """Write kept ids, one per line; raises `SourceError` if an id has a line break."""
    mask, begin, name = result.mask(), 0, getattr(result.ids[-1], "name", None)
    with path.open("wb") as file:
        for ids in result.ids_of(-1):
            chosen = ids.filter(pl.Series(mask[begin : begin + len(ids)]))
            begin += len(ids)
            if chosen.str.contains_any(["\n", "\r"]).any():
                raise SourceError(f"an id of the column {name!r} has a line break: write --kept to a .parquet file")
            chosen.to_frame().write_csv(file, include_header=False, quote_style="never")


def write_removed(result: Result, path: Path) -> None:
    """Write id, duplicate_of and jaccard (float32) of each removed row."""
    rows = result.start + np.flatnonzero(~result.mask())
    others, at = np.unique(result.kept.of[rows], return_inverse=True)
    pl.DataFrame(
        {
            "id": result.id_of(rows),
            "duplicate_of": result.id_of(others).gather(at),
            "jaccard": result.kept.jaccard[rows],
        }
    ).write_parquet(path)


def write_parquet(result: Result, path: Path) -> None:
    """Write the kept rows, all columns; Parquet keeps its schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns, mask, begin = result.texts.corpora[-1].columns, result.mask(), 0
    schema = columns.whole_schema()
    with contextlib.ExitStack() as stack:
        writer = None
        for part in columns.parts(schema):
            chosen = part.filter(pl.Series(mask[begin : begin + len(part)])).to_arrow()
            begin += len(part)
            writer = writer or stack.enter_context(pq.ParquetWriter(path, chosen.schema, compression="zstd"))
            if chosen.num_rows:
                writer.write_table(chosen)
        if not writer:
            stack.enter_context(pq.ParquetWriter(path, pa.schema([])))


def write_lines(result: Result, path: Path) -> None:
    """Write the kept rows as JSON lines: the lines of a JSON file as they are, rows of a table as objects."""
    columns, mask, begin = result.texts.corpora[-1].columns, result.mask(), 0
    with path.open("wb") as out:
        for source in columns.paths:
            if not is_json(source):
                with reading(source):
                    for part in readers.frames(source):
                        part.filter(pl.Series(mask[begin : begin + len(part)])).write_ndjson(out)
                        begin += len(part)
                continue
            with reading(source):
                for row in (line.strip() for _, batch in readers.lines(source) for line in batch):
                    if row and mask[begin]:
                        out.write(row + b"\n")
                    begin += bool(row)


WRITERS: dict[str, Callable[[Result, Path], None]] = {
    ".parquet": write_parquet,
    ".jsonl": write_lines,
    ".txt": write_ids,
}
"""Writers of the kept rows, by the ending of the file."""


def gather_rows(parts: Iterator[pl.Series], rows: NDArray[np.int64]) -> pl.Series:
    """Some rows of a column in parts; `rows` ascend."""
    begin, taken = 0, [pl.Series("values", [], pl.String)]
    with contextlib.suppress(StopIteration):
        while len(rows):
            part = next(parts)
            count = int(np.searchsorted(rows, begin + len(part)))
            taken.append(part.gather(rows[:count] - begin).alias("values"))
            rows, begin = rows[count:], begin + len(part)
    return pl.concat(taken)
