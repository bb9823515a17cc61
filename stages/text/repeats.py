"""Keys that more than one row has: the number of rows with each, and the first of them."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
Shard = tuple[NDArray[np.int64], Keys]
"""Row numbers and keys of a shard, one pair per row and key; no row has a key twice."""

AT_ONCE = 1 << 25
"""Maximum number of keys sorted at once: 256 MB."""


class Repeats:
    """The keys that more than one row has.

    `shards` gives the pairs of each shard, in order, and is called more than once; `size` is the number of all pairs.
    Memory: that of `find_repeats`, and 24 bytes per repeated key.
    """

    def __init__(self, shards: Callable[[], Iterator[Shard]], size: int) -> None:
        self.keys, self.counts = find_repeats(lambda: (keys for _, keys in shards()), size)
        self.firsts = np.full(len(self.keys), -1, np.int64)
        for rows, keys in shards():
            at, there = self._find(keys)
            new = np.flatnonzero(there)[::-1]  # backwards, so that the first row of a key is written last
            new = new[self.firsts[at[new]] < 0]
            self.firsts[at[new]] = rows[new]

    def of(self, keys: Keys) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The number of rows with each key, and the first of them; 1 and -1 if no other row has it."""
        at, there = self._find(keys)
        if not len(self.keys):
            return np.ones(len(keys), np.int64), np.full(len(keys), -1, np.int64)
        return np.where(there, self.counts[at], 1), np.where(there, self.firsts[at], -1)

    def _find(self, keys: Keys) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        if not len(self.keys):
            return np.zeros(len(keys), np.int64), np.zeros(len(keys), np.bool_)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return at, self.keys[at] == keys


def find_repeats(
    shards: Callable[[], Iterator[Keys]], size: int, at_once: int = AT_ONCE
) -> tuple[Keys, NDArray[np.int64]]:
    """Keys that occur more than once, sorted, and how often each occurs.

    The keys are uniform hashes. They are sorted by their top bits, in as many passes as hold about `at_once` in memory:
    8 bytes per key, and 17 more per repetition. `shards` gives the keys of each shard, `size` of them in all.
    """
    bits = max(0, (size - 1) // at_once).bit_length()
    parts = [_find_in_part(shards(), size, part, bits) for part in range(1 << bits)]
    return np.concatenate([keys for keys, _ in parts]), np.concatenate([counts for _, counts in parts])


def _find_in_part(shards: Iterator[Keys], size: int, part: int, bits: int) -> tuple[Keys, NDArray[np.int64]]:
    """The repeated keys whose top bits are `part`."""
    if bits:
        shift = np.uint64(64 - bits)
        every = np.concatenate([np.empty(0, np.uint64), *(keys[keys >> shift == part] for keys in shards)])
    else:
        every, filled = np.empty(size, np.uint64), 0
        for keys in shards:
            every[filled : filled + len(keys)] = keys
            filled += len(keys)
    every.sort()
    values, counts = np.unique(every[1:][every[1:] == every[:-1]], return_counts=True)
    return values, counts + 1


def prefix_index(keys: Keys) -> tuple[NDArray[np.int64], int]:
    """Begin of each value of the top bits in sorted keys (about four keys per value), and the number of lower bits."""
    bits = max(1, (len(keys) // 4).bit_length())
    tops = np.arange(1 << bits, dtype=np.uint64) << np.uint64(64 - bits)
    return np.append(np.searchsorted(keys, tops), len(keys)), 64 - bits
