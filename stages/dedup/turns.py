"""Turns of near-duplicates: pairs whose turns differ, such as by another question, are told from true ones.

A short text may reach a Jaccard of 0.75 although its only question is another one: a shingle covers five words, and the
first and the last words of a text are in few shingles.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.dedup.signatures import LOOPS, Mask, each_part
from stages.files import in_file, mapped, read_frame, scratch, zeros
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

    Memory: 40 bytes per row in pairs. Files in `folder` have 8 bytes per word and 56 per turn.
    """
    rows = in_file(np.unique(pairs), folder)
    chosen = np.zeros(len(shards), np.bool_)
    chosen[rows] = True
    counts: list[Rows] = []

    def of_part(part: Words) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.uint64], NDArray[np.int64]]:
        values, ends = shingle_sets(part, 1)
        length, size = np.diff(part.ends), np.diff(ends, prepend=0)
        some = length > 0  # a turn without words is a set of one, its key
        return part.keys[some, 0], length, values[np.repeat(some, size)], size[some]

    with scratch(folder, "turns") as aside, ExitStack() as files:
        names = "keys", "spoken", "values", "sizes"
        columns = [files.enter_context((aside / name).open("w+b")) for name in names]
        for part in each_part(of_part, _turns(shards, chosen, counts), cores()):
            for file, column in zip(columns, part, strict=True):
                file.write(column.data)
        keys, spoken, values, sizes = map(mapped, columns, (np.uint64, np.int64, np.uint64, np.int64))
        begins = _before(np.concatenate([np.empty(0, np.int64), *counts]), aside / "begins")
        words = np.diff(_before(spoken, aside / "words")[begins])
        firsts = _before(spoken > 0, aside / "firsts")[begins]
        same = np.zeros(len(pairs), np.uint8)
        at = np.searchsorted(rows, pairs).astype(np.int64)
        ends = _before(sizes, aside / "ends")
        LOOPS.call("turns_loop", at, firsts, keys, values, ends, words, least, SLACK, same)
    return same.astype(np.bool_)


def _before(sizes: NDArray[Any], path: Path) -> Rows:
    """Where each of some parts begins, and where the last one ends, in a new file."""
    ends = zeros(path, np.int64, len(sizes) + 1)
    np.cumsum(sizes, out=ends[1:])
    return ends


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
