"""The n-grams of evaluation sets, and what conversations share with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.overlap.evals import ItemText, excerpt
from stages.text.compiled import Kernels
from stages.text.repeats import prefix_index
from stages.text.shingles import split

LOOPS = Kernels(
    "stages.overlap.contamination_kernel",
    {
        "grams": "u8* i8* i8 i8 u8* i8* u8* i8*",
        "overlap": "u8* i8* i8 i8 u8* i8* u8 u8* u8* i8* u8 i8* i8* i8* i8* i8* i8 u4* f4* i8*",
    },
)
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class ItemIndex:
    """The n-grams of evaluation items.

    Attributes:
        n: words of an n-gram.
        shortest: minimum number of words of a text that is searched for.
        tables: the arguments of `contamination_kernel.overlap` from `keys` to `sizes`.
        labels: `eval_set`, `eval_item`, `eval_field` of each part.
        items: number of items, and number of those with nothing to search for.
    """

    n: int
    shortest: int
    tables: tuple[Any, ...]
    labels: pl.DataFrame
    items: tuple[int, int]

    @classmethod
    def of(cls, parts: Sequence[ItemText], n: int, shortest: int, common: int) -> ItemIndex:
        """Index the parts of items; n-grams of more than `common` items are ignored."""
        owners, keys, heads, lengths = _grams(parts, n, shortest)
        items = pl.Series([f"{part.file}\0{part.item}" for part in parts], dtype=pl.String).rank("dense").to_numpy()
        pairs = pl.DataFrame({"key": keys, "part": owners, "item": items[owners] if len(owners) else owners}).unique()
        rare = pairs.filter(pl.col("item").n_unique().over("key") <= common).sort("key", "part")
        sizes = np.bincount(rare["part"].to_numpy(), minlength=len(parts)).astype(np.int64)
        groups = rare.group_by("key", maintain_order=True).len()
        posts = np.concatenate([np.zeros(1, np.int64), groups["len"].cum_sum().to_numpy().astype(np.int64)])
        grams = groups["key"].to_numpy()
        tables = (
            grams,
            *prefix_index(grams),
            *_heads(heads, lengths),
            posts,
            rare["part"].to_numpy(),
            sizes,
        )
        lost = len(np.unique(items)) - len(np.unique(items[sizes > 0]))
        return cls(n, shortest, tables, _labels(parts), (len(np.unique(items)), lost))

    def measure(self, texts: pl.Series) -> pl.DataFrame:
        """The signals of the stage for each text."""
        rows = len(texts)
        counts, shares, worst = np.empty(rows, np.uint32), np.empty(rows, np.float32), np.empty(rows, np.int64)
        posts, _, sizes = self.tables[-3:]
        seen, tally = np.zeros(len(posts) - 1 + len(sizes), np.int64), np.empty(len(sizes), np.int64)
        done = 0
        for part in split(texts):
            here = slice(done, done + len(part.keys))
            given = (part.hashes, part.ends, self.n, self.shortest, *self.tables, seen, tally, done)
            LOOPS.call("overlap", *given, counts[here], shares[here], worst[here])
            done = here.stop
        which = pl.Series(worst)
        labels = self.labels.select(pl.all().gather(which.set(which < 0, None)))
        return pl.DataFrame({"contaminated_ngrams": counts, "contamination": shares}).hstack(labels)


def _grams(
    parts: Sequence[ItemText], n: int, shortest: int
) -> tuple[Numbers, NDArray[np.uint64], NDArray[np.uint64], Numbers]:
    """The part and the hash of each gram, with repeats; head and words of each part that is a short gram."""
    sizes, keys, heads, lengths = [np.empty(0, np.int64)], [np.empty(0, np.uint64)], [], []
    for words in split(pl.Series([part.text for part in parts], dtype=pl.String)):
        found, ends = np.empty(len(words.hashes), np.uint64), np.empty_like(words.ends)
        head, length = np.empty(len(words.keys), np.uint64), np.empty(len(words.keys), np.int64)
        LOOPS.call("grams", words.hashes, words.ends, n, shortest, found, ends, head, length)
        sizes.append(np.diff(ends))
        keys.append(found[: ends[-1]].copy())
        heads.append(head)
        lengths.append(length)
    owners = np.repeat(np.arange(len(parts)), np.concatenate(sizes))
    short, every = np.concatenate([np.empty(0, np.int64), *lengths]), np.concatenate(keys)
    searched = (short == 0) | np.array([part.asks for part in parts], np.bool_)
    short[~searched] = 0
    head = np.concatenate([np.empty(0, np.uint64), *heads])
    return owners[searched[owners]], every[searched[owners]], head, short


def _heads(heads: NDArray[np.uint64], lengths: Numbers) -> tuple[Any, ...]:
    """Sorted heads of short grams, the lengths of the grams with each head as bits, the heads' prefix index."""
    short = lengths > 0
    keys, which = np.unique(heads[short], return_inverse=True)
    bits = np.zeros(len(keys), np.uint64)
    np.bitwise_or.at(bits, which, np.uint64(1) << lengths[short].astype(np.uint64))
    return keys, bits, *prefix_index(keys)


def _labels(parts: Sequence[ItemText]) -> pl.DataFrame:
    columns = {
        "eval_set": [part.file for part in parts],
        "eval_item": [excerpt(part) for part in parts],
        "eval_field": [part.field for part in parts],
    }
    return pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String))
