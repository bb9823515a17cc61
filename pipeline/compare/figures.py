"""Differences as a figure: a value with its interval a row, a colour a test set, and a line where nothing differs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import altair as alt
import polars as pl

from pipeline.report import theme
from pipeline.report.bars import FIT, FULL
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
