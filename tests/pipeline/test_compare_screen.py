"""`refine compare --screen`: what it says, for which numbers, and where it is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline import ablate as ablating
from pipeline.compare import command as comparing
from pipeline.compare.result import Comparison
from pipeline.compare.scored import TestSet
from pipeline.compare.screen import Screened
from pipeline.compare.screen.page import how_sure, screen_numbers, sections
from pipeline.compare.screen.verdict import screen_verdict
from pipeline.compare.verdict import Verdict
from pipeline.report.run.checks import SHARE, Bounds
from tests.conftest import lessen_orders
from tests.pipeline.compare_corpus import BLINK, asked, how, report
from trainer import presets
from trainer.experiment.screen import Placebos, Screen
from trainer.prepare.choices import Choices

pytestmark = pytest.mark.usefixtures("no_pictures")

BUDGETS = tuple(100_000 // 2**i for i in reversed(range(6)))
SEEDS = 8
TESTED = 60
"""Test conversations of a simulated screen, half of them in each set."""
Effect = tuple[float, float]


def simulated(effect: Effect, noise: float = 0.004, spread: float = 0.0005, sizes: Effect = (3e6, 2.8e6)) -> Screened:
    """A screen whose second corpus changes ln PPL by `effect` on the two halves of the test conversations.

    `noise` is the standard deviation of the difference between orders, `spread` that between placebo rules.
    """
    rng = np.random.default_rng(0)
    ln_ppl = np.log(200) - 0.3 * np.log(np.array(BUDGETS) / BUDGETS[-1])
    base = ln_ppl[None, :, None] + rng.normal(0, 0.2, TESTED) + rng.normal(0, 0.02, (SEEDS, 6, 1))
    shift = np.repeat(effect, TESTED // 2)
    second = base + shift + rng.normal(0, noise, (SEEDS, 6, 1))
    targets = plain(np.full(TESTED, 1000))
    placebo = np.stack(
        [base[:12, -1] + rng.normal(0, spread) * np.array([[0.0], [1.0]])[:, :, None] for _ in range(19)]
    )
    names = ("raw", "refined")
    screen = Screen(
        budgets=BUDGETS,
        nats={"raw": plain(base * 1000), "refined": plain(second * 1000)},
        whole={},
        apart={},
        placebos={names: {"random": plain(placebo * 1000)}},
        targets=targets,
        clusters=np.broadcast_to(np.arange(TESTED), targets.shape),
        tokens={name: int(size) for name, size in zip(names, sizes, strict=True)},
        unique={name: int(size) for name, size in zip(names, sizes, strict=True)},
    )
    stream = SimpleNamespace(target_bytes=lambda: targets * 4, by_class=lambda values: values)
    record = SimpleNamespace(tokenizer="bpe8192", notes=(), as_dict=lambda: {"identity": ""})
    arms: Any = SimpleNamespace(common=SimpleNamespace(test=stream, record=record), preset=BLINK)
    masks = [np.arange(TESTED) < TESTED // 2, np.arange(TESTED) >= TESTED // 2]
    tests = [
        TestSet(f"{name}-test", "simulated", mask, targets, np.arange(TESTED))
        for name, mask in zip(names, masks, strict=True)
    ]
    whole = TestSet("all test conversations", "of both", np.ones(TESTED, np.bool_), targets, np.arange(TESTED))
    return Screened(arms, screen, Path("x"), names, tests, whole)


def plain(values: np.ndarray) -> np.ndarray:
    """Values [..., K] of text that is no reply, [..., 2, K]."""
    return np.stack([values, np.zeros_like(values)], axis=-2)


def told(effect: Effect, **more: Any) -> Verdict:
    """The verdict of a simulated screen without a failed check."""
    return screen_verdict(simulated(effect, **more), [])


@pytest.mark.parametrize(
    ("effect", "more", "answer", "begins"),
    [
        ((-0.02, -0.02), {}, "better", "refined is better per token: at 100,000 tokens its perplexity is 1."),
        ((0.02, 0.02), {}, "worse", "refined is worse per token: at 100,000 tokens its perplexity is 2."),
        ((0.0, 0.0), {}, "no difference", "There is no difference above 0.5%: at 100,000 tokens the perplexity with"),
        ((0.0, 0.0), {"noise": 0.05}, "cannot tell", "Nothing can be told yet: at 100,000 tokens the perplexity"),
        ((-0.02, 0.02), {}, "mixed", "Each corpus is better on other text: at 100,000 tokens the perplexity with"),
        ((-0.004, -0.004), {"spread": 0.01}, "cannot tell", "Nothing can be told yet: at 100,000 tokens"),
    ],
)
def test_the_sentence_says_which_and_how_much(effect: Effect, more: dict[str, float], answer: str, begins: str) -> None:
    """Better, worse, no difference above a bound, cannot tell; an effect within that of random rules is none."""
    found = told(effect, **more)
    assert (found.answer, found.concludes) == (answer, answer in {"better", "worse", "mixed"})
    assert found.sentence.startswith(begins)
    assert "Read to its end" in found.sentence or "Read to their ends" in found.sentence


def test_what_cannot_be_told_is_bounded_and_says_what_it_would_take() -> None:
    """The largest part of the interval is what the advice is about."""
    assert "more seeds narrow it (--seeds 32)" in told((0.0, 0.0), noise=0.05).sentence
    assert "a larger corpus narrows it" in told((-0.004, -0.004), spread=0.01).sentence
    assert "lower and" in told((0.0, 0.0), noise=0.05).sentence


def test_a_smaller_corpus_may_be_better_per_token_and_worse_if_used_up() -> None:
    """By the exponent of about -0.3, a tenth fewer tokens cost 3 %."""
    found = told((-0.01, -0.01), sizes=(3e6, 2.7e6))
    assert found.answer == "better"
    assert "Read to its end, refined is worse: its perplexity is 2." in found.sentence
    numbers = screen_numbers(simulated((-0.01, -0.01), sizes=(3e6, 2.7e6)))
    assert numbers["per_corpus"]["level"] > 0
    assert numbers["per_corpus"]["crossing_tokens"] == pytest.approx(2.7e6 * np.exp(0.01 / 0.3), rel=0.02)
    assert numbers["ceiling"] == pytest.approx(1 - 0.9**0.3, abs=0.003)


def test_a_failed_check_or_too_few_conversations_forbid_a_conclusion() -> None:
    """Whatever the numbers."""
    assert screen_verdict(simulated((-0.02, -0.02)), ["train/test leakage 0"]).sentence.startswith(
        "Nothing can be concluded"
    )
    few = simulated((-0.02, -0.02))
    small = TestSet("all", "few", np.arange(TESTED) < 9, few.screen.targets, few.screen.clusters[0])
    made = Screened(few.arms, few.screen, few.folder, few.names, few.tests, small)
    assert "since a test set needs 20 conversations" in screen_verdict(made, []).sentence


def test_a_page_shows_copies_that_do_not_stay_together() -> None:
    """As a note beside the difference."""
    made = simulated((-0.02, -0.02))
    object.__setattr__(made.screen, "apart", made.screen.nats)
    assert any("if copies do not stay together" in note for note in sections(made)[0].missing)


def test_a_page_counts_the_placebo_rules_that_do_as_much() -> None:
    """An effect of exactly their size counts as theirs, measured from their mean."""
    made = simulated((-0.02, -0.02))
    one: Any = SimpleNamespace(screened=made, experiment=None, primary=made.primary)
    assert f"from {SEEDS} pairs of n-gram models on {TESTED} test conversations" in how_sure(one)
    assert how_sure(one).endswith(
        "Of 19 placebo rules, which drop as many tokens at random, none changed the PPL of n-gram models as far "
        "from their mean."
    )
    effects = np.linspace(-0.02, 0.0, 19)
    for size, many in ((-0.02, "2"), (-0.01, "19")):
        one.primary = replace(made.primary, placebos={"random": Placebos(size, effects)})
        assert f"at random, {many} changed" in how_sure(one)


@pytest.fixture(autouse=True)
def _preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.PRESETS, "blink", BLINK)


def options(here: Path, **more: Any) -> Any:
    """Options of a screen in tests."""
    wanted = Choices(test_tokens=16_000, validation_tokens=500)
    return how(work=here / "work", screen=True, choices=wanted, seeds=4, **more)


@pytest.fixture(scope="module")
def made(my_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A screen with one worker and all placebo rules; tests only read it."""
    here = tmp_path_factory.mktemp("screen")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(presets.PRESETS, "blink", BLINK)
        patch.setattr("pipeline.report.page.png", lambda _figure: b"\x89PNG")
        return comparing.compare(asked("raw", "refined", my_run, here, options(here)))


def test_a_screen_writes_every_number_and_trains_nothing(made: Comparison) -> None:
    """The verdict, the level and the exponent with intervals, placebo rules and both corpora used up."""
    here = made.page.parent.parent
    found = report(here)
    assert found["answer"] in {"better", "worse", "no difference", "cannot tell"}
    assert found["verdict"] == made.verdict.sentence
    for key in ("level", "choice"):
        assert found[f"{key}_interval"][0] < found[key] < found[f"{key}_interval"][1]
    mean = found["placebo"]["random"]["mean"]
    assert np.log1p(found["level"]) - np.log1p(found["choice"]) == pytest.approx(np.log1p(mean))
    assert found["delta_alpha_interval"][0] < found["delta_alpha"] < found["delta_alpha_interval"][1]
    assert {"random", "of_the_same_lengths"} == set(found["placebo"])
    assert found["placebo"]["random"]["rules"] == 19
    assert found["per_corpus"]["measured_level"] is not None
    assert found["primary_test_set"] == "refined-test"
    assert not (here / "work" / "trainings").exists()
    assert made.training_runs["kind"].unique().to_list() == ["kneser_ney"]
    assert "difference" in made.page.read_text()


@pytest.mark.usefixtures("no_sections")
def test_a_share_out_of_bounds_fails_its_check_and_forbids_no_conclusion(
    my_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It judges plausibility, as in an experiment with networks."""
    lessen_orders(monkeypatch)
    wanted = asked("raw", "refined", my_run, tmp_path, options(tmp_path))
    found = comparing.compare(replace(wanted, bounds=Bounds(0.0, 0.01)))
    assert [check.name for check in found.failed] == [SHARE]
    assert "a check failed" not in found.verdict.sentence


def test_the_same_screen_gives_the_same_numbers(made: Comparison, my_run: Path, tmp_path: Path) -> None:
    """With other workers and from data that are already prepared."""
    here = made.page.parent.parent
    wanted = asked("raw", "refined", my_run, tmp_path, options(here, workers=2))
    comparing.compare(wanted)
    assert report(tmp_path) == report(here)


def test_an_ablation_is_screened_too(my_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every contrast has its difference, and nothing is trained."""
    lessen_orders(monkeypatch)
    found = ablating.ablate(ablating.AblateOptions(my_run, tmp_path / "report", training=options(tmp_path)))
    assert found.experiment is None
    assert len(found.differences["reason"].unique()) == len({one.reason for one in found.contrasts})
    assert not (tmp_path / "work" / "trainings").exists()
