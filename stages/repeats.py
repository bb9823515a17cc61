"""Keys that more than one row has: how many rows have each, and the first of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
Shard = tuple[NDArray[np.int64], Keys]
"""Row numbers and keys of a shard, one pair each row and key; no row has a key twice."""


class Repeats:
    """The keys that more than one row has.

    Args:
        shards: gives the pairs of each shard, in order; called twice.
        size: number of all pairs.

    Memory is 8 bytes a pair, and 25 more for each beyond the first of its key, beside one shard.
    """

    def __init__(self, shards: Callable[[], Iterator[Shard]], size: int) -> None:
        self.keys, self.counts = _repeated(shards(), size)
        self.firsts = np.full(len(self.keys), -1, np.int64)
        for rows, keys in shards():
            at, there = self._find(keys)
            new = np.flatnonzero(there)[::-1]  # backwards: what is written last is the first in order
            new = new[self.firsts[at[new]] < 0]
            self.firsts[at[new]] = rows[new]

    def of(self, keys: Keys) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """How many rows have each key, and the first that has it: 1 and -1 where no other row has it."""
        at, there = self._find(keys)
        if not len(self.keys):
            return np.ones(len(keys), np.int64), np.full(len(keys), -1, np.int64)
        return np.where(there, self.counts[at], 1), np.where(there, self.firsts[at], -1)

    def _find(self, keys: Keys) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        if not len(self.keys):
            return np.zeros(len(keys), np.int64), np.zeros(len(keys), np.bool_)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return at, self.keys[at] == keys


def _repeated(shards: Iterator[Shard], size: int) -> tuple[Keys, NDArray[np.int64]]:
    """Keys that come more than once, sorted, and how often."""
    every, filled = np.empty(size, np.uint64), 0
    for _, keys in shards:
        every[filled : filled + len(keys)] = keys
        filled += len(keys)
    every.sort()
    again = every[1:][every[1:] == every[:-1]]
    values, counts = np.unique(again, return_counts=True)
    return values, counts + 1
