"""Keys that more than one row has: the number of rows with each, and the first of them. Sorted keys, looked up."""

from collections.abc import Callable, Iterator

import numpy as np

from stages.text.compiled import Kernels
from stages.text.shards import Rows
from stages.text.shingles import Keys, Words

LOOPS = Kernels("stages.text.hashes_kernel", {"text_runs": "u8* i8* i8 u8*", "find": "u8* u8* i8* u8 i8*"})
Shard = tuple[Rows, Keys]
"""Row numbers and keys of a shard, one pair per row and key; no row has a key twice."""

Table = tuple[Keys, Rows, int]
"""Sorted keys and their prefix index."""

AT_ONCE = 1 << 25
"""Maximum number of keys sorted at once: 256 MB."""


class Repeats:
    """The keys that more than one row has.

    `shards` gives the pairs of each shard, in order, and is called more than once; `size` is the number of all pairs.
    Memory: that of `find_repeats`, and 24 bytes per repeated key.
    """

    def __init__(self, shards: Callable[[], Iterator[Shard]], size: int) -> None:
        self.keys, self.counts = find_repeats(lambda: (keys for _, keys in shards()), size)
        self._table = (self.keys, *prefix_index(self.keys))
        self.firsts = np.full(len(self.keys), -1, np.int64)
        for rows, keys in shards():
            at = find(keys, *self._table)
            new = np.flatnonzero(at >= 0)[::-1]  # backwards, so that the first row of a key is written last
            new = new[self.firsts[at[new]] < 0]
            self.firsts[at[new]] = rows[new]

    def of(self, keys: Keys) -> tuple[Rows, Rows]:
        """The number of rows with each key, and the first of them; 1 and -1 if no other row has it."""
        at = find(keys, *self._table)
        there = at >= 0
        counts, firsts = np.ones(len(at), np.int64), np.full(len(at), -1, np.int64)
        counts[there], firsts[there] = self.counts[at[there]], self.firsts[at[there]]
        return counts, firsts


def find_repeats(shards: Callable[[], Iterator[Keys]], size: int, at_once: int = AT_ONCE) -> tuple[Keys, Rows]:
    """Keys that occur more than once, sorted, and how often each occurs.

    The keys are uniform hashes. They are sorted by their top bits, in as many passes as hold about `at_once` in memory:
    8 bytes per key, and 17 more per repetition. `shards` gives the keys of each shard, `size` of them in all.
    """
    bits = max(0, (size - 1) // at_once).bit_length()
    parts = [_find_in_part(shards(), size, part, bits) for part in range(1 << bits)]
    return np.concatenate([keys for keys, _ in parts]), np.concatenate([counts for _, counts in parts])


def _find_in_part(shards: Iterator[Keys], size: int, part: int, bits: int) -> tuple[Keys, Rows]:
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


def prefix_index(keys: Keys) -> tuple[Rows, int]:
    """Begin of each value of the top bits in sorted keys (about four keys per value), and the number of lower bits."""
    bits = max(1, (len(keys) // 4).bit_length())
    tops = np.arange(1 << bits, dtype=np.uint64) << np.uint64(64 - bits)
    return np.append(np.searchsorted(keys, tops), len(keys)), 64 - bits


def find(values: Keys, keys: Keys, starts: Rows, shift: int) -> Rows:
    """The index of each value among sorted keys, or -1; `starts` and `shift` are their prefix index."""
    found = np.empty(len(values), np.int64)
    LOOPS.call("find", values, keys, starts, shift, found)
    return found


def text_runs(words: Words, width: int) -> Keys:
    """The hash of the run of `width` words that begins at each word, or 0 if its text ends before."""
    hashes = np.empty(words.ends[-1], np.uint64)
    LOOPS.call("text_runs", words.hashes, words.ends, width, hashes)
    return hashes
