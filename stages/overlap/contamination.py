"""Overlap of conversations with evaluation sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.files import read_frame
from stages.overlap.evals import ItemText, excerpt, files, parts
from stages.stage import Axis, Measure, Stage, StageParameterError, require
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
MIN_REPORTED_SHARE = 0.5
"""Minimum share of a part for a conversation to be counted in the remarks of a run; rules have their own."""


@dataclass(frozen=True)
class Contamination(Stage):
    r"""Word n-grams that a conversation shares with the items of evaluation sets; by default 13-grams, as for GPT-3.

    Source: Brown et al. 2020, appendix C. Words are those of `dedup` (lower-cased `\w+`). An item has parts: its
    question, each answer or choice, each message of a dialogue. A question of fewer than `n` words is searched for as a
    whole. Shorter answers, and questions of fewer than `shortest` words (8, the smallest N of GPT-3), are not searched
    for: neither "Paris" nor "Is there anything else that I can help you with?" is contamination.

    n-grams of more than `common` items are phrases of the sets ("Choose the best answer from the following") and are
    ignored. GPT-3 ignored n-grams of more than 10 training documents, but an item that leaked 11 times has leaked too;
    therefore a phrase must be common among the items here.

    Signals, null unless `evals` is set:
        contaminated_ngrams: number of distinct n-grams of the conversation that occur in an item.
        contamination: largest share (0 to 1) of the n-grams of one part of an item that the conversation contains; 0 if
            it contains none.
        eval_set: file of that part; null, like the next two, if there is none.
        eval_item: id of the item, or its row from 1, and the beginning of the part.
        eval_field: column of the part, such as "question" or "messages.assistant".

    To show them in the rejected row, read them in a rule: `contamination >= 0.5 AND eval_set IS NOT NULL AND eval_item
    IS NOT NULL`.

    Attributes:
        evals: a file of evaluation items, or a folder of files: JSONL, JSON, Parquet, or text (an item per paragraph,
            or per line if there are no paragraphs).
        n: number of words of an n-gram; datatrove uses 12.
        shortest: minimum number of words of a question that is searched for.
        common: maximum number of items with an n-gram that counts.
    """

    evals: str = ""
    n: int = 13
    shortest: int = 8
    common: int = 10

    identity: ClassVar[str] = "stages.contamination:Contamination"
    summary: ClassVar[str] = "overlap with evaluation sets: word 13-grams, and the matching item"
    writes: ClassVar[pl.Schema] = pl.Schema(
        {
            "contaminated_ngrams": pl.UInt32(),
            "contamination": pl.Float32(),
            **dict.fromkeys(("eval_set", "eval_item", "eval_field"), pl.String()),
        }
    )
    axes: ClassVar[Mapping[str, Axis]] = {"contamination": Axis("share of an evaluation item", rank=320)}

    def __post_init__(self) -> None:
        require("contamination: n", self.n, 2 <= self.n <= 64, "2 to 64 words")  # noqa: PLR2004
        require("contamination: shortest", self.shortest, 1 <= self.shortest <= self.n, "1 to n words")
        require("contamination: common", self.common, self.common > 0, "at least 1 item")

    def models(self) -> tuple[Path, ...]:
        return files(self.evals)

    def notes(self) -> tuple[str, ...]:
        if not self.evals:
            return ("`evals` is not set (a file or folder of evaluation items): all signals are null",)
        items, lost = _index(self, self.digest()).items
        left = f"; {lost} of them have no text of {self.shortest} words of their own and are not searched for"
        count = len(self.models())
        return (f"searches for {items} items of {count} evaluation file{'s' * (count != 1)}{left * (lost > 0)}",)

    def remarks(self, folder: Path) -> tuple[str, ...]:
        """The ten sets that most conversations contain, and the number of these conversations."""
        if not self.evals:
            return ()
        columns = ("contamination", "eval_set", "eval_item")
        shards = (read_frame(path, columns) for path in sorted(folder.glob("*.parquet")))
        hits = pl.concat(shard.filter(pl.col("contamination") >= MIN_REPORTED_SHARE) for shard in shards)
        counts = hits.group_by("eval_set").agg(items=pl.col("eval_item").n_unique(), conversations=pl.len())
        worst = counts.sort("conversations", "eval_set", descending=[True, False]).head(10)
        return tuple(
            f"{name}: at least half of a question, answer or message of {items} of its items is in "
            f"{conversations} conversation{'s' * (conversations != 1)}"
            for name, items, conversations in worst.iter_rows()
        ) or ("no conversation contains half of a question, answer or message of an item",)

    def open(self, folder: Path) -> Measure:
        del folder
        if not self.evals:
            return self.measure
        measure = _index(self, self.digest()).measure
        return lambda batch: measure(batch["text"])

    def measure(self, batch: pl.DataFrame) -> pl.DataFrame:
        """Nulls, since no evaluation sets are given."""
        return pl.DataFrame(schema=self.writes).clear(batch.height)


@lru_cache(maxsize=1)
def _index(stage: Contamination, digest: str) -> ItemIndex:
    """The index of a stage's evaluation sets; the digest identifies their content."""
    del digest
    index = ItemIndex.of(list(parts(stage.evals)), stage.n, stage.shortest, stage.common)
    if index.items[0] == index.items[1]:
        raise StageParameterError(
            f"evals {stage.evals!r} has {index.items[0]} items, none of which has {stage.shortest} words of its own "
            f"to search for: give other files"
        )
    return index


@dataclass(frozen=True)
class ItemIndex:
    """The n-grams of evaluation items, and what conversations share with them; `n` and `shortest` as in the stage."""

    n: int
    shortest: int
    tables: tuple[Any, ...]  # the arguments of `contamination_kernel.overlap` from `keys` to `sizes`
    labels: pl.DataFrame  # `eval_set`, `eval_item`, `eval_field` of each part
    items: tuple[int, int]  # number of items, and number of those with nothing to search for

    @classmethod
    def of(cls, parts: Sequence[ItemText], n: int, shortest: int, common: int) -> ItemIndex:
        """Index the parts of items; n-grams of more than `common` items are ignored."""
        owners, keys, heads, lengths = _grams(parts, n, shortest)
        items = pl.Series([f"{part.file}\0{part.item}" for part in parts], dtype=pl.String).rank("dense").to_numpy()
        pairs = pl.DataFrame({"key": keys, "part": owners, "item": items[owners] if len(owners) else owners}).unique()
        rare = pairs.filter(pl.col("item").n_unique().over("key") <= common).sort("key", "part")
        sizes = np.bincount(rare["part"].to_numpy(), minlength=len(parts)).astype(np.int64)
        groups = rare.group_by("key", maintain_order=True).len()
        posts = np.append(0, groups["len"].cum_sum()).astype(np.int64)
        grams = groups["key"].to_numpy()
        tables = (grams, *prefix_index(grams), *_heads(heads, lengths), posts, rare["part"].to_numpy(), sizes)
        every, searched = len(np.unique(items)), len(np.unique(items[sizes > 0]))
        labels = {
            "eval_set": [part.file for part in parts],
            "eval_item": [excerpt(part) for part in parts],
            "eval_field": [part.field for part in parts],
        }
        names = pl.DataFrame(labels, schema=dict.fromkeys(labels, pl.String))
        return cls(n, shortest, tables, names, (every, every - searched))

    def measure(self, texts: pl.Series) -> pl.DataFrame:
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
