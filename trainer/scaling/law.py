"""One scaling law, fitted to points, with its intervals and predictions, also of the largest budget by the others."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainer.scaling import curves
from trainer.scaling.points import PARAMETERS, Floats, Kind, Points, ScalingError
from trainer.scaling.spread import Interval, Quantity, Spread, VariancePart, half_width, spread

MAX_HALF_WIDTH = float(np.log(1000.0))
"""Half width of an interval of ln PPL at or above which a prediction has no interval."""
MIN_BUDGETS = 4
"""Minimum number of budgets: three for a saturating law, and the one that is held out."""


@dataclass(frozen=True)
class Prediction:
    """The predicted PPL of a new training run at `tokens`, with its interval.

    `low` and `high` are None if no variance is known, or if the interval spans a factor of a million or more.
    """

    tokens: float
    value: float
    low: float | None
    high: float | None
    extrapolates: bool


@dataclass(frozen=True, eq=False)
class Law:
    """PPL = floor + exp(ln_A) * tokens^alpha, fitted to `points`; made by `fit`.

    `r2` is in ln PPL over all points; None if all are equal. If an interval is None, `why_no_interval` gives the
    reason; otherwise `basis` describes what the interval is based on. `fitted` [n] is PPL and `relative_error` [n] is
    fitted / measured - 1, in the order of the points. `notes` are sentences that belong beside the numbers.
    """

    kind: Kind
    level: float
    alpha: float
    ln_A: float  # noqa: N815  A is the field's name for it
    floor: float
    r2: float | None
    alpha_interval: Interval | None
    ln_A_interval: Interval | None  # noqa: N815
    floor_interval: Interval | None
    why_no_interval: str
    basis: str
    fitted: Floats
    relative_error: Floats
    notes: tuple[str, ...]
    points: Points
    spread: Spread

    @property
    def n(self) -> int:
        """The number of points."""
        return len(self.points.tokens)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, ascending; empty if none are given."""
        return self.points.seeds

    @property
    def tokens(self) -> tuple[float, float]:
        """The smallest and the largest measured budget."""
        return float(self.points.tokens.min()), float(self.points.tokens.max())

    @property
    def residual_sd(self) -> float | None:
        """Standard deviation of ln PPL around each seed's own law; None without degrees of freedom."""
        return self.spread.residual_sd

    @property
    def per_doubling(self) -> float:
        """1 - 2^alpha, the relative reduction of PPL - floor when the tokens double."""
        return float(1 - 2**self.alpha)

    @property
    def per_doubling_interval(self) -> Interval | None:
        """The interval of `per_doubling`."""
        both = self.alpha_interval
        return None if both is None else (float(1 - 2 ** both[1]), float(1 - 2 ** both[0]))

    def ln_ppl(self, tokens: float) -> Quantity:
        """Ln PPL of the law at a budget."""
        x, theta = np.array([np.log(tokens)]), self.spread.theta
        found = self.spread.quantity(curves.jacobian(theta, x)[0])
        return found.shift(float(curves.ln_curve(theta, x)[0]) - found.value)

    def predict(self, tokens: npt.ArrayLike) -> list[Prediction]:
        """Predict the PPL of a new training run with a new seed at each budget, at the law's level.

        The interval covers the variation over seeds, the scatter around the law, and the finite test set. Outside the
        measured tokens (`extrapolates`) it also assumes that the law continues.
        """
        budgets = np.atleast_1d(np.asarray(tokens, dtype=np.float64))
        for budget in budgets:
            if not (np.isfinite(budget) and budget > 0):
                raise ScalingError(f"there is no prediction at {budget:g} tokens: give a finite number above 0")
        return [self._predict(float(budget)) for budget in budgets]

    def _predict(self, budget: float) -> Prediction:
        ln_ppl = self.ln_ppl(budget)
        half = None if self.why_no_interval else half_width(self.level, self._variance_of_new(ln_ppl))
        low = high = None
        if half is not None and half < MAX_HALF_WIDTH:
            low, high = exp(ln_ppl.value - half), exp(ln_ppl.value + half)
        extrapolates = not self.tokens[0] <= budget <= self.tokens[1]
        return Prediction(budget, exp(ln_ppl.value), low, high, extrapolates)

    def _variance_of_new(self, ln_ppl: Quantity) -> list[VariancePart | None]:
        """The parts of the variance of a new training run's ln PPL."""
        seeds, scatter = len(ln_ppl.per_seed), ln_ppl.scatter
        if scatter is None or self.residual_sd is None:
            return [None]
        test = [ln_ppl.of_test] if ln_ppl.of_test else []
        new_seed = scatter[0] * (1 + seeds) if seeds > 1 else scatter[0]
        return [(new_seed, scatter[1]), (self.residual_sd**2, self.spread.left), *test]


def fit(points: Points, kind: Kind = "power", level: float = 0.95) -> Law:
    """Fit a law by unweighted least squares; a ScalingError if budgets are too few, or differ between seeds.

    "saturating" adds a floor P_inf >= 0 and has alpha <= 0. Both minimise errors of ln PPL, because the noise of a mean
    loss in nats is about the same at every budget. `level` is the coverage of the intervals.
    """
    _check(points, kind, level)
    x, y = points.x, points.y
    theta = curves.line(x, y) if kind == "power" else curves.saturating(x, y)
    seen = spread(points, theta)
    total = float(np.sum((y - y.mean()) ** 2))
    fitted = np.exp(curves.ln_curve(theta, x))
    why = _why_none(theta, seen)
    ends = [None if why else seen.quantity(one).interval(level) for one in np.eye(len(theta))]
    floor_interval = _clip(ends[-1], 0.0, np.inf) if kind == "saturating" else None
    return Law(
        kind=kind,
        level=level,
        alpha=float(theta[1]),
        ln_A=float(theta[0]),
        floor=curves.floor(theta),
        r2=1 - curves.squared_error(theta, x, y) / total if total > 0 else None,
        alpha_interval=ends[1] if kind == "power" else _clip(ends[1], -np.inf, 0.0),
        ln_A_interval=ends[0],
        floor_interval=floor_interval,
        why_no_interval=why,
        basis="" if why else _basis(seen),
        fitted=fitted,
        relative_error=fitted / points.ppl - 1,
        notes=_notes(points, theta, floor_interval),
        points=points,
        spread=seen,
    )


def _check(points: Points, kind: Kind, level: float) -> None:
    if kind not in PARAMETERS:
        raise ScalingError(f"there is no {kind} law: take power or saturating")
    if not 0 < level < 1:
        raise ScalingError(f"the level is {level:g}: give a number between 0 and 1, such as 0.95")
    if points.budgets() < PARAMETERS[kind]:
        raise ScalingError(
            f"a {kind} law needs points at {PARAMETERS[kind]} or more token budgets, not {points.budgets()}: "
            "train at more budgets"
        )


def exp(ln_ppl: float) -> float:
    """The exponential, without a warning if it overflows to infinity."""
    with np.errstate(over="ignore"):
        return float(np.exp(ln_ppl))


def _clip(interval: Interval | None, low: float, high: float) -> Interval | None:
    return None if interval is None else (max(interval[0], low), min(interval[1], high))


def _why_none(theta: Floats, seen: Spread) -> str:
    """Why there is no interval; empty if there is one."""
    if len(theta) == PARAMETERS["saturating"] and theta[1] == 0:
        return "PPL does not fall with tokens: these points do not determine a saturating law"
    if -theta[1] >= curves.STEEPEST * 0.999:
        return "PPL drops once and is flat after that: these points do not determine the saturating law's alpha"
    if len(seen.per_seed) == 1 and seen.left < 1:
        return (
            f"any {len(theta)} points lie on such a law: an interval needs at least {len(theta) + 1} points or several "
            "seeds"
        )
    return ""


def _basis(seen: Spread) -> str:
    seeds = len(seen.per_seed)
    test = " and a bootstrap over clusters of test conversations" if seen.moved is not None else ""
    if seeds > 1:
        return f"t over {seeds} seeds ({_degrees(seeds - 1)}){test}"
    return (
        f"t from the scatter of the points around the law ({_degrees(seen.left)}){test}; "
        "the variation over seeds is unknown"
    )


def _degrees(count: int) -> str:
    return f"{count} degree{'s' * (count != 1)} of freedom"


def passes_through(points: Points, theta: Floats) -> bool:
    """Whether a law has as many parameters as there are points, so R2 is always 1."""
    return len(points.tokens) == len(theta) and (len(theta) == PARAMETERS["power"] or curves.floor(theta) > 0)


def _notes(points: Points, theta: Floats, floor_interval: Interval | None) -> tuple[str, ...]:
    notes = []
    if passes_through(points, theta):
        kind = "power" if len(theta) == PARAMETERS["power"] else "saturating"
        notes.append(f"R2 is no evidence here: any {len(theta)} budgets lie on a {kind} law")
    if theta[1] >= 0:
        notes.append(f"PPL does not fall with tokens (alpha {theta[1]:.3g}): more of this data does not help")
    elif len(theta) > PARAMETERS["power"] and curves.floor(theta) == 0:
        notes.append(
            "the best floor is 0: the saturating law is the power law here (its intervals still allow a floor)"
        )
    elif floor_interval is not None and floor_interval[0] == 0:
        notes.append("these points do not show whether there is a floor: its interval starts at 0")
    if points.seed is None and points.budgets() < len(points.tokens):
        notes.append("some budgets have several points without a seed: they are taken as independent training runs")
    return tuple(notes)


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


def held_out(points: Points) -> HeldOut:
    """Predict the largest budget by both laws, fitted to the smaller ones; a ScalingError below `MIN_BUDGETS`."""
    if points.budgets() < MIN_BUDGETS:
        raise ScalingError(
            f"holding out the largest budget needs at least {MIN_BUDGETS} token budgets, not {points.budgets()}: "
            "train at more budgets"
        )
    rest, held = points.without_largest()
    measured = float(held.y.mean())
    several = len(points.seeds) > 1
    noise = float(held.y.std(ddof=1) / np.sqrt(len(held.y))) if several else None
    laws = fit(rest, "power"), fit(rest, "saturating")
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
