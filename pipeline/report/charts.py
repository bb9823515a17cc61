"""Charts of frames: bars and heatmaps. No text of a corpus becomes a Vega expression.

Channels are objects, since altair searches its whole schema for the class of a string, in 10 ms each.
"""

from dataclasses import dataclass
from math import log
from typing import Any, Literal

import altair as alt
import polars as pl

from pipeline.report import theme
from pipeline.report.text import largest

Chart = alt.Chart | alt.LayerChart | alt.FacetChart
"""A chart, as figure functions return it."""
TIP = pl.col("tip").str.replace_all(r"\b1 conversations\b", "1 conversation")
"""Expression of the column of tooltips, with a correct singular."""
FULL: Any = "container"
"""Width of a chart that fills its container on the page; a PNG has a fixed width."""
SHORT = "format(datum.value, '~s')"
"""Vega expression that formats each tick by itself: 0 and 1k, not 0k and 1k."""
AxisKind = Literal["linear", "log", "whole"]
FIT = alt.AutoSizeParams(type="fit-x", contains="padding")


def waterfall(steps: pl.DataFrame, unit: str) -> Chart:
    """Steps from what was taken in to what was kept, one bar per step, its number inside it if it fits.

    `steps` has step, kind, begin and end (in the unit), text, tip, pick.
    """
    most = largest(steps["begin"], largest(steps["end"], 1.0))
    along = alt.Scale(domain=[0, most], nice=False)
    order = steps["step"].to_list()
    base = alt.Chart(steps.select("step", "kind", "begin", "end", "text", TIP, "pick")).encode(
        y=alt.Y("step:N", sort=order, title=None, axis=alt.Axis(labelFontSize=12, labelLimit=150))
    )
    colours = alt.Scale(domain=["in", "dropped", "kept"], range=[theme.RAW, theme.DROPPED, theme.KEPT])
    bars = base.mark_bar(cornerRadius=2, height={"band": 0.72}, cursor="pointer").encode(
        x=alt.X("begin:Q", title=unit, scale=along, axis=alt.Axis(labelExpr=SHORT, grid=True, tickCount=5)),
        x2=alt.X2("end:Q"),
        color=alt.Color("kind:N", scale=colours, legend=None),
    )
    low, high = pl.min_horizontal("begin", "end"), pl.max_horizontal("begin", "end")
    short = high - low < most * 0.3
    ends = steps.select(
        *("step", "text", "tip", "pick"),
        at=pl.when(high > most * 0.7, short).then(low).otherwise(high),
        where=pl.when(high <= most * 0.7).then(pl.lit("after")).when(short).then(pl.lit("before")),
        ink=pl.when(pl.col("kind") == "kept").then(pl.lit(theme.PAPER)).otherwise(pl.lit(theme.INK)),
    )
    numbers = alt.Chart(ends).encode(
        y=alt.Y("step:N", sort=order), x=alt.X("at:Q", scale=along), text=alt.Text("text:N")
    )
    style: dict[str, Any] = {"fontSize": 11.5, "cursor": "pointer"}
    within = numbers.transform_filter("!isValid(datum.where)").mark_text(align="right", dx=-8, **style)
    layers = [bars, within.encode(color=alt.Color("ink:N", scale=None))]
    sides: tuple[tuple[str, Literal["left", "right"], int], ...] = (("after", "left", 7), ("before", "right", -7))
    for where, align, dx in sides:
        beside = numbers.transform_filter(f"datum.where == '{where}'")
        beside = beside.mark_text(align=align, dx=dx, color=theme.INK, **style)
        layers.append(beside.properties(name=where))  # the page's style sheet recolours text that is not inside a bar
    return alt.layer(*layers).properties(width=FULL, autosize=FIT, height=30 * len(order))


def distribution(bins: pl.DataFrame, marks: list[float], title: str, kind: AxisKind) -> Chart:
    """The distribution of a signal: all conversations, the kept ones in front, and the thresholds of rules.

    `bins` has low, high, raw, refined (conversations), tip, pick.
    """
    data = bins.with_columns(zero=pl.lit(0)).select("low", "high", "zero", "raw", "refined", TIP, "pick")
    edges = [*bins["low"].to_list(), *bins["high"].to_list()[-1:]]
    scale: dict[str, Any] = {"type": "linear", "zero": False}
    ticks: dict[str, Any] = {"tickCount": 5}
    if kind == "log":
        scale = {"type": "log"} if edges[0] > 0 else {"type": "symlog"}
        ticks = {"values": decades(edges[0], edges[-1])}
    elif kind == "whole":
        ticks = {"values": [edge + 0.5 for edge in edges[:-1]][:: len(edges) // 8 + 1]}
    x = alt.X(
        "low:Q",
        title=title,
        scale=alt.Scale(domain=[edges[0], edges[-1]], nice=False, clamp=True, **scale),
        axis=alt.Axis(
            labelExpr=SHORT if edges[-1] > 1 else alt.Undefined, labelOverlap=True, labelFlush=kind != "whole", **ticks
        ),
    )
    heights = alt.Scale(type="sqrt", nice=False)
    axis = alt.Axis(labelExpr=SHORT, tickCount=3, grid=True)
    base = alt.Chart(data).encode(x=x, x2=alt.X2("high:Q"), y2=alt.Y2("zero:Q"))
    layers: list[alt.Chart] = [
        base.mark_bar(color=colour, cursor="pointer", binSpacing=0, stroke=None, x2Offset=-0.5).encode(
            y=alt.Y(f"{column}:Q", title="conversations", scale=heights, axis=axis)
        )
        for column, colour in (("raw", theme.DROPPED), ("refined", theme.KEPT))
    ]
    if marks:
        lines = alt.Chart(pl.DataFrame({"at": [float(mark) for mark in marks]}))
        layers.append(lines.mark_rule(color=theme.MARK, strokeDash=[4, 3], strokeWidth=1.6).encode(x=alt.X("at:Q")))
    return alt.layer(*layers).properties(width=FULL, autosize=FIT, height=110)


def bubbles(spots: pl.DataFrame) -> Chart:
    """Circles on a plane: their area is a number of conversations, their colour the share of them that was kept.

    `spots` has x, y, raw, share, label (beside the circle, or empty), tip, pick.
    """
    plain = alt.Axis(title=None, labels=False, grid=False)
    base = alt.Chart(spots.select("x", "y", "raw", "share", "label", TIP, "pick")).encode(
        x=alt.X("x:Q", axis=plain, scale=alt.Scale(padding=30)), y=alt.Y("y:Q", axis=plain, scale=alt.Scale(padding=30))
    )
    sizes = alt.Scale(range=[20, 1600], domainMin=0)
    area = alt.Size("raw:Q", title="conversations", scale=sizes, legend=alt.Legend(tickCount=2))
    shares = alt.Scale(domain=[0, 1], range=list(theme.SEQUENTIAL), interpolate="lab")
    kept = alt.Color("share:Q", title="share kept", scale=shares, legend=alt.Legend(format=".0%", tickCount=3))
    circles = base.mark_circle(opacity=0.85, cursor="pointer", stroke=theme.RAW).encode(size=area, color=kept)
    words = base.mark_text(fontSize=10, dy=-12, color=theme.INK).encode(text=alt.Text("label:N"))
    words = words.properties(name="beside")  # the page's style sheet recolours it, and outlines it where circles are
    return alt.layer(circles, words).properties(width=FULL, autosize=FIT, height=420)


def decades(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis: powers of ten, with multiples of 2 and 5 if there are fewer than three."""
    steps = [step * 10.0**power for power in range(-3, 13) for step in (1, 2, 5)]
    least = low if low > 0 else 1.0
    tens = [tick for tick in steps[::3] if least <= tick <= high]
    ticks = tens if len(tens) > 2 else [tick for tick in steps if least <= tick <= high]  # noqa: PLR2004
    return [0.0, *ticks] if low <= 0 else ticks


def shares(mix: pl.DataFrame, title: str, corpora: tuple[str, ...] = ("raw", "refined")) -> Chart:
    """The shares of groups of conversations in each corpus, raw above refined.

    `mix` has y (the group), corpus, share, tip, pick; `title` is that of the axis of groups.
    """
    colours = alt.Scale(domain=list(corpora), range=[theme.RAW, theme.KEPT])
    labels = list(dict.fromkeys(mix["y"].to_list()))
    base = alt.Chart(mix.select("y", "corpus", "share", TIP, "pick")).mark_bar(cornerRadius=2, cursor="pointer")
    drawn: Chart = base.encode(
        y=alt.Y("y:N", sort=labels, title=title, axis=alt.Axis(labelOverlap=False)),
        yOffset=alt.YOffset("corpus:N", sort=list(corpora)),
        x=alt.X("share:Q", title="share of its corpus", axis=alt.Axis(format=".0%", grid=True, tickCount=4)),
        color=alt.Color("corpus:N", scale=colours, legend=alt.Legend(title=None, symbolType="square")),
    )
    return drawn.properties(width=FULL, autosize=FIT, height=26 * len(labels))


@dataclass(frozen=True)
class Side:
    """An axis of a heatmap: its title and its labels in order; "|" breaks a line of a label."""

    title: str
    labels: tuple[str, ...]
    upright: bool = False
    """Whether the labels below a heatmap are rotated, because they are long."""


@dataclass(frozen=True)
class Colour:
    """A colour scale; panels that are compared share one."""

    title: str
    domain: tuple[float, float]
    log: bool = False
    diverging: bool = False
    form: str = "~s"
    """Number format of the legend, in the notation of d3-format."""

    def dark(self, value: float | None) -> bool:
        """Whether a cell of this value is so dark that its text must be light."""
        if value is None:
            return False
        low, high, place = (log(at) if self.log else at for at in (*self.domain, value))
        place = (place - low) / max(high - low, 1e-9)
        return abs(place - 0.5) > 0.36 if self.diverging else place > 0.42  # noqa: PLR2004  chosen by looking at the colours


def heatmap(cells: pl.DataFrame, x: Side, y: Side, colour: Colour, *, width: int = 38, height: int = 27) -> Chart:
    """A heatmap with a text in each cell; the width and height are those of a cell, in pixels.

    `cells` has x, y (labels), value (the colour; null for an empty cell), text (in the cell), tip (the tooltip), and
    optionally note (a smaller text below the first) and pick (the conversations that a click shows).
    """
    dark = pl.Series([int(colour.dark(value)) for value in cells["value"]], dtype=pl.Int8)
    optional = [name for name in ("note", "pick") if name in cells.columns]
    value, text = pl.col("value").cast(pl.Float64).round_sig_figs(4), pl.col("text").fill_null("")
    angle = -50 if x.upright else 0
    below = alt.Axis(labelAngle=angle, labelExpr="split(datum.label, '|')", labelOverlap=False, labelFontSize=10)
    beside = alt.Axis(labelOverlap=False, titlePadding=10)
    base = alt.Chart(cells.select("x", "y", value, text, TIP, *optional, ink=dark)).encode(
        x=alt.X("x:N", sort=list(x.labels), scale=alt.Scale(padding=0.03), title=x.title, axis=below),
        y=alt.Y("y:N", sort=list(y.labels), scale=alt.Scale(padding=0.04), title=y.title, axis=beside),
    )
    cursor: Any = "pointer" if "pick" in optional else "default"
    colours = alt.Scale(
        type="log" if colour.log else "linear",
        domain=list(colour.domain),
        range=list(theme.DIVERGING if colour.diverging else theme.SEQUENTIAL),
        interpolate="lab",
        clamp=True,
        nice=False,
    )
    fill = alt.Color("value:Q", scale=colours, legend=alt.Legend(title=colour.title, format=colour.form, tickCount=3))
    rects = base.mark_rect(cornerRadius=2, cursor=cursor, invalid=None).encode(color=fill)  # null: theme.EMPTY
    texts = [("text", 11, -5), ("note", 8, 7)] if "note" in optional else [("text", 11, 0)]
    inks = alt.Color("ink:N", scale=alt.Scale(domain=[0, 1], range=[theme.INK, theme.PAPER]), legend=None)
    numbers = (
        base.mark_text(fontSize=size, dy=dy, cursor=cursor, baseline="middle").encode(
            text=alt.Text(f"{name}:N"), color=inks
        )
        for name, size, dy in texts
    )
    whole: Chart = alt.layer(rects, *numbers).resolve_scale(color="independent")
    return whole.properties(width=alt.Step(width), height=alt.Step(height))
