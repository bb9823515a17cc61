"""The merge of `stages.dedup`: from the keys of all shards to pairs and clusters, and the columns of each shard."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages import columns
from stages.columns import chunks
from stages.dedup.bands import Matching
from stages.dedup.groups import Groups, copies
from stages.dedup.kernel import B32, ROW
from stages.dedup.pairs import Near, near_pairs
from stages.dedup.signatures import pack
from stages.dedup.turns import say_the_same
from stages.files import GROUP, save_frame, save_json, save_parts, scratch, zeros
from stages.stage import PAIRS, StageRefusedError
from stages.text.shards import Ids, Rows, Shards
from stages.text.shingles import text_keys

MAX_LISTED, EXAMPLE = 10, 200
"""Maximum number of clusters that `dedup.json` lists, and characters of the example of each."""
MIN_SUSPICIOUS = 1000
"""Number of conversations below which a cluster never stops a run."""


def merge(
    raw: Sequence[Path],
    measured: Sequence[Path],
    folder: Path,
    matching: Matching,
    *,
    cluster: float,
    max_cluster: float,
    turn_jaccard: float,
) -> None:
    """Write `merged/`, `dedup.parquet` and `dedup.json`; see `stages.dedup`."""
    shards = Shards.of(raw, measured)
    texts, none = copies(shards, "text"), text_keys(pl.Series([""]))[0]
    prompts = copies(shards, "prompt", none)  # those without a prompt are no copies of each other
    near = _near(shards, texts, matching, folder, cluster=cluster)
    clusters = near.clusters(texts, cluster, folder)
    ids = Ids(shards, near.rows, texts.first, prompts.first, clusters.first)
    largest = _largest(shards, clusters, ids)
    _guard(cluster, max_cluster, largest, len(shards))
    duplicates, crowded = _Duplicates(texts, prompts, clusters, near, ids, folder), 0
    for at, path in enumerate(measured):
        signals = duplicates.signals(shards.ids(at), int(shards.starts[at]))
        crowded += int(signals["dedup_crowded"].sum())
        save_frame(folder / "merged" / path.name, signals)
    written = columns.write((np.arange(here.start, here.stop) for here in chunks(len(near.rows))), np.int64, folder)
    if turn_jaccard:
        alike = say_the_same(shards, near.rows, turn_jaccard, folder)
        written = columns.write((written[here][alike[here]] for here in chunks(len(alike))), np.int64, folder)
    parts = (_pairs(near, written[begin : begin + GROUP], ids) for begin in range(0, len(written), GROUP))
    save_parts(folder / "dedup.parquet", PAIRS, parts)
    distinct = len(shards) - texts.later()
    summary = _summary(matching, near, (len(shards), distinct, crowded), len(written), largest)
    save_json(folder / "dedup.json", summary, indent=1, end="")


def _pairs(near: Near, some: Rows, ids: Ids) -> pl.DataFrame:
    sides = near.rows[some]
    return pl.DataFrame({"id": ids.of(sides[:, 0]), "other": ids.of(sides[:, 1]), "jaccard": near.jaccard[some]}, PAIRS)


@dataclass(frozen=True)
class _Duplicates:
    """What was found, from which the columns of each shard are made."""

    texts: Groups
    prompts: Groups
    clusters: Groups
    near: Near
    ids: Ids
    folder: Path

    def signals(self, own: pl.Series, begin: int) -> pl.DataFrame:
        """The merged signals of the rows with these ids, from `begin` on."""
        signals: dict[str, Any] = {"id": own}
        groups = (self.texts, "dedup_copy_of", "exact_copies"), (self.prompts, "prompt_copy_of", "prompt_copies")
        for group, name, size in (*groups, (self.clusters, "cluster", "cluster_size")):
            first, sizes = group.between(begin, begin + len(own))
            signals[name], signals[size] = self._names(own, begin, first), sizes
        first, sizes = self.texts.between(begin, begin + len(own))
        signals["nearest_jaccard"] = self._nearest(first, sizes)
        signals["dedup_crowded"] = columns.holds(self.near.crowded, first)
        return pl.DataFrame(signals)

    def _names(self, own: pl.Series, begin: int, first: Rows) -> pl.Series:
        """The ids of first rows, one for each of the rows from `begin` on, which have the ids `own`."""
        elsewhere = np.flatnonzero(first != np.arange(begin, begin + len(own)))
        return own.clone().scatter(elsewhere, self.ids.of(first[elsewhere]))

    def _nearest(self, first: Rows, sizes: NDArray[np.uint32]) -> pl.Series:
        """The Jaccard to the most similar other row, null if there is none, by the first copy of each row."""
        rows, values = first.astype(np.uint64), np.zeros(len(first), np.float32)
        if len(order := self._of_pairs):
            last = order[np.searchsorted(order, rows + np.uint64(1) << B32) - 1]  # of no row before the first one
            jaccards = (last & ROW).astype(np.uint32).view(np.float32)
            values = np.where(last >> B32 == rows, jaccards, np.float32(0))
        values[sizes > 1] = 1
        return pl.Series(values).set(pl.Series(values == 0), None)

    @cached_property
    def _of_pairs(self) -> NDArray[np.uint64]:
        """Both sides of each pair as row << 32 | Jaccard, sorted: bits of floats above 0 have the order of floats."""

        def sides() -> Iterator[NDArray[np.uint64]]:
            for here in chunks(len(self.near.rows)):
                bits = self.near.jaccard[here].view(np.uint32)
                yield pack(self.near.rows[here], bits[:, None])

        return columns.sort(columns.write(sides(), np.uint64, self.folder), self.folder)


def _near(shards: Shards, texts: Groups, matching: Matching, folder: Path, *, cluster: float) -> Near:
    """The pairs of near-duplicates; band keys are in a temporary file, a band after the other, 4 bytes per row each."""
    width = matching.bands()[0]
    with scratch(folder, "bands") as aside:
        words = zeros(aside / "words", np.uint32, len(shards))
        bands = zeros(aside / "bands", np.uint32, width * len(shards)).reshape(width, len(shards))
        for here, frame in shards.signals("dedup_words", "band_keys"):
            words[here] = frame["dedup_words"]
            bands[:, here] = frame["band_keys"].explode().to_numpy().reshape(-1, width).T
        return near_pairs(texts, words, bands.T, shards.texts, matching, near=cluster, folder=folder)


def _largest(shards: Shards, clusters: Groups, ids: Ids) -> list[dict[str, Any]]:
    """The largest clusters, as `dedup.json` lists them."""
    largest = clusters.largest(MAX_LISTED)
    if not largest:
        return []
    first = np.array([row for row, _ in largest])
    each = zip(ids.of(first), largest, shards.take(first, "text")["text"], strict=True)
    return [{"cluster": name, "cluster_size": size, "example": text[:EXAMPLE]} for name, (_, size), text in each]


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
    matching: Matching, near: Near, counts: tuple[int, int, int], alike: int, largest: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    (bands, rows), (total, distinct, crowded) = matching.bands(), counts
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
        "pairs_with_another_turn": len(near.rows) - alike,
        "crowded": crowded,
        "bands": bands,
        "rows": rows,
        "chance": {f"{s:g}": round(matching.chance(s), 5) for s in (0.5, 0.6, 0.7, 0.75, 0.8, 0.9)},
        "largest_clusters": list(largest),
        "notes": [note] if crowded else [],
    }
