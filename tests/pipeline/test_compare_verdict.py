"""The verdict of a comparison: about the level on one test set, always with a bound, and never from too little."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pipeline.compare.design import Design
from pipeline.compare.scored import Scored, TestSet, compared_laws, primary_test
from pipeline.compare.verdict import NetworkFinding, Verdict, agreement, decides, verdict
from tests.pipeline.compare_corpus import points, simulated
from trainer.experiment.kinds import NETWORKS
from trainer.experiment.screen import Choice, Null, Placebos
from trainer.scaling import difference
from trainer.scaling.paired import regress

NAMES = ("raw", "refined")
TOKENS = (10_000, 20_000, 40_000, 80_000, 160_000, 320_000)


def of(*scored: Scored, lacks: str = "", failed: str = "") -> Verdict:
    """The verdict on test sets of which the last one is the primary one."""
    return verdict(scored, scored[-1], NAMES, lacks, [failed] if failed else [])


def conclude(*arms: tuple[float, float], lacks: str = "", failed: str = "", **more: float) -> Verdict:
    """The verdict on simulated arms, one test set for each (delta of alpha, shift of ln PPL)."""
    found = [simulated(delta, shift, seed=i, **more) for i, (delta, shift) in enumerate(arms)]  # type: ignore[arg-type]
    return of(*found, lacks=lacks, failed=failed)


def test_a_lower_level_is_better_with_its_numbers() -> None:
    """At the mean budget, with the interval, and the exponent as a second sentence."""
    found = conclude((0.0, -0.1), (0.0, -0.1))
    assert (found.concludes, found.answer, found.exponent) == (True, "better", "")
    assert found.sentence.startswith("refined is better per token: at 56,234 tokens its perplexity is 9.")
    assert "lower (9." in found.sentence
    assert "The exponents cannot be told apart: delta alpha " in found.sentence
    assert found.chip().text == "better per token"
    assert found.chip().mood == "good"
    chips = (
        ("worse", "worse per token"),
        ("no difference", "no difference above 0.5%"),
        ("cannot tell", "cannot tell yet"),
    )
    for answer, text in (*chips, ("mixed", "mixed")):
        assert Verdict("", concludes=False, answer=answer).chip().text == text


def test_a_higher_level_is_worse() -> None:
    """The same numbers, the other way round."""
    found = conclude((0.0, 0.1), (0.0, 0.1))
    assert (found.concludes, found.answer) == (True, "worse")
    assert "its perplexity is 10." in found.sentence
    assert "higher (" in found.sentence


def test_a_steeper_exponent_is_concluded_beside_the_level() -> None:
    """From its stricter interval, whatever the level."""
    found = conclude((-0.05, 0.0), (-0.05, 0.0))
    assert (found.concludes, found.exponent) == (True, "steeper")
    assert "Its exponent is steeper: delta alpha \N{MINUS SIGN}0.0" in found.sentence
    assert conclude((0.05, 0.0), (0.05, 0.0)).exponent == "flatter"


def test_an_exponent_at_the_edge_of_its_interval_is_not_concluded() -> None:
    """The interval of 95 % excludes 0, that of 97.5 % does not."""
    one = simulated(0.0, 0.0)
    power, strict = one.differences["power"], one.strict
    assert strict is not None
    edge = replace(power, delta_alpha_interval=(-0.02, -0.001)), replace(strict, delta_alpha_interval=(-0.022, 0.001))
    laws = replace(one.laws, differences={("refined", "power"): edge[0]})
    found = of(replace(one, laws=laws, strict=edge[1]))
    assert found.exponent == ""
    assert "\N{MINUS SIGN}0.0220 to +0.0010), an interval of 97.5 %" in found.sentence, "the one that it is judged by"


def test_a_narrow_interval_around_nothing_is_no_difference() -> None:
    """None above what is worth knowing; the bounds are in the sentence."""
    found = conclude((0.0, 0.0), (0.0, 0.0), noise=0.001)
    assert (found.concludes, found.answer) == (False, "no difference")
    assert found.sentence.startswith("There is no difference above 0.5%: at 56,234 tokens the perplexity with refined")
    assert "lower and 0." in found.sentence
    assert "higher than with raw" in found.sentence


def test_a_wide_interval_is_bounded_and_says_what_it_takes() -> None:
    """Never only nothing."""
    found = conclude((0.0, 0.0), (0.0, 0.0), noise=0.03)
    assert (found.concludes, found.answer) == (False, "cannot tell")
    assert found.sentence.startswith("Nothing can be told yet: at 56,234 tokens the perplexity with refined is at most")
    assert "more seeds narrow it (--seeds)" in found.sentence


def test_opposite_signs_on_two_test_sets_are_a_finding() -> None:
    """The sentence says on which test set which corpus is better."""
    found = conclude((0.0, -0.1), (0.0, 0.1))
    assert (found.concludes, found.answer) == (True, "mixed")
    assert "with refined is lower on set0-test and higher on set1-test" in found.sentence


def test_sides_within_the_spread_of_placebo_rules_are_not_mixed() -> None:
    """Two small differences of opposite sign, and random rules that differ as much."""
    both = simulated(0.0, -0.01, noise=0.001), simulated(0.0, 0.01, noise=0.001, seed=1)
    assert of(*both).answer == "mixed"
    random: dict[Null, Placebos] = {"random": Placebos(0.0, np.array([-0.02, -0.01, 0.0, 0.01, 0.02]))}
    assert of(*(replace(one, placebos=random) for one in both)).answer == "cannot tell"


def test_an_interval_that_ends_at_a_limit_is_not_beyond_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 0 nothing is better, and at the smallest difference that matters there may be one."""
    one, limit = simulated(0.0, 0.0), math.expm1(0.004)
    for ends, answer in (
        ((0.0, 0.01), "cannot tell"),
        ((1e-9, 0.01), "worse"),
        ((-0.01, 0.0), "cannot tell"),
        ((-0.01, -1e-9), "better"),
        ((-0.001, 0.004), "cannot tell"),
        ((-0.001, 0.0039), "no difference"),
    ):
        monkeypatch.setattr(Scored, "choice", Choice(sum(ends) / 2, ends))
        assert verdict([one], one, NAMES, worth_knowing=limit).answer == answer


def test_looking_several_times_concludes_falsely_in_5_percent_of_the_cases() -> None:
    """Of 5,000 simulated experiments without a difference; looks at 95 % each would do so more often."""
    design = Design(TOKENS, (2, 4, 12, 5, 1, 1))
    looks, rng, times = design.looks(), np.random.default_rng(0), 5000
    assert [sum(look.seeds) for look in looks] == [10, 16, 21, 25]
    assert [look.level for look in looks] == pytest.approx([0.999, 0.999, 0.999, 0.953])
    assert all(0.95 <= look.looks()[-1].level < 0.96 for look in looks)  # of a new experiment with as many seeds
    sd = dict(zip(TOKENS, (0.017, 0.009, 0.005, 0.004, 0.003, 0.002), strict=True))
    variance = np.array([sd[budget] ** 2 for budget, _ in design.pairs])
    parts = [np.array([pair in set(look.pairs) for pair in design.pairs]) for look in looks]
    x = np.log([budget for budget, _ in design.pairs])
    valid, naive = 0, 0
    quantile = cache(lambda share, left: float(stats.t.ppf(share, left)))
    for _ in range(times):
        y, off = rng.normal(size=(2, len(x))) * np.sqrt(variance + 4e-6)
        found = [regress(x[part], y[part], variance[part], 4e-6, off[part]) for part in parts]
        t = np.array([abs(one.level) / np.sqrt(one.scatter[0]) for one in found])
        valid += any(t > [quantile((1 + look.level) / 2, one.left) for look, one in zip(looks, found, strict=True)])
        naive += any(t > [quantile(0.975, one.left) for one in found])
    assert 0.035 < valid / times < 0.056
    assert naive / times > 0.08


def test_an_interval_decides_if_it_excludes_0_or_what_matters() -> None:
    """At its very ends it does not."""
    assert decides((-0.02, -1e-9), 0.005)
    assert not decides((-0.02, 0.0), 0.005)
    small = np.log1p([-0.004, 0.005])
    assert decides((small[0], small[1] - 1e-9), 0.005)
    assert not decides((small[0], small[1] + 1e-9), 0.005)
    assert not decides(None, 0.005)


def test_a_difference_on_the_other_test_set_alone_is_not_the_answer() -> None:
    """The primary test set is named before."""
    assert conclude((0.0, -0.1), (0.0, 0.0), noise=0.001).answer == "no difference"
    assert conclude((0.0, 0.0), (0.0, -0.1), noise=0.001).answer == "better"


def test_what_random_rules_do_too_is_not_the_choice_of_the_rules() -> None:
    """Their mean is taken off; the sentence also gives the difference from the raw corpus itself."""
    one = simulated(0.0, -0.02, noise=0.001)
    effects = np.linspace(-0.021, -0.019, 19)
    none = of(replace(one, placebos={"random": Placebos(-0.02, effects)}))
    assert none.answer == "no difference"
    assert " higher than with a random choice of as many tokens; against raw it differs by \N{MINUS SIGN}1.9" in (
        none.sentence
    )
    better = of(replace(one, placebos={"random": Placebos(-0.02, effects + 0.01)}))
    assert better.answer == "better"
    assert "its perplexity is 0.9" in better.sentence
    assert "than with a random choice of as many tokens; against raw it differs by \N{MINUS SIGN}1.9" in better.sentence
    assert of(replace(one, placebos={"random": Placebos(-0.02, effects - 0.02)})).answer == "worse"
    other = of(replace(one, placebos={"random": Placebos(-0.02, effects, of_rules=False)}))
    assert other.answer == "better", "between two other corpora no rule chose"
    assert "its perplexity is 1.9" in other.sentence
    assert "random" not in other.sentence


def test_the_sentence_is_about_replies_and_gives_everything_beside() -> None:
    """Each with its interval; the answer is that of replies."""
    one, beside = simulated(0.0, -0.02, noise=0.001), simulated(0.0, 0.01, noise=0.001)
    one = replace(one, test=replace(one.test, targets=one.test.targets[::-1], scope="replies"))
    found = verdict([one], one, NAMES, beside=beside)
    assert found.answer == "better"
    assert "its perplexity on replies is 1.9" in found.sentence
    assert ". On all messages, it differs by +1.0" in found.sentence
    assert "that is said" not in of(beside).sentence


def test_the_verdict_is_about_replies_if_there_are_enough() -> None:
    """At 20 conversations of equal length; below, and in plain documents, it is about everything."""
    pair: Any = SimpleNamespace(
        names=NAMES,
        subset=True,
        union=SimpleNamespace(members=dict.fromkeys(NAMES, np.ones(100, np.bool_))),
    )
    for count, scope in ((20, "replies"), (19, "everything"), (0, "everything")):
        targets = np.stack([np.full(100, 50), np.where(np.arange(100) < count, 50, 0)])
        test = TestSet("refined-test", "", np.ones(100, np.bool_), targets, np.arange(100))
        arms: Any = None  # they are needed for all test conversations of both corpora
        found = primary_test(pair, [test], arms)
        assert found.scope == scope
        assert found.tokens == (20 * 50 if scope == "replies" else targets.sum())
        assert found.conversations == (20 if scope == "replies" else 100)


def test_a_few_test_conversations_allow_no_conclusion() -> None:
    """A bootstrap over a handful of conversations underestimates their variation."""
    one = simulated(-0.05, -0.1)
    found = of(replace(one, test=replace(one.test, which=np.arange(100) < 7)))
    assert found.sentence.startswith(
        "Nothing can be concluded, since a test set needs 20 conversations: set0-test has 7"
    )
    assert not found.concludes


def test_copies_count_as_one_conversation() -> None:
    """A hundred test conversations in five clusters count as five."""
    one = simulated(-0.05, -0.1)
    found = of(replace(one, test=replace(one.test, clusters=np.arange(100) // 20)))
    assert found.sentence.startswith(
        "Nothing can be concluded, since a test set needs 20 conversations: set0-test has 100 in 5 clusters of "
        "near-duplicates"
    )
    assert not found.concludes
    assert of(replace(one, test=replace(one.test, clusters=np.arange(100) // 2))).concludes


def test_arms_with_the_same_training_runs_do_not_differ() -> None:
    """Whether or not the design allows a conclusion."""
    one = simulated(-0.05, -0.1)
    same = replace(one, laws=compared_laws(dict.fromkeys(NAMES, one.points["raw"])))
    found = of(same)
    assert found.answer == "no difference"
    assert found.sentence == "There is no difference: all models of raw and refined have read the same text."
    assert "(and all models have read the same text)" in of(same, lacks="x").sentence


def test_one_long_test_conversation_allows_no_conclusion() -> None:
    """A hundred conversations of which one has half the tokens have an effective size of 3.9."""
    one = simulated(-0.05, -0.1)
    found = of(replace(one, test=replace(one.test, targets=np.array([99_000, *[1000] * 99]))))
    assert found.sentence.startswith(
        "Nothing can be concluded, since a test set needs 20 conversations: set0-test has 100, whose unequal lengths "
        "leave an effective sample size (Kish) of 3"
    )
    assert not found.concludes


@pytest.mark.parametrize(
    ("design", "why"),
    [
        (Design(TOKENS, (2, 1, 1, 1, 1, 1)), "7 pairs of training runs where 8 are needed"),
        (Design(TOKENS[:4], (3,) * 4), "4 budgets where 5 are needed and 0.90 decades of tokens where 1.5 are needed"),
        (Design((10_000, 11_000, 12_000, 13_000, 14_000), (3,) * 5), "0.15 decades of tokens where 1.5 are needed"),
    ],
)
def test_too_small_a_design_never_concludes(design: Design, why: str) -> None:
    """However clear the numbers look; they are marked as not conclusive."""
    found = conclude((-0.3, -0.5), (-0.3, -0.5), lacks=design.lacks())
    assert (found.concludes, found.exponent, found.answer) == (False, "", "cannot tell")
    assert found.sentence.startswith("Nothing is concluded, because there are ")
    assert why in found.sentence
    assert "not conclusive" in found.sentence


def test_the_full_design_lacks_nothing() -> None:
    """Six budgets over 1.5 decades; eight pairs are enough."""
    assert Design(TOKENS, (2, 2, 1, 1, 1, 1)).lacks() == ""


def test_a_failed_check_forbids_a_conclusion() -> None:
    """Whatever the numbers say."""
    found = conclude((-0.3, -0.5), (-0.3, -0.5), failed="train/test leakage 0")
    assert (found.concludes, found.sentence) == (
        False,
        "Nothing can be concluded, because a check failed: train/test leakage 0.",
    )


def test_no_interval_is_no_conclusion() -> None:
    """Two budgets and one seed leave no degree of freedom."""
    found = conclude((-0.3, -0.5), (-0.3, -0.5), seeds=1, budgets=2)
    assert not found.concludes
    assert found.sentence == "Nothing can be concluded: the difference has no interval on set1-test."


def test_equal_arms_seldom_differ() -> None:
    """With simulated points of one law, intervals of delta alpha contain 0 in 90 to 99 % of comparisons."""
    holds = []
    for seed in range(300):
        arms = points(0.0, seed=seed, noise=0.01)
        found = difference(arms["raw"], arms["refined"]).delta_alpha_interval
        assert found is not None
        holds.append(found[0] <= 0 <= found[1])
    assert 0.90 <= np.mean(holds) <= 0.99


def finding(kind: str, low: float | None, high: float = 0.0) -> NetworkFinding:
    """A network with this interval of ln PPL, or without a difference."""
    power = simulated(0.0).differences["power"]
    return NetworkFinding(kind, power, Choice(0.0, None if low is None else (low, high)))


@pytest.mark.parametrize(
    ("intervals", "sentence"),
    [
        (
            [(-0.02, -0.01), (-0.03, -1e-9), (-0.05, -0.01)],
            "The networks agree: with refined the perplexity is lower for CVFP, Transformer and GRU.",
        ),
        (
            [(0.01, 0.02), (1e-9, 0.01), (-0.01, 0.02)],
            (
                "The networks do not all conclude: with refined the perplexity is higher for CVFP and Transformer; "
                "nothing can be told from GRU."
            ),
        ),
        (
            [(-0.02, -0.01), (0.01, 0.02), (None, 0.0)],
            (
                "The networks disagree: with refined the perplexity is lower for CVFP and higher for Transformer; "
                "nothing can be told from GRU."
            ),
        ),
        (
            [(-0.02, 0.0), (0.0, 0.02), (None, 0.0)],
            "No network finds a difference: the interval of each (CVFP, Transformer and GRU) contains 0.",
        ),
    ],
)
def test_networks_agree_if_all_intervals_exclude_0_on_one_side(
    intervals: list[tuple[float | None, float]], sentence: str
) -> None:
    """An interval that ends at 0 contains it; a network without an interval tells nothing."""
    found = [finding(kind, *ends) for kind, ends in zip(NETWORKS, intervals, strict=True)]
    assert agreement(found, "refined") == sentence
