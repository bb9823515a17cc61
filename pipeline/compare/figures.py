"""Differences as a figure: a value with its interval a row, a colour a test set, and a line where nothing differs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import altair as alt
import polars as pl

from pipeline.report import theme
from pipeline.report.bars import FIT, FULL, SHORT, decades
from pipeline.report.heatmap import Drawn
from pipeline.report.parts import Figure, Panel
from pipeline.report.text import labels, visible
from trainer.scaling import Difference

VALUES = {"delta_alpha": "delta alpha", "ln_ratio": "ln of the PPL ratio"}
"""What is drawn, as an axis says it; of both, less is better: a steeper law, a lower PPL."""
SCHEMA = pl.Schema({"y": pl.String, "test": pl.String, "value": pl.Float64, "low": pl.Float64, "high": pl.Float64})
SAYS = "Points with 95 % intervals, alone where there is none; left of the line is better: steeper, or a lower PPL"


def panel(title: str, key: str, found: Sequence[tuple[str, str, Difference]]) -> Panel | None:
    """A panel of one of `VALUES`; None where nothing of it is known.

    Args:
        title: of the panel.
        key: of the value.
        found: what each row is of, on which test set, and the difference.
    """
    rows = []
    for y, test, one in found:
        value, both = getattr(one, key), getattr(one, f"{key}_interval") or (None, None)
        if math.isfinite(value):
            known = [None if end is None or not math.isfinite(end) else end for end in both]
            rows.append((y, visible(test), value, *(known if None not in known else (None, None))))
    frame = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    return Panel(title, intervals(frame, VALUES[key]), frame) if rows else None


def figure(name: str, title: str, says: str, panels: Sequence[Panel | None]) -> Figure | None:
    """Panels of differences; None where there are none."""
    there = tuple(one for one in panels if one is not None)
    return Figure(name, title, says, there) if there else None


def intervals(rows: pl.DataFrame, title: str) -> Drawn:
    """Values with their intervals, one row a name, a colour a test set, and a line at 0.

    Args:
        rows: y (what the row is of), test, value, low, high; low and high are null where there is no interval.
        title: of the axis.
    """
    found = rows["y"].unique(maintain_order=True).to_list()
    names = dict(zip(found, labels(found), strict=True))
    data = rows.with_columns(
        pl.col("y").replace(names),
        tip=pl.when(pl.col("low").is_null())
        .then(pl.format("{} on {}: {}", "y", "test", pl.col("value").round(4)))
        .otherwise(
            pl.format(
                "{} on {}: {} ({} to {})", "y", "test", *(pl.col(name).round(4) for name in ("value", "low", "high"))
            )
        ),
    )
    tests = data["test"].unique(maintain_order=True).to_list()
    base = alt.Chart(data).encode(
        y=alt.Y("y:N", sort=list(names.values()), title=None, axis=alt.Axis(labelOverlap=False, labelLimit=150)),
        yOffset=alt.YOffset("test:N", sort=tests),
    )
    colour = alt.Color(
        "test:N",
        scale=alt.Scale(domain=tests, range=[theme.DROPPED, theme.KEPT][: len(tests)]),
        legend=alt.Legend(title=None),
    )
    axis = alt.Axis(grid=True, tickCount=5)
    spans = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=title, axis=axis), x2="high:Q", color=colour)
    dots = base.mark_point(filled=True, size=60, opacity=1).encode(x="value:Q", color=colour)
    zero = alt.Chart(pl.DataFrame({"at": [0.0]})).mark_rule(color=theme.MARK, strokeDash=[4, 3]).encode(x="at:Q")
    whole: Drawn = alt.layer(zero, spans, dots)
    return whole.properties(width=FULL, autosize=FIT, height=34 * len(names))


def laws(points: pl.DataFrame, curves: pl.DataFrame, arms: tuple[str, ...] = ("raw", "refined")) -> Drawn:
    """PPL against training tokens, both logarithmic, so that a power law is straight; one colour an arm.

    The first arm's points are rings, so that they are seen around the other's dots.

    Args:
        points: arm, tokens, ppl (one row a training).
        curves: arm, tokens, ppl, low, high (the interval), extrapolated (a boolean: past the largest budget trained).
        arms: the names of the two.
    """
    spans = pl.concat([points["tokens"], curves["tokens"]]).to_list() or [1.0, 10.0]
    ticks = alt.Axis(labelExpr=SHORT, grid=True, values=decades(min(spans), max(spans)))
    x = alt.X("tokens:Q", title="training tokens", scale=alt.Scale(type="log", nice=False, padding=8), axis=ticks)
    low, high = _extent(points, curves)
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    axis = alt.Axis(labelExpr=SHORT, grid=True, values=_ticks(low, high))
    y = alt.Y("ppl:Q", title="PPL", scale=scale, axis=axis)
    law = alt.Chart(_joined(curves)).encode(x=x, detail="extrapolated:N")
    dash = alt.StrokeDash("extrapolated:N", scale=alt.Scale(domain=[False, True], range=[[1, 0], [5, 4]]), legend=None)
    band = law.mark_area(opacity=0.16).encode(
        y=alt.Y("low:Q", scale=scale), y2="high:Q", color=_arms(arms, legend=False)
    )
    line = law.mark_line(strokeWidth=2).encode(y=y, color=_arms(arms, legend=True), strokeDash=dash)
    rings = alt.Chart(points.filter(pl.col("arm") == arms[0])).mark_point(filled=False, size=90, strokeWidth=1.6)
    dots = alt.Chart(points.filter(pl.col("arm") != arms[0])).mark_point(filled=True, size=30, opacity=1)
    both = (one.encode(x=x, y=y, color=_arms(arms, legend=False)) for one in (rings, dots))
    whole: Drawn = alt.layer(band, line, *both).resolve_legend(color="independent")
    return whole.properties(width=FULL, autosize=FIT, height=320)


def _arms(names: tuple[str, ...], *, legend: bool) -> alt.Color:
    """The two arms by colour; one layer has the legend, the others none."""
    colours = [theme.DROPPED, theme.KEPT][:: -1 if names == ("refined", "raw") else 1]
    scale = alt.Scale(domain=list(names), range=colours)
    return alt.Color("arm:N", scale=scale, legend=alt.Legend(title=None, symbolType="stroke") if legend else None)


def _joined(curves: pl.DataFrame) -> pl.DataFrame:
    """Curves whose extrapolation begins where the rest ends."""
    known = curves.filter(~pl.col("extrapolated")).sort("tokens")
    joints = known.group_by("arm", maintain_order=True).last().select(curves.columns)
    further = curves.filter("extrapolated")["arm"].unique().implode()
    joints = joints.filter(pl.col("arm").is_in(further)).with_columns(extrapolated=pl.lit(value=True))
    return pl.concat([curves, joints]).sort("arm", "tokens", "extrapolated")


def _ticks(low: float, high: float) -> list[float]:
    """Ticks of an axis of PPL, which seldom spans a decade."""
    steps = [step * 10.0**power for power in range(-1, 8) for step in (1, 1.5, 2, 3, 4, 5, 7)]
    found = [tick for tick in steps if low <= tick <= high]
    return found if len(found) <= 8 else decades(low, high)  # noqa: PLR2004


def _extent(points: pl.DataFrame, curves: pl.DataFrame) -> tuple[float, float]:
    """What the axis spans, with a little room."""
    values = pl.concat([points["ppl"], *(curves[name] for name in ("ppl", "low", "high"))]).drop_nulls()
    low, high = values.min(), values.max()
    if not isinstance(low, float) or not isinstance(high, float):
        return 1.0, 10.0
    return low * 0.95, high * 1.05
