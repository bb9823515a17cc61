"""The heatmaps of a run: raw, refined and difference side by side, on the same scale."""

from dataclasses import replace

import polars as pl

from pipeline.report.heatmap import Colour, Side, heatmap
from pipeline.report.parts import Figure, Panel
from pipeline.report.run import counts
from pipeline.report.run.bands import Band, BandedRun
from pipeline.report.text import largest, short

MAX_LETTERS = 5
"""Maximum number of letters of a label that fits below a column."""
KEEPS = {"raw": "", "refined": " kept", "removed": " dropped"}
"""Further condition of a click on a panel, besides its cell."""


def _side(band: Band) -> Side:
    upright = any("|" not in label and len(label) > MAX_LETTERS for label in band.labels)
    return Side(band.title, band.labels, upright=upright)


def _text(values: pl.Series, form: str = "") -> pl.Series:
    """Numbers as text for cells; null for null and, without a format, for 0."""
    if form:
        return pl.Series([None if value is None else _format(value, form) for value in values], dtype=pl.String)
    return pl.Series([short(value) if value else None for value in values], dtype=pl.String)


def _median(values: pl.Series) -> pl.Series:
    """Medians as text for cells, 0 included."""
    return pl.Series([None if value is None else short(value) for value in values], dtype=pl.String)


def _format(value: float, form: str) -> str:
    """A formatted number with a typographic minus and without a zero before the point."""
    text = format(value, form)
    if not text.strip("+-0."):  # "-0.00" is 0
        return "0"
    return text.replace("-", "\N{MINUS SIGN}").replace("0.", ".", 1 if "." in text else 0)


def _cell_names(frame: pl.DataFrame, across: Band, down: Band) -> pl.Series:
    x, y = pl.Series(across.words), pl.Series(down.words)
    named = pl.format(f"{across.word} {{}}, {down.word} {{}}", pl.col("a"), pl.col("b"))
    return frame.select(a=x.gather(frame["xi"]), b=y.gather(frame["yi"])).select(named).to_series()


def conversations(run: BandedRun, across: Band, down: Band) -> Figure:
    """The number of conversations in each cell, and how many were removed."""
    frame = counts.cells(run, across, down)
    frame = frame.with_columns(
        cell=_cell_names(frame, across, down),
        at=pl.format(f"{across.key}:{{}} {down.key}:{{}}", "xi", "yi"),
    ).with_columns(
        tip=pl.format(
            "{}: {} conversations, {} kept, {} dropped ({}%)",
            *("cell", "raw", "refined", "removed", (pl.col("removed_share").fill_null(0) * 100).round(1)),
        )
    )
    most = largest(frame["raw"], 2.0)
    number = Colour("conversations (log)", (1.0, most), log=True)
    panels = []
    for name, title in (("raw", "Raw"), ("refined", "Refined"), ("removed", "Difference: removed")):
        cells = frame.select(
            *("x", "y", "tip"),
            value=pl.when(pl.col(name) > 0).then(pl.col(name)),
            text=_text(frame[name]),
            pick=pl.col("at") + KEEPS[name],
        )
        panels.append(Panel(title, heatmap(cells, _side(across), _side(down), number), frame.select("x", "y", name)))
    return Figure(
        f"{across.key}-{down.key}",
        f"Conversations by {across.word} and {down.word}",
        "All three share one logarithmic scale; click a cell to read what is in it.",
        tuple(panels),
    )


def duplicates(run: BandedRun, across: Band, down: Band) -> Figure:
    """The share of conversations in each cell that have a duplicate."""
    frame = counts.cells(run, across, down)
    frame = frame.with_columns(
        cell=_cell_names(frame, across, down), at=pl.format(f"{across.key}:{{}} {down.key}:{{}} dup:1", "xi", "yi")
    )
    most = largest(frame["dup_raw"], 0.01)
    share = Colour("share with a duplicate", (0.0, most), form=".0%")
    change = Colour("change of that share", (-most, most), diverging=True, form="+.0%")
    panels = []
    shown = (("dup_raw", "Raw", share, ""), ("dup_refined", "Refined", share, " kept"))
    for name, title, colour, keep in (*shown, ("dup_change", "Difference", change, "")):
        percent = pl.format("{}%", (pl.col(name) * 100).round(1)).fill_null("none there")
        cells = frame.select(
            *("x", "y"),
            tip=pl.format(f"{{}}: {colour.title} {{}}", "cell", percent),
            value=pl.when(pl.col(name) != 0).then(pl.col(name)),  # 0 is a number on an empty cell
            text=_text(frame[name] * 100, "+.0f" if colour.diverging else ".0f"),
            pick=pl.col("at") + keep,
        )
        panels.append(Panel(title, heatmap(cells, _side(across), _side(down), colour), frame.select("x", "y", name)))
    return Figure(
        f"duplicates-{across.key}-{down.key}",
        f"Duplicates by {across.word} and {down.word}",
        f"Percentage of conversations in each cell with another one at Jaccard {run.at_least:g} or above in the "
        "same corpus, exact copies included.",
        tuple(panels),
    )


def removals(run: BandedRun, across: Band) -> Figure | None:
    """Removals of each rule along a band; None if nothing was removed."""
    frame = counts.reasons(run, across)
    if frame.is_empty():
        return None
    names = pl.Series(across.words).gather(frame["xi"])
    cells = frame.select(
        *("x", "y"),
        value=pl.when(pl.col("n") > 0).then(pl.col("share")),
        text=_text(frame["n"]),
        tip=pl.format(
            "{} removed {} conversations at {}, {}% of them",
            *("y", "n", names, (pl.col("share") * 100).round(2)),
        ),
        pick=pl.format(f"{across.key}:{{}} reason:{{}}", "xi", "yi"),
    )
    most = largest(frame["share"], 0.001)
    colour = Colour("share of the column removed", (0.0, most), form=".1%" if most < 0.05 else ".0%")  # noqa: PLR2004
    rules = Side("rule", tuple(dict.fromkeys(frame["y"].to_list())))
    chart = heatmap(cells, _side(across), rules, colour, (36, 26))
    return Figure(
        f"removed-{across.key}",
        f"What each rule removed, by {across.title.split(' (')[0]}",
        "Numbers count conversations, and colours show their share of the column; a conversation counts for the "
        "first rule that fired.",
        (Panel("", chart, frame.select("x", "y", "n", "share")),),
    )


def together(run: BandedRun) -> Figure | None:
    """How often two rules fire on the same conversation; None if no rule fires."""
    frame = counts.together(run)
    if frame.is_empty():
        return None
    cells = frame.select(
        *("x", "y"),
        value=pl.when(pl.col("n") > 0).then(pl.col("n")),
        text=_text(frame["n"]),
        tip=pl.when(pl.col("xi") == pl.col("yi"))
        .then(pl.format("{} fires on {} conversations", "y", "n"))
        .otherwise(
            pl.format(
                "{} and {}: {} conversations, {}% of the former's", "y", "x", "n", (pl.col("share") * 100).round(1)
            )
        ),
        pick=pl.format("rule:{} rule:{}", "xi", "yi"),
    )
    names = tuple(dict.fromkeys(frame["y"].to_list()))
    most = largest(frame["n"], 2.0)
    colour = Colour("conversations (log)", (1.0, most), log=True)
    chart = heatmap(cells, Side("", names, upright=True), Side("", names), colour, (36, 26))
    return Figure(
        "rules",
        "Rules that fire together",
        "The diagonal counts all conversations on which a rule fires, whichever rule was first; a rule on duplicates "
        "sees only what the other rules left.",
        (Panel("", chart, frame.select("x", "y", "n", "share")),),
    )


def levels(run: BandedRun, down: Band) -> Figure | None:
    """The level of each signal in each band; None if no signal varies."""
    frame = counts.levels(run, down)
    if frame.is_empty():
        return None
    names = tuple(signal.name for signal in counts.varying_signals(run)[: counts.MAX_LEVELS])
    rank = Colour("mean percentile rank", (0.0, 100.0), form=".0f")
    change = largest(frame["change"].abs(), 1.0)
    moved = Colour("change of the mean rank", (-change, change), diverging=True, form="+.1f")
    panels = []
    shown = (("raw", "Raw", rank), ("refined", "Refined", rank), ("change", "Difference", moved))
    for name, title, colour in shown:
        value = "change" if name == "change" else f"{name}_rank"
        median = f"{'refined' if name == 'change' else name}_median"
        cells = frame.select(
            *("x", "y"),
            value=pl.col(value),
            text=_text(frame[value], "+.0f") if name == "change" else _median(frame[median]),
            tip=_level(down),
            pick=pl.format(f"{down.key}:{{}}{' kept' if name == 'refined' else ''}", "yi"),
        )
        chart = heatmap(cells, Side("", names, upright=True), _side(down), colour, (32, 26))
        panels.append(Panel(title, chart, frame.select("x", "y", value, median)))
    return Figure(
        f"signals-{down.key}",
        f"Signals by {down.word}",
        "Colours show the mean percentile rank among all raw conversations (50 is average); numbers are medians "
        "and, on the right, the change of the rank.",
        tuple(panels),
    )


def _level(down: Band) -> pl.Expr:
    medians = [pl.col(name).round_sig_figs(4) for name in ("raw_median", "refined_median")]
    ranks = [pl.col(name).round(1) for name in ("raw_rank", "refined_rank")]
    return pl.format(
        "{} at {} {}: median {} raw, {} refined; mean rank {} raw, {} refined",
        *("x", pl.lit(down.word), "y"),
        *(value.cast(pl.String).fill_null("none") for value in (*medians, *ranks)),
    )


def correlations(run: BandedRun) -> Figure | None:
    """Rank correlations of signals; None if fewer than two vary."""
    frame = counts.correlations(run)
    names = tuple(signal.name for signal in counts.varying_signals(run))
    if len(names) < 2:  # noqa: PLR2004  a correlation needs two
        return None
    rank = Colour("Spearman's rank correlation", (-1.0, 1.0), diverging=True, form="+.1f")
    change = replace(rank, title="change of that correlation")
    panels = []
    for name, title, colour in (("raw", "Raw", rank), ("refined", "Refined", rank), ("change", "Difference", change)):
        cells = frame.select(
            *("x", "y"),
            value=pl.col(name),
            text=_text(frame[name], ".2f"),
            tip=pl.format(
                "{} and {}: {} raw, {} refined",
                *("y", "x"),
                *(pl.col(c).round(3).cast(pl.String).fill_null("unknown") for c in ("raw", "refined")),
            ),
        )
        chart = heatmap(cells, Side("", names, upright=True), Side("", names), colour, (27, 22))
        panels.append(Panel(title, chart, frame.select("x", "y", name)))
    return Figure(
        "correlations",
        "Signals that correlate",
        f"Spearman's rank correlation over up to {counts.MAX_SAMPLE:,} conversations in which both are known.",
        tuple(panels),
    )
