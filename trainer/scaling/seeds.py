"""What each seed alone, and each resample of the test conversations, makes of a law's parameters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainer.scaling import curves
from trainer.scaling.points import Floats, Points, Space
from trainer.scaling.spread import Quantity


@dataclass(frozen=True, eq=False)
class Spread:
    """How a law's parameters differ: per_seed [S, p]; around [p, p], the covariance of one seed's; moved [S, p, B].

    `left` is the number of points beyond the parameters, over all seeds, and `residual_sd` the scatter in ln PPL around
    each seed's own law; None where no point is left.
    """

    theta: Floats
    per_seed: Floats
    around: Floats | None
    moved: Floats | None
    left: int
    residual_sd: float | None

    def quantity(self, gradient: Floats) -> Quantity:
        """The number gradient @ theta with its spread."""
        around = None if self.around is None else (float(gradient @ self.around @ gradient), float(self.left))
        moved = None if self.moved is None else np.einsum("p,spb->sb", gradient, self.moved)
        return Quantity(float(gradient @ self.theta), self.per_seed @ gradient, around, moved)


def spread(points: Points, theta: Floats, space: Space) -> Spread:
    """Linearise the fit at theta: one step from the common parameters to those of each seed and each resample.

    For the power law the step is exact: it ends at the seed's own least squares. For the saturating law with its floor
    at 0 the floor stays a parameter of the step, so that the intervals still allow one.
    """
    ladder = points.ladder()
    steps = [_Step(points, row, theta, space) for row in ladder]
    left = ladder.size - ladder.shape[0] * len(theta)
    one = steps[0] if len(steps) == 1 else None
    squares = float(np.sum(one.off_ln**2)) if one else sum(float(np.sum(step.rest_ln**2)) for step in steps)
    return Spread(
        theta=theta,
        per_seed=np.array([theta + step.inverse @ step.off for step in steps]),
        around=one.inverse @ one.inverse.T * float(one.off @ one.off) / left if one and left > 0 else None,
        moved=np.array([step.moved(points) for step in steps]) if points.resampled is not None else None,
        left=left,
        residual_sd=float(np.sqrt(squares / left)) if left > 0 else None,
    )


class _Step:
    """The linear step of one seed's points, the rows of `points` that `row` names."""

    def __init__(self, points: Points, row: object, theta: Floats, space: Space) -> None:
        self.row = np.asarray(row)
        x, ln_curve = points.x[self.row], curves.ln_curve(theta, points.x[self.row])
        slopes = curves.jacobian(theta, x, space)
        scale = np.abs(slopes).max(axis=0)  # a floor and an exponent are of very different size
        scale[scale == 0] = 1.0
        self.inverse: Floats = np.linalg.pinv(slopes / scale, rcond=1e-10) / scale[:, None]
        self.off = curves.in_space(points.y[self.row], space) - curves.in_space(ln_curve, space)
        self.unit = np.exp(ln_curve) if space == "linear" else np.ones(len(x))
        self.off_ln = points.y[self.row] - ln_curve
        self.rest_ln = (self.off - slopes @ (self.inverse @ self.off)) / self.unit

    def moved(self, points: Points) -> Floats:
        """How the parameters [p, B] move with the resamples of the test conversations."""
        assert points.resampled is not None  # noqa: S101  the caller asked
        seen = points.resampled[self.row]
        made: Floats = self.inverse @ ((seen - seen.mean(axis=1, keepdims=True)) * self.unit[:, None])
        return made
