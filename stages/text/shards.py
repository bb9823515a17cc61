"""Rows of a corpus that lies in shards, numbered through: a shard is read at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.files import read_frame, rows
from stages.text.shingles import Sets, shingle_sets, split

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Shards:
    """Raw shards and what `stages.dedup` measured of them.

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
        """Count the rows of each.

        Raises:
            CorruptInputError: a footer cannot be read; so do all other methods for a shard that they cannot read.
        """
        sizes = [rows(path) for path in measured]
        return cls(raw, measured, np.cumsum([0, *sizes], dtype=np.int64))

    def __len__(self) -> int:
        return int(self.starts[-1])

    def ids(self, at: int) -> pl.Series:
        """Ids of a shard."""
        return read_frame(self.measured[at], ["id"])["id"]

    def keys(self, kind: str) -> NDArray[np.uint64]:
        """The 128 bits that stand for a text or a prompt, uint64 [n, 2]."""
        columns = [f"{kind}_key", f"{kind}_check"]
        keys = np.empty((len(self), 2), np.uint64)
        for at, path in enumerate(self.measured):
            keys[self.starts[at] : self.starts[at + 1]] = read_frame(path, columns)
        return keys

    def words(self) -> NDArray[np.uint32]:
        """Words of each text, uint32 [n]."""
        words = [read_frame(path, ["dedup_words"])["dedup_words"].to_numpy() for path in self.measured]
        return np.concatenate([np.empty(0, np.uint32), *words])

    def text(self, row: int) -> str:
        """The text of a row."""
        at = int(np.searchsorted(self.starts, row, side="right")) - 1
        place = int(row - self.starts[at])
        return str(read_frame(self.raw[at], ["text"])["text"][place])

    def bands(self, rows: Rows, width: int) -> NDArray[np.uint32]:
        """Band keys of the rows, in order, uint32 [rows, width]."""
        bands = np.empty((len(rows), width), np.uint32)
        for at, here in self._chosen(rows):
            keys = read_frame(self.measured[at], ["band_keys"])["band_keys"]
            bands[here] = keys.gather(rows[here] - self.starts[at]).explode().to_numpy().reshape(-1, width)
        return bands

    def sets(self, rows: Rows, wanted: NDArray[np.bool_], scratch: Path) -> Sets:
        """Sets of shingles of the wanted ones among the rows, written to a file that is read as it is needed."""
        sizes = np.zeros(len(rows) + 1, np.int64)
        with scratch.open("wb") as file:
            for at, here in self._chosen(rows):
                chosen, filled = rows[here][wanted[here]] - self.starts[at], []
                if len(chosen):
                    for words in split(read_frame(self.raw[at], ["text"])["text"].gather(chosen)):
                        values, ends = shingle_sets(words)
                        file.write(values.data)
                        filled.append(np.diff(ends, prepend=0))
                    sizes[1:][here][wanted[here]] = np.concatenate(filled)
        ends = sizes.cumsum(out=sizes)
        return Sets(np.memmap(scratch, np.uint64, "r") if ends[-1] else np.empty(0, np.uint64), ends)

    def _chosen(self, rows: Rows) -> Iterator[tuple[int, slice]]:
        """Each shard with the part of the rows that lies in it."""
        cuts = np.searchsorted(rows, self.starts)
        yield from ((at, slice(int(cuts[at]), int(cuts[at + 1]))) for at in range(len(self.measured)))


class Ids:
    """Ids of the rows that others refer to.

    Args:
        shards: where they stand.
        rows: their numbers, any order, repeats allowed.
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
        """Ids of rows that were asked for."""
        return self._ids.gather(np.searchsorted(self._rows, rows))
