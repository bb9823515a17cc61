"""Frames of one dimension: distributions, mixes, and the way from what came in to what is kept."""

from __future__ import annotations

from typing import Any

import polars as pl

from pipeline.report.run.banded import Banded
from pipeline.report.run.bands import Band
from pipeline.report.run.signals import Signal


def distribution(sorted_: Banded, signal: Signal) -> pl.DataFrame:
    """A signal's histogram: i, low, high (edges), raw, refined (conversations)."""
    edges = sorted_.bins[signal.name].edges
    key = f"in_s{sorted_.run.signals.index(signal)}"
    counts = (
        sorted_.rows.drop_nulls(key)
        .group_by(pl.col(key).alias("i"))
        .agg(raw=pl.len().cast(pl.Int64), refined=pl.col("keep").sum().cast(pl.Int64))
    )
    bins = pl.DataFrame(
        {"i": range(max(len(edges) - 1, 0)), "low": edges[:-1], "high": edges[1:]},
        schema={"i": pl.Int16, "low": pl.Float64, "high": pl.Float64},
    )
    return bins.join(counts, on="i", how="left", maintain_order="left").with_columns(
        pl.col("raw", "refined").fill_null(0)
    )


def mix(sorted_: Banded, band: Band) -> pl.DataFrame:
    """The share of each band: i, y (label), raw, refined (conversations), raw_share, refined_share, kept_share."""
    counts = sorted_.rows.group_by(pl.col(f"in_{band.key}").alias("i")).agg(
        raw=pl.len().cast(pl.Int64), refined=pl.col("keep").sum().cast(pl.Int64)
    )
    labels = pl.DataFrame({"i": range(len(band.labels)), "y": band.labels}, schema_overrides={"i": pl.Int16})
    frame = labels.join(counts, on="i", how="left", maintain_order="left").with_columns(
        pl.col("raw", "refined").fill_null(0)
    )
    return frame.with_columns(
        raw_share=pl.col("raw") / pl.max_horizontal(pl.col("raw").sum(), 1),
        refined_share=pl.col("refined") / pl.max_horizontal(pl.col("refined").sum(), 1),
        kept_share=pl.when(pl.col("raw") > 0).then(pl.col("refined") / pl.col("raw")),
    )


def retention(manifest: dict[str, Any]) -> pl.DataFrame:
    """From what came in to what is kept.

    Returns:
        i (number of the rule; null for what is none), step, kind ("in", "dropped" or "kept"), n (conversations), begin
        and end (how many were left before and after), share (of all); rules that dropped nothing are left out.
    """
    counts = manifest["counts"]
    left = counts["ingested"]
    steps: list[tuple[int | None, str, str, int, int, int]] = [(None, "in", "in", left, 0, left)]
    drops: list[tuple[int | None, str, int]] = [(None, "could not be read", counts["quarantined"])]
    drops += [(i, rule["reason"], rule["dropped"]) for i, rule in enumerate(manifest["plan"]["rules"])]
    for i, reason, n in drops:
        if n:
            steps.append((i, reason, "dropped", n, left, left - n))
            left -= n
    steps.append((None, "kept", "kept", left, 0, left))
    schema = {"i": pl.Int16, "step": pl.String, "kind": pl.String, "n": pl.Int64, "begin": pl.Int64, "end": pl.Int64}
    frame = pl.DataFrame(steps, schema=schema, orient="row")
    return frame.with_columns(share=pl.col("n") / max(counts["ingested"], 1))
