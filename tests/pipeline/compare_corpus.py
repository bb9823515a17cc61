"""Shared by tests of comparisons: a run over real conversations, a very small preset, and simulated arms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline.compare import command as comparing
from pipeline.compare.data import TrainingOptions
from pipeline.compare.scored import POWER, STRICT, Scored, TestSet, compared_laws
from pipeline.experiments.laws import Key
from pipeline.store import read_json
from tests.pipeline.report_corpus import refine
from trainer.prepare.choices import Choices
from trainer.presets import HOUSE
from trainer.scaling import Control, Difference, Points, paired_difference
from trainer.scaling.paired import MIN_PAIRS

BLINK = replace(
    HOUSE,
    name="blink",
    about="trains in a second, for tests",
    shape=replace(HOUSE.shape, vocabulary=300, embedding=8, context=8, layers=1),
    phase1=replace(HOUSE.phase1, passes=2, least=1),
    phase2=replace(HOUSE.phase2, epochs=1, steps=12, batch=128, evaluations=2),
    vocabulary=300,
    budgets=(320, 800, 1920, 4800, 11200),
)
WANTED = Choices(test_tokens=3000, validation_tokens=500)
LIMIT = 400


def run(here: Path, limit: int = LIMIT) -> Path:
    """A run over the first conversations of the embedded default, as a user makes it."""
    done = refine(here, "run", "--stages", "heuristics", "--limit", limit, "--out", "my-run", "--workers", 1)
    assert done.returncode == 0, done.stderr
    return here / "my-run"


def how(**more: Any) -> TrainingOptions:
    """Options of the training in tests."""
    return replace(TrainingOptions(preset="blink", choices=WANTED, workers=1, force=True), **more)


def asked(
    first: str, second: str, run: Path | None, here: Path, how: TrainingOptions, *, train: bool = True
) -> comparing.CompareOptions:
    """Options of a comparison whose report is written to `here`/report."""
    return comparing.CompareOptions(first, second, run, here / "report", train=train, training=how)


def report(here: Path) -> dict[str, Any]:
    """The report.json of a comparison in `here`."""
    return read_json(here / "report" / "report.json")


def simulated(
    delta: float, shift: float = 0.0, *, seeds: int = 3, budgets: int = 6, noise: float = 0.004, seed: int = 0
) -> Scored:
    """Two arms on a test set: the laws of `points`, and their paired difference without a control."""
    found = points(delta, shift, seeds=seeds, budgets=budgets, noise=noise, seed=seed)
    targets = np.stack([np.full(100, 1000), np.zeros(100, np.int64)])
    test = TestSet(f"set{seed}-test", "simulated", np.ones(100, np.bool_), targets, np.arange(100))
    laws, strict, count = compared_laws(found), None, seeds * budgets
    control = Control(np.zeros(count), np.zeros(count), np.full(count, 2 * noise**2))
    differences: dict[Key, Difference] = {}
    if count >= MIN_PAIRS:
        both = found["raw"], found["refined"], control, 1e-8
        power, strict = (paired_difference(*both, level) for level in (0.95, STRICT))
        differences = {("refined", POWER): power}
    return Scored(test, pl.DataFrame(), replace(laws, differences=differences), strict=strict)


def points(
    delta: float, shift: float = 0.0, *, seeds: int = 3, budgets: int = 6, noise: float = 0.004, seed: int = 0
) -> dict[str, Points]:
    """Simulated training runs of two arms.

    Args:
        delta: the second arm's alpha minus the first's.
        shift: the difference of ln PPL at the mean budget, 56,234 tokens.
        seeds: number of seeds of both.
        budgets: number of budgets, over 1.5 decades.
        noise: standard deviation of ln PPL.
        seed: of the noise.
    """
    rng = np.random.default_rng(seed)
    x = np.linspace(np.log(1e4), np.log(1e4) + 1.5 * np.log(10), budgets)
    found = {}
    for name, alpha, level in (("raw", -0.3, 0.0), ("refined", -0.3 + delta, shift)):
        y = np.log(90) + level + alpha * (x - x.mean()) + rng.normal(0, noise, (seeds, budgets))
        found[name] = Points(np.tile(np.exp(x), seeds), np.exp(y.ravel()))
    return found
