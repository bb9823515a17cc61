"""Differences as a figure: a value with its interval a row, a colour a test set, and a line where nothing differs."""

from __future__ import annotations

import altair as alt
import polars as pl

from pipeline.report import theme
from pipeline.report.bars import FIT, FULL
from pipeline.report.charts import Drawn
from pipeline.report.shown import labels


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
