"""Heatmaps of frames. No text of a corpus becomes a Vega expression."""

from dataclasses import dataclass
from math import log
from typing import Any

import altair as alt
import polars as pl

from pipeline.report import theme

Chart = alt.Chart | alt.LayerChart | alt.FacetChart
"""A chart, as figure functions return it."""
TIP = pl.col("tip").str.replace_all(r"\b1 conversations\b", "1 conversation")
"""Expression of the column of tooltips, with a correct singular."""


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


def heatmap(cells: pl.DataFrame, x: Side, y: Side, colour: Colour, *, width: int = 36, height: int = 26) -> Chart:
    """A heatmap with a text in each cell; the width and height are those of a cell, in pixels.

    `cells` has x, y (labels), value (the colour; null for an empty cell), text (in the cell), tip (the tooltip), and
    optionally pick (the conversations that a click shows).
    """
    dark = pl.Series([int(colour.dark(value)) for value in cells["value"]], dtype=pl.Int8)
    pick = ["pick"] if "pick" in cells.columns else []
    value, text = pl.col("value").cast(pl.Float64).round_sig_figs(4), pl.col("text").fill_null("")
    angle = -50 if x.upright else 0
    below = alt.Axis(labelAngle=angle, labelExpr="split(datum.label, '|')", labelOverlap=False, labelFontSize=10)
    beside = alt.Axis(labelOverlap=False, titlePadding=10)
    base = alt.Chart(cells.select("x", "y", value, text, TIP, *pick, ink=dark)).encode(
        x=alt.X("x:N", sort=list(x.labels), scale=alt.Scale(padding=0.03), title=x.title, axis=below),
        y=alt.Y("y:N", sort=list(y.labels), scale=alt.Scale(padding=0.04), title=y.title, axis=beside),
    )
    cursor: Any = "pointer" if pick else "default"
    empty = base.mark_rect(fill=theme.EMPTY, cornerRadius=2, cursor=cursor)
    filled = base.transform_filter("isValid(datum.value)").mark_rect(cornerRadius=2, cursor=cursor)
    colours = alt.Scale(
        type="log" if colour.log else "linear",
        domain=list(colour.domain),
        range=list(theme.DIVERGING if colour.diverging else theme.SEQUENTIAL),
        interpolate="lab",
        clamp=True,
        nice=False,
    )
    legend = alt.Legend(title=colour.title, format=colour.form, tickCount=3)
    filled = filled.encode(color=alt.Color("value:Q", scale=colours, legend=legend))
    inks = alt.Scale(domain=[0, 1], range=[theme.INK, theme.PAPER])
    number = base.mark_text(fontSize=10, cursor=cursor, baseline="middle").encode(
        text="text:N", color=alt.Color("ink:N", scale=inks, legend=None)
    )
    whole: Chart = alt.layer(empty, filled, number).resolve_scale(color="independent")
    return whole.properties(width=alt.Step(width), height=alt.Step(height))
