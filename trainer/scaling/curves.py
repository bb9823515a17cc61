"""The two curves and their least-squares fits, deterministic, from fixed starting points.

Curves are ln PPL as a function of x = ln tokens. `theta` is (ln A, alpha) for the power law and (ln A, alpha, floor)
for the saturating one. Arrays: x, ln_ppl [n]; theta [p].
"""

import numpy as np
from scipy.optimize import leastsq

from trainer.scaling.points import PARAMETERS, Floats

SHARES = (0.02, 0.2, 0.4, 0.6, 0.75, 0.85, 0.92, 0.96, 0.985, 0.997)
"""Floors of the starting points, as shares of the lowest PPL."""
STEEPEST, FLATTEST = 10.0, 1e-4
"""Limits on -alpha in a search; at a limit the points do not determine alpha."""
MAX_LOG = 300.0
"""Maximum absolute logarithm in a search."""
TIE = 1e-9
"""Two fits are equal if their squared errors differ by at most this share of the total; the simpler one is taken."""


def ln_curve(theta: Floats, x: Floats) -> Floats:
    """Ln PPL of the curve at x, of any shape."""
    power = theta[0] + theta[1] * x
    curve: Floats = np.logaddexp(np.log(floor(theta)), power) if floor(theta) else power
    return curve


def floor(theta: Floats) -> float:
    """P_inf; 0 for the power law."""
    return float(theta[2]) if len(theta) > PARAMETERS["power"] else 0.0


def jacobian(theta: Floats, x: Floats) -> Floats:
    """Derivatives [..., p] of ln PPL by theta at x [...]."""
    curve = ln_curve(theta, x)  # in logarithms, which cannot overflow
    share = _finite_exp(theta[0] + theta[1] * x - curve)
    return np.stack([share, share * x, _finite_exp(-curve)][: len(theta)], axis=-1)


def _finite_exp(value: Floats) -> Floats:
    power: Floats = np.exp(np.minimum(np.maximum(value, -MAX_LOG), MAX_LOG))
    return power


def squared_error(theta: Floats, x: Floats, ln_ppl: Floats) -> float:
    """The sum of squares that a fit minimises."""
    return float(np.sum((ln_ppl - ln_curve(theta, x)) ** 2))


def line(x: Floats, ln_ppl: Floats) -> Floats:
    """Unweighted least squares of ln PPL on ln tokens: (ln A, alpha)."""
    centred = x - x.mean()
    alpha = float(centred @ (ln_ppl - ln_ppl.mean()) / (centred @ centred)) if np.ptp(ln_ppl) else 0.0
    return np.array([ln_ppl.mean() - alpha * x.mean(), alpha])


def saturating(x: Floats, ln_ppl: Floats) -> Floats:
    """Least squares of P_inf + A tokens^alpha with P_inf >= 0 and alpha < 0: (ln A, alpha, P_inf).

    The best of a constant (alpha = 0 and P_inf = 0, if PPL does not fall), the power law (P_inf = 0), and one search
    per starting point. The simplest of equal fits is taken.
    """
    best, straight = np.array([ln_ppl.mean(), 0.0, 0.0]), line(x, ln_ppl)
    total = max(squared_error(best, x, ln_ppl), 1e-300)
    without_floor = [np.append(straight, 0.0)] if straight[1] < 0 else []
    for theta in (*without_floor, *(_search(start, x, ln_ppl) for start in _starts(x, ln_ppl))):
        gain = squared_error(best, x, ln_ppl) - squared_error(theta, x, ln_ppl)
        best = theta if gain > TIE * total else best
    return best


def _starts(x: Floats, ln_ppl: Floats) -> list[Floats]:
    """Starting points (ln P_inf, ln of the power part at mean x, ln -alpha), one per share of the lowest PPL."""
    rounded = np.round(x, 6)
    budgets = np.unique(rounded)
    ppl = np.array([np.exp(ln_ppl[rounded == budget].mean()) for budget in budgets])
    starts = []
    for share in SHARES:
        level = share * ppl.min()
        part = line(budgets, np.log(ppl - level))
        steep = np.clip(-part[1], 0.05, STEEPEST)
        starts.append(np.array([np.log(level), part[0] + part[1] * x.mean(), np.log(steep)]))
    return starts


def _search(start: Floats, x: Floats, ln_ppl: Floats) -> Floats:
    """Levenberg-Marquardt in ln P_inf and ln -alpha, which keeps both signs."""
    z = x - x.mean()
    lowest, highest = np.array([-MAX_LOG, np.log(FLATTEST)]), np.array([MAX_LOG, np.log(STEEPEST)])

    def parts(u: Floats) -> tuple[float, float, Floats]:
        level, steepness = np.exp(np.minimum(np.maximum(u[::2], lowest), highest))
        return level, -steepness, _finite_exp(u[1] - steepness * z)

    def residuals(u: Floats) -> Floats:
        level, _, power = parts(u)
        return np.log(level + power) - ln_ppl

    def slopes(u: Floats) -> Floats:
        level, alpha, power = parts(u)
        return np.array([np.full_like(z, level), power, power * alpha * z]) / (level + power)

    # MINPACK itself: `least_squares` takes the same steps in three times the time
    limits = {"xtol": 1e-12, "ftol": 1e-14, "gtol": 1e-14, "maxfev": 400}
    u = leastsq(residuals, start, Dfun=slopes, col_deriv=True, full_output=True, **limits)[0]
    level, alpha, _ = parts(u)
    return np.array([u[1] - alpha * x.mean(), alpha, level])
