"""One scaling law, fitted to points, with its intervals and predictions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainer.scaling import curves
from trainer.scaling.points import PARAMETERS, Floats, Kind, Points, ScalingError, Space
from trainer.scaling.spread import Interval, Part, Quantity, Spread, half_width, spread

ANYTHING = float(np.log(1000.0))
"""Half an interval of ln PPL from which on a prediction says nothing."""


@dataclass(frozen=True)
class Prediction:
    """What a new training at `tokens` would reach; `low` and `high` are None where that could be anything.

    That is: where no scatter is known, or the interval spans a factor of a million.
    """

    tokens: float
    value: float
    low: float | None
    high: float | None
    extrapolates: bool


@dataclass(frozen=True, eq=False)
class Law:
    """PPL = floor + exp(ln_A) * tokens^alpha, fitted to `points`; made by `fit`.

    `r2` is in ln PPL over all points, None where all are equal. Where an interval is None, `why_no_interval` says why;
    else `basis` says what it rests on. `fitted` [n] is PPL and `relative_error` [n] fitted / measured - 1, in the order
    of the points. `notes` are sentences that a reader must have beside the numbers.
    """

    kind: Kind
    space: Space
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
        """The seeds, ascending; empty where none are known."""
        return self.points.seeds

    @property
    def tokens(self) -> tuple[float, float]:
        """The smallest and the largest budget that was measured."""
        return float(self.points.tokens.min()), float(self.points.tokens.max())

    @property
    def residual_sd(self) -> float | None:
        """The scatter in ln PPL around each seed's own law; None where no point is left to scatter."""
        return self.spread.residual_sd

    @property
    def per_doubling(self) -> float:
        """1 - 2^alpha: the share of PPL (of what is above the floor) that twice the tokens take away."""
        return float(1 - 2**self.alpha)

    @property
    def per_doubling_interval(self) -> Interval | None:
        """Its interval, from alpha's."""
        both = self.alpha_interval
        return None if both is None else (float(1 - 2 ** both[1]), float(1 - 2 ** both[0]))

    def ln_ppl(self, tokens: float) -> Quantity:
        """Ln PPL that the law gives at a budget."""
        x, theta = np.array([np.log(tokens)]), self.spread.theta
        found = self.spread.quantity(curves.jacobian(theta, x)[0])
        return found.shifted(float(curves.ln_curve(theta, x)[0]) - found.value)

    def predict(self, tokens: npt.ArrayLike) -> list[Prediction]:
        """What a new training with a new seed would reach at each budget, with the law's level.

        The interval holds how far seeds differ, how far points lie off the law, and the finite test set. Beyond the
        measured tokens (`extrapolates`) it also supposes that the law goes on, which nothing here can show.

        Raises:
            ScalingError: A budget that is not a finite number above 0.
        """
        wanted = np.atleast_1d(np.asarray(tokens, dtype=np.float64))
        for budget in wanted:
            if not (np.isfinite(budget) and budget > 0):
                raise ScalingError(f"there is no prediction at {budget:g} tokens: give a finite number above 0")
        return [self._predict(float(budget)) for budget in wanted]

    def _predict(self, budget: float) -> Prediction:
        found = self.ln_ppl(budget)
        half = None if self.why_no_interval else half_width(self.level, self._of_new(found))
        low = high = None
        if half is not None and half < ANYTHING:
            low, high = _exp(found.value - half), _exp(found.value + half)
        extrapolates = not self.tokens[0] <= budget <= self.tokens[1]
        return Prediction(budget, _exp(found.value), low, high, extrapolates)

    def _of_new(self, found: Quantity) -> list[Part | None]:
        """The parts of variance of one new training's ln PPL."""
        seeds, scatter = len(found.per_seed), found.scatter
        if scatter is None or self.residual_sd is None:
            return [None]
        test = [found.of_test] if found.of_test else []
        new_seed = scatter[0] * (1 + seeds) if seeds > 1 else scatter[0]
        return [(new_seed, scatter[1]), (self.residual_sd**2, self.spread.left), *test]


def fit(points: Points, kind: Kind = "power", level: float = 0.95, space: Space = "log") -> Law:
    """The law of a kind that fits the points best by unweighted least squares, with intervals at a level.

    Args:
        points: What was measured.
        kind: "power" is ordinary least squares of ln PPL on ln tokens; "saturating" has a floor P_inf >= 0 beside it,
            and alpha <= 0.
        level: How often the intervals hold, between 0 and 1.
        space: For the saturating law, what is made small: errors of ln PPL ("log", the default: the noise of a mean
            loss in nats has about the same size at every budget, and both laws are then judged alike) or of PPL
            ("linear", which lets the smallest budgets weigh most).

    Raises:
        ScalingError: Fewer budgets than the law needs, a seed without a budget that others have, a level out of range.
    """
    _check(points, kind, level, space)
    x, y = points.x, points.y
    theta = curves.line(x, y) if kind == "power" else curves.saturating(x, y, space)
    seen = spread(points, theta, space)
    total = float(np.sum((y - y.mean()) ** 2))
    fitted = np.exp(curves.ln_curve(theta, x))
    why = _why_none(theta, seen)
    ends = [None if why else seen.quantity(one).interval(level) for one in np.eye(len(theta))]
    floor_interval = _clipped(ends[-1], 0.0, np.inf) if kind == "saturating" else None
    return Law(
        kind=kind,
        space=space,
        level=level,
        alpha=float(theta[1]),
        ln_A=float(theta[0]),
        floor=curves.floor(theta),
        r2=1 - curves.squared_error(theta, x, y, "log") / total if total > 0 else None,
        alpha_interval=ends[1] if kind == "power" else _clipped(ends[1], -np.inf, 0.0),
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


def _check(points: Points, kind: Kind, level: float, space: Space) -> None:
    if kind not in PARAMETERS or space not in {"log", "linear"} or (kind, space) == ("power", "linear"):
        raise ScalingError(f"there is no {kind} law in {space} space: take power, or saturating in log or linear space")
    if not 0 < level < 1:
        raise ScalingError(f"the level is {level:g}: give a number between 0 and 1, such as 0.95")
    if points.budgets() < PARAMETERS[kind]:
        raise ScalingError(
            f"a {kind} law needs points at {PARAMETERS[kind]} token budgets or more, not {points.budgets()}: "
            "train at more budgets"
        )


def _exp(ln_ppl: float) -> float:
    """PPL; infinite where a number cannot hold it."""
    with np.errstate(over="ignore"):
        return float(np.exp(ln_ppl))


def _clipped(interval: Interval | None, low: float, high: float) -> Interval | None:
    return None if interval is None else (max(interval[0], low), min(interval[1], high))


def _why_none(theta: Floats, seen: Spread) -> str:
    """Why there is no interval; empty where there is one."""
    if curves.is_constant(theta):
        return (
            "PPL does not fall with tokens: neither alpha nor the floor of a saturating law follows from these points"
        )
    if -theta[1] >= curves.STEEPEST * 0.999:
        return "PPL drops once and is flat from there: the saturating law's alpha does not follow from these points"
    if len(seen.per_seed) == 1 and seen.left < 1:
        return (
            f"{len(theta)} points lie on the law whatever they are: an interval needs {len(theta) + 1} points or more, "
            "or several seeds"
        )
    return ""


def _basis(seen: Spread) -> str:
    seeds = len(seen.per_seed)
    test = " and a bootstrap over clusters of test conversations" if seen.moved is not None else ""
    if seeds > 1:
        return f"t over {seeds} seeds ({_degrees(seeds - 1)}){test}"
    return (
        f"t from the scatter of the points around the law ({_degrees(seen.left)}){test}; "
        "how far seeds differ is not known"
    )


def _degrees(count: int) -> str:
    return f"{count} degree{'s' * (count != 1)} of freedom"


def passes_through(points: Points, theta: Floats) -> bool:
    """Whether a law has as many parameters as there are points, so that R2 is 1 whatever they are."""
    return len(points.tokens) == len(theta) and (len(theta) == PARAMETERS["power"] or curves.floor(theta) > 0)


def _notes(points: Points, theta: Floats, floor_interval: Interval | None) -> tuple[str, ...]:
    made = []
    if passes_through(points, theta):
        kind = "power" if len(theta) == PARAMETERS["power"] else "saturating"
        made.append(f"R2 says nothing here: {len(theta)} budgets lie on a {kind} law whatever they are")
    if theta[1] >= 0:
        made.append(f"PPL does not fall with tokens (alpha {theta[1]:.3g}): more of this data does not help")
    elif len(theta) > PARAMETERS["power"] and curves.floor(theta) == 0:
        made.append("the best floor is 0: the saturating law is the power law here (its intervals still allow a floor)")
    elif floor_interval is not None and floor_interval[0] == 0:
        made.append("these points cannot tell whether there is a floor: its interval begins at 0")
    if points.seed is None and points.budgets() < len(points.tokens):
        made.append("some budgets have several points and no seed is named: they are taken as independent trainings")
    return tuple(made)
