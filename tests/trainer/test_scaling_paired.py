"""Differences of paired training runs: intervals that cover, narrower with a control that explains the orders."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from scipy import stats

from trainer.scaling import Control, Points, ScalingError, paired_difference, smallest_found
from trainer.scaling.paired import regress

PAIRS = (2, 3, 6, 3, 1, 1)
X = np.repeat(np.log(6250 * 2 ** np.arange(6)), PAIRS)
ORDERS = np.repeat(np.array([1.8, 1.1, 0.65, 0.67, 0.58, 0.5]) ** 2 * 1e-4, PAIRS)
"""Variance of the difference between orders, by budget, as n-gram models of the embedded default have it."""
TRAINING = 0.002**2


@cache
def quantile(left: int) -> float:
    """The 97.5 % quantile of Student's t, which takes longer than a regression."""
    return float(stats.t.ppf(0.975, left))


def draw(rng: np.random.Generator, slope: float, *, heavy: bool) -> tuple[np.ndarray, np.ndarray]:
    """Differences without an effect, and a control that explains them with this slope."""
    n = len(X)
    off = (rng.standard_t(4, n) / np.sqrt(2) if heavy else rng.normal(size=n)) * np.sqrt(ORDERS)
    rest = rng.normal(size=n) * np.sqrt(ORDERS * (1 - slope**2))
    return off * slope + rest + rng.normal(size=n) * np.sqrt(TRAINING), off


@pytest.mark.parametrize("heavy", [False, True], ids=["normal", "heavy tails"])
@pytest.mark.parametrize("slope", [0.0, 0.35, 0.7, 1.0])
def test_the_intervals_cover_whatever_the_control_explains(slope: float, heavy: bool) -> None:
    """93 to 97 % of 2,000 simulated experiments; a control that explains nothing costs next to nothing."""
    rng, times = np.random.default_rng(0), 2000
    inside, narrower = np.zeros(2), list[float]()
    for _ in range(times):
        y, off = draw(rng, slope, heavy=heavy)
        found, plain = regress(X, y, ORDERS, TRAINING, off), regress(X, y, ORDERS, TRAINING, np.zeros(len(X)))
        half = quantile(found.left) * np.sqrt(found.scatter)
        inside += np.abs([found.level, found.slope]) <= half
        narrower.append(half[0] / (quantile(plain.left) * np.sqrt(plain.scatter[0])))
    assert np.all(inside / times >= 0.93)
    assert np.all(inside / times <= 0.97)
    expected = {0.0: 1.05, 0.35: 1.02, 0.7: 0.85, 1.0: 0.35}[slope]
    assert np.median(narrower) < expected


def arms(level: float, slope: float, *, test: float = 0.0, seed: int = 0) -> tuple[Points, Points, Control]:
    """Two arms whose difference has a known level (at the weighted mean budget, about 25,000 tokens) and slope."""
    rng = np.random.default_rng(seed)
    noise, off = draw(rng, 0.7, heavy=False)
    ln_a = np.log(200) - 0.3 * (X - X[-1]) + rng.normal(0, 0.02, len(X))
    ln_b = ln_a + level + slope * (X - X.mean()) + noise
    moved = rng.normal(0, test, 400)
    resampled = [ln[:, None] + rng.normal(0, 0.03, 400) + one for ln, one in ((ln_a, 0.0), (ln_b, moved))]
    points = [Points(np.exp(X), np.exp(ln), None, both) for ln, both in zip((ln_a, ln_b), resampled, strict=True)]
    return points[0], points[1], Control(off, np.full(len(X), 1e-8), ORDERS)


def test_a_known_level_and_slope_are_found() -> None:
    """With the worth of a token by the mean exponent."""
    a, b, control = arms(-0.03, 0.02)
    found = paired_difference(a, b, control, TRAINING)
    assert found.delta_alpha == pytest.approx(0.02, abs=0.006)
    assert found.delta_alpha_interval is not None
    assert found.delta_alpha_interval[0] > 0
    at = -0.03 + 0.02 * (np.log(found.budget) - X.mean())
    assert found.ln_ratio == pytest.approx(at, abs=0.006)
    assert found.efficiency == pytest.approx(np.exp(found.ln_ratio / found.a.alpha), rel=0.1)
    assert found.paired
    assert found.measured


def test_the_test_set_and_the_mean_of_the_control_widen_the_interval() -> None:
    """In quadrature."""

    def width(test: float, error: float) -> float:
        a, b, control = arms(0.0, 0.0, test=test)
        found = paired_difference(a, b, Control(control.off, np.full(len(X), error), ORDERS), TRAINING)
        assert found.ln_ratio_interval is not None
        return found.ln_ratio_interval[1] - found.ln_ratio_interval[0]

    assert width(0.0, 0.0) < width(0.01, 0.0)
    assert width(0.0, 0.0) < width(0.0, 1e-4)
    assert width(0.01, 0.0) == pytest.approx(np.hypot(width(0.0, 0.0), 2 * 1.966 * 0.01), rel=0.15)


def test_points_that_are_not_pairs_are_refused() -> None:
    """With what is wrong."""
    a, b, control = arms(0.0, 0.0)
    other = Points(b.tokens[::-1], b.ppl)
    with pytest.raises(ScalingError, match="are not pairs"):
        paired_difference(a, other, control, TRAINING)
    few = Points(a.tokens[:4], a.ppl[:4])
    with pytest.raises(ScalingError, match="4 pairs of training runs: give at least 5"):
        paired_difference(few, few, control, TRAINING)


def test_the_forecast_of_the_smallest_effect_is_found_in_four_of_five_cases() -> None:
    """Simulated with the weights known."""
    level, slope = smallest_found(X, ORDERS + TRAINING, 0.0)
    rng, found = np.random.default_rng(1), np.zeros(2)
    for _ in range(1000):
        for i, effect in enumerate((np.full(len(X), level), slope * (X - X.mean()))):
            noise = rng.normal(size=len(X)) * np.sqrt(ORDERS + TRAINING)
            one = regress(X, effect + noise, ORDERS, TRAINING, np.zeros(len(X)))
            value = (one.level, one.slope)[i]
            found[i] += abs(value) > stats.t.ppf(0.975, one.left) * np.sqrt(one.scatter[i])
    assert found / 1000 == pytest.approx([0.8, 0.8], abs=0.04)
    assert smallest_found(X, ORDERS + TRAINING, 1e-4)[0] > level
