"""Whole comparisons: a spoiled corpus differs from its clean original, two halves of one corpus do not."""

from __future__ import annotations

import pytest

from tests.bench import calibration


@pytest.mark.slow
def test_a_spoiled_corpus_differs_from_its_original() -> None:
    """Each is better on its own kind of text, and on clean text a token of the clean corpus is worth more.

    The corpus was chosen after seeing results; two other seeds agree: see `calibration.known`.
    """
    outcome = calibration.known(seeds=2)
    assert (outcome.verdict.concludes, outcome.verdict.answer) == (True, "mixed")
    assert outcome.verdict.sentence.startswith("Each corpus is better on other text: at ")
    found = {one.test.name: one.differences["power"] for one in outcome.scored}
    clean, spoiled = found["clean-test"], found["spoiled-test"]
    assert clean.ln_ratio_interval is not None
    assert spoiled.ln_ratio_interval is not None
    assert clean.ln_ratio_interval[1] < 0 < spoiled.ln_ratio_interval[0]
    assert clean.efficiency is not None
    assert clean.efficiency > 1


@pytest.mark.slow
def test_two_halves_of_one_corpus_do_not_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """The intervals of delta alpha contain 0 on both test sets, and nothing is concluded about the exponent."""
    monkeypatch.setattr(calibration, "CONTROL_SEEDS", 12)
    monkeypatch.setattr(calibration, "PLACEBOS", 3)
    found = calibration.compared(calibration.halves(0), seeds=2)
    assert found.holds() == [True, True]
    assert found.verdict.exponent == ""
