"""Frames for figures: conversations in, one row per cell, bin or step out."""

from collections.abc import Sequence
from itertools import combinations_with_replacement, product

import polars as pl

from pipeline.plant.audit import UNTOUCHED, Findings
from pipeline.report.run.bands import Band, BandedRun
from pipeline.report.run.frame import Signal
from pipeline.report.text import labels

MAX_SAMPLE = 20_000
"""Maximum number of conversations for rank correlations; their standard error is then below 0.01."""
MAX_CORRELATED, MAX_LEVELS = 14, 10
"""Maximum number of signals in a matrix of correlations, and of levels."""


def _labels(axis: str, labels: Sequence[str], words: Sequence[str]) -> pl.DataFrame:
    """Labels of an axis with their indices and their words for a sentence: the columns `xi`, `x` and `x_word`."""
    frame = pl.DataFrame({axis: labels, f"{axis}_word": words}, schema_overrides={axis: pl.String})
    return frame.with_columns(pl.int_range(pl.len(), dtype=pl.Int16).alias(f"{axis}i"))


def _words(run: BandedRun) -> list[pl.Expr]:
    """Expression of the words of each conversation, as Int64; none if no stage counted them."""
    return [] if run.words is None else [pl.col(run.words).cast(pl.Int64).alias("words")]


def _count(run: BandedRun, frame: pl.DataFrame, keys: dict[str, str], *more: pl.Expr) -> pl.DataFrame:
    """Add the number of conversations, raw and refined, and more aggregates to a frame with one row per cell.

    If words were measured, also raw_words and refined_words. `keys` are the columns of the run that identify a cell,
    with their names in the frame.
    """
    raw = [pl.len().cast(pl.Int64).alias("raw"), *(one.sum().alias("raw_words") for one in _words(run))]
    kept = (one.filter("keep").sum().alias("refined_words") for one in _words(run))
    sizes = [*raw, pl.col("keep").sum().cast(pl.Int64).alias("refined"), *kept]
    counts = run.rows.group_by(list(keys)).agg(*more, *sizes)
    frame = frame.join(counts.rename(keys), on=list(keys.values()), how="left", maintain_order="left")
    return frame.with_columns(pl.col([size.meta.output_name() for size in sizes]).fill_null(0))


def cells(run: BandedRun, across: Band, down: Band) -> pl.DataFrame:
    """The conversations in each cell: xi, yi, x, y, cell (its name), raw, refined, removed, and removed_share.

    If pairs were measured, also dup_raw and dup_refined (share of the cell's conversations with a duplicate in the same
    corpus), and dup_removed and dup_removed_share (of those with one in raw, how many were dropped); a share is null if
    there is nothing that it could be of. If words were measured, also raw_words and refined_words.
    """
    duplicates = []
    if run.at_least is not None:
        duplicates = [
            pl.col("in_dup").mean().alias("dup_raw"),
            pl.col("in_dup_kept").filter("keep").mean().alias("dup_refined"),
            (~pl.col("keep")).filter("in_dup").sum().cast(pl.Int64).alias("dup_removed"),
            (~pl.col("keep")).filter("in_dup").mean().alias("dup_removed_share"),
        ]
    grid = _labels("y", down.labels, down.words).join(_labels("x", across.labels, across.words), how="cross")
    frame = _count(run, grid, {f"in_{across.key}": "xi", f"in_{down.key}": "yi"}, *duplicates)
    return frame.with_columns(
        cell=pl.format(f"{across.word} {{}}, {down.word} {{}}", "x_word", "y_word"),
        removed=pl.col("raw") - pl.col("refined"),
        removed_share=pl.when(pl.col("raw") > 0).then(1 - pl.col("refined") / pl.col("raw")),
    )


def reasons(run: BandedRun, across: Band) -> pl.DataFrame:
    """What each rule removed in each band; rules that removed nothing are omitted.

    Columns: xi, yi (number of the rule), x, y (its reason), x_word, n (conversations), share (of the band), size (of
    the band), and words if they were measured.
    """
    words = [one.meta.output_name() for one in _words(run)]
    rows = run.rows.select(*_words(run), xi=f"in_{across.key}", yi=pl.col("reason").to_physical().cast(pl.Int16))
    removed = rows.drop_nulls("yi").group_by("xi", "yi").agg(pl.col(words).sum(), n=pl.len().cast(pl.Int64))
    rules = _labels("y", run.reasons, run.reasons).join(removed, on="yi", how="semi")
    return (
        rules.join(_labels("x", across.labels, across.words), how="cross")
        .join(removed, on=["xi", "yi"], how="left", maintain_order="left")
        .join(rows.group_by("xi").agg(size=pl.len()), on="xi", how="left", maintain_order="left")
        .with_columns(pl.col("n", *words).fill_null(0))
        .with_columns(share=(pl.col("n") / pl.col("size")).fill_null(0.0))
    )


def together(run: BandedRun) -> pl.DataFrame:
    """How often two rules fire on the same conversation; rules that never fire are omitted.

    Columns: xi, yi, x, y, n (conversations), share (of those on which the rule `y` fires), and words if they were
    measured.
    """
    firing = [i for i in range(len(run.reasons)) if run.rows[f"in_rule{i}"].any()]
    pairs = []
    for y, x in product(firing, repeat=2):
        both = pl.col(f"in_rule{x}") & pl.col(f"in_rule{y}")
        sizes = run.rows.select(both.sum(), *(one.filter(both).sum() for one in _words(run))).row(0)
        pairs.append((x, y, run.reasons[x], run.reasons[y], *sizes))
    schema = {"xi": pl.Int16, "yi": pl.Int16, "x": pl.String, "y": pl.String, "n": pl.Int64}
    schema |= {one.meta.output_name(): pl.Int64 for one in _words(run)}
    alone = pl.col("n").filter(pl.col("xi") == pl.col("yi")).first().over("yi")
    return pl.DataFrame(pairs, schema=schema, orient="row").with_columns(share=pl.col("n") / alone)


def planted(run: BandedRun, findings: Findings) -> pl.DataFrame:
    """What became of each kind of planted damage, and of untouched conversations; rules that drop none are omitted.

    Columns: yi, y (the kind), xi (number of the rule; null for those kept), x (its reason, "kept", or "repaired" for
    those that are kept without their damage), n (conversations), share (of the kind).
    """
    kinds, names = {**findings.kinds, UNTOUCHED: findings.untouched}, labels(run.reasons)
    rules = [i for i, reason in enumerate(run.reasons) if any(reason in one.by_rule for one in kinds.values())]
    some = any(one.repaired for one in kinds.values())
    rows: list[tuple[int, str, int | None, str, int, float]] = []
    for kind, one in kinds.items():
        row = [(i, names[i], one.by_rule.get(run.reasons[i], 0)) for i in rules]
        at = run.bands["planted"].labels.index(kind)
        repaired = [(None, "repaired", one.repaired)] if some else []
        kept = (None, "kept", one.total - one.dropped - one.repaired)
        rows += [(at, kind, i, name, n, n / max(one.total, 1)) for i, name, n in [*row, *repaired, kept]]
    schema = {"yi": pl.Int16, "y": pl.String, "xi": pl.Int16, "x": pl.String, "n": pl.Int64, "share": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def varying_signals(run: BandedRun) -> list[Signal]:
    """The signals that have more than one value, at most `MAX_CORRELATED`."""
    varying = [signal for signal in run.signals if run.rows[signal.name].drop_nulls().n_unique() > 1]
    return varying[:MAX_CORRELATED]


def levels(run: BandedRun, down: Band) -> pl.DataFrame:
    """The level of each signal in each band: yi, y, x (signal), raw_ and refined_median and _rank, change of the rank.

    A rank is the mean percentile rank (0 to 100) among all raw conversations; null if nothing is known.
    """
    parts = []
    for signal in varying_signals(run)[:MAX_LEVELS]:
        value = pl.col(signal.name)
        known = run.rows.select(
            "keep", yi=f"in_{down.key}", v=value, rank=value.rank() / value.count() * 100
        ).drop_nulls("v")
        level = known.group_by("yi").agg(
            raw_median=pl.col("v").median(),
            raw_rank=pl.col("rank").mean(),
            refined_median=pl.col("v").filter("keep").median(),
            refined_rank=pl.col("rank").filter("keep").mean(),
        )
        labels = _labels("y", down.labels, down.words)
        parts.append(labels.join(level, on="yi", how="left").with_columns(x=pl.lit(signal.name)))
    return pl.concat(parts).with_columns(change=pl.col("refined_rank") - pl.col("raw_rank")).sort("yi", "x")


def correlations(run: BandedRun) -> pl.DataFrame:
    """Spearman's rank correlation of each pair of signals: x, y, raw, refined, change; null as in `spearman`."""
    names = [signal.name for signal in varying_signals(run)]
    rows = run.rows.select("keep", *names)
    samples = [part.sample(min(MAX_SAMPLE, part.height), seed=0) for part in (rows, rows.filter("keep"))]
    values = []
    for a, b in combinations_with_replacement(names, 2):
        pair = [spearman(sample, a, b) for sample in samples]
        values += [(x, y, *pair) for x, y in {(a, b), (b, a)}]
    schema = {"x": pl.String, "y": pl.String, "raw": pl.Float64, "refined": pl.Float64}
    frame = pl.DataFrame(values, schema=schema, orient="row").with_columns(change=pl.col("refined") - pl.col("raw"))
    return frame.sort("y", "x")


def spearman(rows: pl.DataFrame, a: str, b: str) -> float | None:
    """Spearman's rank correlation of two columns; None if fewer than ten rows know both, or one does not vary."""
    known = rows.select(a=pl.col(a).cast(pl.Float64), b=pl.col(b).cast(pl.Float64)).drop_nulls()
    if known.height < 10:  # noqa: PLR2004  too few to say anything
        return None
    rho: float | None = known.select(pl.corr("a", "b", method="spearman").fill_nan(None)).item()
    return rho


def distribution(run: BandedRun, signal: Signal) -> pl.DataFrame:
    """A signal's histogram: i, low, high (edges), raw and refined (conversations), and their words if measured."""
    edges = run.bins[signal.name].edges
    bins = pl.DataFrame({"low": edges[:-1], "high": edges[1:]}, schema={"low": pl.Float64, "high": pl.Float64})
    bins = bins.select(pl.int_range(pl.len(), dtype=pl.Int16).alias("i"), "low", "high")
    return _count(run, bins, {f"in_s{run.signals.index(signal)}": "i"})


def mix(run: BandedRun, band: Band) -> pl.DataFrame:
    """The share of each label: yi, y, raw, refined (conversations), and raw_share, refined_share, kept_share.

    If words were measured, also raw_words, refined_words, and raw_words_share, refined_words_share.
    """
    frame = _count(run, _labels("y", band.labels, band.words).drop("y_word"), {f"in_{band.key}": "yi"})
    sizes = [name for name in ("raw", "refined", "raw_words", "refined_words") if name in frame.columns]
    return frame.with_columns(
        *((pl.col(name) / pl.max_horizontal(pl.col(name).sum(), 1)).alias(f"{name}_share") for name in sizes),
        kept_share=pl.when(pl.col("raw") > 0).then(pl.col("refined") / pl.col("raw")),
    )


def quantiles(run: BandedRun, by: Band) -> pl.DataFrame:
    """Where perplexity lies in each band: y, raw and refined (conversations), p10 to p90, median, refined_median.

    If words were measured, also raw_words and refined_words. A quantile of no known value is null.
    """
    ppl = pl.col("ppl").cast(pl.Float64)
    names = {"p10": 0.1, "p25": 0.25, "median": 0.5, "p75": 0.75, "p90": 0.9}
    parts = [ppl.quantile(at, "linear").alias(name) for name, at in names.items()]
    kept = ppl.filter("keep").median().alias("refined_median")
    labels = _labels("y", by.labels, by.words).drop("y_word")
    return _count(run, labels, {f"in_{by.key}": "yi"}, *parts, kept).drop("yi")


def retention(run: BandedRun) -> pl.DataFrame:
    """What is left after each step, from ingested to kept; rules that dropped nothing are omitted.

    Columns: i (number of the rule, else null), step, kind ("in", "dropped" or "kept"), n (conversations), begin and end
    (how many were left before and after), share (of all). If words were measured, also words, words_begin, words_end
    and words_share; those of conversations that could not be read are unknown and count as none.
    """
    counts = run.manifest.counts
    rules = [(i, rule.reason, "dropped", rule.dropped) for i, rule in enumerate(run.manifest.rules)]
    steps = [
        (None, "in", "in", counts.ingested),
        *(step for step in [(None, "could not be read", "dropped", counts.quarantined), *rules] if step[-1]),
        (None, "kept", "kept", counts.refined),
    ]
    schema = {"i": pl.Int16, "step": pl.String, "kind": pl.String, "n": pl.Int64}
    frame = _left(pl.DataFrame(steps, schema=schema, orient="row"), "n", "")
    if run.words is not None:
        words = run.words_dropped
        sizes = {"in": sum(words.values()), "kept": words.get(None, 0)}
        each = [sizes.get(kind, words.get(i, 0)) for i, kind in frame.select("i", "kind").iter_rows()]
        frame = _left(frame.with_columns(words=pl.Series(each, dtype=pl.Int64)), "words", "words_")
    return frame


def _left(steps: pl.DataFrame, size: str, prefix: str) -> pl.DataFrame:
    """Add how much was left before and after each step, and the step's share of what came in."""
    dropped = pl.when(kind="dropped").then(size).otherwise(0)
    before = pl.col(size).first() - dropped.cum_sum() + dropped
    inside = pl.col("kind") == "dropped"
    return steps.with_columns(
        pl.when(inside).then(before).otherwise(0).alias(f"{prefix}begin"),
        pl.when(inside).then(before - dropped).otherwise(size).alias(f"{prefix}end"),
        (pl.col(size) / pl.max_horizontal(pl.col(size).first(), 1)).alias(f"{prefix}share"),
    )
