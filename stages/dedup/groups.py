"""Rows that belong together: exact copies, equal prompts, clusters. Only groups of several rows are held, in files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages import columns
from stages.columns import chunks
from stages.dedup.kernel import B32, ROW
from stages.dedup.signatures import pack
from stages.text.repeats import find, find_repeats, prefix_index
from stages.text.shards import Rows, Shards
from stages.text.shingles import Keys


@dataclass(frozen=True)
class Groups:
    """Groups of two or more rows."""

    rows: Rows  # [members], in order
    first: Rows  # [members], the first row of each one's group
    ordered: Rows  # [members], `first` in order: a group has as many rows as its first row has places here

    @classmethod
    def of(cls, first: Rows) -> Groups:
        """Groups from the first row of each row's group, [n]; memory: 16 bytes per row."""
        rows = np.flatnonzero(np.bincount(first, minlength=len(first))[first] > 1)
        return cls(rows, first[rows], np.sort(first[rows]))

    @classmethod
    def of_members(cls, rows: Rows, first: Rows, folder: Path | None) -> Groups:
        """Groups from their rows, in order, and the first row of each one's group."""
        return cls(rows, first, columns.sort(first, folder))

    def between(self, start: int, stop: int) -> tuple[Rows, NDArray[np.uint32]]:
        """The first row of the group, and the group's size, for each row from `start` to before `stop`."""
        first, sizes = np.arange(start, stop), np.ones(stop - start, np.uint32)
        here = slice(*np.searchsorted(self.rows, (start, stop)))
        first[self.rows[here] - start], sizes[self.rows[here] - start] = self.first[here], self._sizes(self.first[here])
        return first, sizes

    def largest(self, count: int) -> list[tuple[int, int]]:
        """The first row and the size of the largest groups; of groups of a size, the first come first."""
        best = np.empty(0, np.int64)
        for here in chunks(len(self.ordered)):
            first = np.unique(np.append(self.ordered[here], best))
            best = first[np.argsort(-self._sizes(first), kind="stable")[:count]]
        return list(zip(best.tolist(), self._sizes(best).tolist(), strict=True))

    def later(self) -> int:
        """The number of rows that are not the first of their group."""
        return sum(int(np.count_nonzero(self.rows[here] > self.first[here])) for here in chunks(len(self.rows)))

    def _sizes(self, first: Rows) -> Rows:
        return np.searchsorted(self.ordered, first, "right") - np.searchsorted(self.ordered, first)


def copies(shards: Shards, kind: str, none: NDArray[np.uint64] | None = None) -> Groups:
    """Rows with the same 128-bit key, the signals `<kind>_key` and `<kind>_check`; those with the key `none` are alone.

    Memory: that of `find_repeats`; files of 8 bytes per row, and 104 per row that has a copy.
    """
    names = f"{kind}_key", f"{kind}_check"

    def first_halves() -> Iterator[Keys]:
        return (frame[names[0]].to_numpy() for _, frame in shards.signals(names[0]))

    several, _ = find_repeats(first_halves, shards.folder)
    table = (several, *prefix_index(several))

    def members() -> Iterator[NDArray[np.uint64]]:
        for here, frame in shards.signals(*names):
            both = frame.to_numpy()
            chosen = find(frame[names[0]].to_numpy(), *table) >= 0
            if none is not None:
                chosen &= (both != none).any(axis=1)
            yield np.column_stack([here.start + np.flatnonzero(chosen).astype(np.uint64), both[chosen]])

    return equal_rows(columns.write(members(), np.uint64, shards.folder).reshape(-1, 3), shards.folder)


def equal_rows(members: NDArray[np.uint64], folder: Path | None) -> Groups:
    """Groups of the rows that have the same key: `members`, [n, 3], are row, key and check, in order of rows."""
    keys, checks = (columns.ranks(members[:, half], folder) for half in (1, 2))
    every = [*chunks(len(members))]
    begins = columns.ranks(columns.write((pack(keys[i], checks[i]) for i in every), np.uint64, folder), folder)
    packs = (pack(begins[i], np.arange(i.start, i.stop)) for i in every)
    order = columns.write(packs, np.uint64, folder)
    order.sort()  # where a row's group begins is its rank

    def groups() -> Iterator[NDArray[np.uint64]]:
        for here in every:
            begin = begins[here].astype(np.int64)
            second = np.minimum(begin + 1, len(order) - 1)
            several = (order[second] >> B32 == begins[here]) & (second > begin)
            first = members[(order[begin[several]] & ROW).astype(np.int64), 0]
            yield np.column_stack([members[here, 0][several], first])

    both = columns.write(groups(), np.int64, folder).reshape(-1, 2)
    rows, first = (columns.write((both[i, side] for i in chunks(len(both))), np.int64, folder) for side in (0, 1))
    return Groups.of_members(rows, first, folder)
