"""Points of a scaling law: the results of finished training runs, and their bootstrap resamples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from trainer.experiment.records import read, scores
from trainer.prepare.arms import Mask
from trainer.prepare.prepared import ExperimentData
from trainer.prepare.streams import Stream
from trainer.scaling import Points

RESAMPLES = 1000
"""Number of bootstrap resamples of the test set."""


def points(folders: Sequence[Path], clusters: NDArray[np.int64]) -> tuple[pl.DataFrame, NDArray[np.float64] | None]:
    """Results of finished training runs, one row each, and what `resample` computes from them.

    `replies_ppl` is that of replies alone, null without any.
    """
    records = [read(folder) for folder in folders]
    columns = ("kind", "tokens", "seed", "ppl", "nats", "bits_per_byte", "accuracy", "test_tokens")
    rows = [
        {**{key: record.get(key) for key in columns}, "replies_ppl": (record.get("replies") or {}).get("ppl")}
        for record in records
    ]
    frame = pl.DataFrame(rows, infer_schema_length=None, schema_overrides={"replies_ppl": pl.Float64})
    return frame.with_columns(folder=pl.Series([folder.name for folder in folders])), resample(folders, clusters)


def resample(
    folders: Sequence[Path],
    clusters: NDArray[np.int64],
    seed: int = 0,
    mask: Mask | None = None,
) -> NDArray[np.float64] | None:
    """`resample_scores` of finished training runs, on the `mask` [2, K] of classes and test conversations.

    `clusters` are [K]; by default everything is scored.
    """
    each_run = [scores(folder) for folder in folders]
    targets = each_run[0][1]
    mask = np.ones(targets.shape, np.bool_) if mask is None else mask
    of = np.broadcast_to(clusters, targets.shape)[mask]
    return resample_scores(np.stack([one[mask] for one, _ in each_run]), targets[mask], of, seed)


def resample_scores(
    nats: NDArray[np.float64], targets: NDArray[np.int64], clusters: NDArray[np.int64], seed: int = 0
) -> NDArray[np.float64] | None:
    """Ln PPL of n models on bootstrap resamples of K parts of test conversations, float64 [n, `RESAMPLES`].

    Clusters of near-duplicates are drawn with replacement, the same ones for every model, because neither the tokens of
    a conversation nor its copies are independent. None if fewer than two clusters have a target. `nats` [n, K] and
    `targets` [K] are sums by part; `clusters` [K] are equal for near-duplicates.
    """
    _, clusters = np.unique(clusters, return_inverse=True)
    nats = np.stack([np.bincount(clusters, one) for one in nats])
    targets = np.bincount(clusters, targets)
    nats, targets = nats[:, targets > 0], targets[targets > 0]
    if len(targets) < 2:  # noqa: PLR2004
        return None
    generator, count = np.random.default_rng(seed), len(targets)
    moved = np.empty((len(nats), RESAMPLES))
    for b in range(RESAMPLES):
        drawn = np.bincount(generator.integers(0, count, count), minlength=count)
        moved[:, b] = nats @ drawn / (targets @ drawn)
    return moved


def arm_scores(folders: Sequence[Path], test: Stream, mask: Mask) -> pl.DataFrame:
    """Results of training runs on the `mask` [2, K] of classes and test conversations, one row each."""
    size = max(int(test.by_class(test.target_bytes())[mask].sum()), 1)
    rows: list[dict[str, Any]] = []
    for folder in folders:
        record, (each, counts) = read(folder), scores(folder)
        nats, targets = float(each[mask].sum()), max(int(counts[mask].sum()), 1)
        of = {key: record[key] for key in ("kind", "tokens", "seed")}
        mean = nats / targets
        rows.append(
            {**of, "nats": mean, "ppl": float(np.exp(min(mean, 34.0))), "bits_per_byte": nats / np.log(2) / size}
        )
    return pl.DataFrame(rows)


def arm_points(folders: Sequence[Path], common: ExperimentData, mask: Mask) -> Points:
    """Points of an arm's law on the `mask` [2, K] of classes and test conversations, with the same resamples."""
    frame = arm_scores(folders, common.test, mask)
    moved = resample(folders, common.clusters, mask=mask)
    return Points(frame["tokens"].to_numpy(), frame["ppl"].to_numpy(), None, moved)
