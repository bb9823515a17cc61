"""Frames for figures: conversations in, one row per cell, bin or step out."""

from itertools import combinations_with_replacement

import polars as pl

from pipeline.manifest import Manifest
from pipeline.report.run.bands import Band, BandedRun
from pipeline.report.run.signals import Signal

MAX_SAMPLE = 20_000
"""Maximum number of conversations for rank correlations; their standard error is then below 0.01."""
MAX_CORRELATED, MAX_LEVELS = 14, 10
"""Maximum number of signals in a matrix of correlations, and of levels."""


def _grid(across: Band, down: Band) -> pl.DataFrame:
    """Every cell of two bands: xi, yi, x, y."""
    return _labels(down, "y").join(_labels(across, "x"), how="cross")


def _labels(band: Band, axis: str) -> pl.DataFrame:
    """The labels of a band, with their indices in the column `<axis>i`."""
    index = pl.Series(f"{axis}i", range(len(band.labels)), pl.Int16)
    return pl.DataFrame([index, pl.Series(axis, band.labels, pl.String)])


def cells(run: BandedRun, across: Band, down: Band) -> pl.DataFrame:
    """Count the conversations in each cell.

    Returns:
        xi, yi, x, y, raw, refined, removed (conversations), removed_share (of the cell), and, if pairs were measured,
        dup_raw and dup_refined (share of the cell's conversations with a duplicate in the same corpus) and dup_change;
        null for an empty cell.
    """
    counted = [pl.len().cast(pl.Int64).alias("raw"), pl.col("keep").sum().cast(pl.Int64).alias("refined")]
    if run.at_least is not None:
        counted += [
            pl.col("in_dup").mean().alias("dup_raw"),
            pl.col("in_dup_kept").filter(pl.col("keep")).mean().alias("dup_refined"),
        ]
    keys = {f"in_{across.key}": "xi", f"in_{down.key}": "yi"}
    filled = run.rows.group_by(list(keys)).agg(*counted).rename(keys)
    frame = _grid(across, down).join(filled, on=["xi", "yi"], how="left", maintain_order="left")
    frame = frame.with_columns(pl.col("raw", "refined").fill_null(0)).with_columns(
        removed=pl.col("raw") - pl.col("refined"),
        removed_share=pl.when(pl.col("raw") > 0).then(1 - pl.col("refined") / pl.col("raw")),
    )
    if run.at_least is None:
        return frame
    return frame.with_columns(dup_change=pl.col("dup_refined") - pl.col("dup_raw"))


def reasons(run: BandedRun, across: Band) -> pl.DataFrame:
    """Count what each rule removed in each band.

    Returns:
        xi, yi (number of the rule), x, y (its reason), n (conversations), share (of the band); rules that removed
        nothing are omitted.
    """
    key, names = f"in_{across.key}", run.reasons
    rows = run.rows.select(pl.col(key).alias("xi"), pl.col("reason").cast(pl.String).alias("y"))
    removed = rows.drop_nulls("y").group_by("xi", "y").agg(n=pl.len().cast(pl.Int64))
    removing = [(i, name) for i, name in enumerate(names) if name in set(removed["y"].to_list())]
    rules = pl.DataFrame(removing, schema={"yi": pl.Int16, "y": pl.String}, orient="row")
    frame = rules.join(_labels(across, "x"), how="cross").join(
        removed, on=["xi", "y"], how="left", maintain_order="left"
    )
    sizes = rows.group_by("xi").agg(size=pl.len())
    frame = frame.join(sizes, on="xi", how="left", maintain_order="left").with_columns(pl.col("n").fill_null(0))
    return frame.with_columns(share=(pl.col("n") / pl.col("size")).fill_null(0.0)).drop("size")


def together(run: BandedRun) -> pl.DataFrame:
    """Count how often two rules fire on the same conversation.

    Returns:
        xi, yi, x, y, n (conversations), share (of those on which the rule `y` fires); rules that never fire are
        omitted.
    """
    rows, names = run.rows, run.reasons
    alone = {i: int(rows[f"in_rule{i}"].sum()) for i in range(len(names))}
    firing = [i for i, n in alone.items() if n]
    pairs = []
    for i, j in combinations_with_replacement(firing, 2):
        n = alone[i] if i == j else int((rows[f"in_rule{i}"] & rows[f"in_rule{j}"]).sum())
        for x, y in {(i, j), (j, i)}:
            pairs.append((x, y, names[x], names[y], n, n / alone[y]))
    schema = {"xi": pl.Int16, "yi": pl.Int16, "x": pl.String, "y": pl.String, "n": pl.Int64, "share": pl.Float64}
    return pl.DataFrame(pairs, schema=schema, orient="row").sort("yi", "xi")


def varying_signals(run: BandedRun) -> list[Signal]:
    """The signals that have more than one value, at most `MAX_CORRELATED`."""
    rows = run.rows
    return [signal for signal in run.signals if rows[signal.name].drop_nulls().n_unique() > 1][:MAX_CORRELATED]


def levels(run: BandedRun, down: Band) -> pl.DataFrame:
    """Compute the level of each signal in each band.

    Returns:
        yi, y, x (signal), and for raw and refined: n (conversations in which it is known), median, and rank, the mean
        percentile rank (0 to 100) among all raw conversations; change of the rank. Null if nothing is known.
    """
    signals = varying_signals(run)[:MAX_LEVELS]
    parts = [_level(run.rows, f"in_{down.key}", signal.name) for signal in signals]
    if not parts:
        return pl.DataFrame(schema={"yi": pl.Int16, "x": pl.String})
    y = _labels(down, "y")
    names = pl.DataFrame({"x": [signal.name for signal in signals]})
    frame = (
        y.join(names, how="cross")
        .join(pl.concat(parts), on=["yi", "x"], how="left")
        .with_columns(change=pl.col("refined_rank") - pl.col("raw_rank"))
    )
    return frame.sort("yi", "x")


def _level(rows: pl.DataFrame, key: str, name: str) -> pl.DataFrame:
    value = pl.col(name)
    known = rows.select(
        pl.col(key).alias("yi"), "keep", value.alias("v"), (value.rank() / value.count() * 100).alias("rank")
    ).drop_nulls("v")
    return known.group_by("yi").agg(
        pl.lit(name).alias("x"),
        raw_n=pl.len().cast(pl.Int64),
        raw_median=pl.col("v").median(),
        raw_rank=pl.col("rank").mean(),
        refined_n=pl.col("keep").sum().cast(pl.Int64),
        refined_median=pl.col("v").filter(pl.col("keep")).median(),
        refined_rank=pl.col("rank").filter(pl.col("keep")).mean(),
    )


def correlations(run: BandedRun) -> pl.DataFrame:
    """Compute Spearman's rank correlation of each pair of signals, over conversations in which both are known.

    Returns:
        x, y, raw, refined, change; null if fewer than ten are known or one does not vary.
    """
    names = [signal.name for signal in varying_signals(run)]
    rows = run.rows.select("keep", *names)
    kept = rows.filter(pl.col("keep"))
    raw, refined = (part.sample(min(MAX_SAMPLE, part.height), seed=0) for part in (rows, kept))
    values = []
    for a, b in combinations_with_replacement(names, 2):
        pair = [spearman(part, a, b) for part in (raw, refined)]
        for x, y in {(a, b), (b, a)}:
            values.append((x, y, *pair))
    schema = {"x": pl.String, "y": pl.String, "raw": pl.Float64, "refined": pl.Float64}
    frame = pl.DataFrame(values, schema=schema, orient="row").with_columns(change=pl.col("refined") - pl.col("raw"))
    return frame.sort("y", "x")


def spearman(rows: pl.DataFrame, a: str, b: str) -> float | None:
    """Spearman's rank correlation of two columns; None if fewer than ten rows know both, or one does not vary."""
    known = rows.select(a=pl.col(a).cast(pl.Float64), b=pl.col(b).cast(pl.Float64)).drop_nulls()
    if known.height < 10:  # noqa: PLR2004  too few to say anything
        return None
    rho = known.select(pl.corr("a", "b", method="spearman")).item()
    return None if rho is None or rho != rho else float(rho)  # noqa: PLR0124  NaN if one is constant


def distribution(run: BandedRun, signal: Signal) -> pl.DataFrame:
    """A signal's histogram: i, low, high (edges), raw, refined (conversations)."""
    edges = run.bins[signal.name].edges
    key = f"in_s{run.signals.index(signal)}"
    counts = (
        run.rows.drop_nulls(key)
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


def mix(run: BandedRun, band: Band) -> pl.DataFrame:
    """The share of each label of a band: i, y (label), raw, refined (conversations), and raw_, refined_, kept_share."""
    counts = run.rows.group_by(pl.col(f"in_{band.key}").alias("i")).agg(
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


def retention(manifest: Manifest) -> pl.DataFrame:
    """Count what is left after each step, from ingested to kept.

    Returns:
        i (number of the rule, else null), step, kind ("in", "dropped" or "kept"), n (conversations), begin and end (how
        many were left before and after), share (of all); rules that dropped nothing are omitted.
    """
    counts = manifest.counts
    left = counts.ingested
    steps: list[tuple[int | None, str, str, int, int, int]] = [(None, "in", "in", left, 0, left)]
    drops: list[tuple[int | None, str, int]] = [(None, "could not be read", counts.quarantined)]
    drops += [(i, rule.reason, rule.dropped) for i, rule in enumerate(manifest.rules)]
    for i, reason, n in drops:
        if n:
            steps.append((i, reason, "dropped", n, left, left - n))
            left -= n
    steps.append((None, "kept", "kept", left, 0, left))
    schema = {"i": pl.Int16, "step": pl.String, "kind": pl.String, "n": pl.Int64, "begin": pl.Int64, "end": pl.Int64}
    frame = pl.DataFrame(steps, schema=schema, orient="row")
    return frame.with_columns(share=pl.col("n") / max(counts.ingested, 1))
