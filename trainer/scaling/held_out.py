"""Compare how well two laws predict the largest budget from the smaller ones."""

from dataclasses import dataclass

import numpy as np

from trainer.scaling.law import fit
from trainer.scaling.points import Kind, Points, ScalingError, Space

MIN_BUDGETS = 4
"""Minimum number of budgets: three for a saturating law, and the one that is held out."""


@dataclass(frozen=True)
class HeldOut:
    """Predictions of both laws, fitted without the largest budget, and the PPL measured there; made by `held_out`.

    `measured` is the geometric mean over seeds, and `noise` its standard error in ln PPL (None for one seed).
    `power_error` and `saturating_error` are predicted / measured - 1. `preferred` has the smaller error in ln PPL; a
    tie prefers the power law. `clear` tells whether the errors differ by more than twice the noise (None for one seed).
    """

    budget: float
    measured: float
    noise: float | None
    power: float
    saturating: float
    power_error: float
    saturating_error: float
    preferred: Kind
    clear: bool | None


def held_out(points: Points, space: Space = "log") -> HeldOut:
    """Predict the largest budget by both laws, fitted to the smaller ones.

    Raises:
        ScalingError: there are fewer than `MIN_BUDGETS` budgets.
    """
    if points.budgets() < MIN_BUDGETS:
        raise ScalingError(
            f"holding out the largest budget needs at least {MIN_BUDGETS} token budgets, not {points.budgets()}: "
            "train at more budgets"
        )
    rest, held = points.without_largest()
    measured = float(held.y.mean())
    several = len(points.seeds) > 1
    noise = float(held.y.std(ddof=1) / np.sqrt(len(held.y))) if several else None
    laws = fit(rest, "power"), fit(rest, "saturating", space=space)
    power, saturating = (float(np.mean([law.ln_ppl(t).value for t in held.tokens])) for law in laws)
    off = abs(power - measured), abs(saturating - measured)
    return HeldOut(
        budget=float(held.tokens.mean()),
        measured=float(np.exp(measured)),
        noise=noise,
        power=float(np.exp(min(power, 700.0))),
        saturating=float(np.exp(min(saturating, 700.0))),
        power_error=float(np.expm1(min(power - measured, 700.0))),
        saturating_error=float(np.expm1(min(saturating - measured, 700.0))),
        preferred="saturating" if off[1] < off[0] - 1e-9 else "power",
        clear=None if noise is None else bool(abs(off[0] - off[1]) > 2 * noise),
    )
