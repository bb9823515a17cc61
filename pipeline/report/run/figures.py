"""The figures of a run: retention, heatmaps of raw, refined and difference on one scale, distributions and mixes."""

from dataclasses import replace

import polars as pl

from pipeline.plant.audit import Findings
from pipeline.report import charts
from pipeline.report.charts import Colour, Side, heatmap
from pipeline.report.parts import Figure, Panel
from pipeline.report.run import counts
from pipeline.report.run.bands import Band, BandedRun
from pipeline.report.run.frame import Signal, thresholds
from pipeline.report.text import labels, largest, narrow, short

BETWEEN = {">": 0.5, "<=": 0.5, ">=": -0.5, "<": -0.5}
"""Shift of a threshold to where it separates whole numbers: "> 0" drops what is right of 0.5."""
MIXES = {"lang": "Language", "length": "Length", "prompt": "First prompt", "source": "Source"}
"""Titles of the panels of the mix, by the key of their band."""
NO_WORDS = "Words were not counted in this run, so sizes are conversations alone: the stage heuristics adds them."
MAX_LETTERS = 7
"""Maximum number of letters of a label that fits below a column."""


def retention(run: BandedRun) -> Figure:
    """Conversations and words left after each rule, from ingested to kept."""
    frame = counts.retention(run)
    picks = pl.when(kind="kept").then(pl.lit("kept")).otherwise(pl.format("reason:{}", "i")).fill_null("")
    steps = frame.with_columns(step=pl.Series(labels(frame["step"].to_list())), pick=picks)
    idle = [rule.reason for rule in run.manifest.rules if not rule.dropped]
    notes = (f"Dropped nothing: {', '.join(labels(idle))}.",) if idle else ()
    panels = [Panel("Conversations", _steps(steps, "conversations", "n", ""), frame, notes)]
    if run.words is not None:
        panels.append(Panel("Words", _steps(steps, "words", "words", "words_"), frame.select("step", "^words.*$")))
    return Figure(
        "retention",
        "What was kept, and what each rule dropped",
        "Rules apply in the order of the plan; a conversation counts for the first that fires. "
        + (f"Words are those of the signal {run.words}." if run.words else NO_WORDS),
        tuple(panels),
    )


def _steps(steps: pl.DataFrame, unit: str, size: str, prefix: str) -> charts.Chart:
    minus = pl.when(kind="dropped").then(pl.lit("\N{MINUS SIGN}")).otherwise(pl.lit(""))
    number = _thousands(pl.col(size))
    percent = pl.col(f"{prefix}share").map_elements("{:.1%}".format, pl.String)
    bars = steps.select(
        *("step", "kind", "pick"),
        pl.col(f"{prefix}begin").alias("begin"),
        pl.col(f"{prefix}end").alias("end"),
        text=pl.format("{}{}  ({})", minus, number, percent),
        tip=pl.format(f"{{}}: {{}} {unit}, {{}}", "step", number, percent),
    )
    return charts.waterfall(bars, unit)


def _side(band: Band) -> Side:
    upright = any("|" not in label and len(label) > MAX_LETTERS for label in band.labels)
    return Side(band.title, band.labels, upright=upright)


def _nonzero(column: str) -> pl.Expr:
    """Numbers of cells; null for 0, which has no colour."""
    return pl.when(pl.col(column) != 0).then(column)


def _short(numbers: pl.Expr) -> pl.Expr:
    return numbers.map_elements(short, pl.String)


def _text(numbers: pl.Expr, form: str) -> pl.Expr:
    """Formatted numbers with a typographic minus and without a zero before the point."""

    def text(number: float) -> str:
        digits = format(number, form)
        if not digits.strip("+-0.%"):  # "-0.00" is 0
            return "0"
        return digits.replace("-", "\N{MINUS SIGN}").replace("0.", ".", 1)

    return numbers.map_elements(text, pl.String)


def _percent(share: pl.Expr, digits: int = 1) -> pl.Expr:
    return (share * 100).round(digits)


def _thousands(numbers: pl.Expr) -> pl.Expr:
    return numbers.map_elements("{:,}".format, pl.String)


def _in_words(frame: pl.DataFrame) -> pl.Expr:
    """The end of a tooltip: how many words the same conversations have, if that was measured."""
    if "words" in frame.columns:
        return pl.format("; {} words", _thousands(pl.col("words")))
    if "raw_words" in frame.columns:
        return pl.format("; {} words, {} kept", *(_thousands(pl.col(f"{name}_words")) for name in ("raw", "refined")))
    return pl.lit("")


def _panel(
    title: str,
    cells: pl.DataFrame,
    sides: tuple[Side, Side],
    colour: Colour,
    *numbers: str,
    none: str,
    width: int = 38,
    height: int = 27,
) -> Panel:
    """A heatmap, or the sentence `none` if every value is zero or unknown.

    `numbers` are the columns that report.json holds, of those that there are.
    """
    held = cells.select(name for name in numbers if name in cells.columns)
    if not (cells["value"].fill_null(0) != 0).any():
        return Panel(title, None, held, (none,))
    return Panel(title, heatmap(cells, *sides, colour, width=width, height=height), held)


def conversations(run: BandedRun, across: Band, down: Band) -> Figure:
    """The number of conversations in each cell, and the share of them that was dropped."""
    frame = counts.cells(run, across, down)
    percent = _percent(pl.col("removed_share").fill_null(0))
    tip = pl.format("{}: {} conversations, {} kept, {} dropped ({}%)", "cell", "raw", "refined", "removed", percent)
    frame = frame.with_columns(tip=pl.concat_str(tip, _in_words(frame)), share=_text(pl.col("removed_share"), ".0%"))
    number = Colour("conversations (log)", (1.0, largest(frame["raw"], 2.0)), log=True)
    dropped = Colour("share of the cell dropped", (0.0, 1.0), form=".0%")
    panels = []
    for name, title, colour, keep in (
        ("raw", "Raw", number, ""),
        ("refined", "Refined", number, " kept"),
        ("removed", "Difference", dropped, " dropped"),
    ):
        count = _short(_nonzero(name)).fill_null("")
        cells = frame.with_columns(value=_nonzero(name), text=count, pick=_pick(across, down, keep))
        if colour is dropped:
            cells = cells.with_columns(value="removed_share", text="share", note=count)
        held = "x", "y", name, f"{name}_words", f"{name}_share"
        sides = _side(across), _side(down)
        panels.append(_panel(title, cells, sides, colour, *held, none="There are none.", height=30))
    return Figure(
        f"{across.key}-{down.key}",
        f"Conversations by {across.word} and {down.word}",
        "Raw and refined count conversations on one logarithmic scale. The difference is the percentage of a cell's "
        "raw conversations that was dropped; the small number counts them. Choose a cell to read what is in it.",
        tuple(panels),
    )


def _pick(across: Band, down: Band, more: str) -> pl.Expr:
    """What a click on a cell shows."""
    return pl.format(f"{across.key}:{{}} {down.key}:{{}}{more}", "xi", "yi")


def duplicates(run: BandedRun, across: Band, down: Band) -> Figure:
    """The share of conversations in each cell that have a duplicate, and the share of those that was dropped."""
    frame = counts.cells(run, across, down).with_columns(dup_change=pl.col("dup_refined") - pl.col("dup_raw"))
    share = Colour("share with a duplicate", (0.0, largest(frame["dup_raw"], 0.01)), form=".0%")
    dropped = Colour("share of those dropped", (0.0, 1.0), form=".0%")
    none = "No conversation has a duplicate."
    panels = []
    for name, title, colour, keep in (
        ("dup_raw", "Raw", share, ""),
        ("dup_refined", "Refined", share, " kept"),
        ("dup_removed_share", "Difference", dropped, " dropped"),
    ):
        percent = pl.format("{}%", _percent(pl.col(name))).fill_null("none there")
        cells = frame.with_columns(
            value=_nonzero(name),
            text=_text(pl.col(name), ".0%"),
            tip=pl.format(f"{{}}: {colour.title} {{}}", "cell", percent),
            pick=_pick(across, down, f" dup:1{keep}"),
        )
        held = ["x", "y", name]
        if colour is dropped:
            cells = cells.with_columns(note=_short(_nonzero("dup_removed")).fill_null(""))
            held += ["dup_removed", "dup_change"]
            none = "None of them was dropped."
        panels.append(_panel(title, cells, (_side(across), _side(down)), colour, *held, none=none, height=30))
    return Figure(
        f"duplicates-{across.key}-{down.key}",
        f"Duplicates by {across.word} and {down.word}",
        f"Share of conversations in each cell with another one at {run.measure} {run.at_least:g} or above in the same "
        "corpus, exact copies included. The difference is the share of those in raw that was dropped, and their count.",
        tuple(panels),
    )


def removals(run: BandedRun, across: Band) -> Figure | None:
    """Removals of each rule along a band; None if nothing was removed."""
    frame = counts.reasons(run, across)
    if frame.is_empty():
        return None
    cells = frame.with_columns(
        value=_nonzero("share"),
        text=_short(_nonzero("n")),
        tip=pl.format(
            "{} removed {} conversations at {}, {}% of them{}",
            *("y", "n", "x_word", _percent(pl.col("share"), 2), _in_words(frame)),
        ),
        pick=pl.format(f"{across.key}:{{}} reason:{{}}", "xi", "yi"),
    )
    most = largest(frame["share"], 0.001)
    colour = Colour("share of the column removed", (0.0, most), form=".1%" if most < 0.05 else ".0%")  # noqa: PLR2004
    chart = heatmap(cells, _side(across), Side("rule", tuple(frame["y"].unique(maintain_order=True))), colour)
    return Figure(
        f"removed-{across.key}",
        f"What each rule removed, by {across.title.split(' (')[0]}",
        "Numbers count conversations, and colours show their share of the column; a conversation counts for the "
        "first rule that fired.",
        (Panel("", chart, frame.drop("xi", "yi", "x_word", "size")),),
    )


def planted(run: BandedRun, findings: Findings) -> Figure:
    """What became of each kind of planted damage: the rule that dropped it, or kept."""
    frame = counts.planted(run, findings)
    cells = frame.with_columns(
        value=_nonzero("share"),
        text=_short(_nonzero("n")),
        tip=pl.format("{}, {}: {} conversations, {}% of the kind", "y", "x", "n", _percent(pl.col("share"))),
        pick=pl.coalesce(pl.format("planted:{} reason:{}", "yi", "xi"), pl.format("planted:{} kept", "yi")),
    )
    across, down = (tuple(frame[axis].unique(maintain_order=True)) for axis in ("x", "y"))
    colour = Colour("share of the kind", (0.0, 1.0), form=".0%")
    chart = heatmap(cells, Side("", across, upright=True), Side("planted", down), colour)
    return Figure(
        "planted",
        "Planted damage, and the rule that dropped it",
        "Numbers count conversations, and colours show their share of the row. A copy counts as dropped if it or its "
        "original is. What is untouched may have had flaws before.",
        (Panel("", chart, frame.select("x", "y", "n", "share")),),
    )


def together(run: BandedRun) -> Figure | None:
    """How often two rules fire on the same conversation; None if no rule fires."""
    frame = counts.together(run)
    if frame.is_empty():
        return None
    words = _in_words(frame)
    alone = pl.format("{} fires on {} conversations{}", "y", "n", words)
    both = pl.format(
        "{} and {}: {} conversations, {}% of the former's{}", "y", "x", "n", _percent(pl.col("share")), words
    )
    cells = frame.with_columns(
        value=_nonzero("n"),
        text=_short(_nonzero("n")),
        tip=pl.when(pl.col("xi") == pl.col("yi")).then(alone).otherwise(both),
        pick=pl.format("rule:{} rule:{}", "xi", "yi"),
    )
    names = tuple(frame["y"].unique(maintain_order=True))
    colour = Colour("conversations (log)", (1.0, largest(frame["n"], 2.0)), log=True)
    chart = heatmap(cells, Side("", names, upright=True), Side("", names), colour)
    return Figure(
        "rules",
        "Rules that fire together",
        "The diagonal counts all conversations on which a rule fires, whichever rule was first; a rule on duplicates "
        "sees only what the other rules left.",
        (Panel("", chart, frame.drop("xi", "yi")),),
    )


def levels(run: BandedRun, down: Band) -> Figure | None:
    """The level of each signal in each band; None if no signal varies."""
    names = tuple(signal.name for signal in counts.varying_signals(run)[: counts.MAX_LEVELS])
    if not names:
        return None
    frame = counts.levels(run, down)
    rank = Colour("mean percentile rank", (0.0, 100.0), form=".0f")
    most = largest(frame["change"].abs(), 1.0)
    change = Colour("change of the mean rank", (-most, most), diverging=True, form="+.1f")
    medians = (pl.col(name).round_sig_figs(4) for name in ("raw_median", "refined_median"))
    ranks = (pl.col(name).round(1) for name in ("raw_rank", "refined_rank"))
    tip = pl.format(
        f"{{}} at {down.word} {{}}: median {{}} raw, {{}} refined; mean rank {{}} raw, {{}} refined",
        *("x", "y"),
        *(value.cast(pl.String).fill_null("none") for value in (*medians, *ranks)),
    )
    panels = []
    for value, median, title, colour, keep in (
        ("raw_rank", "raw_median", "Raw", rank, ""),
        ("refined_rank", "refined_median", "Refined", rank, " kept"),
        ("change", "refined_median", "Difference", change, ""),
    ):
        cells = frame.with_columns(
            value=value,
            text=_text(pl.col(value), "+.0f") if value == "change" else pl.col(median).map_elements(narrow, pl.String),
            tip=tip,
            pick=pl.format(f"{down.key}:{{}}{keep}", "yi"),
        )
        sides = Side("", names, upright=True), _side(down)
        numbers = "x", "y", value, median
        panels.append(_panel(title, cells, sides, colour, *numbers, none="No rank changed.", width=32))
    return Figure(
        f"signals-{down.key}",
        f"Signals by {down.word}",
        "Colours show the mean percentile rank among all raw conversations (50 is average); numbers are medians "
        "and, on the right, the change of the rank.",
        tuple(panels),
    )


def correlations(run: BandedRun) -> Figure | None:
    """Rank correlations of signals; None if fewer than two vary."""
    names = tuple(signal.name for signal in counts.varying_signals(run))
    if len(names) < 2:  # noqa: PLR2004  a correlation needs two
        return None
    frame = counts.correlations(run)
    rank = Colour("Spearman's rank correlation", (-1.0, 1.0), diverging=True, form="+.1f")
    change = replace(rank, title="change of that correlation")
    known = (pl.col(name).round(3).cast(pl.String).fill_null("unknown") for name in ("raw", "refined"))
    frame = frame.with_columns(tip=pl.format("{} and {}: {} raw, {} refined", "y", "x", *known))
    panels = []
    for name, title, colour in (("raw", "Raw", rank), ("refined", "Refined", rank), ("change", "Difference", change)):
        cells = frame.with_columns(value=name, text=_text(pl.col(name), ".2f"))
        sides = Side("", names, upright=True), Side("", names)
        numbers = "x", "y", name
        panels.append(
            _panel(title, cells, sides, colour, *numbers, none="None is known or changed.", width=29, height=24)
        )
    return Figure(
        "correlations",
        "Signals that correlate",
        f"Spearman's rank correlation over up to {counts.MAX_SAMPLE:,} conversations in which both are known.",
        tuple(panels),
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
        tip=pl.format(
            "{} {}: {} conversations, {} kept{}", pl.lit(signal.name), ranges, "raw", "refined", _in_words(frame)
        ),
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
    chart = charts.distribution(bins, marks, signal.unit or signal.name, axis.axis)
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
            tip = pl.format(f"{{}}: {{}} {corpus} conversations, {{}}%", "y", corpus, _percent(share))
            if run.words is not None:
                of_words = _percent(pl.col(f"{corpus}_words_share"))
                tip = pl.format("{}; {} words, {}%", tip, _thousands(pl.col(f"{corpus}_words")), of_words)
            pick = pl.format(f"{key}:{{}}{kept}", "yi")
            both.append(frame.select("yi", "y", corpus=pl.lit(corpus), share=share, tip=tip, pick=pick))
        chart = charts.shares(pl.concat(both).sort("yi", "corpus"), "")
        panels.append(Panel(title, chart, frame.drop("yi")))
    if not panels:
        return None
    return Figure(
        "mix",
        "The mix, raw against refined",
        "Shares of conversations; a kind whose share grows was dropped less often than others.",
        tuple(panels),
    )
