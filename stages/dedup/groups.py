"""Rows that belong together: exact copies, equal prompts, clusters. Only groups of several rows are held."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.files import in_file
from stages.text.repeats import find, find_repeats, prefix_index
from stages.text.shards import Rows, Shards
from stages.text.shingles import Keys


@dataclass(frozen=True)
class Groups:
    """Groups of two or more rows."""

    rows: Rows  # [members], in order
    first: Rows  # [members], the first row of each one's group

    @classmethod
    def of(cls, first: Rows) -> Groups:
        """Groups from the first row of each row's group, [n]."""
        rows = np.flatnonzero(np.bincount(first, minlength=len(first))[first] > 1)
        return cls(rows, first[rows])

    def in_files(self, folder: Path | None) -> Groups:
        """The same groups in temporary files."""
        return Groups(in_file(self.rows, folder), in_file(self.first, folder))

    @cached_property
    def sizes(self) -> NDArray[np.uint32]:
        """The number of rows in each one's group, [members]."""
        _, at, counts = np.unique(self.first, return_inverse=True, return_counts=True)
        return counts.astype(np.uint32)[at]

    def between(self, start: int, stop: int) -> tuple[Rows, NDArray[np.uint32]]:
        """The first row of the group, and the group's size, for each row from `start` to before `stop`."""
        first, sizes = np.arange(start, stop), np.ones(stop - start, np.uint32)
        here = slice(*np.searchsorted(self.rows, (start, stop)))
        first[self.rows[here] - start], sizes[self.rows[here] - start] = self.first[here], self.sizes[here]
        return first, sizes


def copies(shards: Shards, kind: str, at_once: int, none: NDArray[np.uint64] | None = None) -> Groups:
    """Rows with the same 128-bit key, the signals `<kind>_key` and `<kind>_check`; those with the key `none` are alone.

    Memory: that of `find_repeats` with `at_once`, and 80 bytes per row that has a copy; the groups are in files.
    """
    names = f"{kind}_key", f"{kind}_check"

    def first_halves() -> Iterator[Keys]:
        return (frame[names[0]].to_numpy() for _, frame in shards.signals(names[0]))

    several, _ = find_repeats(first_halves, len(shards), at_once)
    table = (several, *prefix_index(several))
    rows, keys = [np.empty(0, np.int64)], [np.empty((0, 2), np.uint64)]
    for here, frame in shards.signals(*names):
        both = frame.to_numpy()
        chosen = find(frame[names[0]].to_numpy(), *table) >= 0
        if none is not None:
            chosen &= (both != none).any(axis=1)
        rows.append(here.start + np.flatnonzero(chosen))
        keys.append(both[chosen])
    return _equal(np.concatenate(rows), np.concatenate(keys)).in_files(shards.folder)


def _equal(rows: Rows, keys: NDArray[np.uint64]) -> Groups:
    """Groups of the rows, in order, that have the same key, [rows, 2]."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: the first row of a group is its smallest
    keys = keys[order]
    begins = np.flatnonzero(np.append(True, (keys[1:] != keys[:-1]).any(axis=1))[: len(rows)])
    sizes = np.diff(begins, append=len(rows))
    first = np.empty_like(rows)
    first[order] = np.repeat(rows[order[begins]], sizes)
    several = np.empty(len(rows), np.bool_)
    several[order] = np.repeat(sizes > 1, sizes)
    return Groups(rows[several], first[several])
