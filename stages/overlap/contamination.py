"""Overlap of conversations with evaluation sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import polars as pl

from stages.files import read_frame
from stages.overlap.evals import files, parts
from stages.readers import stamps
from stages.stage import Axis, Measure, Stage, StageParameterError

if TYPE_CHECKING:
    from stages.overlap.contamination_index import ItemIndex

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
            "eval_set": pl.String(),
            "eval_item": pl.String(),
            "eval_field": pl.String(),
        }
    )
    axes: ClassVar[Mapping[str, Axis]] = {"contamination": Axis("share of an evaluation item", rank=320)}

    def __post_init__(self) -> None:
        """Check the parameters.

        Raises:
            StageParameterError: a parameter is out of range.
        """
        for name, value, right, expected in (
            ("n", self.n, 2 <= self.n <= 64, "2 to 64 words"),  # noqa: PLR2004
            ("shortest", self.shortest, 1 <= self.shortest <= self.n, "1 to n words"),
            ("common", self.common, self.common > 0, "at least 1 item"),
        ):
            if not right:
                raise StageParameterError(f"contamination: {name} is {value}, expected {expected}")

    def models(self) -> tuple[Path, ...]:
        """The files of the evaluation sets."""
        return files(self.evals)

    def digest(self) -> str:
        """The digest of every stage; unchanged files are not read again, since a run asks once per shard."""
        return _digest(self, stamps(self.models()))

    def notes(self) -> tuple[str, ...]:
        """Number of items searched for."""
        if not self.evals:
            return ("`evals` is not set (a file or folder of evaluation items): all signals are null",)
        items, lost = _index(self, self.digest()).items
        left = (
            f"; {lost} of them have no text of {self.shortest} words of their own and are not searched for"
            if lost
            else ""
        )
        count = len(self.models())
        return (f"searches for {items} items of {count} evaluation file{'s' * (count != 1)}{left}",)

    def remarks(self, folder: Path) -> tuple[str, ...]:
        """The ten sets that most conversations contain, and the number of these conversations."""
        if not self.evals:
            return ()
        columns = ("contamination", "eval_set", "eval_item")
        shards = (read_frame(path, columns) for path in sorted(folder.glob("*.parquet")))
        hits = pl.concat(shard.filter(pl.col("contamination") >= MIN_REPORTED_SHARE) for shard in shards)
        counts = hits.group_by("eval_set").agg(items=pl.col("eval_item").n_unique(), conversations=pl.len())
        found = counts.sort("conversations", "eval_set", descending=[True, False]).head(10)
        return tuple(
            f"{name}: at least half of a question, answer or message of {items} of its items is in "
            f"{conversations} conversation{'s' * (conversations != 1)}"
            for name, items, conversations in found.iter_rows()
        ) or ("no conversation contains half of a question, answer or message of an item",)

    def open(self, folder: Path) -> Measure:
        """Read and index the evaluation sets, once per process.

        Raises:
            StageParameterError: a file cannot be read.
        """
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
    from stages.overlap.contamination_index import ItemIndex

    del digest
    index = ItemIndex.of(list(parts(stage.evals)), stage.n, stage.shortest, stage.common)
    if index.items[0] == index.items[1]:
        raise StageParameterError(
            f"evals {stage.evals!r} has {index.items[0]} items, none of which has {stage.shortest} words of its own "
            f"to search for: give other files"
        )
    return index


@lru_cache(maxsize=8)
def _digest(stage: Contamination, files: tuple[tuple[str, int, int], ...]) -> str:
    del files
    return Stage.digest(stage)
