"""Comparison of two corpora's scaling laws: which one's tokens are worth more, and by how much."""

from dataclasses import dataclass

import numpy as np

from trainer.scaling import curves
from trainer.scaling.law import Law, exp, fit
from trainer.scaling.points import NEAR, Kind, Points
from trainer.scaling.spread import Interval, Quantity, minus


@dataclass(frozen=True, eq=False)
class Difference:
    """Corpus b compared with corpus a; made by `difference`.

    `delta_alpha` and `delta_ln_A` are b's minus a's. `ln_ratio` is ln(PPL of b / PPL of a) at `budget`, the largest
    budget that both have; below 0, b is better. `measured` tells whether it comes from the points (several seeds) or
    from the laws. `efficiency` is the number of a's tokens that one token of b is worth at that budget: the tokens at
    which a's law has changed by ln_ratio, divided by the budget. It is infinite if a's law never gets there, and None
    if a's PPL does not fall. `extrapolates` tells whether those tokens are outside a's measured budgets. `paired` tells
    whether seeds are paired. If an interval is None, `notes` gives the reason.
    """

    kind: Kind
    level: float
    paired: bool
    delta_alpha: float
    delta_alpha_interval: Interval | None
    delta_ln_A: float  # noqa: N815  A is the field's name for it
    delta_ln_A_interval: Interval | None  # noqa: N815
    budget: float
    measured: bool
    ln_ratio: float
    ln_ratio_interval: Interval | None
    efficiency: float | None
    efficiency_interval: Interval | None
    extrapolates: bool
    a: Law
    b: Law
    notes: tuple[str, ...]


def difference(
    a: Points, b: Points, kind: Kind = "power", level: float = 0.95, names: tuple[str, str] = ("a", "b")
) -> Difference:
    """Compare b's law with a's, with intervals.

    If both have the same seeds, differences are taken per seed; otherwise the variances of both are added. The
    test-set part is that of the difference, so an effect of a resample on both corpora cancels. `names` are used in
    notes. A ScalingError from `fit`, or if the numbers of resamples differ.
    """
    arms = fit(a, kind, level), fit(b, kind, level)
    paired = arms[0].seeds == arms[1].seeds and len(arms[0].seeds) > 1
    why = tuple(
        f"no intervals: the law of {name} has none"
        for name, law in zip(names, arms, strict=True)
        if law.why_no_interval
    )

    def less(of_a: Quantity, of_b: Quantity) -> tuple[float, Interval | None]:
        value, interval = minus(of_b, of_a, paired=paired, level=level)
        return value, None if why else interval

    unit = np.eye(len(arms[0].spread.theta))
    ln_a, alpha = (less(*(law.spread.quantity(one) for law in arms)) for one in unit[:2])
    budget = min(law.tokens[1] for law in arms)
    residuals = [_residual(law, budget) for law in arms]
    measured = residuals[0] is not None and residuals[1] is not None
    levels = [
        law.ln_ppl(budget) + one if measured and one else law.ln_ppl(budget)
        for law, one in zip(arms, residuals, strict=True)
    ]
    ratio = less(*levels)
    worth = _worth(arms[0], budget, ratio[0], levels[1], residuals[0] if measured else None, names)
    ends = less(*worth.ln_parts)[1] if worth.ln_parts else None
    return Difference(
        kind=kind,
        level=level,
        paired=paired,
        delta_alpha=alpha[0],
        delta_alpha_interval=alpha[1],
        delta_ln_A=ln_a[0],
        delta_ln_A_interval=ln_a[1],
        budget=budget,
        measured=measured,
        ln_ratio=ratio[0],
        ln_ratio_interval=ratio[1],
        efficiency=worth.efficiency,
        efficiency_interval=ends and (exp(ends[0]), exp(ends[1])),
        extrapolates=worth.extrapolates,
        a=arms[0],
        b=arms[1],
        notes=(*why, *worth.notes, *_unlike(a, b, names)),
    )


def _unlike(a: Points, b: Points, names: tuple[str, str]) -> tuple[str, ...]:
    """A note if the corpora were measured at different budgets."""
    apart = np.abs(a.x[:, None] - b.x) > np.log(NEAR)
    if not (apart.all(axis=0).any() or apart.all(axis=1).any()):
        return ()
    return (f"{names[0]} and {names[1]} have different budgets: if points bend, that alone makes their alphas differ",)


def _residual(law: Law, budget: float) -> Quantity | None:
    """Ln PPL of the points near a budget minus the law's; None for one seed, or if a seed has no point there."""
    points, spread, x = law.points, law.spread, np.array([np.log(budget)])
    if len(spread.per_seed) == 1:
        return None
    ladder = points.ladder()
    column = np.abs(points.x[ladder] - x).argmin(axis=1)
    at = ladder[np.arange(len(ladder)), column]
    if np.abs(points.x[at] - x).max() > np.log(NEAR):
        return None
    by_law = spread.quantity(curves.jacobian(spread.theta, x)[0])
    own = points.y[at] - curves.ln_curve(spread.theta, points.x[at])
    moved = None
    if points.resampled is not None and by_law.moved is not None:
        moved = points.resampled[at] - points.resampled[at].mean(axis=1, keepdims=True) - by_law.moved
    return Quantity(float(own.mean()), own - (by_law.per_seed - by_law.value), None, moved)


@dataclass(frozen=True, eq=False)
class _Worth:
    efficiency: float | None
    ln_parts: tuple[Quantity, Quantity] | None
    """Ln efficiency is the difference b - a of these, linearised: (of a, of b)."""
    extrapolates: bool
    notes: tuple[str, ...] = ()


def _worth(  # noqa: PLR0917
    law: Law, budget: float, ln_ratio: float, level_b: Quantity, residual: Quantity | None, names: tuple[str, str]
) -> _Worth:
    """The tokens at which a's law has changed by ln_ratio from its value at a budget, over the budget."""
    a, b = names
    if law.alpha >= 0:
        note = f"the PPL of {a} does not fall with tokens: no number of its tokens is worth one of {b}"
        return _Worth(None, None, extrapolates=False, notes=(note,))
    theta, x = law.spread.theta, np.array([np.log(budget)])
    ppl = float(np.exp(curves.ln_curve(theta, x)[0] + ln_ratio))
    if ppl <= law.floor:
        note = f"the PPL of {b} at {budget:,.0f} tokens is below the floor of {a}, which no number of its tokens passes"
        return _Worth(float("inf"), None, extrapolates=True, notes=(note,))
    there = np.array([(np.log(ppl - law.floor) - law.ln_A) / law.alpha])
    slope = law.alpha * (ppl - law.floor) / ppl
    extrapolates = not np.log(law.tokens[0]) - 1e-9 <= there[0] <= np.log(law.tokens[1]) + 1e-9
    efficiency = float(np.exp(np.clip((there - x)[0], -700, 700)))
    if law.alpha_interval is not None and law.alpha_interval[1] >= 0:
        note = (
            f"the interval of {a}'s alpha includes 0: the number of its tokens that one of {b} is worth has no interval"
        )
        return _Worth(efficiency, None, extrapolates, (note,))
    level_a = law.spread.quantity(curves.jacobian(theta, there)[0])
    of_a = (level_a + residual if residual else level_a).times(1 / slope)
    of_b = level_b.times(1 / slope)
    of_b = of_b.shift((there - x)[0] - (of_b.value - of_a.value))
    return _Worth(efficiency, (of_a, of_b), extrapolates)
