"""Turns of near-duplicates: pairs whose turns differ, such as by another question, are told from true ones.

A short text may reach a Jaccard of 0.75 although its only question is another one: a shingle covers five words, and the
first and the last words of a text are in few shingles.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.dedup.signatures import LOOPS, Mask, each_part
from stages.files import mapped, read_frame, scratch
from stages.text.messages import call_texts
from stages.text.shards import Rows, Shards, cores
from stages.text.shingles import Words, shingle_sets

SLACK = 0.02
"""Share of a conversation's words that may differ in one turn, whatever the turn says."""


def say_the_same(shards: Shards, pairs: Rows, least: float, folder: Path) -> Mask:
    """Which pairs of rows, [n, 2], say the same in each turn, bool [n].

    A turn is another one if the Jaccard of its words is below `least`, and more of its words differ than a share of
    `SLACK` of the longer conversation. Equal turns at the beginning and at the end are passed over; those between are
    compared in order, and one without a partner with an empty one. Conversations of one turn each, such as plain
    documents, are compared as a whole. Tool calls are a turn; a message of the system, or without a word, is none.

    Memory: 24 bytes per turn of the rows in pairs. A temporary file in `folder` has 8 bytes per word.
    """
    rows = np.unique(pairs)
    chosen = np.zeros(len(shards), np.bool_)
    chosen[rows] = True
    keys, lengths, sizes = ([np.empty(0, kind)] for kind in (np.uint64, np.int64, np.int64))
    counts: list[Rows] = []

    def of_part(part: Words) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.uint64], NDArray[np.int64]]:
        values, ends = shingle_sets(part, 1)
        length, size = np.diff(part.ends), np.diff(ends, prepend=0)
        some = length > 0  # a turn without words is a set of one, its key
        return part.keys[:, 0].copy(), length, values[np.repeat(some, size)], size * some

    with scratch(folder, "turns") as aside, (aside / "words").open("w+b") as file:
        turns = _turns(shards, chosen, counts)
        for key, length, values, size in each_part(of_part, turns, cores()):
            file.write(values.data)
            keys.append(key)
            lengths.append(length)
            sizes.append(size)
        values = mapped(file, np.uint64)
        spoken = np.concatenate(lengths)
        some = spoken > 0
        begins = _before(np.concatenate([np.empty(0, np.int64), *counts]))
        words = np.diff(_before(spoken)[begins])
        turns_of = _before(some)[begins], np.concatenate(keys)[some], values, _before(np.concatenate(sizes)[some])
        same = np.zeros(len(pairs), np.uint8)
        at = np.searchsorted(rows, pairs).astype(np.int64)
        LOOPS.call("turns_loop", at, *turns_of, words, least, SLACK, same)
    return same.astype(np.bool_)


def _before(sizes: NDArray[Any]) -> Rows:
    """Where each of some parts begins, and where the last one ends."""
    return np.append(0, sizes.cumsum(dtype=np.int64))


def _turns(shards: Shards, chosen: Mask, counts: list[Rows]) -> Iterator[pl.Series]:
    """The turns of the chosen rows, a shard at a time; their number in each row is added to `counts`."""
    for at, path in enumerate(shards.raw):
        here = np.flatnonzero(chosen[shards.starts[at] : shards.starts[at + 1]])
        if not len(here):
            continue
        batch = read_frame(path, ["messages", "details"])[here]
        said = pl.element().filter(pl.element().struct.field("role") != "system").struct.field("content")
        turns = batch["messages"].list.eval(said)
        if (calls := call_texts(batch)) is not None:
            one = pl.when(calls != "").then(pl.concat_list(calls)).otherwise(pl.lit([], pl.List(pl.String)))
            turns = pl.select(pl.concat_list(turns, one)).to_series()
        counts.append(turns.list.len().cast(pl.Int64).to_numpy())
        yield turns.filter(turns.list.len() > 0).explode()
