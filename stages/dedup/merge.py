"""The merge of `stages.dedup`: from the keys of all shards to pairs, clusters and what is written for each shard."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.dedup.bands import Matching, chance
from stages.dedup.pairs import Near, candidates, components, first_alike, near_pairs
from stages.files import save_frame, save_json
from stages.stage import StageRefusedError
from stages.text.shards import Ids, Rows, Shards
from stages.text.shingles import text_keys

PAIRS = pl.Schema({"id": pl.String(), "other": pl.String(), "jaccard": pl.Float32()})
LARGEST, EXAMPLE = 10, 200
"""Clusters that are listed with an example, and characters of that."""
SMALL = 1000
"""A cluster of fewer conversations stops no run."""


def merge(
    raw: Sequence[Path],
    measured: Sequence[Path],
    folder: Path,
    matching: Matching,
    *,
    cluster: float,
    max_cluster: float,
) -> None:
    """Write `merged/`, `dedup.parquet`, `prompt.parquet` and `dedup.json`; see `stages.dedup`."""
    shards = Shards.of(raw, measured)
    copy_of, prompt_of = first_alike(shards.keys("text")), _prompts(shards.keys("prompt"))
    firsts = np.flatnonzero(copy_of == np.arange(len(shards)))
    near = _near(matching, cluster, shards, firsts, folder / f".shingles.{os.getpid()}.tmp")
    pairs = firsts[near.rows]
    answer = _Answer.of(cluster, near, pairs, firsts, _Groups(copy_of), _Groups(prompt_of))
    examples = {int(row): shards.text(row)[:EXAMPLE] for row in answer.largest()}
    groups = (answer.copies, answer.prompts, answer.clusters)
    names = Ids(shards, np.concatenate([pairs.ravel(), *(group.others() for group in groups), answer.largest()]))
    _guard(cluster, max_cluster, answer, names, examples)
    (folder / "merged").mkdir(parents=True, exist_ok=True)
    for at, path in enumerate(measured):
        save_frame(folder / "merged" / path.name, answer.columns(shards.ids(at), int(shards.starts[at]), names))
    found = {"id": names.of(pairs[:, 0]), "other": names.of(pairs[:, 1]), "jaccard": near.jaccard}
    save_frame(folder / "dedup.parquet", pl.DataFrame(found, schema=PAIRS))
    save_frame(folder / "prompt.parquet", pl.DataFrame(schema=PAIRS))
    save_json(folder / "dedup.json", _summary(matching, near, answer, names, examples), indent=1, end="")


def _prompts(keys: NDArray[np.uint64]) -> Rows:
    """For each row the first with the same prompt: itself where it has none, for no prompt is not the same prompt."""
    first, none = first_alike(keys), np.flatnonzero((keys == text_keys(pl.Series([""]))).all(axis=1))
    first[none] = none
    return first


def _near(matching: Matching, cluster: float, shards: Shards, firsts: Rows, scratch: Path) -> Near:
    """Pairs among the rows that are no copies, numbered among themselves."""
    bands = shards.bands(firsts, matching.bands()[0])
    longest_first = np.argsort(-shards.words()[firsts].astype(np.int64), kind="stable")
    try:
        sets = shards.sets(firsts, candidates(bands), scratch)
        return near_pairs(bands, longest_first, sets, matching.floor, cluster, matching.bucket)
    finally:
        scratch.unlink(missing_ok=True)


class _Groups:
    """Rows that belong together: for each the first of its group, and how many there are."""

    def __init__(self, first: Rows) -> None:
        self.first = first
        self.sizes = np.bincount(first, minlength=len(first)).astype(np.uint32)

    def others(self) -> Rows:
        """The firsts of groups of more than one."""
        return np.flatnonzero(self.sizes > 1)

    def columns(self, name: str, count: str, ids: pl.Series, start: int, names: Ids) -> dict[str, pl.Series]:
        """For a shard: the id of the first, and the group's size."""
        first = self.first[start : start + len(ids)]
        elsewhere = np.flatnonzero(first != np.arange(start, start + len(ids)))
        return {
            name: ids.clone().scatter(elsewhere, names.of(first[elsewhere])),
            count: pl.Series(self.sizes[first]),
        }


@dataclass(frozen=True)
class _Answer:
    """What is known of each conversation, by row."""

    copies: _Groups
    prompts: _Groups
    clusters: _Groups
    nearest: NDArray[np.float32]
    crowded: NDArray[np.bool_]

    @classmethod
    def of(  # noqa: PLR0917  what is known, each once
        cls, cluster: float, near: Near, pairs: Rows, firsts: Rows, copies: _Groups, prompts: _Groups
    ) -> _Answer:
        close = near.jaccard >= np.float32(cluster)
        clusters = _Groups(components(pairs[close], len(copies.first))[copies.first])
        nearest = np.zeros(len(copies.first), np.float32)
        for side in (0, 1):
            np.maximum.at(nearest, pairs[:, side], near.jaccard)
        nearest[copies.sizes > 1] = 1
        crowded = np.zeros(len(nearest), np.bool_)
        crowded[firsts] = near.crowded
        return cls(copies, prompts, clusters, nearest[copies.first], crowded[copies.first])

    def columns(self, ids: pl.Series, start: int, names: Ids) -> pl.DataFrame:
        here = slice(start, start + len(ids))
        nearest = pl.Series(self.nearest[here])
        return pl.DataFrame(
            {
                "id": ids,
                **self.copies.columns("dedup_copy_of", "exact_copies", ids, start, names),
                **self.prompts.columns("prompt_copy_of", "prompt_copies", ids, start, names),
                **self.clusters.columns("cluster", "cluster_size", ids, start, names),
                "nearest_jaccard": nearest.set(nearest == 0, None),
                "dedup_crowded": self.crowded[here],
            }
        )

    def largest(self) -> Rows:
        """The largest clusters' first rows."""
        order = np.argsort(-self.clusters.sizes.astype(np.int64), kind="stable")[:LARGEST]
        return order[self.clusters.sizes[order] > 1]


def _guard(cluster: float, max_cluster: float, answer: _Answer, names: Ids, examples: Mapping[int, str]) -> None:
    for row in answer.largest()[:1]:
        size, total = int(answer.clusters.sizes[row]), len(answer.clusters.sizes)
        if size >= SMALL and size > max_cluster * total:
            raise StageRefusedError(
                f"dedup: {size:,} of {total:,} conversations hang together as near-duplicates at a Jaccard of "
                f"{cluster:g} or more, more than a share of {max_cluster:g}; the first is "
                f"{names.of(np.array([row])).item()!r} ({examples[row][:80]!r}): look at them, and if they may be one "
                f"cluster, allow it with max_cluster = {min(1, size / total + 0.005):.2f} for dedup in the plan"
            )


def _summary(
    matching: Matching, near: Near, answer: _Answer, names: Ids, examples: Mapping[int, str]
) -> dict[str, Any]:
    bands, rows = matching.bands()
    crowded, total = int(answer.crowded.sum()), len(answer.crowded)
    note = (
        f"dedup: {crowded} of {total} conversations share a band key with more than {matching.bucket} others and were "
        f"compared with the leaders among those only, so that near-duplicates of them may have been missed (they are "
        f"marked in the column dedup_crowded; a larger bucket finds more and takes longer)"
    )
    sizes = answer.clusters.sizes
    return {
        "conversations": total,
        "exact_copies": total - len(near.crowded),
        "pairs_compared": near.compared,
        "pairs_at_floor": len(near.rows),
        "crowded": crowded,
        "bands": bands,
        "rows": rows,
        "chance": {f"{s:g}": round(chance(s, bands, rows), 5) for s in (0.5, 0.6, 0.7, 0.75, 0.8, 0.9)},
        "largest_clusters": [
            {"cluster": name, "cluster_size": int(sizes[row]), "example": examples[row]}
            for name, row in zip(names.of(answer.largest()), answer.largest(), strict=True)
        ],
        "notes": [note] if crowded else [],
    }
