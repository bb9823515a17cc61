"""Texts to anchors, windows and what repeated windows cover: a shard at a time, through `stages.span_kernel`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.files import read_frame
from stages.overlap import spans_kernel
from stages.text.repeats import Keys, prefix_index
from stages.text.shingles import split

READS = ("text", "messages")
"""Columns that `spoken` needs."""

COVER = ("words", "earlier_words", "longest", "copies", "source")
"""Columns of what `Found.cover` gives."""


def spoken(frame: pl.DataFrame) -> pl.Series:
    """The texts of conversations without their system messages, which a corpus repeats on purpose."""
    role = pl.element().struct.field("role")
    system = frame.select(pl.col("messages").list.eval(role == "system").list.any().fill_null(value=False)).to_series()
    if not system.any():
        return frame["text"]
    others = pl.col("messages").list.eval(pl.element().filter(role != "system").struct.field("content"))
    return frame.select(pl.when(system).then(others.list.join("\n")).otherwise(pl.col("text"))).to_series()


def anchors(texts: pl.Series, width: int) -> tuple[NDArray[np.int64], Keys, NDArray[np.int64]]:
    """Words of each text; the different anchors of its windows, one text after the other; how many it has."""
    words, keys, sizes = [np.empty(0, np.int64)], [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for part in split(texts):
        found, ends = np.empty(len(part.hashes), np.uint64), np.empty_like(part.ends)
        spans_kernel.anchors(part.hashes, part.ends, width, found, ends)
        words.append(np.diff(part.ends))
        keys.append(found[: ends[-1]].copy())
        sizes.append(np.diff(ends))
    return np.concatenate(words), np.concatenate(keys), np.concatenate(sizes)


@dataclass(frozen=True)
class Table:
    """Sorted keys, with where each value of their top bits begins, and the bits below those."""

    keys: Keys
    starts: NDArray[np.int64]
    shift: np.uint64

    @classmethod
    def of(cls, keys: Keys) -> Table:
        """The table of sorted keys."""
        return cls(keys, *prefix_index(keys))

    def among(self, keys: Keys, sizes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Of rows with so many keys each, which have one that is in the table."""
        marks = np.empty(len(sizes), np.bool_)
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        spans_kernel.among(keys, ends, self.keys, self.starts, self.shift, marks)
        return marks

    def windows(self, texts: pl.Series, width: int) -> tuple[Keys, NDArray[np.int64]]:
        """The different windows of texts whose anchor is in the table, one text after the other; how many each has."""
        keys, sizes = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        for part in split(texts):
            found, ends = np.empty(len(part.hashes), np.uint64), np.empty_like(part.ends)
            spans_kernel.windows(part.hashes, part.ends, width, self.keys, self.starts, self.shift, found, ends)
            keys.append(found[: ends[-1]].copy())
            sizes.append(np.diff(ends))
        return np.concatenate(keys), np.concatenate(sizes)


@dataclass(frozen=True)
class Found:
    """Windows that more than one conversation has, with how many have each, and the first of them."""

    table: Table
    counts: NDArray[np.uint32]
    firsts: NDArray[np.uint32]

    def cover(self, rows: NDArray[np.int64], texts: pl.Series, width: int) -> NDArray[np.int64]:
        """What they cover of the texts of rows: int64 [n, 5], see `stages.span_kernel.cover`."""
        out, done = np.empty((len(rows), len(COVER)), np.int64), 0
        table = self.table
        for part in split(texts):
            here = slice(done, done + len(part.keys))
            spans_kernel.cover(
                part.hashes,
                part.ends,
                width,
                table.keys,
                table.starts,
                table.shift,
                self.counts,
                self.firsts,
                rows[here],
                out[here],
            )
            done = here.stop
        return out


def column(path: Path, name: str) -> pl.Series:
    """A column of a Parquet file."""
    return read_frame(path, [name])[name]


def flat(lists: pl.Series) -> tuple[Keys, NDArray[np.int64]]:
    """The values of lists of keys, one list after the other, and how many each has."""
    sizes = lists.list.len().to_numpy().astype(np.int64)
    return lists.explode().drop_nulls().to_numpy(writable=True), sizes
