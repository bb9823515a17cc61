"""`refine search`: plans are tried on one part of a target and tested on another; random ones among them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refine
from pipeline import plan as planning
from pipeline import search as searching
from pipeline import sources
from pipeline.api.run import open_run
from pipeline.compare.checks import UNSEEN
from pipeline.compare.data import TrainingOptions
from pipeline.plan import PlanError
from pipeline.rules import KeepTop
from pipeline.search import SearchOptions, page, parts
from pipeline.search import candidates as proposing
from pipeline.search.candidates import Candidate
from pipeline.search.findings import Confirmation, Estimate, Finding, Goal, Trial, best
from pipeline.search.result import Search
from pipeline.search.trials import Development
from pipeline.sources import SourceError
from pipeline.store import read_json
from tests.conftest import call
from tests.pipeline.compare_corpus import BLINK
from trainer import presets
from trainer.prepare.choices import Choices

pytestmark = pytest.mark.usefixtures("no_pictures", "few_orders")

PLAN = """
[[stage]]
use = "heuristics"

[[stage]]
use = "dedup"

[[drop]]
reason = "too_short"
where = "n_words < 5"

[[keep_best]]
reason = "near_duplicate"
pairs = "dedup"
at_least = 0.75
"""
SHARES = (0.16, 0.4)
TRIED = 8
"""Plans of a search in tests: the rules alone, two of three selections of the first share, and so on."""


def chats(kind: int, count: int, seed: int) -> list[dict[str, Any]]:
    """Conversations in one of two languages of 300 words each, whose frequencies fall."""
    rng = np.random.default_rng(seed)
    words = [f"{'ab'[kind]}{i:x}{['on', 'us', 'ar', 'it'][i % 4]}" for i in range(300)]
    made = []
    for _ in range(count):
        said = [" ".join(words[min(i, 300) - 1] for i in rng.zipf(1.4, 30)) for _ in range(2)]
        made.append(
            {
                "messages": [
                    {"role": role, "content": text} for role, text in zip(("user", "assistant"), said, strict=True)
                ]
            }
        )
    return made


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of two kinds of text, of which the target is one; the name of the target attacks comments of TOML."""
    folder = tmp_path_factory.mktemp("search")
    write(folder / "corpus.jsonl", [*chats(0, 130, 1), *chats(1, 650, 2), *chats(1, 30, 2)])
    write(folder / "good\n[[drop]]\x1b[31m" / "chats.jsonl", chats(0, 240, 3))
    (folder / "my-plan.toml").write_text(PLAN)
    return folder


def options(here: Path, out: str, **more: Any) -> SearchOptions:
    training = TrainingOptions(
        preset="blink", choices=Choices(test_tokens=6_000, validation_tokens=500), screen=True, seeds=4, workers=1
    )
    (target,) = here.glob("good*")
    wanted = SearchOptions(
        *(sources.find(str(here / "corpus.jsonl")), str(target)),
        candidates=TRIED,
        plan=here / "my-plan.toml",
        shares=SHARES,
        out=here / out,
        training=training,
    )
    return replace(wanted, **more)


@pytest.fixture(scope="module")
def found(here: Path) -> Search:
    """A search, made once for the tests of this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(presets.PRESETS, "blink", BLINK)
        patch.setattr("trainer.experiment.screen.MIN_TOP", 4_000)
        patch.setattr("pipeline.report.page.png", lambda _figure: b"")
        patch.chdir(here)
        return searching.search(options(here, "out"))


@pytest.fixture(autouse=True)
def _in_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.PRESETS, "blink", BLINK)
    monkeypatch.setattr("trainer.experiment.screen.MIN_TOP", 4_000)
    monkeypatch.chdir(here)


def test_the_selection_of_the_kind_that_the_target_is_of_wins_and_is_confirmed(found: Search) -> None:
    """It beats luck on both parts, which stand side by side, and costs on the corpus itself."""
    assert found.picked.kind == "selection"
    random = [one.level("token") for one in found.trials if one.kind == "random"]
    assert found.picked.finding is not None
    assert found.confirmed.finding is not None
    for finding in (found.picked.finding, found.confirmed.finding):
        assert finding.per_token.ends is not None
        assert finding.per_token.ends[1] < min(random) < 0.1
        assert finding.worth.ends is not None
        assert finding.worth.ends[0] > 1
    assert found.confirmed.choice.ends is not None
    assert found.confirmed.choice.ends[1] < 0
    text = found.page.read_text()
    assert "\x1b" not in text
    for finding in (found.picked.finding, found.confirmed.finding):
        assert finding.per_token.change in text


def test_nothing_that_was_tried_is_hidden(found: Search) -> None:
    """Every trial is in the table, in search.json and in the comments of the plan, the random ones too."""
    kept = read_json(found.folder / "search.json")
    assert len(found.trials) == len(kept["trials"]) == found.frame.height == TRIED
    assert {one["kind"] for one in kept["trials"]} == {"rules", "selection", "random"}
    assert kept["stopped"] == f"{TRIED} plans were asked for (--candidates)"
    comments = [line for line in found.file.read_text().splitlines() if line.startswith("#")]
    for one in found.trials:
        assert any(line.startswith(f"# - {one.name}:") for line in comments), one.name
    assert kept["development"]["level"] == pytest.approx(np.expm1(found.picked.level("token")))


def test_the_plan_selects_the_same_corpus_again(found: Search, here: Path) -> None:
    """`refine run` takes plan.toml, whatever the names in its comments."""
    assert planning.load(found.file) == found.plan
    done = call("run", "corpus.jsonl", "--plan", found.file, "--out", "again", "--workers", 1, cwd=here)
    assert done.returncode == 0, done.stderr
    ids = [
        pl.read_parquet(sorted((folder / "refined").glob("*.parquet")))["id"].to_list()
        for folder in (here / "again", found.folder / "run")
    ]
    assert ids[0] == ids[1]
    assert len(ids[0]) == found.picked.conversations
    (threshold,) = re.findall(r"# As a threshold, the selection is: where = '(.*)'\.", found.file.read_text())
    below = open_run(found.folder / "run").signals.collect().select(pl.sql_expr(threshold)).to_series()
    assert (~below).sum() == found.picked.conversations


def test_the_test_part_was_not_seen(found: Search) -> None:
    """The parts share no conversation, the signals are fitted on the first, and all checks pass.

    The corpus has copies, of which a selection does not take even the one that is kept.
    """
    texts = {
        part: set(map(str, pl.read_parquet(found.target.file(part))["messages"].to_list())) for part in parts.SHARES
    }
    assert not texts["fit"] & texts["development"] | texts["fit"] & texts["test"] | texts["development"] & texts["test"]
    assert sum(map(len, texts.values())) == 240
    fitted = {str(getattr(each.stage, name, "")) for each in found.plan.stages for name in ("target", "like")} - {""}
    assert fitted <= {str(found.target.file("fit"))}
    assert fitted
    assert not [one for one in found.comparison.checks if one.passed is False]
    (check,) = (one for one in found.comparison.checks if one.name == UNSEEN)
    assert check.passed


def test_a_search_goes_on_where_it_stopped(found: Search, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials are not made again, and a smaller number of candidates is the beginning of a larger one."""
    monkeypatch.setattr(Development, "measure", lambda *_: pytest.fail("a trial was made again"))
    again = searching.search(options(here, "out", candidates=TRIED - 2))
    assert [one.numbers for one in again.trials] == [one.numbers for one in found.trials[: TRIED - 2]]


def test_development_and_test_stand_side_by_side_with_their_tokens(found: Search) -> None:
    """A test by networks is after fewer tokens than the trials, so each row says after how many."""
    head, (tried, tested) = page.sides(found)
    at = head.index("models")
    assert tried[at] == f"n-grams, {found.budget:,} tokens"
    models, at_tokens = str(tested[at]).split(", ", 1)
    assert models == "n-grams"
    assert f"at {at_tokens} " in found.confirmed.verdict
    assert f"on the test part ({tested[at]})" in page.headline(found)
    assert f"- test part ({tested[at]}): " in found.file.read_text()


def test_the_page_of_the_test_says_its_own_command(found: Search) -> None:
    """The options of the search that size the test are options of that comparison."""
    assert found.comparison.command.endswith("target/test.parquet --seeds 4 --test-tokens 6000 --screen")
    assert searching._flags(TrainingOptions(budgets=(2000, 4000))) == ("--budgets", "2000,4000")  # noqa: SLF001
    assert searching._flags(TrainingOptions()) == ()  # noqa: SLF001


def test_workers_do_not_change_a_number(found: Search, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search in another folder, with two workers, and with as many plans as the minutes allow."""
    monkeypatch.setattr(searching, "confirm", lambda *_: found.comparison)
    training = replace(options(here, "other").training, workers=2)
    again = searching.search(options(here, "other", candidates=None, minutes=0.0, training=training))
    assert len(again.trials) == searching.BATCH
    assert again.stopped == "after 0 minutes (--minutes)"
    assert again.left == len(proposing.grid(planning.load(here / "my-plan.toml"), SHARES, 3)) - searching.BATCH
    assert [one.finding for one in again.trials] == [one.finding for one in found.trials[: searching.BATCH]]


def test_a_second_look_at_the_test_part_is_recorded(tmp_path: Path) -> None:
    """Another plan that is tested on the same part follows the first, which stays on record; the same one does not."""
    path = tmp_path / "confirmations.json"
    first, second = (Confirmation(key, key, None, None, Estimate(0.1, (0.0, 0.2)), "so") for key in "ab")
    assert searching.remember(first, path) == []
    assert searching.remember(first, path) == []
    assert searching.remember(second, path) == [first]


def test_every_plan_has_its_luck() -> None:
    """Each share has random selections, one of them beside its selections; shares are refined around the best."""
    plan = planning.read({"stage": [{"use": "heuristics"}]}, "test")
    grid = proposing.grid(plan, (0.2, 0.4), 2)
    assert [one.kind for one in grid] == ["rules", *(["selection"] * 3 + ["random"]) * 2, "random", "random"]
    assert len({one.name for one in grid}) == len(grid)
    more = proposing.between(grid[1], grid)
    assert [(one.kind, one.top and one.top.share) for one in more] == [
        ("selection", 0.14),
        ("random", 0.14),
        ("selection", 0.28),
        ("random", 0.28),
    ]
    assert more[0].order == grid[1].order
    assert proposing.between(Candidate("rules"), grid) == []


def test_selections_of_the_plan_are_what_is_tried() -> None:
    """By their order, at the shares of the search; its other rules stay."""
    top = KeepTop("best", "n_words DESC", conversations=9, per="source")
    plan = planning.read({"stage": [{"use": "heuristics"}]}, "test")
    plan = replace(plan, rules=(top,))
    grid = proposing.grid(plan, (0.2,), 1)
    assert [one.top for one in grid if one.kind == "selection"] == [
        KeepTop(proposing.REASON, "n_words DESC", share=0.2, per="source")
    ]
    with pytest.raises(PlanError, match=r"--shares is 1\.5, expected numbers above 0 and below 1"):
        proposing.check((1.5,))


@given(st.integers(0, 99), st.integers(0, 60))
def test_a_conversation_stays_in_its_part(seed: int, more: int) -> None:
    """Clusters are whole, and other conversations change nothing, unless they are near-duplicates."""
    rng = np.random.default_rng(seed)
    keys, groups = rng.integers(0, 2**63, 120).astype(np.uint64), rng.integers(0, 50, 120)
    part, _ = parts.sides(keys, groups)
    assert all(len(set(part[groups == group])) <= 1 for group in range(50))
    new = np.append(keys, rng.integers(0, 2**63, more).astype(np.uint64)), np.append(groups, np.arange(more) + 50)
    assert np.array_equal(parts.sides(*new)[0][:120], part)


def test_a_small_target_is_refused(tmp_path: Path) -> None:
    """Each part needs 20 conversations."""
    path = write(tmp_path / "few.jsonl", chats(0, 40, 0))
    with pytest.raises(SourceError, match=r"part of the target .*few.jsonl has \d+ conversations without near-dup"):
        parts.divide(str(path), tmp_path / "parts")


def test_the_corpus_itself_is_no_target(here: Path) -> None:
    """It is refused before anything is measured."""
    with pytest.raises(SourceError, match=r"^the target .*corpus.jsonl is the corpus itself: name conversations of"):
        searching.search(options(here, "itself", target=str(here / "corpus.jsonl")))
    assert not (here / "itself").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shares": "0.1,many"}, r"--shares is '0\.1,many', expected numbers such as 0\.1,0\.3"),
        ({"goal": "speed"}, "--goal is 'speed', expected token or corpus"),
        ({"shares": []}, "--shares is empty"),
    ],
)
def test_a_wrong_option_is_one_sentence(wrong: dict[str, Any], message: str) -> None:
    """Before anything is read."""
    with pytest.raises(PlanError, match=message):
        refine.search(target="nowhere", **wrong)


def test_the_worth_of_a_token_says_that_it_is_extrapolated() -> None:
    """Raw was not trained on so many tokens; without an interval there is nothing to mark."""
    level, worth = Estimate(-0.7, (-0.8, -0.6)), Estimate(12.134, (9.8, 15.0))
    assert Finding(level, worth, level, level, extrapolates=True).value == "12.13 (9.80 to 15.00, extrapolated)"
    assert Finding(level, worth, level, level).cells[1] == "12.13 (9.80 to 15.00)"
    assert Finding(level, Estimate(None), level, level, extrapolates=True).value == "-"


def test_the_goal_decides_which_plan_is_best() -> None:
    """A small selection may be the best per token and not if read to its end; what was not measured is not picked."""
    small, large = (
        Trial(
            name,
            "selection",
            name,
            9,
            9,
            Finding(Estimate(per_token), Estimate(None), Estimate(used_up), Estimate(0.0)),
        )
        for name, per_token, used_up in (("small", -0.5, 0.2), ("large", -0.3, -0.1))
    )
    trials = [Trial("too small", "selection", "none", 1, 1, note="too small"), small, large]
    goals: tuple[Goal, ...] = ("token", "corpus")
    assert [best(trials, goal) for goal in goals] == [small, large]
    assert best(trials[:1], "token") is None
