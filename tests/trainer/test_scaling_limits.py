"""Scaling laws at their limits: exact variances and degrees of freedom, boundaries, clipped intervals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from tests.trainer.test_scaling import of, planted
from trainer.scaling import ScalingError, difference, fit, held_out
from trainer.scaling.spread import Quantity, half_width


def test_budgets_a_tenth_apart_are_different_budgets() -> None:
    """The factor 1.1 itself is no longer near; 1.099 is."""
    ppl, seed = [9, 8, 9, 8], [1, 1, 2, 2]
    assert fit(of([1000, 2000, 1099, 2000], ppl, seed)).seeds == (1, 2)
    with pytest.raises(ScalingError, match="seed 2 has no point at 1,000 tokens, which another seed has"):
        fit(of([1000, 2000, 1100, 2000], ppl, seed))
    assert not any("different budgets" in n for n in difference(of([1e3, 2e3], [9, 8]), of([1e3, 2199], [9, 8])).notes)
    assert any("different budgets" in n for n in difference(of([1e3, 2e3], [9, 8]), of([1e3, 2300], [9, 8])).notes)


def test_a_seed_with_fewer_points_near_the_same_budgets_is_refused() -> None:
    """Two points of one seed that are near one budget of another."""
    with pytest.raises(ScalingError, match="seed 1 has 2 points and another seed has 3: give every seed"):
        fit(of([1000, 4000, 1000, 1050, 4000], [9, 7, 9, 8.9, 7], [1, 1, 2, 2, 2]))


def test_budgets_that_are_named_by_one_corpus_alone_are_noted_whichever_it_is() -> None:
    """A budget that only the first has, or only the second."""
    few, many = of([1e3, 2e3], [9, 8]), of([1e3, 1.4e3, 2e3], [9, 8.5, 8])
    for pair in ((few, many), (many, few)):
        assert any("a and b have different budgets" in note for note in difference(*pair).notes)
    assert difference(few, many).budget == 2000
    assert difference(few, of([1e3, 1e4], [9, 8])).budget == 2000


def test_the_part_of_the_test_set_is_the_covariance_of_the_seeds() -> None:
    """By hand: two seeds that move alike share all their variance, two that move against each other share none."""
    alike = Quantity(0.0, np.zeros(2), None, np.array([[1.0, -1.0, 0.0], [1.0, -1.0, 0.0]]))
    against = Quantity(0.0, np.zeros(2), None, np.array([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]]))
    assert alike.of_test == (1.0, 2)
    assert against.of_test == (0.0, 2)


def test_a_half_width_needs_a_degree_of_freedom() -> None:
    """One is enough: two seeds have an interval."""
    assert half_width(0.95, [(4.0, 1)]) == pytest.approx(2 * stats.t.ppf(0.975, 1))
    assert half_width(0.95, [(4.0, 0)]) is None
    assert half_width(0.9, [(1.0, 5)]) == pytest.approx(stats.t.ppf(0.95, 5))
    assert fit(planted((9.5, -0.4, 0.0), 2, 0.01)).alpha_interval is not None


def test_a_factor_multiplies_the_variance_by_its_square() -> None:
    """And values and resamples by itself."""
    found = Quantity(2.0, np.array([2.0]), (4.0, 3), np.array([[1.0, 3.0]])).times(-3.0)
    assert (found.value, found.per_seed.tolist(), found.around) == (-6.0, [-6.0], (36.0, 3))
    assert found.moved is not None
    assert found.moved.tolist() == [[-3.0, -9.0]]


def test_a_predicted_interval_has_the_scatter_around_each_seeds_own_line() -> None:
    """Golden: scipy.stats.linregress per seed; t with S - 1 degrees for seeds, with S (T - 2) for the scatter."""
    points = planted((9.5, -0.4, 0.0), 3, 0.02)
    lines = [stats.linregress(points.x[row], points.y[row]) for row in points.ladder()]
    x = np.log(3e4)
    rests = [points.y[r] - o.intercept - o.slope * points.x[r] for r, o in zip(points.ladder(), lines, strict=True)]
    squares = float(np.sum(np.square(rests)))
    law = fit(points)
    assert law.residual_sd == pytest.approx(np.sqrt(squares / 9))
    at = [line.intercept + line.slope * x for line in lines]
    half = np.hypot(
        stats.t.ppf(0.975, 2) * np.std(at, ddof=1) * np.sqrt(4 / 3), stats.t.ppf(0.975, 9) * np.sqrt(squares / 9)
    )
    found = law.predict(3e4)[0]
    assert found.low is not None
    assert np.log(found.value / found.low) == pytest.approx(half, rel=1e-9)


def test_a_resample_moves_the_floor_by_its_share_of_ppl() -> None:
    """If a resample multiplies every PPL by exp(e), it adds floor * e to the floor, to first order."""
    base, e = planted((9.5, -0.4, 20.0)), np.random.default_rng(0).normal(0, 0.01, 50)
    law = fit(replace(base, resampled=base.y[:, None] + e), "saturating")
    moved = law.spread.quantity(np.array([0.0, 0.0, 1.0])).moved
    assert moved is not None
    assert moved[0] == pytest.approx(law.floor * (e - e.mean()), rel=1e-3, abs=1e-4)


def test_the_measured_budgets_do_not_extrapolate() -> None:
    """Both ends belong to them; a little beyond does not."""
    law = fit(of([1e3, 1e4, 1e5], [100, 60, 50]))
    assert [one.extrapolates for one in law.predict([1e3, 1e5, 999, 1.001e5])] == [False, False, True, True]


def test_an_interval_of_more_than_a_factor_of_a_million_is_none() -> None:
    """Half of it is ln 1000; these three points give 9.3."""
    assert fit(of([1e3, 1e4, 1e5], [100, 40, 60])).predict(1e5)[0].low is None
    assert fit(of([1e3, 1e4, 1e5], [100, 60, 50])).predict(1e5)[0].low is not None


def test_the_interval_of_a_doubling_is_alphas() -> None:
    """The steeper alpha is the larger reduction."""
    law = fit(planted((9.5, -0.4, 0.0), 3, 0.02))
    assert law.alpha_interval is not None
    low, high = law.alpha_interval
    assert law.per_doubling_interval == pytest.approx((1 - 2**high, 1 - 2**low))
    assert law.per_doubling_interval is not None
    assert law.per_doubling_interval[0] < law.per_doubling < law.per_doubling_interval[1]


def test_intervals_of_a_saturating_law_end_at_what_is_possible() -> None:
    """Alpha at most 0, the floor at least 0, and a note says that there may be none."""
    law = fit(planted((9.5, -0.4, 20.0), 1, 0.2), "saturating")
    assert law.alpha_interval is not None
    assert law.floor_interval is not None
    assert law.alpha_interval[1] == 0.0
    assert law.floor_interval[0] == 0.0
    doubtful = fit(planted((9.5, -0.4, 20.0), 3, 0.05), "saturating")
    assert any("do not show whether there is a floor" in note for note in doubtful.notes)
    clear = fit(planted((9.5, -0.4, 20.0), 3, 0.005), "saturating")
    assert clear.floor_interval is not None
    assert clear.floor_interval[0] > 0
    assert not clear.notes


def test_the_measured_ratio_takes_the_resamples_of_its_budget_alone() -> None:
    """Resamples that move b at smaller budgets, and so its law, leave the ratio at the largest as it is."""
    rng, a, b = np.random.default_rng(8), planted((9.5, -0.4, 25.0), 4, 0.03), planted((9.3, -0.39, 20.0), 4, 0.05)
    b = replace(b, ppl=b.ppl * np.exp(rng.normal(0, 0.02, 20)))
    smaller = np.ones((20, 1))
    smaller[a.ladder()[:, -1]] = 0
    still, moved = (
        replace(one, resampled=one.y[:, None] + shift * rng.normal(0, 0.05, (1, 200)))
        for one, shift in ((a, 0 * smaller), (b, smaller))
    )
    found, without = difference(still, moved), difference(a, b)
    assert found.measured
    assert found.ln_ratio_interval == pytest.approx(without.ln_ratio_interval)
    assert found.delta_alpha_interval != pytest.approx(without.delta_alpha_interval)


def test_one_seed_of_both_corpora_is_no_pair() -> None:
    """Pairs need two seeds; with one the variances around both laws are added."""
    a, b = planted((9.5, -0.4, 0.0), 1, 0.02), planted((9.4, -0.4, 0.0), 1, 0.01)
    one = np.zeros(len(a.tokens), np.int64)
    found = difference(replace(a, seed=one), replace(b, seed=one))
    assert not found.paired
    assert found.delta_alpha_interval == difference(a, b).delta_alpha_interval
    assert found.delta_alpha_interval is not None


def test_tokens_of_a_flat_law_have_no_worth() -> None:
    """If the interval of alpha includes 0, even barely, the efficiency has no interval, and a note says so."""
    for middle in (66, 75):
        law = fit(of([1e3, 1e4, 1e5], [100, middle, 50]))
        assert law.alpha_interval is not None
        assert 0 < law.alpha_interval[1] < 0.1
        found = difference(law.points, law.points)
        assert found.efficiency == pytest.approx(1)
        assert found.efficiency_interval is None
        assert any("includes 0" in note for note in found.notes)


@pytest.mark.parametrize("floor", [0.1, 1.0])
def test_a_small_floor_of_exact_points_is_not_rounded_away(floor: float) -> None:
    """A better fit wins however little it gains, down to rounding."""
    assert fit(planted((9.5, -0.4, floor)), "saturating").floor == pytest.approx(floor, rel=1e-3)


def test_one_law_clearly_predicts_better_if_the_errors_differ_by_more_than_twice_the_noise() -> None:
    """`noise` is the standard error of the mean over seeds; at 1.5 times it the answer is no."""
    points = planted((10.5, -0.5, 30.0), 3, 0.001)
    found = held_out(points)
    largest = points.y[points.ladder()[:, -1]]
    assert found.noise == pytest.approx(np.std(largest, ddof=1) / np.sqrt(3))
    apart = abs(np.log1p(found.power_error)) - abs(np.log1p(found.saturating_error))
    for times, clear in ((1.5, False), (2.5, True)):
        move = np.array([-1.0, 0.0, 1.0]) * apart / times * np.sqrt(3)  # a standard error of apart / times
        y = points.y.copy()
        y[points.ladder()[:, -1]] = largest.mean() + move
        again = held_out(replace(points, ppl=np.exp(y)))
        assert again.noise == pytest.approx(apart / times)
        assert again.clear is clear


def test_text_has_a_perplexity_and_a_training_run_a_token() -> None:
    """1 is the least of both, and is accepted."""
    assert fit(of([1, 2, 3], [1, 1, 1])).alpha == 0
    for tokens, ppl, name in (([0.999, 2], [2, 2], "tokens"), ([1, 2], [0.999, 2], "ppl")):
        with pytest.raises(ScalingError, match=rf"{name} of point 1 is 0\.999: give a number from 1 to"):
            of(tokens, ppl)


def test_a_measured_ratio_needs_points_of_both_corpora() -> None:
    """One seed of a has no scatter to measure, so the laws are compared, whichever corpus it is."""
    many, one = planted((9.5, -0.4, 0.0), 3, 0.02), planted((9.4, -0.4, 0.0), 1, 0.02)
    for pair in ((many, one), (one, many)):
        found = difference(*pair)
        assert not found.measured
        laws = [fit(points).ln_ppl(found.budget).value for points in pair]
        assert found.ln_ratio == pytest.approx(laws[1] - laws[0])


def test_the_worth_of_a_token_is_that_of_what_lies_above_the_floor() -> None:
    """By finite differences: ln efficiency moves with ln PPL of b by 1 / (alpha (PPL - floor) / PPL) of a's law."""
    a, b = planted((9.5, -0.4, 25.0), 3, 0.002), planted((9.4, -0.4, 25.0), 3, 0.002)
    law, found = fit(a, "saturating"), difference(a, b, "saturating")
    more = difference(a, replace(b, ppl=b.ppl * np.exp(1e-4)), "saturating")
    assert found.efficiency is not None
    assert more.efficiency is not None
    ppl = float(np.exp(law.ln_ppl(found.budget).value + found.ln_ratio))
    moved = (np.log(more.efficiency) - np.log(found.efficiency)) / (more.ln_ratio - found.ln_ratio)
    assert moved == pytest.approx(1 / (law.alpha * (ppl - law.floor) / ppl), rel=1e-2)
    assert found.efficiency_interval is not None
    wide = np.log(found.efficiency_interval[1] / found.efficiency_interval[0])
    assert found.ln_ratio_interval is not None
    ratio = found.ln_ratio_interval[1] - found.ln_ratio_interval[0]
    assert wide > ratio / abs(law.alpha), "the floor makes a change of PPL worth more tokens than the exponent alone"
