"""Overlap of conversations with evaluation sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
import polars.selectors as cs

from stages.files import read_frame, sizes_in
from stages.overlap.evals import ItemText, excerpt, files, listing, parts
from stages.stage import Axis, Measure, Stage, StageParameterError, require
from stages.text.hashes_kernel import ROLL, mix64
from stages.text.messages import by_row
from stages.text.repeats import Table, find, prefix_index, text_runs
from stages.text.shards import Rows
from stages.text.shingles import Keys, Words, split

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
        evals: a file of evaluation items, or a folder of files: records, or text (an item per paragraph, or per line
            if there are no paragraphs).
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
        note = listing(self.evals).note()
        searched = f"searches for {items} items of {count} evaluation file{'s' * (count != 1)}{left * (lost > 0)}"
        return (searched, note) if note else (searched,)

    def remarks(self, folder: Path) -> tuple[str, ...]:
        """The ten sets that most conversations contain, and the number of these conversations."""
        if not self.evals:
            return ()
        columns = ("contamination", "eval_set", "eval_item")
        names = (name for name in sorted(sizes_in(folder)) if Path(name).suffix == ".parquet" and "/" not in name)
        shards = (read_frame(folder / name, columns) for name in names)
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
    """The n-grams of evaluation items, and what conversations share with them; `n` and `shortest` as in the stage.

    A question of fewer than `n` words is one short gram, all its words. It is found by its first `shortest` words, its
    head.
    """

    n: int
    shortest: int
    grams: Table
    heads: Table
    owners: pl.DataFrame  # the parts that have a gram: `gram` (its index), `part`, `size` (number of grams of the part)
    labels: pl.DataFrame  # `part`, `eval_set`, `eval_item`, `eval_field`
    items: tuple[int, int]  # number of items, and number of those with nothing to search for

    @classmethod
    def of(cls, parts: Sequence[ItemText], n: int, shortest: int, common: int) -> ItemIndex:
        """Index the parts of items; n-grams of more than `common` items are ignored."""
        labels = (
            pl.DataFrame(
                [(part.file, excerpt(part), part.field, f"{part.file}\0{part.item}") for part in parts],
                schema=dict.fromkeys(("eval_set", "eval_item", "eval_field", "item"), pl.String),
                orient="row",
            )
            .with_columns(pl.col("item").rank("dense"))
            .with_row_index("part")
        )
        every, heads = _grams(parts, n, shortest)
        every = every.with_columns(item=labels["item"].gather(every["part"])).unique()
        rare = every.filter(pl.col("item").n_unique().over("key") <= common).sort("key", "part")
        numbers, grams = rare["part"].to_numpy(), rare["key"].rle().struct.field("value").to_numpy()
        owners = rare.select("part", gram=pl.col("key").rle_id().cast(pl.Int64), size=np.bincount(numbers)[numbers])
        tables = ((grams, *prefix_index(grams)), (heads, *prefix_index(heads)))
        items = labels["item"].n_unique()
        return cls(n, shortest, *tables, owners, labels.drop("item"), (items, items - rare["item"].n_unique()))

    def measure(self, texts: pl.Series) -> pl.DataFrame:
        return pl.concat([pl.DataFrame(schema=Contamination.writes), *map(self._signals, split(texts))])

    def _signals(self, words: Words) -> pl.DataFrame:
        hits = self._hits(words)
        best = (  # the part with the largest share, then the most grams, then the lowest number
            hits.join(self.owners, on="gram")
            .group_by("row", "part")
            .agg(grams=pl.len(), contamination=pl.len() / pl.col("size").first())
            .sort("row", "contamination", "grams", "part", descending=[False, True, True, False])
            .unique("row", keep="first", maintain_order=True)
            .join(self.labels, on="part")
        )
        counts = hits.group_by("row").agg(contaminated_ngrams=pl.len())
        signals = by_row(len(words.keys), counts, best).select(Contamination.writes.names())
        return signals.cast(Contamination.writes).with_columns(cs.numeric().fill_null(0))

    def _hits(self, words: Words) -> pl.DataFrame:
        """Each `gram` that occurs in a text, once per text, and the `row` of the text."""
        every = np.arange(words.ends[-1])
        hits = [_matches(every, text_runs(words, self.n), self.grams)]
        places, _ = _matches(every, text_runs(words, self.shortest), self.heads)
        hits += [_matches(*prefixes, self.grams) for prefixes in _prefixes(words, places, range(self.shortest, self.n))]
        rows = np.searchsorted(words.ends, np.concatenate([places for places, _ in hits]), side="right") - 1
        frame = pl.DataFrame({"row": rows, "gram": np.concatenate([found for _, found in hits])})
        return frame.unique().with_columns(pl.col("row").cast(pl.UInt32))


def _matches(places: Rows, keys: Keys, table: Table) -> tuple[Rows, Rows]:
    """The places whose key is in a table, and its index there."""
    at = find(keys, *table)
    return places[at >= 0], at[at >= 0]


def _prefixes(words: Words, begins: Rows, lengths: range) -> Iterator[tuple[Rows, Keys]]:
    """For each length, those of `begins` that are followed by so many words of their text, and the hash of these."""
    ends = words.ends[np.searchsorted(words.ends, begins, side="right")]
    hashes = np.zeros(len(begins), np.uint64)
    for length in range(1, lengths.stop):
        inside = begins + length <= ends
        begins, ends = begins[inside], ends[inside]
        hashes = hashes[inside] * ROLL + words.hashes[begins + length - 1]
        if length in lengths:
            yield begins, mix64(hashes)


def _grams(parts: Sequence[ItemText], n: int, shortest: int) -> tuple[pl.DataFrame, Keys]:
    """The grams that are searched for, `part` and `key`, with repeats; the sorted heads of short ones."""
    owners, keys, heads, done = [np.empty(0, np.int64)], [np.empty(0, np.uint64)], [np.empty(0, np.uint64)], 0
    asks = np.array([part.asks for part in parts], np.bool_)
    for words in split(pl.Series([part.text for part in parts], dtype=pl.String)):
        runs, heading, sizes = text_runs(words, n), text_runs(words, shortest), np.diff(words.ends)
        rows = np.arange(done, done + len(sizes))
        owners.append(np.repeat(rows, sizes)[runs > 0])
        keys.append(runs[runs > 0])
        for length in range(shortest, n):
            short = (sizes == length) & asks[rows]
            if short.any():
                owners.append(rows[short])
                keys.append(text_runs(words, length)[words.ends[:-1][short]])
                heads.append(heading[words.ends[:-1][short]])
        done += len(sizes)
    grams = pl.DataFrame({"part": np.concatenate(owners).astype(np.uint32), "key": np.concatenate(keys)})
    return grams, np.unique(np.concatenate(heads))
