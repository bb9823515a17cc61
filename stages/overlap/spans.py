"""Anchors and windows of texts, and what repeated windows cover: a shard at a time, by compiled loops."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.files import read_frame
from stages.text.compiled import Kernels
from stages.text.repeats import Keys, prefix_index
from stages.text.shingles import split

LOOPS = Kernels(
    "stages.overlap.spans_kernel",
    {
        "anchors": "u8* i8* i8 u8* i8* u8** i8*",
        "windows": "u8* i8* i8 u8* i8* u8 u8* i8* u8** i8*",
        "cover": "u8* i8* i8 u8* i8* u8 u4* u4* i8* i8** u8**",
        "among": "u8* i8* u8* i8* u8 b1*",
    },
)
HashSets = tuple[NDArray[np.int64], Keys, NDArray[np.int64]]
READS = ("text", "messages")
"""Columns that `texts_without_system` reads."""
COVER = ("words", "earlier_words", "longest", "copies", "source")
"""Columns of the array that `SharedWindows.cover` returns."""


def texts_without_system(frame: pl.DataFrame) -> pl.Series:
    """The texts of conversations without their system messages."""
    role = pl.element().struct.field("role")
    system = frame.select(pl.col("messages").list.eval(role == "system").list.any().fill_null(value=False)).to_series()
    if not system.any():
        return frame["text"]
    others = pl.col("messages").list.eval(pl.element().filter(role != "system").struct.field("content"))
    return frame.select(pl.when(system).then(others.list.join("\n")).otherwise(pl.col("text"))).to_series()


def anchors(texts: pl.Series, width: int) -> HashSets:
    """Number of words of each text; the distinct anchors of its windows, text by text; number of anchors of each."""
    return _sets("anchors", texts, width)


def _sets(loop: str, texts: pl.Series, width: int, table: KeyTable | None = None) -> HashSets:
    """Words of each text, and the set of hashes that a loop writes for it."""
    keys = (table.keys, table.starts, table.shift) if table else ()
    words, hashes, sizes = [np.empty(0, np.int64)], [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for part in split(texts):
        longest = part.longest()
        found, ends = np.empty(len(part.hashes), np.uint64), np.empty_like(part.ends)
        scratch, starts = np.empty((4, longest), np.uint64), np.empty(2 * longest + 3, np.int64)
        count = LOOPS.call(loop, part.hashes, part.ends, width, *keys, found, ends, scratch, starts)
        words.append(np.diff(part.ends))
        hashes.append(found[:count].copy())
        sizes.append(np.diff(ends))
    return np.concatenate(words), np.concatenate(hashes), np.concatenate(sizes)


@dataclass(frozen=True)
class KeyTable:
    """Sorted keys, and the prefix index that finds one: see `stages.text.repeats.prefix_index`."""

    keys: Keys
    starts: NDArray[np.int64]
    shift: int

    @classmethod
    def of(cls, keys: Keys) -> KeyTable:
        """The table of sorted keys."""
        return cls(keys, *prefix_index(keys))

    def among(self, keys: Keys, sizes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each row has a key that is in the table; `sizes` is each row's number of keys."""
        marks = np.empty(len(sizes), np.bool_)
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        LOOPS.call("among", keys, ends, self.keys, self.starts, self.shift, marks)
        return marks

    def windows(self, texts: pl.Series, width: int) -> tuple[Keys, NDArray[np.int64]]:
        """The distinct windows of texts whose anchor is in the table, text by text; number of windows of each."""
        return _sets("windows", texts, width, self)[1:]


@dataclass(frozen=True)
class SharedWindows:
    """Windows that several conversations share, with the number of these and the first of them."""

    table: KeyTable
    counts: NDArray[np.uint32]
    firsts: NDArray[np.uint32]

    def cover(self, rows: NDArray[np.int64], texts: pl.Series, width: int) -> NDArray[np.int64]:
        """Cover of the texts of these rows by the windows: int64 [n, 5], the columns `COVER`."""
        out, done = np.empty((len(rows), len(COVER)), np.int64), 0
        windows = (self.table.keys, self.table.starts, self.table.shift, self.counts, self.firsts)
        for part in split(texts):
            here = slice(done, done + len(part.keys))
            scratch = np.empty((1, part.longest()), np.uint64)
            LOOPS.call("cover", part.hashes, part.ends, width, *windows, rows[here], out[here], scratch)
            done = here.stop
        return out


def column(path: Path, name: str) -> pl.Series:
    """A column of a Parquet file."""
    return read_frame(path, [name])[name]


def flat(lists: pl.Series) -> tuple[Keys, NDArray[np.int64]]:
    """The values of lists of keys, list by list, and the length of each list."""
    sizes = lists.list.len().to_numpy().astype(np.int64)
    return lists.explode().drop_nulls().to_numpy(writable=True), sizes
