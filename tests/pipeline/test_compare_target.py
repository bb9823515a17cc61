"""`refine compare --target`: a third test set, fixed, apart from both corpora, and what the verdict is about."""

from __future__ import annotations

import html
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline import ablate as ablating
from pipeline import sources
from pipeline.ablate import AblateOptions
from pipeline.compare import command as comparing
from pipeline.compare.checks import UNSEEN, unseen
from pipeline.compare.corpora import Target, with_target
from pipeline.compare.screen.verdict import screen_verdict
from pipeline.experiments import corpus as corpora
from pipeline.ingest import Limits, ingest
from pipeline.sources import SourceError
from pipeline.store import Store
from tests.conftest import read_shards
from tests.pipeline.compare_corpus import BLINK, LIMIT, asked, how, report
from tests.pipeline.test_compare_screen import simulated
from trainer import presets
from trainer.prepare import arms as arming
from trainer.prepare.arms import ArmsError, Union
from trainer.prepare.choices import Choices

pytestmark = pytest.mark.usefixtures("no_pictures", "few_orders")

NEAR = 12
"""Conversations of the target that are in the run."""
SIZES = Choices(test_tokens=4_000, validation_tokens=500)


@pytest.fixture(autouse=True)
def _preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.PRESETS, "blink", BLINK)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations of the embedded corpus after those of the run, and some of the run."""
    folder = tmp_path_factory.mktemp("of-target") / "target"
    folder.mkdir()
    more = Store(folder.parent / "more")
    ingest(sources.find(None), more, Limits(limit=2 * LIMIT))
    rows = read_shards(more.raw(""))
    rows = pl.concat([rows[:NEAR], rows[LIMIT:]]).select("prompt", "prompt_id", "messages")
    rows.write_parquet(folder / "chats.parquet")
    return folder


def options(here: Path, **more: Any) -> Any:
    return how(work=here / "work", choices=SIZES, **{"screen": True, "seeds": 4, **more})


@pytest.mark.usefixtures("no_sections")
def test_the_target_is_a_test_set_of_its_own(my_run: Path, target: Path, tmp_path: Path) -> None:
    """Its near-duplicates of a corpus are left out and counted, the answer is about it, and nothing else changes."""
    wanted = asked("raw", "refined", my_run, tmp_path, options(tmp_path))
    comparing.compare(wanted)
    before = report(tmp_path)
    wanted = replace(wanted, target=str(target), training=options(tmp_path / "other"))
    made = comparing.compare(wanted)
    found = report(tmp_path)
    assert list(found["test_sets"]) == ["raw-test", "refined-test", "target"]
    assert (found["primary_test_set"], found["answer"]) == ("target", made.verdict.answer)
    assert NEAR <= found["target"]["near_duplicates"] < found["target"]["conversations"]
    assert f"{found['target']['near_duplicates']:,} of the " in " ".join(found["notes"])
    of_target, (of_raw, *others) = found["test_sets"]["target"], (found["test_sets"], before["test_sets"])
    assert 10_000 < of_target["tokens"] < 20_000, "4,000 by the estimate of five bytes a token, before the vocabulary"
    for name in ("raw-test", "refined-test"):
        assert of_raw[name]["differences"][0]["ln_ratio"] == others[0][name]["differences"][0]["ln_ratio"]
    (leaks,) = (check for check in found["checks"] if check["name"] == "train/test leakage 0")
    tested = found["data"]["leaks"]["tested"]
    assert leaks["passed"]
    assert tested == before["data"]["leaks"]["tested"] + of_target["conversations"]
    assert "a token of refined is worth" in found["verdict"]
    assert set(found["per_corpus"]["test_sets"]) == set(found["test_sets"])


@pytest.mark.usefixtures("no_sections")
def test_networks_are_scored_on_the_target_too(
    my_run: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The design that is written before any training says that the verdict is about it."""
    monkeypatch.setattr("pipeline.compare.design.baselines", lambda _networks: ("kneser_ney",))
    wanted = asked("raw", "refined", my_run, tmp_path, options(tmp_path, screen=False, seeds=1, budgets=(300, 900)))
    comparing.compare(replace(wanted, target=str(target)))
    found = report(tmp_path)
    assert {one["kind"] for one in found["test_sets"]["target"]["trainings"]} >= {"cvfp", "kneser_ney"}
    (design,) = (tmp_path / "work").glob("design-*.json")
    assert "of target," in design.read_text()


def test_an_ablation_is_about_the_target_too(my_run: Path, target: Path, tmp_path: Path) -> None:
    """Each contrast is scored on the target, which no rule keeps or drops; the sentence names it."""
    wanted = AblateOptions(my_run, tmp_path / "page", training=options(tmp_path, seeds=2), target=str(target))
    made = ablating.ablate(wanted)
    found = json.loads((tmp_path / "page" / "report.json").read_text())
    aim = made.pair.target
    assert aim is not None
    assert all(set(one["test_sets"]) == {"raw-test", "refined-test", "target"} for one in found["contrasts"])
    assert sum(one.dropped for one in made.contrasts if one.how == "alone") <= LIMIT
    assert made.sentence.startswith("Level on target, beyond random rules")
    (note,) = aim.notes
    assert note in html.unescape((tmp_path / "page" / "index.html").read_text())
    assert not replace(aim, near=0).notes, "no note if none is left out"
    with pytest.raises(ArmsError, match="--target is a test set for models, and --no-train trains none"):
        ablating.ablate(replace(wanted, train=False))


def test_a_target_without_a_test_conversation_is_refused(my_run: Path, tmp_path: Path) -> None:
    """All of it is in the corpora, or no model would be scored on it."""
    raw = corpora.read_part(Store(my_run), "raw")
    masks = {"raw": np.ones(len(raw.frame), np.bool_)}
    union = Union(raw.frame, corpora.keys(raw.frame["text"]), corpora.groups(raw.frame["text"]), masks)
    with pytest.raises(SourceError, match=r"each of the 400 conversations of the target .* has a near-duplicate"):
        with_target(union, raw)
    wanted = asked("raw", "refined", my_run, tmp_path, options(tmp_path), train=False)
    with pytest.raises(ArmsError, match="--target is a test set for models, and --no-train trains none"):
        comparing.compare(replace(wanted, target="x"))


@pytest.mark.parametrize("seed", range(3))
def test_a_target_changes_no_split(seed: int) -> None:
    """The sides of both corpora are the same, no conversation of the target is trained on, and few may be tested on."""
    rng, size = np.random.default_rng(seed), 240
    texts = [" ".join(f"w{i}" for i in rng.integers(0, 99, 20)) for _ in range(size)]
    frame = pl.DataFrame({"first": texts, "text": texts})
    keys, groups = rng.integers(0, 2**63, size).astype(np.uint64), np.arange(size) // 3
    target = np.arange(size) >= 120
    members = {"raw": ~target, "part": ~target & (np.arange(size) % 2 == 0)}
    choices = Choices(test_tokens=300, validation_tokens=100)
    alone = Union(frame[:120], keys[:120], groups[:120], {name: mask[:120] for name, mask in members.items()})
    before = arming.split(alone, alone.frame["text"], choices)
    found = arming.split(Union(frame, keys, groups, members, target), frame["text"], choices)
    assert np.array_equal(found.pool, before.pool)
    assert np.array_equal(found.validation, before.validation)
    assert np.array_equal(found.test[~target[found.test]], before.test)
    tokens = sum(-(-len(texts[i]) // 5) for i in found.test[target[found.test]])
    assert 300 <= tokens < 300 + 3 * 25, "whole clusters, in order, until there are enough"


def test_the_answer_is_about_the_target_alone() -> None:
    """A corpus that is better for the target is better, though it is worse on other text, which the sentence says."""
    made = simulated((0.02, -0.02))
    raw, refined = made.tests
    aim = replace(refined, name="target", of_target=True)
    found = screen_verdict(replace(made, tests=[raw, aim], primary_test=aim), [])
    assert found.answer == "better"
    assert "its perplexity of the target is 1." in found.sentence
    worth, cost = found.sentence.split("For the target, a token of refined is worth ")[1].split(" of raw; ")
    assert worth.startswith("1.0")
    assert cost.startswith("its perplexity differs by +2.1")


@pytest.mark.parametrize(
    ("examples", "passed", "says"),
    [
        (
            "target",
            False,
            "412 of 412 have a near-duplicate among the examples of target: hold out other conversations",
        ),
        ("target/others.jsonl", True, "0 of 412 have a near-duplicate among the examples of target"),
        ("nowhere", None, "the examples of the stage target cannot be read: no corpus of examples at"),
        ("", True, "no stage of the run is fitted on examples"),
    ],
)
def test_a_selection_that_saw_the_target_fails_a_check(
    target: Path, tmp_path: Path, examples: str, passed: bool | None, says: str
) -> None:
    """Its models would be scored on what chose their text."""
    others = [{"text": f"nothing like it in number {i} of these lines"} for i in range(3)]
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "others.jsonl").write_text("".join(json.dumps(row) + "\n" for row in others))
    path = target.parent / "target" if examples == "target" else examples and tmp_path / examples
    (tmp_path / "plan.toml").write_text(f'[[stage]]\nuse = "target"\ntarget = "{path}"\n')
    pair: Any = SimpleNamespace(target=Target(corpora.read(str(target)), 0), run=Store(tmp_path))
    (check,) = unseen(pair)
    assert (check.name, check.passed) == (UNSEEN, passed)
    assert check.found.startswith(says)
