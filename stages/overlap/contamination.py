"""Overlap of conversations with evaluation sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    from stages.overlap.contamination_index import Index

HALF = 0.5
"""The share of a part that is told of after a run; a rule has its own."""


@dataclass(frozen=True)
class Contamination(Stage):
    r"""Word n-grams that a conversation shares with the items of evaluation sets, by default 13-grams as for GPT-3.

    Source: Brown et al. 2020, appendix C. Words are those of `dedup` (lower-cased `\w+`). An item has parts: its
    question, each of its answers or choices, each message of a dialogue. A question of fewer than `n` words is looked
    for whole; an answer so short, or a question of fewer than `shortest` words (8, the least N of GPT-3), is not:
    "Paris" is no contamination, nor is "Is there anything else that I can help you with?".

    n-grams of more than `common` items are the sets' own phrases ("Choose the best answer from the following") and are
    left out. GPT-3 left out n-grams of more than 10 training documents; an item that leaked 11 times is none the less
    leaked, so that here a phrase must be common among the items, and `contamination` says how much of an item is there.

    Signals, null where no `evals` is given:
        contaminated_ngrams: different n-grams of the conversation that stand in an item.
        contamination: the share (0 to 1) of an item's part that the conversation has, in n-grams, of the part of which
            it has the largest one; 0 where it has none.
        eval_set: the file that this part is from; null, like the next two, where there is none.
        eval_item: the item's id, or its row counted from 1, and how the part begins.
        eval_field: the column that the part is from, such as "question" or "messages.assistant".

    A rule that reads them shows them in the rejected row: `contamination >= 0.5 AND eval_set IS NOT NULL AND eval_item
    IS NOT NULL`.

    Attributes:
        evals: a file of evaluation items, or a folder of such files: JSONL, JSON, Parquet, or text (an item a
            paragraph, or a line where there are no paragraphs).
        n: words of an n-gram; datatrove takes 12.
        shortest: words of the shortest question that is looked for, whole.
        common: most items that an n-gram may stand in.
    """

    evals: str = ""
    n: int = 13
    shortest: int = 8
    common: int = 10

    identity: ClassVar[str] = "stages.contamination:Contamination"
    summary: ClassVar[str] = "overlap with evaluation sets: word 13-grams, and the item that matches"
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
            StageParameterError: one cannot have its value.
        """
        for name, value, right, expected in (
            ("n", self.n, 2 <= self.n <= 64, "2 to 64 words"),  # noqa: PLR2004
            ("shortest", self.shortest, 1 <= self.shortest <= self.n, "1 to n words"),
            ("common", self.common, self.common > 0, "1 item or more"),
        ):
            if not right:
                raise StageParameterError(f"contamination: {name} is {value}, expected {expected}")

    def models(self) -> tuple[Path, ...]:
        """The files of the evaluation sets."""
        return files(self.evals)

    def digest(self) -> str:
        """As of every stage, but large files that have not changed are not read again: a run asks once a shard."""
        return _digest(self, stamps(self.models()))

    def notes(self) -> tuple[str, ...]:
        """What is looked for."""
        if not self.evals:
            return ("no `evals` is given (a file or folder of evaluation items), so that its signals are all null",)
        items, lost = _index(self, self.digest()).items
        left = (
            f"; {lost} of them have no text of {self.shortest} words of their own and are not looked for"
            if lost
            else ""
        )
        count = len(self.models())
        return (f"looks for {items} items of {count} evaluation file{'s' * (count != 1)}{left}",)

    def remarks(self, folder: Path) -> tuple[str, ...]:
        """Which sets were found, and in how many conversations: the ten found most."""
        if not self.evals:
            return ()
        columns = ("contamination", "eval_set", "eval_item")
        shards = (read_frame(path, columns) for path in sorted(folder.glob("*.parquet")))
        hits = pl.concat(shard.filter(pl.col("contamination") >= HALF) for shard in shards).group_by("eval_set")
        counts = hits.agg(items=pl.col("eval_item").n_unique(), conversations=pl.len())
        found = counts.sort("conversations", "eval_set", descending=[True, False]).head(10)
        return tuple(
            f"{name}: half or more of a question, answer or message of {items} of its items stands in "
            f"{conversations} conversation{'s' * (conversations != 1)}"
            for name, items, conversations in found.iter_rows()
        ) or ("no conversation has half of a question, answer or message of any item",)

    def open(self, folder: Path) -> Measure:
        """Read and index the evaluation sets, once a process.

        Raises:
            StageParameterError: one cannot be read.
        """
        del folder
        return self._measure(_index(self, self.digest()).measure) if self.evals else self.measure

    def measure(self, batch: pl.DataFrame) -> pl.DataFrame:
        """Without evaluation sets nothing is known."""
        return pl.DataFrame(schema=self.writes).clear(batch.height)

    @staticmethod
    def _measure(of: Callable[[pl.Series], pl.DataFrame]) -> Measure:
        return lambda batch: of(batch["text"])


@lru_cache(maxsize=1)
def _index(stage: Contamination, digest: str) -> Index:
    """The index of a stage's evaluation sets as they are now, which its digest says."""
    from stages.overlap.contamination_index import Index

    del digest
    index = Index.of(list(parts(stage.evals)), stage.n, stage.shortest, stage.common)
    if index.items[0] == index.items[1]:
        raise StageParameterError(
            f"evals {stage.evals!r} holds {index.items[0]} items, none of which has {stage.shortest} words of its own "
            f"to look for: name other files"
        )
    return index


@lru_cache(maxsize=8)
def _digest(stage: Contamination, files: tuple[tuple[str, int, int], ...]) -> str:
    del files
    return Stage.digest(stage)
