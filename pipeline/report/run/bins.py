"""The bins of a signal's distribution: whole numbers, shares, or a logarithmic or linear axis."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.report.bars import AxisKind
from pipeline.report.run.signals import Signal

BINS = 24
"""Approximate number of bins of a distribution."""
MAX_WHOLE = 24
"""Maximum range of whole numbers that have a bin each."""


@dataclass(frozen=True)
class Bins:
    """Edges of bins, and their axis; "whole" has a bin around each whole number."""

    edges: tuple[float, ...]
    axis: AxisKind = "linear"


def make_bins(values: pl.Series, signal: Signal, marks: Sequence[float]) -> Bins:
    """The bins of a signal, which include thresholds (`marks`) that are near; none if no value is known."""
    known = values.drop_nulls().to_numpy().astype(np.float64)
    if not known.size:
        return Bins(())
    low, high = float(known.min()), float(known.max())
    whole = bool(np.all(known == np.round(known)))
    if whole and high - low <= MAX_WHOLE:
        return Bins(tuple((np.arange(low, high + 2) - 0.5).tolist()), "whole")
    if low >= 0 and high <= 1 and not signal.log:
        return Bins(tuple(np.linspace(0, 1, 21).tolist()))
    if signal.log and low >= 0:
        return Bins(tuple(_logarithmic(known, whole=whole)), "log")
    low, high = (float(q) for q in np.quantile(known, [0.001, 0.999]))
    span = (high - low) or 1.0
    near = [mark for mark in marks if low - span < mark < high + span]
    return Bins(tuple(np.linspace(min([low, *near]), max([high, *near]) + span / 1e3, BINS + 1).tolist()))


def _logarithmic(known: NDArray[np.float64], *, whole: bool) -> list[float]:
    """Edges in equal steps of the logarithm; zero has its own bin among whole numbers, else it is in the first."""
    above = known[known > 0]
    if not above.size:
        return [0.0, 1.0]
    low, high = float(above.min()), float(above.max()) * 1.0001
    if not whole:
        return [float(edge) for edge in np.geomspace(low, max(high, low * 1.01), BINS + 1)]
    steps = np.unique(np.round(np.geomspace(low, high + 1, BINS + 1)))
    edges: list[float] = steps.tolist() if steps.size > 1 else [low, low + 1]
    return edges if known.min() > 0 else [0.0, *([] if edges[0] == 1 else [1.0]), *edges]


def places(values: pl.Series, at: Sequence[float]) -> pl.Series:
    """Index of the bin of each value; the outer bins include values beyond them; null if unknown."""
    if len(at) < 2:  # noqa: PLR2004  a bin has two edges
        return pl.Series([None] * values.len(), dtype=pl.Int16)
    index = np.searchsorted(np.asarray(at, np.float32), values.fill_null(0.0).to_numpy(), side="right") - 1
    return pl.Series(np.clip(index, 0, len(at) - 2), dtype=pl.Int16).set(values.is_null(), None)
