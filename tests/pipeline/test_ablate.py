"""`refine ablate`: arms without each rule and with it alone; runs that arms share are trained once."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline import ablate as ablating
from pipeline.ablate import AblateOptions, Mask, arms_of, discoveries, verdict
from pipeline.ablate.result import Contrast
from pipeline.compare import command as comparing
from pipeline.compare import corpora
from pipeline.compare.corpora import Pair
from pipeline.report.run.checks import SHARE, Bounds
from pipeline.store import RunFolderError, read_json
from tests.pipeline.compare_corpus import BLINK, asked, how, simulated
from tests.pipeline.report_corpus import refine
from trainer import presets
from trainer.experiment.screen import Null, Placebos

pytestmark = pytest.mark.usefixtures("no_pictures", "few_orders")

BUDGETS = (200, 500, 1200)


@pytest.fixture(autouse=True)
def blink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the preset of the tests available."""
    monkeypatch.setitem(presets.PRESETS, "blink", BLINK)


@pytest.fixture(scope="module")
def pair(my_run: Path) -> Pair:
    return corpora.pair("raw", "refined", my_run, None, grouped=False)


def test_arms_are_what_the_rules_decide(my_run: Path, pair: Pair) -> None:
    """A rule alone drops all that it fires on; without it, all that no other rule fires on are kept."""
    members, contrasts, _ = arms_of(pair)
    decided = pl.read_parquet(my_run / "decisions" / "*.parquet")
    rules = [name for name in decided.columns if name not in {"id", "keep", "reason", "duplicate_of", "jaccard"}]
    assert contrasts
    for one in contrasts:
        others = [pl.col(name) for name in rules if name != one.reason]
        if one.how == "alone":
            assert np.array_equal(members[one.second], ~decided[one.reason].to_numpy())
        else:
            kept = decided.select(~pl.any_horizontal(others)).to_series().to_numpy()
            assert np.array_equal(members[one.first], kept)
        lost = members[one.first] & ~members[one.second]
        assert one.dropped == int(lost.sum()) > 0
        assert one.dropped_words == sum(len(text.split()) for text in pair.union.frame["text"].filter(lost))


def test_rules_that_drop_nothing_are_skipped(my_run: Path, pair: Pair) -> None:
    """Each rule has two contrasts, or a sentence for each that is skipped."""
    _, contrasts, skipped = arms_of(pair)
    rules = read_json(my_run / "manifest.json")["plan"]["rules"]
    idle = [rule["reason"] for rule in rules if not rule["fired"]]
    assert len(contrasts) + len(skipped) == 2 * len(rules)
    for reason in idle:
        assert f"{reason} alone drops nothing: skipped" in skipped
        assert f"{reason} on top drops nothing: skipped" in skipped


def of_two_rules(pair: Pair) -> tuple[dict[str, Mask], list[Contrast], list[str]]:
    """The arms of the two rules that drop the fewest conversations alone."""
    members, contrasts, skipped = arms_of(pair)
    alone = sorted((one for one in contrasts if one.how == "alone"), key=lambda one: one.dropped)
    left = [one for one in contrasts if one.reason in {rule.reason for rule in alone[:2]}]
    arms = {"raw", "refined", *(arm for one in left for arm in (one.first, one.second))}
    return {name: mask for name, mask in members.items() if name in arms}, left, skipped


def test_an_ablation_shares_the_runs_of_a_comparison(
    my_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raw and refined are not trained again, nor are arms whose budgets hold the same conversations."""
    monkeypatch.setattr(ablating, "arms_of", of_two_rules)
    asks = how(work=tmp_path / "work", budgets=BUDGETS, seeds=2)
    comparing.compare(asked("raw", "refined", my_run, tmp_path, asks))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "work" / "trainings").glob("cvfp-*/record.json")}
    result = ablating.ablate(AblateOptions(my_run, tmp_path / "page", training=asks))
    assert not result.failed
    assert set(result.differences["law"]) == {"power"}
    assert len(result.differences) == len(result.contrasts) * 2
    assert {path: path.stat().st_mtime_ns for path in before} == before
    found = read_json(tmp_path / "page" / "report.json")
    arms = 2 + len({arm for one in found["contrasts"] for arm in (one["first"], one["second"])} - {"raw", "refined"})
    trained = len(list((tmp_path / "work" / "trainings").glob("cvfp-*")))
    assert len(before) <= trained < arms * len(BUDGETS) * 2
    for one in found["contrasts"]:
        assert set(one["test_sets"]) == {"raw-test", "refined-test"}
        low, high = one["test_sets"]["raw-test"]["delta_alpha_interval"]
        assert low <= one["test_sets"]["raw-test"]["delta_alpha"] <= high
    assert found["verdict"].startswith("Nothing is concluded, because there are 3 budgets where 5 are needed")
    assert {"rules-delta-alpha", "rules-ln-ratio"} <= set(found["figures"])


def test_without_training_it_counts_what_each_rule_drops(my_run: Path, tmp_path: Path) -> None:
    """The last line is the file of the page."""
    done = refine(tmp_path, "ablate", my_run, "--no-train", "--out", "ablation")
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().splitlines()[-1] == "ablation/index.html"
    output = json.loads(refine(tmp_path, "ablate", my_run, "--no-train", "--out", "ablation", "--json").stdout)
    assert {one["reason"] for one in output["contrasts"]} <= set(read_json(my_run / "manifest.json")["by_rule"])
    assert all(one["test_sets"] == {} for one in output["contrasts"])


def test_decisions_of_another_plan_are_refused(my_run: Path, tmp_path: Path) -> None:
    """If the plan was edited and the decisions were not repeated."""
    copy = tmp_path / "copy"
    shutil.copytree(my_run, copy)
    plan = (copy / "plan.toml").read_text()
    (copy / "plan.toml").write_text(plan.replace("n_words < 5", "n_words < 50"))
    with pytest.raises(RunFolderError, match="does not match the plan of the run: start `refine decide"):
        arms_of(corpora.pair("raw", "refined", copy, None, grouped=False))


CONTRASTS = [Contrast("noisy", "alone", "raw", "only noisy", 9), Contrast("short", "alone", "raw", "only short", 9)]
KEYS = [one.key for one in CONTRASTS]


def test_the_verdict_names_the_rules_that_changed_the_level_and_the_exponent() -> None:
    """And the number of contrasts; it also says if no rule did, or if the design is too small."""
    scored = {KEYS[0]: simulated(-0.05, -0.1), KEYS[1]: simulated(0.0)}
    sentence = verdict(scored, CONTRASTS, "", [])
    assert sentence.startswith("Level on set0-test: noisy alone makes PPL lower (\N{MINUS SIGN}9")
    assert "Exponent: noisy alone makes it steeper (2 contrasts, false discovery rate 5%)." in sentence
    assert verdict(dict.fromkeys(KEYS, scored[KEYS[1]]), CONTRASTS, "", []) == (
        "Level on set0-test: no rule can be said to have changed the level. Exponent: no rule can be said to have "
        "changed it (2 contrasts, false discovery rate 5%)."
    )
    assert verdict(scored, CONTRASTS, "there is 1 seed", []) == "Nothing is concluded, because there is 1 seed."
    assert verdict(scored, CONTRASTS, "", ["budgets reached"]) == (
        "Nothing can be concluded, because a check failed: budgets reached."
    )


def test_a_rule_that_differs_as_random_rules_do_is_not_named() -> None:
    """Its interval over orders excludes 0, as that of a random rule may."""
    one = simulated(0.0, -0.02, noise=0.001)
    random: dict[Null, Placebos] = {"random": Placebos(-0.02, np.array([-0.04, -0.02, 0.0, 0.02, 0.04]))}
    assert "noisy alone makes PPL lower" in verdict({KEYS[0]: one}, CONTRASTS[:1], "", [])
    wide = verdict({KEYS[0]: replace(one, placebos=random)}, CONTRASTS[:1], "", [])
    assert "no rule can be said to have changed the level" in wide


def test_of_many_rules_without_an_effect_few_are_named() -> None:
    """At a false discovery rate of 5 %, a single interval that barely excludes 0 among twenty is no finding."""
    nothing = [(0.0, (-1.0, 1.0))] * 19
    assert discoveries([*nothing, (1.1, (0.1, 2.1))]) == [False] * 20
    assert discoveries([(1.1, (0.1, 2.1))]) == [True]
    assert discoveries([*nothing, (2.0, (1.0, 3.0))])[-1]
    assert discoveries([(1.1, (0.1, 2.1))] * 20) == [True] * 20
    assert discoveries([(1.1, None)]) == [False]


def test_a_run_that_failed_a_check_fails_its_ablation(my_run: Path, tmp_path: Path) -> None:
    """The run's checks are on the page; the bounds of the share kept are options."""
    out = tmp_path / "page"
    assert not ablating.ablate(AblateOptions(my_run, out, train=False, training=how())).failed
    checks = {one["name"]: one["passed"] for one in read_json(out / "report.json")["checks"]}
    assert checks[SHARE]
    assert checks["counts add up"]
    kept = ablating.ablate(AblateOptions(my_run, out, train=False, training=how(), bounds=Bounds(0.0, 0.01)))
    assert [check.name for check in kept.failed] == [SHARE]


def test_an_ablation_without_intervals_concludes_nothing() -> None:
    """With too few test conversations, or without an interval, it does not claim that no rule had an effect."""
    one = simulated(0.0)
    few = replace(one, test=replace(one.test, clusters=np.arange(100) // 25))
    assert verdict(dict.fromkeys(KEYS, few), CONTRASTS, "", []).startswith(
        "Nothing can be concluded, since a test set needs 20 conversations: set0-test has 100 in 4 clusters"
    )
    unknown = replace(one, laws=replace(one.laws, differences={}))
    assert verdict({KEYS[0]: one, KEYS[1]: unknown}, CONTRASTS, "", []).endswith(
        "(1 contrasts, false discovery rate 5%). There is no interval for short alone."
    )
    assert verdict(dict.fromkeys(KEYS, unknown), CONTRASTS, "", []) == (
        "Nothing can be concluded. There is no interval for noisy alone, short alone."
    )
