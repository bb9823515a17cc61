"""A comparison that goes the whole way: a spoiled corpus is told from its clean original, two halves of one are not."""

from __future__ import annotations

import pytest

from tests.bench import calibration


@pytest.mark.slow
def test_a_spoiled_corpus_is_told_from_its_original() -> None:
    """Each is better at its own kind of text, as the verdict says: on clean text the clean one, a token worth more.

    A corpus chosen after looking, and one of three seeds whose intervals say the same: see `calibration.known`.
    """
    outcome = calibration.known()
    assert (outcome.verdict.concludes, outcome.verdict.level) == (True, "mixed")
    assert "at 32,000 tokens each corpus is better on its own kind of text" in outcome.verdict.sentence
    found = {one.test.name: one.differences["power"] for one in outcome.scored}
    clean, spoiled = found["clean-test"], found["spoiled-test"]
    assert clean.ln_ratio_interval is not None
    assert spoiled.ln_ratio_interval is not None
    assert clean.ln_ratio_interval[1] < 0 < spoiled.ln_ratio_interval[0]
    assert clean.efficiency is not None
    assert clean.efficiency > 1


@pytest.mark.slow
def test_two_halves_of_one_corpus_are_not_told_apart() -> None:
    """The intervals of delta-alpha hold 0 on both test sets, and nothing is concluded about the exponent."""
    found = calibration.compared(calibration.halves(0))
    assert found.holds() == [True, True]
    assert found.verdict.exponent == ""
