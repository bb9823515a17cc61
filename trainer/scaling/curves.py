"""The two curves of a scaling law and how they are fitted: least squares, deterministic, from a fixed set of starts.

Both are written as ln PPL of x = ln tokens. `theta` is (ln A, alpha) for the power law and (ln A, alpha, floor) for the
saturating one. Arrays: x, ln_ppl [n]; theta [p]; jacobians [n, p].
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from trainer.scaling.points import PARAMETERS, Floats, Space

SHARES = (0.02, 0.2, 0.4, 0.6, 0.75, 0.85, 0.92, 0.96, 0.985, 0.997)
"""Floors to start from, as shares of the lowest PPL."""
STEEPEST, FLATTEST = 10.0, 1e-4
"""The exponents a search may reach; at these ends the data say nothing about alpha."""
EDGE = 300.0
"""Logarithms beyond which a search is lost."""
SAME = 1e-9
"""Of two fits whose squared errors differ by less than this share of the total, the simpler one is taken."""


def ln_curve(theta: Floats, x: Floats) -> Floats:
    """Ln PPL [n] of the curve at x."""
    power = theta[0] + theta[1] * x
    made: Floats = np.logaddexp(np.log(floor(theta)), power) if floor(theta) else power
    return made


def floor(theta: Floats) -> float:
    """P_inf: 0 for the power law."""
    return float(theta[2]) if len(theta) > PARAMETERS["power"] else 0.0


def is_constant(theta: Floats) -> bool:
    """Whether it is a saturating law whose best member does not fall."""
    return len(theta) > PARAMETERS["power"] and theta[1] == 0


def jacobian(theta: Floats, x: Floats, space: Space = "log") -> Floats:
    """Derivatives [n, p] of ln PPL (space "log") or of PPL ("linear") by theta."""
    power, whole = (
        theta[0] + theta[1] * x,
        ln_curve(theta, x),
    )  # in logarithms: far from the points neither fits a number
    less = np.zeros_like(x) if space == "linear" else whole
    share = _exp(power - less)
    return np.stack([share, share * x, _exp(-less)][: len(theta)], axis=1)


def _exp(value: npt.ArrayLike) -> Floats:
    """The exponential, held inside of what a number can be."""
    made: Floats = np.exp(np.clip(value, -EDGE, EDGE))
    return made


def in_space(ln_ppl: Floats, space: Space) -> Floats:
    """Ln PPL, or PPL, as the space says."""
    return ln_ppl if space == "log" else np.exp(ln_ppl)


def squared_error(theta: Floats, x: Floats, ln_ppl: Floats, space: Space) -> float:
    """The sum of squares that a fit makes small."""
    return float(np.sum((in_space(ln_ppl, space) - in_space(ln_curve(theta, x), space)) ** 2))


def line(x: Floats, ln_ppl: Floats) -> Floats:
    """Unweighted least squares of ln PPL on ln tokens: (ln A, alpha)."""
    centred = x - x.mean()
    alpha = float(centred @ (ln_ppl - ln_ppl.mean()) / (centred @ centred)) if np.ptp(ln_ppl) else 0.0
    return np.array([ln_ppl.mean() - alpha * x.mean(), alpha])


def saturating(x: Floats, ln_ppl: Floats, space: Space = "log") -> Floats:
    """Least squares of P_inf + A tokens^alpha with P_inf >= 0 and alpha < 0: (ln A, alpha, P_inf).

    The best of one search a start, the plain power law (P_inf = 0) and a constant (alpha = 0, P_inf = 0, which is what
    is left of the law where PPL does not fall). Of fits as good as one another the simplest is taken.
    """
    flat = np.array([np.log(in_space(ln_ppl, space).mean()) if space == "linear" else ln_ppl.mean(), 0.0, 0.0])
    known = [flat, *_without_floor(x, ln_ppl, space)]
    searched = [_search(start, x, ln_ppl, space) for start in _starts(x, ln_ppl)]
    total = max(squared_error(flat, x, ln_ppl, space), 1e-300)
    best = flat
    for theta in [*known, *searched]:
        gain = squared_error(best, x, ln_ppl, space) - squared_error(theta, x, ln_ppl, space)
        best = theta if gain > SAME * total else best
    return best


def _without_floor(x: Floats, ln_ppl: Floats, space: Space) -> list[Floats]:
    straight = line(x, ln_ppl)
    if space == "linear":
        made = least_squares(
            lambda t: np.exp(ln_ppl) - _exp(t[0] + t[1] * (x - x.mean())),
            [straight @ [1.0, x.mean()], straight[1]],
            method="lm",
        ).x
        straight = np.array([made[0] - made[1] * x.mean(), made[1]])
    return [np.append(straight, 0.0)] if straight[1] < 0 else []


def _starts(x: Floats, ln_ppl: Floats) -> list[Floats]:
    """(ln P_inf, ln of the power part at mean x, ln -alpha), one a share of the lowest PPL of a budget."""
    rounded = np.round(x, 6)
    budgets = np.unique(rounded)
    ppl = np.array([np.exp(ln_ppl[rounded == budget].mean()) for budget in budgets])
    made = []
    for share in SHARES:
        level = share * ppl.min()
        part = line(budgets, np.log(ppl - level))
        steep = np.clip(-part[1], 0.05, STEEPEST)
        made.append(np.array([np.log(level), part[0] + part[1] * x.mean(), np.log(steep)]))
    return made


def _search(start: Floats, x: Floats, ln_ppl: Floats, space: Space) -> Floats:
    """Levenberg-Marquardt in logarithms of P_inf and -alpha, which keeps both signs."""
    z, target = x - x.mean(), in_space(ln_ppl, space)

    def parts(u: Floats) -> tuple[float, float, Floats]:
        level = float(_exp(u[0]))
        alpha = -float(np.exp(np.clip(u[2], np.log(FLATTEST), np.log(STEEPEST))))
        return level, alpha, _exp(u[1] + alpha * z)

    def off(u: Floats) -> Floats:
        level, _, power = parts(u)
        return (np.log(level + power) if space == "log" else level + power) - target

    def slopes(u: Floats) -> Floats:
        level, alpha, power = parts(u)
        made = np.stack([np.full_like(z, level), power, power * alpha * z], axis=1)
        return made / (level + power)[:, None] if space == "log" else made

    u = least_squares(off, start, jac=slopes, method="lm", xtol=1e-12, ftol=1e-14, gtol=1e-14, max_nfev=400).x
    level, alpha, _ = parts(u)
    return np.array([u[1] - alpha * x.mean(), alpha, level])
