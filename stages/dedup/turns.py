"""Turns of near-duplicates: pairs whose turns differ, such as by another question, are told from true ones.

A short text may reach a Jaccard of 0.75 although its only question is another one: a shingle covers five words, and the
first and the last words of a text are in few shingles.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages import columns
from stages.columns import chunks
from stages.dedup.signatures import LOOPS, Mask, each_part
from stages.files import mapped, read_frame, scratch
from stages.text.messages import call_texts
from stages.text.shards import Rows, Shards, cores
from stages.text.shingles import Words, shingle_sets

SLACK = 0.02
"""Share of a conversation's words that may differ in one turn, whatever the turn says."""


def say_the_same(shards: Shards, pairs: Rows, least: float, folder: Path) -> Mask:
    """Which pairs of rows, [n, 2], say the same in each turn, bool [n].

    A turn says something else if the Jaccard of its words is below `least`, and more of its words differ than a share
    of `SLACK` of the longer conversation. Equal turns at the beginning and at the end are skipped; those between are
    compared in order, and one without a partner with an empty one. Conversations of one turn each, such as plain
    documents, are compared as a whole. Tool calls are a turn; a message of the system, or without a word, is none.

    Files in `folder` have a byte per row of the corpus, 48 per row in pairs, 33 per pair, 56 per turn and 8 per word.
    """
    rows = columns.unique(pairs.reshape(-1), folder)
    chosen = columns.full(len(shards), 0, np.bool_, folder)
    chosen[rows] = True

    def of_part(part: Words) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.uint64], NDArray[np.int64]]:
        values, ends = shingle_sets(part, 1)
        length, size = np.diff(part.ends), np.diff(ends, prepend=0)
        some = length > 0  # a turn without words is a set of one, its key
        return part.keys[some, 0], length, values[np.repeat(some, size)], size[some]

    with scratch(folder, "turns") as aside, ExitStack() as files:
        names = "keys", "spoken", "values", "sizes", "counts"
        *out, counts = [files.enter_context((aside / name).open("w+b")) for name in names]
        for part in each_part(of_part, _turns(shards, chosen, counts), cores()):
            for file, column in zip(out, part, strict=True):
                file.write(column.data)
        keys, spoken, values, sizes = map(mapped, out, (np.uint64, np.int64, np.uint64, np.int64))
        begins = _before(mapped(counts, np.int64), folder)
        before = _before(spoken, folder)
        every = [*chunks(len(rows))]
        words = columns.write((np.diff(before[begins[i.start : i.stop + 1]]) for i in every), np.int64, folder)
        before = _before(spoken, folder, np.sign)
        firsts = columns.write((before[begins[here]] for here in chunks(len(begins))), np.int64, folder)
        same = columns.full(len(pairs), 0, np.uint8, folder)
        at = columns.write((np.searchsorted(rows, pairs[here]) for here in chunks(len(pairs))), np.int64, folder)
        ends = _before(sizes, folder)
        LOOPS.call("turns_loop", at.reshape(-1, 2), firsts, keys, values, ends, words, least, SLACK, same)
    return same.view(np.bool_)


def _before(sizes: NDArray[Any], folder: Path, of: Callable[[Any], Any] = np.positive) -> Rows:
    """The sum of the sizes, or of what a function makes of each, before each of them, and of all."""
    ends = columns.full(len(sizes) + 1, 0, np.int64, folder)
    for here in chunks(len(sizes)):
        ends[here.start + 1 : here.stop + 1] = ends[here.start] + np.cumsum(of(sizes[here]))
    return ends


def _turns(shards: Shards, chosen: Mask, counts: IO[bytes]) -> Iterator[pl.Series]:
    """The turns of the chosen rows, a shard at a time; their number in each row is written to `counts`."""
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
        counts.write(turns.list.len().cast(pl.Int64).to_numpy().data)
        yield turns.filter(turns.list.len() > 0).explode()
