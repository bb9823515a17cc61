"""Keys that more than one row has: the number of rows with each, and the first of them. Sorted keys, looked up."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from stages import columns
from stages.text.compiled import Kernels
from stages.text.shards import Rows
from stages.text.shingles import Keys, Words

LOOPS = Kernels("stages.text.hashes_kernel", {"text_runs": "u8* i8* i8 u8*", "find": "u8* u8* i8* u8 i8*"})
Shard = tuple[Rows, Keys]
"""Row numbers and keys of a shard, one pair per row and key; no row has a key twice."""

Table = tuple[Keys, Rows, int]
"""Sorted keys and their prefix index."""


class Repeats:
    """The keys that more than one row has.

    `shards` gives the pairs of each shard, in order, and is called more than once. Memory: that of the prefix index, 4
    bytes per repeated key; files in `folder` of 8 bytes per key, and 24 per repeated key.
    """

    def __init__(self, shards: Callable[[], Iterator[Shard]], folder: Path | None = None) -> None:
        self.keys, self.counts = find_repeats(lambda: (keys for _, keys in shards()), folder)
        self._table = (self.keys, *prefix_index(self.keys))
        self.firsts = columns.full(len(self.keys), -1, np.int64, folder)
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


def find_repeats(shards: Callable[[], Iterator[Keys]], folder: Path | None = None) -> tuple[Keys, Rows]:
    """Keys that occur more than once, sorted, and how often each occurs; `shards` gives the keys of each shard.

    All keys are sorted in a file in `folder`, 8 bytes per key; the repeated ones are in files, 16 bytes for each.
    """
    ordered = columns.write(shards(), np.uint64, folder)
    ordered.sort()
    last = len(ordered) - 1

    def repeated() -> Iterator[Keys]:
        for here in columns.chunks(len(ordered)):
            at = np.arange(here.start, here.stop)
            begins = (ordered[at] != ordered[at - 1]) | (at == 0)
            yield ordered[here][begins & (ordered[at] == ordered[np.minimum(at + 1, last)]) & (at < last)]

    def counts() -> Iterator[Rows]:
        for here in columns.chunks(len(keys)):
            yield np.searchsorted(ordered, keys[here], "right") - np.searchsorted(ordered, keys[here])

    keys = columns.write(repeated(), np.uint64, folder)
    return keys, columns.write(counts(), np.int64, folder)


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
