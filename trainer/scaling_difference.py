"""Two corpora's scaling laws against each other: which one's tokens are worth more, and by how much."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainer import scaling_curves as curves
from trainer.scaling_law import Law, fit
from trainer.scaling_points import NEAR, Floats, Kind, Points
from trainer.scaling_spread import Interval, Quantity, minus


@dataclass(frozen=True, eq=False)
class Difference:
    """Corpus b against corpus a; made by `difference`.

    `delta_alpha`, `delta_ln_A` are b's less a's. `ln_ratio` is ln(PPL of b / PPL of a) at `budget`, the largest budget that
    both have: below 0, b is better there; `measured` says whether it is of the points there (several seeds) or of the laws.
    `efficiency` is how many tokens of a one token of b is worth at that budget: the tokens at which a's law has moved by
    ln_ratio, divided by the budget; infinite where a's law never gets there, None where a's PPL does not fall. It
    `extrapolates` where those tokens are outside what was measured of a. An interval that is None is accounted for in
    `notes`. `paired`: by seed.
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


def difference(a: Points, b: Points, kind: Kind = "power", level: float = 0.95) -> Difference:
    """How b's law differs from a's, with intervals: over pairs of one seed where both have the same seeds.

    With other seeds, or one, both sides' own variances are added. The finite test set's part is that of the difference: what
    a resample does to both corpora alike does not count.

    Raises:
        ScalingError: What `fit` raises; both have resamples of the test conversations, but not equally many.
    """
    laws = fit(a, kind, level), fit(b, kind, level)
    paired = laws[0].seeds == laws[1].seeds and len(laws[0].seeds) > 1
    why = [f"{name}: {law.why_no_interval}" for name, law in zip("ab", laws, strict=True) if law.why_no_interval]

    def less(parts: tuple[Quantity, Quantity]) -> tuple[float, Interval | None]:
        value, interval = minus(parts[1], parts[0], paired=paired, level=level)
        return value, None if why else interval

    def of(parameter: int) -> tuple[float, Interval | None]:
        one = np.eye(len(laws[0].spread.theta))[parameter]
        return less((laws[0].spread.quantity(one), laws[1].spread.quantity(one)))

    budget = min(laws[0].tokens[1], laws[1].tokens[1])
    ends = [_measured(law, budget) for law in laws]
    measured = all(end is not None for end in ends)
    levels = [end if measured and end is not None else law.ln_ppl(budget) for end, law in zip(ends, laws, strict=True)]
    ratio = less((levels[0], levels[1]))
    worth = _worth(laws[0], budget, (levels[0], levels[1]), ratio[0])
    efficiency = (worth.value, *less(worth.parts)) if worth.parts else (worth.value, None, None)
    alpha, ln_a = of(1), of(0)
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
        efficiency=efficiency[0],
        efficiency_interval=_exp(efficiency[2]),
        extrapolates=worth.extrapolates,
        a=laws[0],
        b=laws[1],
        notes=(*why, *worth.notes),
    )
