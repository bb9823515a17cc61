"""Near-duplicates by brute force: every pair of Python sets. What `stages.dedup` must agree with."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from stages.dedup import Dedup
from stages.stage import DETAILS, MESSAGES
from stages.text.shingles import SPACELESS

SHARED = Path(__file__).parents[3] / "shared"


def words(text: str) -> list[str]:
    r"""The lower-cased `\w+` of a text; characters of scripts without spaces one by one."""
    found = []
    for word in re.findall(r"\w+", text.lower()):
        found += [part for part in re.split(f"([{SPACELESS}])", word) if part]
    return found


def same(text: str) -> tuple[str, ...] | str:
    """What two exact copies have in common."""
    return tuple(words(text)) or text.strip()


def shingles(text: str) -> set[Any]:
    """Word 5-grams; a text of fewer words is one shingle, itself."""
    found = words(text)
    return {tuple(found[i : i + 5]) for i in range(len(found) - 4)} or {same(text)}


def jaccard(first: set[Any], second: set[Any]) -> float:
    """Shared shingles by all shingles."""
    return len(first & second) / len(first | second)


def pairs(texts: list[str], floor: float) -> dict[tuple[int, int], float]:
    """All pairs of first copies at the floor."""
    firsts = {same(text): row for row, text in reversed(list(enumerate(texts)))}
    sets = {row: shingles(texts[row]) for row in sorted(firsts.values())}
    found = {(i, j): jaccard(sets[i], sets[j]) for i, j in itertools.combinations(sets, 2)}
    return {pair: value for pair, value in found.items() if value >= floor}


@dataclass(frozen=True)
class Run:
    """A stage's answer over some texts, with row numbers for ids."""

    measured: pl.DataFrame
    merged: pl.DataFrame
    near: pl.DataFrame
    summary: dict[str, Any]

    def pairs(self) -> dict[tuple[int, int], float]:
        """Pairs as `pairs` gives them; each is there once."""
        found = {(int(i), int(j)): value for i, j, value in self.near.iter_rows()}
        assert len(found) == len(self.near)
        return found

    def rows(self, column: str) -> list[int]:
        """A column of ids, as row numbers."""
        return self.merged[column].cast(pl.Int64).to_list()


def run(
    folder: Path,
    texts: list[str],
    stage: Dedup | None = None,
    shards: int = 1,
    conversations: list[list[dict[str, str]]] | None = None,
) -> Run:
    """Measure texts in shards, and merge; by default each text is a plain document."""
    stage = stage or Dedup()
    ids = [f"{row:06}" for row in range(len(texts))]
    prompts = [text.split("\n")[0] for text in texts]
    schema: dict[str, Any] = {"id": pl.String, "text": pl.String, "prompt": pl.String, "details": DETAILS}
    frame = pl.DataFrame({"id": ids, "text": texts, "prompt": prompts, "details": [None] * len(ids)}, schema=schema)
    document = pl.concat_list(pl.struct(role=pl.lit("text"), content="text"))
    frame = frame.with_columns(messages=pl.Series(conversations, dtype=MESSAGES) if conversations else document)
    (folder / "raw").mkdir(parents=True)
    raw, measured = [], []
    for at in range(shards):
        part = frame[at * len(frame) // shards : (at + 1) * len(frame) // shards]
        raw.append(folder / "raw" / f"{at:05}.parquet")
        measured.append(folder / f"{at:05}.parquet")
        part.write_parquet(raw[-1])
        part.select("id").hstack(stage.measure(part.select(stage.reads))).write_parquet(measured[-1])
    stage.merge(raw, measured, folder)
    return Run(
        pl.concat([pl.read_parquet(path) for path in measured]),
        pl.concat([pl.read_parquet(folder / "merged" / path.name) for path in measured]),
        pl.read_parquet(folder / "dedup.parquet"),
        json.loads((folder / "dedup.json").read_text()),
    )


def greedy(
    texts: list[str], threshold: float, rank: list[int], met: Callable[[int, int], bool]
) -> list[tuple[int, float]]:
    """The keep rule, one text after the other: for each the row kept for it, and the Jaccard to that.

    A copy goes the way of the best of its copies.

    Args:
        texts: the corpus.
        threshold: Jaccard of duplicates.
        rank: of each text, the least is the best; ties by row.
        met: whether two rows are compared at all.
    """
    sets, first = [shingles(text) for text in texts], {same(text): row for row, text in reversed([*enumerate(texts)])}
    answer: dict[int, tuple[int, float]] = {}
    best: dict[Any, int] = {}
    for row in sorted(range(len(texts)), key=lambda row: (rank[row], row)):
        if best.setdefault(same(texts[row]), row) != row:
            other, value = answer[best[same(texts[row])]]
            answer[row] = (other, value or 1.0)
            continue
        kept = [other for other in set(best.values()) if other in answer and answer[other][0] == other]
        near = [
            (jaccard(sets[row], sets[other]), -first[same(texts[other])], other) for other in kept if met(row, other)
        ]
        value, _, other = max((one for one in near if one[0] >= threshold), default=(0.0, 0, row))
        answer[row] = (other, value)
    return [answer[row] for row in range(len(texts))]
