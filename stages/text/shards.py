"""Rows of a corpus in shards, numbered consecutively; one shard is read at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.files import read_frame, rows

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Shards:
    """Raw shards, and what a stage measured of them.

    Every method raises `CorruptInputError` for a shard that it cannot read.

    Attributes:
        raw: with `text`.
        measured: with `id` and the signals, as many rows each as the raw shard.
        starts: int64 [shards + 1], the number of each shard's first row, and of all rows.
    """

    raw: Sequence[Path]
    measured: Sequence[Path]
    starts: Rows

    @classmethod
    def of(cls, raw: Sequence[Path], measured: Sequence[Path]) -> Shards:
        """Count the rows of each shard."""
        sizes = [rows(path) for path in measured]
        return cls(raw, measured, np.cumsum([0, *sizes], dtype=np.int64))

    def __len__(self) -> int:
        return int(self.starts[-1])

    def ids(self, at: int) -> pl.Series:
        """Ids of a shard."""
        return read_frame(self.measured[at], ["id"])["id"]

    def signals(self, *columns: str) -> Iterator[tuple[slice, pl.DataFrame]]:
        """Signals of each shard, with its place among all rows."""
        for at, path in enumerate(self.measured):
            yield slice(int(self.starts[at]), int(self.starts[at + 1])), read_frame(path, columns)

    def text(self, row: int) -> str:
        """The text of a row."""
        at = int(np.searchsorted(self.starts, row, side="right")) - 1
        return str(read_frame(self.raw[at], ["text"])["text"][int(row - self.starts[at])])

    def texts(self, chosen: NDArray[np.bool_]) -> Iterator[pl.Series]:
        """Texts of the chosen rows, a shard at a time; a shard without any is not read.

        Args:
            chosen: bool [rows].
        """
        for at, path in enumerate(self.raw):
            here = np.flatnonzero(chosen[self.starts[at] : self.starts[at + 1]])
            if len(here):
                yield read_frame(path, ["text"])["text"].gather(here)


class Ids:
    """Ids of some rows, those that others refer to.

    Args:
        shards: the corpus.
        rows: row numbers in any order, repeats allowed.
    """

    def __init__(self, shards: Shards, rows: Rows) -> None:
        self._rows = np.unique(rows)
        cuts = np.searchsorted(self._rows, shards.starts)
        parts = [
            shards.ids(at).gather(self._rows[cuts[at] : cuts[at + 1]] - shards.starts[at])
            for at in range(len(shards.measured))
            if cuts[at] < cuts[at + 1]
        ]
        self._ids = pl.concat([pl.Series("id", [], pl.String), *parts])

    def of(self, rows: Rows) -> pl.Series:
        """Ids of rows, each one of those that were given."""
        return self._ids.gather(np.searchsorted(self._rows, rows))
