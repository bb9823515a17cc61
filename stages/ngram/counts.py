"""Distinct n-grams and their counts as sorted columns; each order is made from the order below it.

An n-gram is identified by its rank in suffix order (last word first, as lmplz sorts). Ranks of an order are dense, so
the n-grams of the next order are sorted by two small numbers: the rank of the last n-1 words, then the first word.
For every position of the corpus the rank of the n-gram that ends there is stored, so a context needs no look-up.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.files import Number, zeros
from stages.text.compiled import Kernels

Column = np.ndarray[Any, np.dtype[np.uint32]]

LOOPS = Kernels(
    "stages.ngram.ngram_kernel",
    {
        "hash_words": "u1* i8* u8*",
        "fill": "u8* i8 u8* u4*",
        "number": "u1* i8* u8* u4* u8* i8* i8** u4*",
        "tally": "u4* i8*",
        "partition": "u4* i8 i8* i8* i8 u4*",
        "distribute": "u4* i8 u4* i8* i8* i8 u4* u8*",
        "extend": "u4* i8 i8 u4* u4* i8* i8* i8* u8* u4* u4* u8* u8* i8* u4* u4* u4* u4* u4* i8",
        "place": "u8* i8* i8* i8 u4*",
        "contexts": "u4* u4* u4* u4 f4* u4* u4* f8* f8* u1* u1*",
        "interpolate": "u4* i8 u4* u4* u4* u4* u4 f4* u4* u4* f4* f4* f4* u8* u4* u4* f4* u8*",
        "insert": "u8* u4** u4**",
    },
)

IN_MEMORY = 1 << 24
"""Size in bytes up to which a column is in memory; a larger one is in a file, which the system can write out."""

PARTITION = 1 << 21
"""Maximum number of positions that are sorted at a time, unless one n-gram has more."""

CACHED = 1 << 17
"""Number of positions that are sorted in the processor's cache: two thirds of the time."""

RUNS = 32
"""Maximum number of runs of positions below `PARTITION`: each run reads columns of the corpus from end to end."""

TABLE_BITS = 14
"""Logarithm of the size of the table that finds the run of an n-gram."""

CHUNK = 1 << 20
"""Number of positions or n-grams that an array expression works on at a time."""


@dataclass(frozen=True)
class Ngrams:
    """The distinct n-grams of one order, in suffix order."""

    order: int
    parent: Column  # rank of the last n-1 words in the order below; empty for words
    at: Column  # a position of the corpus where the n-gram ends; empty for words
    context: Column  # rank of the first n-1 words in the order below; empty for words
    count: Column  # number of occurrences
    ending: Column  # for each position of the corpus, the rank of the n-gram that ends there, or NONE; empty if unused

    def __len__(self) -> int:
        return len(self.count)


@dataclass(frozen=True)
class Columns:
    """Columns in memory or, if they are large, in files of a folder, of which the system keeps in memory what fits."""

    folder: Path

    def new(self, name: str, kind: type[Number], size: int) -> np.ndarray[Any, np.dtype[Number]]:
        """A column of zeros. It takes the file of an earlier one with its name, which must not be used any more."""
        small = size * np.dtype(kind).itemsize <= IN_MEMORY
        return np.zeros(size, kind) if small else zeros(self.folder / name, kind, size)

    def cut(self, name: str, column: Column, size: int) -> Column:
        """The first part of a column; the disk space of the rest is freed."""
        if (file := self.folder / name).exists():
            os.truncate(file, size * column.itemsize)
        return column[:size]


def longer(below: Ngrams, words: Column, columns: Columns, *, last: bool) -> tuple[Ngrams, Column]:
    """The n-grams one word longer than `below`, and the adjusted counts of `below`.

    An adjusted count is the number of distinct words to the left; for n-grams that begin with <s>, it is the number of
    occurrences. The `last` order has no column `ending`.

    Columns of the corpus are written and read in order, or in as many places at a time as there are runs of
    `partition` positions, and only columns of a run at random; so those in files need little memory.
    """
    order, passes = below.order + 1, (int(words.max()).bit_length() + 7) // 8
    names = [f"{name}{order}" for name in ("parent", "at", "context", "count")]
    parent, at, context, count = (columns.new(name, np.uint32, len(words)) for name in names)
    adjusted = columns.new("adjusted", np.uint32, len(below))
    firsts, begins, filled, entries = _distribute(below, words, columns)
    ranks, most = int(np.diff(firsts).max()), int(np.diff(begins).max())
    size = LOOPS.call(
        *("extend", words, passes, below.order, below.ending, below.count, firsts, begins, filled, entries),
        *(columns.new("starts", np.uint32, ranks), columns.new("befores", np.uint32, most)),
        *(columns.new("pairs", np.uint64, most), columns.new("spare", np.uint64, most), np.empty(257, np.int64)),
        *(parent, at, context, count, adjusted, int(last)),
    )
    ending = columns.new(f"ending{order}", np.uint32, 0 if last else len(words))
    if not last:
        LOOPS.call("place", entries, begins, filled, partition(len(words)), ending)
    whole = zip(names, (parent, at, context, count), strict=True)
    parent, at, context, count = (columns.cut(*each, size) for each in whole)
    return Ngrams(order, parent, at, context, count, ending), adjusted


def partition(positions: int) -> int:
    """Number of positions of a corpus of that size that are sorted at a time."""
    return min(PARTITION, max(CACHED, positions // RUNS))


def _distribute(
    below: Ngrams, words: Column, columns: Columns
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64]]:
    """Positions by runs of n-grams: each run's first rank, where it begins and ends among the entries, the entries."""
    largest = partition(len(words))
    most = 2 * len(words) // largest + 3
    firsts, begins = np.zeros(most, np.int64), np.zeros(most, np.int64)
    shift = max(len(below).bit_length() - TABLE_BITS, 0)
    table = np.zeros((len(below) >> shift) + 1, np.uint32)
    runs = LOOPS.call("partition", below.count, largest, firsts, begins, shift, table)
    firsts, begins = firsts[: runs + 1], begins[: runs + 1]
    filled, entries = begins.copy(), columns.new("entries", np.uint64, len(words))
    LOOPS.call("distribute", words, below.order, below.ending, firsts, filled, shift, table, entries)
    return firsts, begins, filled, entries


def slices(size: int) -> Iterator[slice]:
    """Slices of `size` positions or n-grams, CHUNK at a time."""
    for start in range(0, size, CHUNK):
        yield slice(start, min(start + CHUNK, size))


def unigrams(words: Column, size: int) -> Ngrams:
    """Unigrams of `words`, a corpus of sentences <s> w ... </s>; `size` is the number of ids."""
    count = np.zeros(size, np.int64)
    LOOPS.call("tally", words, count)
    none = np.empty(0, np.uint32)
    return Ngrams(1, none, none, none, count.astype(np.uint32), words)
