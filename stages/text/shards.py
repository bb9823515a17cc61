"""Rows of a corpus in shards, numbered consecutively; one shard is read at a time."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages import columns
from stages.files import mapped, read_frame, rows
from stages.text.messages import whole_texts

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Shards:
    """Raw shards, and what a stage measured of them: `id` and the signals, as many rows each as the raw shard.

    Every method raises `CorruptInputError` for a shard that it cannot read.
    """

    raw: Sequence[Path]
    measured: Sequence[Path]
    starts: Rows  # [shards + 1], the number of each shard's first row, and of all rows

    @classmethod
    def of(cls, raw: Sequence[Path], measured: Sequence[Path]) -> Shards:
        return cls(raw, measured, np.cumsum([0, *map(rows, measured)], dtype=np.int64))

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def folder(self) -> Path | None:
        """The stage's folder, for temporary files."""
        return self.measured[0].parent if self.measured else None

    def ids(self, at: int) -> pl.Series:
        return column(self.measured[at], "id")

    def signals(self, *columns: str) -> Iterator[tuple[slice, pl.DataFrame]]:
        """Signals of each shard, with its place among all rows."""
        for at, path in enumerate(self.measured):
            yield slice(int(self.starts[at]), int(self.starts[at + 1])), read_frame(path, columns)

    def pairs(self, at: int, signal: str) -> pl.DataFrame:
        """The keys of a shard in a signal, a key or a list of keys: `row` in the shard, from 0, and `key`."""
        frame = column(self.measured[at], signal).to_frame("key").with_row_index("row")
        return (frame.explode("key") if frame["key"].dtype == pl.List else frame).drop_nulls()

    def take(self, numbers: Rows, *columns: str) -> pl.DataFrame:
        """Columns of one or more rows, in the order given; each shard is read once."""
        shard = np.searchsorted(self.starts, numbers, side="right") - 1
        parts = [read_frame(self.raw[at], columns)[numbers[shard == at] - self.starts[at]] for at in np.unique(shard)]
        whole: pl.DataFrame = pl.concat(parts)[np.argsort(np.argsort(shard, kind="stable"))]
        return whole

    def texts(self, chosen: NDArray[np.bool_]) -> Iterator[pl.Series]:
        """Texts and tool calls of the chosen rows, bool [rows], a shard at a time; one without any is not read."""
        for at, path in enumerate(self.raw):
            here = np.flatnonzero(chosen[self.starts[at] : self.starts[at + 1]])
            if len(here):
                yield whole_texts(read_frame(path, ("text", "details"))).gather(here)


class Ids:
    """Ids of some rows, those that others refer to, in temporary files; the rows are in any order, repeats allowed."""

    def __init__(self, shards: Shards, *rows: Rows) -> None:
        import pyarrow as pa

        chosen, total = columns.full(len(shards), 0, np.bool_, shards.folder), 0
        for some in rows:
            chosen[some.ravel()] = True
        numbers = (here.start + np.flatnonzero(chosen[here]) for here in columns.chunks(len(chosen)))
        self._rows = columns.write(numbers, np.int64, shards.folder)
        with tempfile.TemporaryFile(dir=shards.folder) as text, tempfile.TemporaryFile(dir=shards.folder) as ends:
            ends.write(np.zeros(1, np.int64).data)
            for at, (begin, end) in enumerate(pairwise(shards.starts)):
                if len(here := np.flatnonzero(chosen[begin:end])):
                    _, offsets, data = shards.ids(at).gather(here).to_arrow().buffers()
                    own = np.frombuffer(offsets, np.int64)[1 : len(here) + 1]
                    text.write(memoryview(data)[: own[-1]])
                    ends.write((own + total).data)
                    total += int(own[-1])
            buffers = pa.py_buffer(mapped(ends, np.int64)), pa.py_buffer(mapped(text, np.uint8))
        self._ids = pa.LargeStringArray.from_buffers(len(self._rows), *buffers)

    def of(self, rows: Rows) -> pl.Series:
        """Ids of rows, each one of those that were given."""
        return pl.Series("id", self._ids.take(np.searchsorted(self._rows, rows)))


def column(path: Path, name: str) -> pl.Series:
    return read_frame(path, [name])[name]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
