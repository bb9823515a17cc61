"""Find the one point that contradicts all others, such as a mistyped number in a table."""

from dataclasses import dataclass

import numpy as np

from trainer.scaling import curves
from trainer.scaling.law import Law, exp, fit
from trainer.scaling.points import Points

MIN_POINTS = 4
"""Minimum number of points, so that a line through the others has a degree of freedom left."""
MIN_RATIO = 1.5
"""Minimum factor between the PPL of a contradicting point and the PPL of the other points' law."""
MIN_ERRORS = 10.0
"""Minimum distance from the other points' law, in standard errors of its prediction."""
MIN_GAIN = 3.0
"""Minimum ratio of the scatter of all points around a saturating law to the scatter of the others around their law."""
MIN_SCATTER = 0.005
"""Assumed minimum standard deviation of ln PPL around a law, because three points may lie on a line by chance."""


@dataclass(frozen=True, eq=False)
class Contradiction:
    """A point, by its index, and the power law of the others, which gives `expected` PPL at its tokens."""

    index: int
    expected: float
    others: Law


def contradiction(points: Points) -> Contradiction | None:
    """The point without which the others lie closest to a power law, if it is far from that law; else None.

    It is also None if a saturating law goes through all points almost as closely: the last point may show the floor.
    Points of all seeds count alike. The distance is the deleted residual, as in Cook and Weisberg, Residuals and
    Influence in Regression (1982), section 2.2.
    """
    x, y, n = points.x, points.y, len(points.tokens)
    design = np.stack([np.ones(n), x], axis=1)
    if n < MIN_POINTS or np.linalg.matrix_rank(design) < design.shape[1]:
        return None
    free = np.maximum(1 - np.sum(design * (np.linalg.pinv(design).T), axis=1), 1e-12)  # 1 - leverage
    residual = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    deleted, left = residual / free, np.sum(residual**2) - residual**2 / free
    index = int(np.argmin(left))
    scatter = max(np.sqrt(max(left[index], 0.0) / (n - 3)), MIN_SCATTER)
    if abs(deleted[index]) < max(np.log(MIN_RATIO), MIN_ERRORS * scatter / np.sqrt(free[index])):
        return None
    if np.sqrt(curves.squared_error(curves.saturating(x, y), x, y) / (n - 3)) < MIN_GAIN * scatter:
        return None
    rest = Points(np.delete(points.tokens, index), np.delete(points.ppl, index))
    if rest.budgets() < 2:  # noqa: PLR2004  no line
        return None
    return Contradiction(index, exp(float(y[index] - deleted[index])), fit(rest))
