"""Figures of laws and of differences with their intervals."""

import math
from collections.abc import Sequence

import altair as alt
import polars as pl

from pipeline.experiments.formats import change, exponent
from pipeline.report import theme
from pipeline.report.charts import FIT, FULL, SHORT, Chart, decades
from pipeline.report.parts import Figure, Panel
from pipeline.report.text import labels, visible
from trainer.scaling import Difference

CHANGES = {"delta_alpha": "Change of the exponent", "ln_ratio": "Change of PPL"}
"""Titles of the figures of `VALUES`."""
VALUES = {"delta_alpha": "delta alpha", "ln_ratio": "PPL differs by"}
"""Fields of `Difference` that can be drawn, and the titles of their axes; lower is better for both."""
TEXTS = {"delta_alpha": exponent, "ln_ratio": change}
"""Their values as texts."""
TICKS = {"delta_alpha": "datum.label", "ln_ratio": "datum.value ? format(exp(datum.value) - 1, '+.2~%') : '0'"}
"""Vega expressions of their ticks: the logarithm of a ratio is read in per cent."""
SCHEMA = pl.Schema({"y": pl.String, "test": pl.String, "value": pl.Float64, "low": pl.Float64, "high": pl.Float64})
HOW_TO_READ = (
    "Points are estimates, lines their intervals (omitted if unknown); left of the dashed line is better: a "
    "steeper law, or a lower PPL"
)


def panel(title: str, key: str, differences: Sequence[tuple[str, str, Difference]]) -> Panel | None:
    """A panel of one of `VALUES`; None if no difference is known.

    Each of `differences` has what its row is about, the test set, and the difference.
    """
    rows = []
    for y, test, one in differences:
        value, (low, high) = getattr(one, key), getattr(one, f"{key}_interval") or (math.nan, math.nan)
        if math.isfinite(value):
            known = math.isfinite(low) and math.isfinite(high)
            rows.append((y, visible(test), value, *((low, high) if known else (None, None))))
    frame = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    return Panel(title, intervals(frame, key), frame) if rows else None


def figure(name: str, title: str, about: str, panels: Sequence[Panel | None]) -> Figure | None:
    """A figure of the panels that are not None; None if all are."""
    known = tuple(one for one in panels if one is not None)
    return Figure(name, title, about, known) if known else None


def intervals(rows: pl.DataFrame, key: str) -> Chart:
    """Values with their intervals, one row per name and a colour per test set, and a dashed line at 0.

    `key` is one of `VALUES`; `rows` have the columns of `SCHEMA`: y is the name, and low and high are null if the
    interval is unknown.
    """
    names = rows["y"].unique(maintain_order=True).to_list()
    short = dict(zip(names, labels(names), strict=True))
    rounded = {name: pl.col(name).map_elements(TEXTS[key], pl.String) for name in ("value", "low", "high")}
    data = rows.with_columns(
        pl.col("y").replace(short),
        tip=pl.when(pl.col("low").is_null())
        .then(pl.format("{} on {}: {}", "y", "test", rounded["value"]))
        .otherwise(pl.format("{} on {}: {} ({} to {})", "y", "test", *rounded.values())),
    )
    tests = data["test"].unique(maintain_order=True).to_list()
    axis = alt.Axis(labelOverlap=False, labelLimit=200)
    base = alt.Chart(data).encode(y=alt.Y("y:N", sort=list(short.values()), title=None, axis=axis))
    if data.select("y", "test").unique().height > len(names):
        base = base.encode(yOffset=alt.YOffset("test:N", sort=tests))
    colour = alt.Color(
        "test:N",
        scale=alt.Scale(domain=tests, range=[theme.DROPPED, theme.KEPT, theme.RAW][: len(tests)]),
        legend=alt.Legend(title=None),
    )
    x = alt.X("low:Q", title=VALUES[key], axis=alt.Axis(grid=True, tickCount=5, labelExpr=TICKS[key]))
    spans = base.mark_rule(strokeWidth=2).encode(x=x, x2=alt.X2("high:Q"), color=colour)
    dots = base.mark_point(filled=True, size=60, opacity=1).encode(x=alt.X("value:Q"), color=colour)
    zero = alt.Chart(pl.DataFrame({"at": [0.0]})).mark_rule(color=theme.MARK, strokeDash=[4, 3]).encode(x=alt.X("at:Q"))
    whole: Chart = alt.layer(zero, spans, dots)
    return whole.properties(width=FULL, autosize=FIT, height=34 * len(names))


def placebos(rows: pl.DataFrame) -> Chart:
    """Effects of placebo rules as grey ticks and the real one as a dot, a row per kind of placebo, with a line at 0.

    `rows` have the columns null (the kind of placebo), value (per cent of PPL) and real.
    """
    data = rows.with_columns(
        y=pl.concat_str(pl.lit("dropped: "), "null"),
        tip=pl.format(
            "{}: {} % of PPL",
            pl.when("real").then(pl.lit("the real rules")).otherwise(pl.lit("a placebo rule")),
            pl.col("value").round(3),
        ),
    )
    axis = alt.Axis(grid=True, tickCount=5)
    x = alt.X("value:Q", title="change of PPL, in per cent", axis=axis)
    y = alt.Y("y:N", title=None, axis=alt.Axis(labelLimit=220))
    ticks = alt.Chart(data.filter(~pl.col("real"))).mark_tick(thickness=2, size=22, color=theme.MARK, opacity=0.7)
    dots = alt.Chart(data.filter("real")).mark_point(filled=True, size=110, opacity=1, color=theme.KEPT)
    zero = alt.Chart(pl.DataFrame({"at": [0.0]})).mark_rule(color=theme.MARK, strokeDash=[4, 3]).encode(x=alt.X("at:Q"))
    whole: Chart = alt.layer(zero, ticks.encode(x=x, y=y), dots.encode(x=x, y=y))
    return whole.properties(width=FULL, autosize=FIT, height=110)


def laws(points: pl.DataFrame, curves: pl.DataFrame, arms: tuple[str, ...] = ("raw", "refined")) -> Chart:
    """PPL against training tokens on logarithmic axes, on which a power law is straight; a colour per arm.

    The first arm's points are rings, which stay visible around the other's dots.

    Args:
        points: arm, tokens, ppl; one row per training run.
        curves: arm, tokens, ppl, low, high (the interval), extrapolated (whether past the largest budget trained).
        arms: the names of the two.
    """
    spans = pl.concat([points["tokens"], curves["tokens"]]).to_list() or [1.0, 10.0]
    ticks = alt.Axis(labelExpr=SHORT, grid=True, values=decades(min(spans), max(spans)))
    x = alt.X("tokens:Q", title="training tokens", scale=alt.Scale(type="log", nice=False, padding=8), axis=ticks)
    low, high = _extent(points, curves)
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    axis = alt.Axis(labelExpr=SHORT, grid=True, values=_ticks(low, high))
    y = alt.Y("ppl:Q", title="PPL", scale=scale, axis=axis)
    tip = pl.format("{}: PPL {} after {} tokens", "arm", pl.col("ppl").round(2), pl.col("tokens").cast(pl.Int64))
    points = points.with_columns(tip=tip)
    law = alt.Chart(_join(curves)).encode(x=x, detail=alt.Detail("extrapolated:N"))
    dash = alt.StrokeDash("extrapolated:N", scale=alt.Scale(domain=[False, True], range=[[1, 0], [5, 4]]), legend=None)
    band = law.mark_area(opacity=0.16).encode(
        y=alt.Y("low:Q", scale=scale), y2=alt.Y2("high:Q"), color=_arms(arms, legend=False)
    )
    line = law.mark_line(strokeWidth=2).encode(y=y, color=_arms(arms, legend=True), strokeDash=dash)
    rings = alt.Chart(points.filter(pl.col("arm") == arms[0])).mark_point(filled=False, size=90, strokeWidth=1.6)
    dots = alt.Chart(points.filter(pl.col("arm") != arms[0])).mark_point(filled=True, size=30, opacity=1)
    both = (one.encode(x=x, y=y, color=_arms(arms, legend=False)) for one in (rings, dots))
    whole: Chart = alt.layer(band, line, *both).resolve_legend(color="independent")
    return whole.properties(width=FULL, autosize=FIT, height=320)


def _arms(names: tuple[str, ...], *, legend: bool) -> alt.Color:
    colours = [theme.DROPPED, theme.KEPT][:: -1 if names == ("refined", "raw") else 1]
    scale = alt.Scale(domain=list(names), range=colours)
    return alt.Color("arm:N", scale=scale, legend=alt.Legend(title=None, symbolType="stroke") if legend else None)


def _join(curves: pl.DataFrame) -> pl.DataFrame:
    """Curves with the last point before each extrapolation repeated as its first, so that the lines meet."""
    inside = curves.filter(~pl.col("extrapolated")).sort("tokens")
    joints = inside.group_by("arm", maintain_order=True).last().select(curves.columns)
    extrapolating = curves.filter("extrapolated")["arm"].unique().implode()
    joints = joints.filter(pl.col("arm").is_in(extrapolating)).with_columns(extrapolated=pl.lit(value=True))
    return pl.concat([curves, joints]).sort("arm", "tokens", "extrapolated")


def _ticks(low: float, high: float) -> list[float]:
    """Ticks of an axis of PPL, which rarely spans a decade."""
    steps = [step * 10.0**power for power in range(-1, 8) for step in (1, 1.5, 2, 3, 4, 5, 7)]
    ticks = [tick for tick in steps if low <= tick <= high]
    return ticks if len(ticks) <= 8 else decades(low, high)  # noqa: PLR2004


def _extent(points: pl.DataFrame, curves: pl.DataFrame) -> tuple[float, float]:
    """The ends of the axis of PPL."""
    values = pl.concat([points["ppl"], *(curves[name] for name in ("ppl", "low", "high"))]).drop_nulls()
    low, high = values.min(), values.max()
    if not isinstance(low, float) or not isinstance(high, float):
        return 1.0, 10.0
    return low * 0.95, high * 1.05
