"""The verdict of a comparison concludes if all test sets agree, and never from too little."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.compare.design import Design
from pipeline.compare.scored import compared_laws
from pipeline.compare.verdict import Verdict, verdict
from pipeline.report.parts import Check
from tests.pipeline.compare_corpus import points, simulated
from trainer.scaling import difference

CORPUS_NAMES = ("raw", "refined")
TOKENS = (10_000, 20_000, 40_000, 80_000, 160_000, 320_000)


def conclude(*arms: tuple[float, float], lacks: str = "", failed: str = "", **more: int) -> Verdict:
    """The verdict on simulated arms, one test set for each (delta of alpha, shift of ln PPL)."""
    found = [simulated(delta, shift, seed=i, **more) for i, (delta, shift) in enumerate(arms)]
    return verdict(found, CORPUS_NAMES, lacks, [Check(failed, passed=False, found="")] if failed else [])


def test_a_steeper_law_on_both_test_sets_is_concluded_with_its_numbers() -> None:
    """The sentence also gives the level at the largest common budget, and a token's worth."""
    found = conclude((-0.05, -0.1), (-0.05, -0.1))
    assert (found.concludes, found.exponent, found.level) == (True, "steeper", "lower")
    assert found.sentence.startswith(
        "The exponent of refined is steeper than that of raw: delta alpha is \N{MINUS SIGN}0.0"
    )
    assert "on set0-test and" in found.sentence
    assert "the PPL of refined is lower: \N{MINUS SIGN}9" in found.sentence
    assert "one token of refined is worth 1." in found.sentence
    assert conclude((0.05, 0.1), (0.05, 0.1)).exponent == "flatter"


def test_a_level_alone_is_no_exponent() -> None:
    """If refined is better by the same factor at every budget."""
    found = conclude((0.0, -0.1), (0.0, -0.1))
    assert (found.concludes, found.exponent, found.level) == (True, "", "lower")
    assert found.sentence.startswith("No difference between the exponents of raw and refined can be concluded")
    assert conclude((0.0, 0.1), (0.0, 0.1)).level == "higher"


def test_equal_laws_allow_no_conclusion() -> None:
    """The same corpus twice."""
    found = conclude((0.0, 0.0), (0.0, 0.0))
    assert (found.concludes, found.exponent, found.level) == (False, "", "")
    assert "no difference in PPL at 316,228 tokens can be concluded" in found.sentence


def test_one_test_set_alone_allows_no_conclusion() -> None:
    """Of the exponent, and of the level."""
    found = conclude((-0.05, 0.0), (0.0, 0.0))
    assert found.exponent == ""
    assert "since it differs on set0-test alone" in found.sentence
    assert conclude((0.0, -0.1), (0.0, 0.0)).level == ""


def test_opposite_signs_on_two_test_sets_are_a_finding() -> None:
    """The sentence says which corpus is better on which test set, with each number."""
    found = conclude((-0.05, -0.1), (0.05, 0.1))
    assert (found.concludes, found.exponent, found.level) == (True, "mixed", "mixed")
    assert "The exponent of refined is steeper on set0-test and flatter on set1-test than that of raw" in found.sentence
    assert "refined has the lower PPL on set0-test and raw has the lower PPL on set1-test" in found.sentence
    assert found.sentence.endswith("on set1-test of raw.")
    assert "refined is worth" in found.sentence


@pytest.mark.parametrize(("shift", "own"), [(0.1, True), (-0.1, False)])
def test_each_corpus_may_be_better_at_its_own_text(shift: float, own: bool) -> None:
    """Raw on raw-test and refined on refined-test; the opposite is described test set by test set."""
    both = [simulated(0.0, each, seed=i) for i, each in enumerate((shift, -shift))]
    named = [
        replace(one, test=replace(one.test, name=f"{name}-test")) for one, name in zip(both, CORPUS_NAMES, strict=True)
    ]
    found = verdict(named, CORPUS_NAMES, "", [])
    assert found.level == "mixed"
    assert ("each corpus is better on its own kind of text: the PPL of refined" in found.sentence) is own
    assert ("refined has the lower PPL on raw-test and raw has" in found.sentence) is not own


def test_an_exponent_alone_is_no_level() -> None:
    """Laws that cross at the largest budget differ in exponent but not in level."""
    found = conclude((-0.05, 0.0), (-0.05, 0.0))
    assert (found.concludes, found.exponent, found.level) == (True, "steeper", "")
    assert "no difference in PPL at 316,228 tokens can be concluded: that of refined differs by" in found.sentence


def test_an_extrapolated_worth_of_a_token_is_marked() -> None:
    """One of a better second arm is worth more tokens of the first than were trained on."""
    assert ", extrapolated) on set0-test" in conclude((-0.05, -0.1), (-0.05, -0.1)).sentence
    assert "extrapolated" not in conclude((0.05, 0.1), (0.05, 0.1)).sentence


def test_a_few_test_conversations_allow_no_conclusion() -> None:
    """A bootstrap over a handful of conversations underestimates their variation."""
    one = simulated(-0.05, -0.1)
    few = replace(one, test=replace(one.test, mask=np.arange(100) < 7))
    found = verdict([few], CORPUS_NAMES, "", [])
    assert found.sentence.startswith(
        "Nothing can be concluded, since a test set needs 20 conversations: set0-test has 7"
    )
    assert not found.concludes


def test_copies_count_as_one_conversation() -> None:
    """A hundred test conversations in five clusters count as five."""
    one = simulated(-0.05, -0.1)
    copies = replace(one, test=replace(one.test, clusters=np.arange(100) // 20))
    found = verdict([copies], CORPUS_NAMES, "", [])
    assert found.sentence.startswith(
        "Nothing can be concluded, since a test set needs 20 conversations: set0-test has 100 in 5 clusters of "
        "near-duplicates"
    )
    assert not found.concludes
    pairs = replace(one, test=replace(one.test, clusters=np.arange(100) // 2))
    assert verdict([pairs], CORPUS_NAMES, "", []).concludes


def test_arms_with_the_same_training_runs_do_not_differ() -> None:
    """Whether or not the design allows a conclusion."""
    one = simulated(-0.05, -0.1)
    same = replace(one, laws=compared_laws(dict.fromkeys(CORPUS_NAMES, one.points["raw"])))
    assert verdict([same], CORPUS_NAMES, "", []).sentence == (
        "There is no difference: at these budgets raw and refined are the same text, and all their training runs are "
        "the same."
    )
    assert "(and at these budgets raw and refined are the same text" in verdict([same], CORPUS_NAMES, "x", []).sentence


def test_one_long_test_conversation_allows_no_conclusion() -> None:
    """A hundred conversations of which one has half the tokens have an effective size of 3.9."""
    one = simulated(-0.05, -0.1)
    uneven = replace(one, test=replace(one.test, targets=np.array([99_000, *[1000] * 99])))
    found = verdict([uneven], CORPUS_NAMES, "", [])
    assert found.sentence.startswith(
        "Nothing can be concluded, since a test set needs 20 conversations: set0-test has 100, whose unequal lengths "
        "leave an effective sample size (Kish) of 3"
    )
    assert not found.concludes


@pytest.mark.parametrize(
    ("design", "why"),
    [
        (Design(TOKENS, 2), "2 seeds where 3 are needed"),
        (Design(TOKENS[:4], 3), "4 budgets where 5 are needed and 0.90 decades of tokens where 1.5 are needed"),
        (Design(TOKENS, 1), "1 seed where 3 are needed"),
        (Design((10_000, 11_000, 12_000, 13_000, 14_000), 3), "0.15 decades of tokens where 1.5 are needed"),
    ],
)
def test_too_small_a_design_never_concludes(design: Design, why: str) -> None:
    """However clear the numbers look; they are marked as not conclusive."""
    found = conclude((-0.3, -0.5), (-0.3, -0.5), lacks=design.lacks())
    assert (found.concludes, found.exponent, found.level) == (False, "", "")
    assert found.sentence.startswith("Nothing is concluded, because ")
    assert why in found.sentence
    assert "not conclusive" in found.sentence


def test_the_full_design_lacks_nothing() -> None:
    """Six budgets over 1.5 decades, three seeds."""
    assert Design(TOKENS, 3).lacks() == ""


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
    assert (found.concludes, found.sentence) == (
        False,
        "Nothing can be concluded: delta alpha has no interval on set0-test, set1-test.",
    )


def test_equal_arms_seldom_differ() -> None:
    """With simulated points of one law, intervals of delta alpha contain 0 in 90 to 99 % of comparisons."""
    holds = []
    for seed in range(300):
        arms = points(0.0, seed=seed, noise=0.01)
        found = difference(arms["raw"], arms["refined"]).delta_alpha_interval
        assert found is not None
        holds.append(found[0] <= 0 <= found[1])
    assert 0.90 <= np.mean(holds) <= 0.99
