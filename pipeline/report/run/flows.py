"""Figures of one dimension: retention, distributions with their thresholds, and mixes of raw and refined."""

import polars as pl

from pipeline.report import bars
from pipeline.report.parts import Figure, Panel
from pipeline.report.run import counts
from pipeline.report.run.bands import BandedRun
from pipeline.report.run.signals import Signal, Threshold, thresholds
from pipeline.report.text import labels, short

MINUS = "\N{MINUS SIGN}"


def retention(run: BandedRun) -> Figure:
    """Conversations left after each rule, from ingested to kept."""
    frame = counts.retention(run.manifest)
    steps = frame.with_columns(
        step=pl.Series(labels(frame["step"].to_list())),
        text=pl.Series(
            [
                (MINUS if kind == "dropped" else "") + f"{n:,}  ({share:.1%})"
                for kind, n, share in frame.select("kind", "n", "share").iter_rows()
            ],
            dtype=pl.String,
        ),
        tip=pl.Series(
            [f"{step}: {n:,} conversations" for step, n in frame.select("step", "n").iter_rows()], dtype=pl.String
        ),
        pick=pl.when(pl.col("kind") == "kept")
        .then(pl.lit("kept"))
        .when(pl.col("i").is_not_null())
        .then(pl.format("reason:{}", "i"))
        .otherwise(pl.lit("")),
    )
    idle = [rule.reason for rule in run.manifest.rules if not rule.dropped]
    notes = (f"Dropped nothing: {', '.join(labels(idle))}.",) if idle else ()
    return Figure(
        "retention",
        "What was kept, and what each rule dropped",
        "Rules apply in the order of the plan; a conversation counts for the first that fires.",
        (Panel("", bars.waterfall(steps), frame, notes),),
    )


def distributions(run: BandedRun) -> Figure | None:
    """Every signal, with the thresholds of the rules; None if no signal varies."""
    known = {signal: run.rows[signal.name].drop_nulls() for signal in run.signals}
    panels = tuple(_distribution(run, signal) for signal, values in known.items() if values.n_unique() > 1)
    same = [f"{signal.name} ({short(values[0])})" for signal, values in known.items() if values.n_unique() == 1]
    if not panels:
        return None
    return Figure(
        "distributions",
        "Every signal, with the thresholds of the rules",
        "Blue is kept, orange is dropped; heights have a square-root scale, so that rare values are visible. Dashed "
        "lines are thresholds." + (f" Constant in this corpus: {', '.join(same)}." if same else ""),
        panels,
        small=True,
    )


def _distribution(run: BandedRun, signal: Signal) -> Panel:
    frame = counts.distribution(run, signal)
    number = run.signals.index(signal)
    edges = frame.select("low", "high").iter_rows()
    ranges = pl.Series([f"{short(low)} to {short(high)}" for low, high in edges], dtype=pl.String)
    bins = frame.with_columns(
        tip=pl.format("{} {}: {} conversations, {} kept", pl.lit(signal.name), ranges, "raw", "refined"),
        pick=pl.format(f"s{number}:{{}}", "i"),
    )
    limits = thresholds(run.plan, signal.name)
    axis = run.bins[signal.name]
    low, high = axis.edges[0], axis.edges[-1]
    marks = [_between(threshold) if axis.axis == "whole" else threshold.at for threshold in limits]
    marks = [mark for mark in marks if low <= mark <= high]
    unknown = run.rows[signal.name].null_count()
    notes = [
        f"{reason}: {threshold.text}" + ("" if low <= threshold.at <= high else " (outside the range of this corpus)")
        for threshold, reason in zip(limits, labels([threshold.reason for threshold in limits]), strict=True)
    ]
    if unknown:
        notes.append(f"unknown for {unknown:,} conversations ({unknown / run.rows.height:.1%})")
    chart = bars.distribution(bins, marks, signal.unit or signal.name, axis.axis)
    return Panel(signal.name, chart, frame, tuple(notes))


def _between(threshold: Threshold) -> float:
    """Where a threshold separates whole numbers: "> 0" drops what is right of 0.5."""
    for operator, shift in ((">=", -0.5), ("<=", 0.5), (">", 0.5), ("<", -0.5)):
        if operator in threshold.text:
            return threshold.at + shift
    return threshold.at


MIXES = {"lang": "Language", "length": "Length", "prompt": "First prompt", "source": "Source"}


def mix(run: BandedRun) -> Figure | None:
    """Languages, lengths and sources, raw against refined; None if none was measured."""
    panels = []
    for key, title in MIXES.items():
        band = run.bands.get(key)
        if band is None or (key == "source" and len(band.labels) < 2):  # noqa: PLR2004  one source is no mix
            continue
        frame = counts.mix(run, band)
        both = pl.concat(
            frame.select(
                "i",
                "y",
                corpus=pl.lit(corpus),
                share=pl.col(f"{corpus}_share"),
                tip=pl.format(
                    f"{{}}: {{}} {corpus} conversations, {{}}%",
                    *("y", corpus, (pl.col(f"{corpus}_share") * 100).round(1)),
                ),
                pick=pl.format(f"{key}:{{}}{' kept' if corpus == 'refined' else ''}", "i"),
            )
            for corpus in ("raw", "refined")
        ).sort("i", "corpus")
        panels.append(Panel(title, bars.shares(both, ""), frame.drop("i")))
    if not panels:
        return None
    return Figure(
        "mix",
        "The mix, raw against refined",
        "Shares of conversations; a kind whose share grows was dropped less often than others.",
        tuple(panels),
    )
