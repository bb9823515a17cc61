"""The difference of two corpora from pairs of training runs, each pair with an order of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from trainer.scaling.difference import Difference
from trainer.scaling.law import fit
from trainer.scaling.points import Floats, Points, ScalingError
from trainer.scaling.spread import Interval, half_width

PARAMETERS = 3
"""Of the regression: the level, the slope, and the coefficient of the control."""
MIN_PAIRS = PARAMETERS + 2
"""Minimum number of pairs."""


@dataclass(frozen=True, eq=False)
class Control:
    """A control variate of n pairs: the same difference by another model, which costs next to nothing.

    `off` [n] is the difference of ln PPL by n-gram models of the same streams minus its mean over many other orders;
    `error` [n] is the variance of that mean, which is equal for pairs of the same budget. `variance` [n] is the
    variance of the difference between orders at a pair's budget.
    """

    off: Floats
    error: Floats
    variance: Floats


@dataclass(frozen=True, eq=False)
class Regression:
    """The weighted regression of n differences of ln PPL on centred ln tokens and a control.

    `rows` [2, n] give the level and the slope as sums over the pairs, `beta` is the coefficient of the control, and
    `scatter` [2] are their variances from the scatter of the pairs, with `left` degrees of freedom.
    """

    center: float
    level: float
    slope: float
    beta: float
    left: int
    rows: Floats
    scatter: Floats


def regress(x: Floats, y: Floats, orders: Floats, training: float, off: Floats) -> Regression:
    """Weighted least squares of y on 1, x minus its weighted mean, and a control variate (Lavenberg and Welch 1981).

    Args:
        x: ln tokens [n].
        y: differences of ln PPL [n].
        orders: variance of a difference between orders [n]. It must come from elsewhere than y: weights from the
            scatter of the pairs find differences that are not there in 10 % of the cases.
        training: variance that a network's weights and noise add.
        off: the control [n], whose expectation is 0. All zeros for none; its coefficient is then 0.
    """
    first = _least_squares(x, y, orders + training, off)
    if not first.beta:
        return first
    explained = min(max(first.beta, 0.0), 1.0) ** 2  # the control takes this share of the orders' variance away
    return _least_squares(x, y, (1 - explained) * orders + training, off)


def _least_squares(x: Floats, y: Floats, variance: Floats, off: Floats) -> Regression:
    weights, used = 1 / variance, bool(np.any(off))
    center = float(weights @ x / weights.sum())
    design = np.stack([np.ones(len(x)), x - center, *([off] if used else [])], axis=1)
    root = np.sqrt(weights)
    inverse = np.linalg.pinv(design * root[:, None]) * root
    theta = inverse @ y
    left = len(y) - design.shape[1]
    residual = float((weights * (y - design @ theta) ** 2).sum()) / left
    variances = residual * (inverse**2 / weights).sum(axis=1)
    beta = float(theta[2]) if used else 0.0
    return Regression(center, float(theta[0]), float(theta[1]), beta, left, inverse[:2], variances[:2])


def paired_difference(a: Points, b: Points, control: Control, training: float, level: float = 0.95) -> Difference:
    """Compare b with a by pairs of points: point i of both has the same budget, order and seeds.

    Different pairs are independent, so the points have no `seed`.
    `ln_ratio` is the weighted mean over the pairs, `budget` the weighted mean of their budgets (geometric), and
    `delta_alpha` the slope of the differences in ln tokens. The weights are 1 / (`control.variance` + `training`), and
    `training` is the variance that a network's weights and noise add to a difference. The error of the test set
    and that of the control's mean are added in quadrature.

    Raises:
        ScalingError: the points are not pairs, or fewer than `MIN_PAIRS`, or at one budget.
    """
    if len(a.tokens) != len(b.tokens) or not np.array_equal(a.tokens, b.tokens):
        raise ScalingError("the points of the two corpora are not pairs: give each the same budgets in the same order")
    if len(a.tokens) < MIN_PAIRS or len(np.unique(a.tokens)) < 2:  # noqa: PLR2004  a slope
        raise ScalingError(f"{len(a.tokens)} pairs of training runs: give at least {MIN_PAIRS}, at two budgets or more")
    laws = fit(a), fit(b)
    found = regress(a.x, b.y - a.y, control.variance, training, control.off)
    moved = None
    if a.resampled is not None and b.resampled is not None:
        moved = found.rows @ (b.resampled - a.resampled)
    ends: list[Interval | None] = []
    for i, value in enumerate((found.level, found.slope)):
        parts: list[tuple[float, float] | None] = [(float(found.scatter[i]), found.left)]
        if moved is not None:
            parts.append((float(moved[i].var(ddof=1)), moved.shape[1] - 1))
        of_control = sum(
            (found.beta * found.rows[i, a.tokens == budget].sum()) ** 2 * control.error[a.tokens == budget][0]
            for budget in np.unique(a.tokens)
        )
        parts.append((float(of_control), 1e9))  # its mean is over many orders
        half = half_width(level, parts)
        ends.append(None if half is None else (value - half, value + half))
    alpha = (laws[0].alpha + laws[1].alpha) / 2
    budget = float(np.exp(found.center))
    ln_a = found.level - found.slope * found.center
    worth = None if alpha >= 0 else float(np.exp(found.level / alpha))
    worth_ends = None
    if alpha < 0 and ends[0] is not None:
        worth_ends = float(np.exp(ends[0][1] / alpha)), float(np.exp(ends[0][0] / alpha))
    low, high = np.log(laws[0].tokens)
    there = found.center + (0.0 if worth is None else np.log(worth))
    return Difference(
        kind="power",
        level=level,
        paired=True,
        delta_alpha=found.slope,
        delta_alpha_interval=ends[1],
        delta_ln_A=ln_a,
        delta_ln_A_interval=None,
        budget=budget,
        measured=True,
        ln_ratio=found.level,
        ln_ratio_interval=ends[0],
        efficiency=worth,
        efficiency_interval=worth_ends,
        extrapolates=not low - 1e-9 <= there <= high + 1e-9,
        a=laws[0],
        b=laws[1],
        notes=() if alpha < 0 else ("PPL does not fall with tokens: a token's worth is unknown",),
    )


def smallest_found(
    x: Floats, variance: Floats, of_test: float, level: float = 0.95, power: float = 0.8
) -> tuple[float, float]:
    """The smallest level and slope that pairs at ln tokens `x` [n] with these variances find with a given power.

    `of_test` is the variance of the level over test sets, which the slope does not share.
    """
    weights = 1 / variance
    center = weights @ x / weights.sum()
    left = len(x) - 2
    factor = float(stdtrit(left, (1 + level) / 2) + stdtrit(left, power))
    of_slope = float(weights @ (x - center) ** 2)
    return (
        factor * float(np.sqrt(1 / weights.sum() + of_test)),
        factor / float(np.sqrt(of_slope)) if of_slope else float("inf"),
    )
