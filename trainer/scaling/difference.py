"""Two corpora's scaling laws against each other: which one's tokens are worth more, and by how much."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainer.scaling import curves
from trainer.scaling.law import Law, fit
from trainer.scaling.points import NEAR, Kind, Points
from trainer.scaling.spread import Interval, Quantity, minus


@dataclass(frozen=True, eq=False)
class Difference:
    """Corpus b against corpus a; made by `difference`.

    `delta_alpha`, `delta_ln_A` are b's less a's. `ln_ratio` is ln(PPL of b / PPL of a) at `budget`, the largest budget
    that both have: below 0, b is better there; `measured` says whether it is of the points there (several seeds) or of
    the laws. `efficiency` is how many tokens of a one token of b is worth at that budget: the tokens at which a's law
    has moved by ln_ratio, divided by the budget; infinite where a's law never gets there, None where a's PPL does not
    fall. It `extrapolates` where those tokens are outside what was measured of a. An interval that is None is accounted
    for in `notes`. `paired`: by seed.
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
    """How b's law differs from a's, with intervals: over pairs of one seed where both have the same seeds.

    With other seeds, or one, both sides' own variances are added. The finite test set's part is that of the difference:
    what a resample does to both corpora alike does not count. Notes call the corpora by `names`.

    Raises:
        ScalingError: What `fit` raises; both have resamples of the test conversations, but not equally many.
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
    off = [_off_the_law(law, budget) for law in arms]
    measured = off[0] is not None and off[1] is not None
    levels = [_plus(law.ln_ppl(budget), rest if measured else None) for law, rest in zip(arms, off, strict=True)]
    ratio = less(*levels)
    worth = _worth(arms[0], budget, ratio[0], levels[1], off[0] if measured else None, names)
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
        efficiency_interval=_exp(less(*worth.ln_parts)[1]) if worth.ln_parts else None,
        extrapolates=worth.extrapolates,
        a=arms[0],
        b=arms[1],
        notes=(*why, *worth.notes, *_unlike(a, b, names)),
    )


def _unlike(a: Points, b: Points, names: tuple[str, str]) -> tuple[str, ...]:
    """What to say where the corpora were not measured at the same budgets."""
    apart = np.abs(a.x[:, None] - b.x) > np.log(NEAR)
    if not (apart.all(axis=0).any() or apart.all(axis=1).any()):
        return ()
    return (f"{names[0]} and {names[1]} have different budgets: their alphas also differ for that, where points bend",)


def _off_the_law(law: Law, budget: float) -> Quantity | None:
    """How far the points near a budget lie off the law, in ln PPL; None for one seed, or where a seed has none."""
    points, seen, x = law.points, law.spread, np.array([np.log(budget)])
    if len(seen.per_seed) == 1:
        return None
    ladder = points.ladder()
    column = np.abs(points.x[ladder] - x).argmin(axis=1)
    at = ladder[np.arange(len(ladder)), column]
    if np.abs(points.x[at] - x).max() > np.log(NEAR):
        return None
    by_law = seen.quantity(curves.jacobian(seen.theta, x)[0])
    own = points.y[at] - curves.ln_curve(seen.theta, points.x[at])
    moved = None
    if points.resampled is not None and by_law.moved is not None:
        moved = points.resampled[at] - points.resampled[at].mean(axis=1, keepdims=True) - by_law.moved
    return Quantity(float(own.mean()), own - (by_law.per_seed - by_law.value), None, moved)


def _plus(by_law: Quantity, off: Quantity | None) -> Quantity:
    return by_law if off is None else by_law + off


@dataclass(frozen=True, eq=False)
class _Worth:
    efficiency: float | None
    ln_parts: tuple[Quantity, Quantity] | None
    """What ln efficiency is the difference of, linearised: (of a, of b)."""
    extrapolates: bool
    notes: tuple[str, ...] = ()


def _worth(  # noqa: PLR0917
    law: Law, budget: float, ln_ratio: float, level_b: Quantity, off: Quantity | None, names: tuple[str, str]
) -> _Worth:
    """How many tokens of a make its law move by ln_ratio from where it is at a budget, over the budget."""
    a, b = names
    if law.alpha >= 0:
        said = f"the PPL of {a} does not fall with tokens: no number of its tokens is worth one of {b}"
        return _Worth(None, None, extrapolates=False, notes=(said,))
    theta, x = law.spread.theta, np.array([np.log(budget)])
    ppl = float(np.exp(curves.ln_curve(theta, x)[0] + ln_ratio))
    if ppl <= law.floor:
        said = f"the PPL of {b} at {budget:,.0f} tokens is below the floor of {a}, which no number of its tokens passes"
        return _Worth(float("inf"), None, extrapolates=True, notes=(said,))
    there = np.array([(np.log(ppl - law.floor) - law.ln_A) / law.alpha])
    slope = law.alpha * (ppl - law.floor) / ppl
    extrapolates = not np.log(law.tokens[0]) - 1e-9 <= there[0] <= np.log(law.tokens[1]) + 1e-9
    efficiency = float(np.exp(np.clip((there - x)[0], -700, 700)))
    if law.alpha_interval is not None and law.alpha_interval[1] >= 0:
        said = (
            f"alpha of {a} may be 0 (its interval says so): how many of its tokens one of {b} is worth has no interval"
        )
        return _Worth(efficiency, None, extrapolates, (said,))
    of_a = _plus(law.spread.quantity(curves.jacobian(theta, there)[0]), off).times(1 / slope)
    of_b = level_b.times(1 / slope)
    of_b = of_b.shifted((there - x)[0] - (of_b.value - of_a.value))
    return _Worth(efficiency, (of_a, of_b), extrapolates)


def _exp(interval: Interval | None) -> Interval | None:
    with np.errstate(over="ignore"):
        return None if interval is None else (float(np.exp(interval[0])), float(np.exp(interval[1])))
