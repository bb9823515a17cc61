"""Figures of one dimension: retention, distributions with their thresholds, and mixes of raw and refined."""

import polars as pl

from pipeline.report import bars
from pipeline.report.parts import Figure, Panel
from pipeline.report.run import counts
from pipeline.report.run.bands import BandedRun
from pipeline.report.run.frame import Signal, thresholds
from pipeline.report.text import labels, short

BETWEEN = {">": 0.5, "<=": 0.5, ">=": -0.5, "<": -0.5}
"""Shift of a threshold to where it separates whole numbers: "> 0" drops what is right of 0.5."""
MIXES = {"lang": "Language", "length": "Length", "prompt": "First prompt", "source": "Source"}
"""Titles of the panels of the mix, by the key of their band."""


def retention(run: BandedRun) -> Figure:
    """Conversations left after each rule, from ingested to kept."""
    frame = counts.retention(run.manifest)
    texts = [
        ("\N{MINUS SIGN}" if kind == "dropped" else "") + f"{n:,}  ({share:.1%})"
        for kind, n, share in frame.select("kind", "n", "share").iter_rows()
    ]
    tips = [f"{step}: {n:,} conversations" for step, n in frame.select("step", "n").iter_rows()]
    picks = pl.when(pl.col("kind") == "kept").then(pl.lit("kept")).otherwise(pl.format("reason:{}", "i"))
    steps = frame.with_columns(
        step=pl.Series(labels(frame["step"].to_list())),
        text=pl.Series(texts),
        tip=pl.Series(tips),
        pick=picks.fill_null(""),
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
    panels, same = [], []
    for signal in run.signals:
        values = run.rows[signal.name].drop_nulls().unique()
        if values.len() == 1:
            same.append(f"{signal.name} ({short(values[0])})")
        elif values.len():
            panels.append(_distribution(run, signal))
    if not panels:
        return None
    return Figure(
        "distributions",
        "Every signal, with the thresholds of the rules",
        "Blue is kept, orange is dropped; heights have a square-root scale, so that rare values are visible. Dashed "
        "lines are thresholds." + (f" Constant in this corpus: {', '.join(same)}." if same else ""),
        tuple(panels),
        small=True,
    )


def _distribution(run: BandedRun, signal: Signal) -> Panel:
    frame = counts.distribution(run, signal)
    ranges = pl.Series([f"{short(low)} to {short(high)}" for low, high in frame.select("low", "high").iter_rows()])
    bins = frame.with_columns(
        tip=pl.format("{} {}: {} conversations, {} kept", pl.lit(signal.name), ranges, "raw", "refined"),
        pick=pl.format(f"s{run.signals.index(signal)}:{{}}", "i"),
    )
    axis = run.bins[signal.name]
    marks, notes = [], []
    limits = thresholds(run.plan, signal.name)
    for limit, reason in zip(limits, labels([limit.reason for limit in limits]), strict=True):
        note = f"{reason}: {limit.text}"
        mark = limit.at + (BETWEEN.get(limit.text.split()[1], 0) if axis.axis == "whole" else 0)
        if axis.edges[0] <= mark <= axis.edges[-1]:
            marks.append(mark)
        if not axis.edges[0] <= limit.at <= axis.edges[-1]:
            note += " (outside the range of this corpus)"
        notes.append(note)
    if unknown := run.rows[signal.name].null_count():
        notes.append(f"unknown for {unknown:,} conversations ({unknown / run.rows.height:.1%})")
    chart = bars.distribution(bins, marks, signal.unit or signal.name, axis.axis)
    return Panel(signal.name, chart, frame, tuple(notes))


def mix(run: BandedRun) -> Figure | None:
    """Languages, lengths and sources, raw against refined; None if none was measured."""
    panels = []
    for key, title in MIXES.items():
        band = run.bands.get(key)
        if band is None or (key == "source" and len(band.labels) < 2):  # noqa: PLR2004  one source is no mix
            continue
        frame = counts.mix(run, band)
        both = []
        for corpus, kept in (("raw", ""), ("refined", " kept")):
            share = pl.col(f"{corpus}_share")
            percent = (share * 100).round(1)
            tip = pl.format(f"{{}}: {{}} {corpus} conversations, {{}}%", "y", corpus, percent)
            pick = pl.format(f"{key}:{{}}{kept}", "yi")
            both.append(frame.select("yi", "y", corpus=pl.lit(corpus), share=share, tip=tip, pick=pick))
        chart = bars.shares(pl.concat(both).sort("yi", "corpus"), "")
        panels.append(Panel(title, chart, frame.drop("yi")))
    if not panels:
        return None
    return Figure(
        "mix",
        "The mix, raw against refined",
        "Shares of conversations; a kind whose share grows was dropped less often than others.",
        tuple(panels),
    )
