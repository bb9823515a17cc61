"""The merge of `stages.dedup`: from the keys of all shards to pairs and clusters, and the columns of each shard."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.dedup.bands import Matching
from stages.dedup.pairs import Near, near_pairs
from stages.dedup.signatures import first_alike
from stages.files import save_frame, save_json
from stages.stage import PAIRS, StageRefusedError
from stages.text.shards import Ids, Rows, Shards
from stages.text.shingles import text_keys

MAX_LISTED, EXAMPLE = 10, 200
"""Maximum number of clusters that `dedup.json` lists, and characters of the example of each."""
MIN_SUSPICIOUS = 1000
"""Number of conversations below which a cluster never stops a run."""


class _Groups:
    """Rows that belong together: the first row of each row's group, and the size of the group with that first row."""

    def __init__(self, first: Rows) -> None:
        self.first = first
        self.sizes = np.bincount(first, minlength=len(first)).astype(np.uint32)

    def columns(self, own: pl.Series, start: int, ids: Ids) -> tuple[pl.Series, pl.Series]:
        """For a shard with these ids: the id of the group's first row, and the group's size."""
        first = self.first[start : start + len(own)]
        elsewhere = np.flatnonzero(first != np.arange(start, start + len(own)))
        return own.clone().scatter(elsewhere, ids.of(first[elsewhere])), pl.Series(self.sizes[first])


def merge(
    raw: Sequence[Path],
    measured: Sequence[Path],
    folder: Path,
    matching: Matching,
    *,
    cluster: float,
    max_cluster: float,
) -> None:
    """Write `merged/`, `dedup.parquet` and `dedup.json`; see `stages.dedup`."""
    shards = Shards.of(raw, measured)
    first_prompts = _first_prompts(shards)
    near = _near(shards, matching, cluster, folder)
    copies, prompts, clusters = map(_Groups, (near.first, first_prompts, near.clusters(cluster)))
    shared = (np.flatnonzero(groups.sizes > 1) for groups in (copies, prompts, clusters))
    ids = Ids(shards, np.concatenate([near.rows.ravel(), *shared]))
    largest = _largest(shards, clusters, ids)
    _guard(cluster, max_cluster, largest, len(shards))
    nearest, crowded = _nearest(near, copies), near.crowded[near.first]

    def signals(at: int) -> pl.DataFrame:
        own, start = shards.ids(at), int(shards.starts[at])
        here = slice(start, start + len(own))
        columns: dict[str, Any] = {"id": own}
        columns["dedup_copy_of"], columns["exact_copies"] = copies.columns(own, start, ids)
        columns["prompt_copy_of"], columns["prompt_copies"] = prompts.columns(own, start, ids)
        columns["cluster"], columns["cluster_size"] = clusters.columns(own, start, ids)
        columns["nearest_jaccard"] = pl.Series(nearest[here]).set(pl.Series(nearest[here] == 0), None)
        columns["dedup_crowded"] = crowded[here]
        return pl.DataFrame(columns)

    for at, path in enumerate(measured):
        save_frame(folder / "merged" / path.name, signals(at))
    pairs = {"id": ids.of(near.rows[:, 0]), "other": ids.of(near.rows[:, 1]), "jaccard": near.jaccard}
    save_frame(folder / "dedup.parquet", pl.DataFrame(pairs, schema=PAIRS))
    distinct = int(np.count_nonzero(copies.sizes))
    summary = _summary(matching, near, distinct, int(crowded.sum()), largest)
    save_json(folder / "dedup.json", summary, indent=1, end="")


def _keys(shards: Shards, kind: str) -> NDArray[np.uint64]:
    """A 128-bit hash of each text or prompt, uint64 [n, 2]."""
    keys = np.empty((len(shards), 2), np.uint64)
    for here, frame in shards.signals(f"{kind}_key", f"{kind}_check"):
        keys[here] = frame
    return keys


def _first_prompts(shards: Shards) -> Rows:
    """For each row the first with the same prompt; itself if it has no prompt: those are not copies of each other."""
    keys = _keys(shards, "prompt")
    first, none = first_alike(keys), np.flatnonzero((keys == text_keys(pl.Series([""]))).all(axis=1))
    first[none] = none
    return first


def _near(shards: Shards, matching: Matching, cluster: float, folder: Path) -> Near:
    width = matching.bands()[0]
    first = first_alike(_keys(shards, "text"))
    words, bands = np.empty(len(shards), np.uint32), np.empty((len(shards), width), np.uint32)
    for here, frame in shards.signals("dedup_words", "band_keys"):
        words[here] = frame["dedup_words"]
        bands[here] = frame["band_keys"].explode().to_numpy().reshape(-1, width)
    return near_pairs(first, words, bands, shards.texts, matching, near=cluster, folder=folder)


def _nearest(near: Near, copies: _Groups) -> NDArray[np.float32]:
    """The Jaccard of each row to the most similar other one, or 0."""
    nearest = np.zeros(len(near.first), np.float32)
    for side in (0, 1):
        np.maximum.at(nearest, near.rows[:, side], near.jaccard)
    nearest[copies.sizes > 1] = 1
    return nearest[near.first]


def _largest(shards: Shards, clusters: _Groups, ids: Ids) -> list[dict[str, Any]]:
    """The largest clusters, as `dedup.json` lists them."""
    order = np.argsort(-clusters.sizes.astype(np.int64), kind="stable")[:MAX_LISTED]
    return [
        {
            "cluster": ids.of(np.array([row])).item(),
            "cluster_size": int(clusters.sizes[row]),
            "example": shards.row(row, "text").item()[:EXAMPLE],
        }
        for row in order[clusters.sizes[order] > 1].tolist()
    ]


def _guard(cluster: float, max_cluster: float, largest: Sequence[dict[str, Any]], total: int) -> None:
    for one in largest[:1]:
        size = one["cluster_size"]
        if size >= MIN_SUSPICIOUS and size > max_cluster * total:
            raise StageRefusedError(
                f"dedup: {size:,} of {total:,} conversations form one cluster of near-duplicates (Jaccard at or above "
                f"{cluster:g}), more than a share of {max_cluster:g}; the first is {one['cluster']!r} "
                f"({one['example'][:80]!r}): look at them, and if they may be one cluster, allow it with max_cluster = "
                f"{min(1, size / total + 0.005):.2f} for dedup in the plan"
            )


def _summary(
    matching: Matching, near: Near, distinct: int, crowded: int, largest: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    bands, rows = matching.bands()
    total = len(near.first)
    note = (
        f"dedup: {crowded} of {total} conversations share a band key with more than {matching.bucket} others and were "
        f"compared with the leaders among those only, so that near-duplicates of them may have been missed (they are "
        f"marked in the column dedup_crowded; a larger bucket finds more and takes longer)"
    )
    return {
        "conversations": total,
        "exact_copies": total - distinct,
        "pairs_compared": near.compared,
        "pairs_at_floor": len(near.rows),
        "crowded": crowded,
        "bands": bands,
        "rows": rows,
        "chance": {f"{s:g}": round(matching.chance(s), 5) for s in (0.5, 0.6, 0.7, 0.75, 0.8, 0.9)},
        "largest_clusters": list(largest),
        "notes": [note] if crowded else [],
    }
