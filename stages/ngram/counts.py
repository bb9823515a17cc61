"""Distinct n-grams and their counts as sorted columns; each order is made from the order below it.

An n-gram is identified by its rank in suffix order (last word first, as lmplz sorts). Ranks of an order are dense, so
the n-grams of the next order are a sorted column of 64-bit keys: the rank of the last n-1 words, then the first word.
For every position of the corpus the rank of the n-gram that ends there is stored, so a context needs no join.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.files import zeros

Column = np.ndarray[Any, np.dtype[np.uint32]]

UNK, BOS, EOS = 0, 1, 2
"""Ids of <unk>, <s> and </s>; the words follow in order of first appearance, as in lmplz."""

NONE = np.uint32(0xFFFFFFFF)
"""The rank or index of an n-gram that does not exist."""

_LARGE = 1 << 24  # n-grams

CHUNK = 1 << 22
"""Number of positions or n-grams in memory at a time."""


@dataclass(frozen=True)
class Ngrams:
    """The distinct n-grams of one order, in suffix order; the columns are on disk."""

    order: int
    parent: Column  # rank of the last n-1 words in the order below; empty for words
    at: Column  # a position of the corpus where the n-gram ends
    count: Column  # number of occurrences
    ending: Column  # for each position of the corpus, the rank of the n-gram that ends there, or NONE

    def __len__(self) -> int:
        return len(self.count)


def slices(size: int, step: int | None = None) -> Iterator[slice]:
    """Slices of `size` positions or n-grams, by default CHUNK at a time."""
    step = step or CHUNK
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))


def unigrams(words: Column, size: int) -> Ngrams:
    """Unigrams of `words`, a corpus of sentences <s> w ... </s>; `size` is the number of ids."""
    count = np.zeros(size, np.uint32)
    for part in slices(len(words)):
        count += np.bincount(words[part], minlength=size).astype(np.uint32)
    return Ngrams(1, np.empty(0, np.uint32), np.empty(0, np.uint32), count, words)


def longer(below: Ngrams, words: Column, folder: Path, partition: int) -> tuple[Ngrams, Column]:
    """The n-grams one word longer than `below`, and the number of left extensions of each n-gram of `below`.

    The new columns are in `folder`; `partition` positions are sorted at a time, with about 50 bytes of memory each.
    """
    order = below.order + 1
    ending = zeros(folder / f"ending{order}", np.uint32, len(words))
    ending[:] = NONE
    names = ("parent", "at", "count")
    parent, at, count = (zeros(folder / f"{name}{order}", np.uint32, len(words)) for name in names)
    extensions = zeros(folder / f"extensions{below.order}", np.uint32, len(below))
    size = 0
    for low, high in _partitions(below.count, partition):
        where = _ending_in(below, words, low, high)
        if not len(where):
            continue
        keys, one, times, rank = _distinct(below.ending[where], words[where - below.order], where)
        end = size + len(keys)
        parents = (keys >> np.uint64(32)).astype(np.uint32)
        parent[size:end], at[size:end], count[size:end] = parents, one, times
        ending[where] = rank + np.uint32(size)
        extensions[low:high] = np.bincount(parents - np.uint32(low), minlength=high - low)
        size = end
    for name in names:  # the rest was never written; free its disk space
        os.truncate(folder / f"{name}{order}", size * ending.itemsize)
    return Ngrams(order, parent[:size], at[:size], count[:size], ending), extensions


def _ending_in(below: Ngrams, words: Column, low: int, high: int) -> npt.NDArray[np.int64]:
    """Positions whose n-gram has a rank in [low, high) and can be extended: it does not begin with <s>."""
    positions = []
    for part in slices(len(words)):
        ranks = below.ending[part]
        inside = np.flatnonzero((ranks >= low) & (ranks < high)) + part.start
        positions.append(inside[words[inside - below.order + 1] != BOS])
    return np.concatenate(positions) if positions else np.empty(0, np.int64)


def _distinct(
    last: Column, first: Column, where: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64], npt.NDArray[np.int64], Column]:
    """Sorted distinct keys, a position and the count of each, and the index of the key for each of `where`."""
    keys = (last.astype(np.uint64) << np.uint64(32)) | first
    by_key = np.argsort(keys)
    keys = keys[by_key]
    new = np.empty(len(keys), np.bool_)
    new[0] = True
    np.not_equal(keys[1:], keys[:-1], out=new[1:])
    starts = np.flatnonzero(new)
    rank = np.empty(len(keys), np.uint32)
    rank[by_key] = np.cumsum(new, dtype=np.uint32) - np.uint32(1)
    return keys[starts], where[by_key[starts]], np.diff(starts, append=len(keys)), rank


def _partitions(count: Column, size: int) -> Iterator[tuple[int, int]]:
    """Ranges of ranks with about `size` positions each; an n-gram is never divided."""
    step = 1 if len(count) < _LARGE else 64  # an 8-byte sum per n-gram of a large corpus would not fit in memory
    at = np.arange(0, len(count), step)
    sums = np.cumsum(np.add.reduceat(count, at, dtype=np.int64)) if len(count) else np.empty(0, np.int64)
    low = before = 0
    while low < len(count):
        reach = max(int(np.searchsorted(sums, before + size, side="right")), low // step + 1)
        high = min(reach * step, len(count))
        yield low, high
        low, before = high, int(sums[reach - 1])
