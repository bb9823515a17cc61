"""Variance of a number over seeds and over test sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.special import stdtrit  # Student's t quantiles, without the second that scipy.stats takes to import

from trainer.scaling import curves
from trainer.scaling.points import Floats, Points, ScalingError

Interval = tuple[float, float]
VariancePart = tuple[float, float]
"""A variance and its degrees of freedom."""


@dataclass(frozen=True, eq=False)
class Quantity:
    """A number computed from the points, linearised, with its variation.

    `per_seed` [S] is its value from each seed alone. `around` is its variance and degrees of freedom from the scatter
    around the law, which is used for one seed; None without degrees of freedom. `moved` [S, B] is its value from each
    seed on each resample of the test conversations, or None.
    """

    value: float
    per_seed: Floats
    around: VariancePart | None = None
    moved: Floats | None = None

    @property
    def scatter(self) -> VariancePart | None:
        """Variance of the value over seeds, or around the law for one seed; None if neither is known."""
        seeds = len(self.per_seed)
        return (float(self.per_seed.var(ddof=1)) / seeds, seeds - 1) if seeds > 1 else self.around

    @property
    def of_test(self) -> VariancePart | None:
        """Variance that all seeds share because of the finite test set.

        It is the mean covariance of two different seeds over the resamples. The variance of a single seed is excluded,
        because the scatter between seeds contains it already.
        """
        if self.moved is None:
            return None
        seeds, resamples = self.moved.shape
        whole = self.moved.mean(axis=0).var(ddof=1)
        if seeds > 1:
            own = self.moved.var(axis=1, ddof=1).sum()
            whole = max((seeds**2 * whole - own) / (seeds * (seeds - 1)), 0.0)
        return float(whole), resamples - 1

    def __add__(self, other: Quantity) -> Quantity:
        """The sum of two quantities of the same seeds; `around` is lost because their covariance is unknown."""
        moved = None if self.moved is None or other.moved is None else self.moved + other.moved
        return Quantity(self.value + other.value, self.per_seed + other.per_seed, None, moved)

    def shift(self, by: float) -> Self:
        """The quantity plus a number."""
        return type(self)(self.value + by, self.per_seed + by, self.around, self.moved)

    def times(self, factor: float) -> Self:
        """The quantity times a number."""
        around = None if self.around is None else (self.around[0] * factor**2, self.around[1])
        moved = None if self.moved is None else self.moved * factor
        return type(self)(self.value * factor, self.per_seed * factor, around, moved)

    def interval(self, level: float) -> Interval | None:
        """The interval at a level; None if no variance is known."""
        half = half_width(level, [self.scatter, *([self.of_test] if self.of_test else [])])
        return None if half is None else (self.value - half, self.value + half)


def half_width(level: float, parts: list[VariancePart | None]) -> float | None:
    """Half width of an interval from independent parts of variance: the half widths of the parts, added in quadrature.

    Graybill and Wang (1980), JASA 75, 869-873. For one part it is the t interval. Coverage at a level of 95 % is 95 to
    98 %. With Satterthwaite's degrees of freedom it would be 92 to 93 % for 3 seeds and a test-set part of a tenth to a
    third of the seeds' variance, and 87 to 89 % for 2 seeds.
    """
    total = 0.0
    for part in parts:
        if part is None or part[1] < 1:
            return None
        total += float(stdtrit(part[1], (1 + level) / 2)) ** 2 * part[0]
    return float(np.sqrt(total))


def minus(b: Quantity, a: Quantity, *, paired: bool, level: float) -> tuple[float, Interval | None]:
    """The difference b - a of two corpora with its interval; `paired` if seed i of both is the same."""
    if a.moved is not None and b.moved is not None and a.moved.shape[1] != b.moved.shape[1]:
        raise ScalingError(
            f"one corpus has {a.moved.shape[1]} resamples of the test conversations, the other {b.moved.shape[1]}: "
            "give both the same resamples"
        )
    if paired:
        both = b + a.times(-1.0)
        return both.value, both.interval(level)
    parts = [a.scatter, b.scatter]
    if a.of_test and b.of_test and a.moved is not None and b.moved is not None:
        shared = float(np.cov(a.moved.mean(axis=0), b.moved.mean(axis=0))[0, 1])
        parts.append((max(a.of_test[0] + b.of_test[0] - 2 * shared, 0.0), a.of_test[1]))
    value = b.value - a.value
    half = half_width(level, parts)
    return value, None if half is None else (value - half, value + half)


@dataclass(frozen=True, eq=False)
class Spread:
    """Variation of a law's parameters: per_seed [S, p]; around [p, p], their covariance for one seed; moved [S, p, B].

    `left` is the degrees of freedom: points minus parameters, over all seeds. `residual_sd` is the standard deviation
    of ln PPL around each seed's own law; None without degrees of freedom.
    """

    theta: Floats
    per_seed: Floats
    around: Floats | None
    moved: Floats | None
    left: int
    residual_sd: float | None

    def quantity(self, gradient: Floats) -> Quantity:
        """The quantity gradient @ theta."""
        around = None if self.around is None else (float(gradient @ self.around @ gradient), float(self.left))
        moved = None if self.moved is None else np.einsum("p,spb->sb", gradient, self.moved)
        return Quantity(float(gradient @ self.theta), self.per_seed @ gradient, around, moved)


def spread(points: Points, theta: Floats) -> Spread:
    """Linearise the fit at theta: one step from the common parameters to those of each seed and resample.

    For the power law the step is exact and ends at the seed's own least squares. The floor of a saturating law stays a
    parameter even at 0, so the intervals still allow a floor.
    """
    ladder = points.ladder()
    x = points.x[ladder]
    off = points.y[ladder] - curves.ln_curve(theta, x)
    slopes = curves.jacobian(theta, x)
    scale = np.abs(slopes).max(axis=1, keepdims=True)  # floor and exponent have very different magnitudes
    scale[scale == 0] = 1.0
    inverse = np.linalg.pinv(slopes / scale, rcond=1e-10) / scale.swapaxes(1, 2)
    steps = (inverse @ off[..., None])[..., 0]
    left = ladder.size - steps.size
    alone, moved = len(ladder) == 1, None
    rest = off if alone else off - (slopes @ steps[..., None])[..., 0]
    around = inverse[0] @ inverse[0].T * float(off[0] @ off[0]) / left if alone and left > 0 else None
    if points.resampled is not None:
        ln_ppl = points.resampled[ladder]
        moved = inverse @ (ln_ppl - ln_ppl.mean(axis=2, keepdims=True))
    residual_sd = float(np.sqrt((rest**2).sum(axis=1).sum() / left)) if left > 0 else None
    return Spread(theta, theta + steps, around, moved, left, residual_sd)
