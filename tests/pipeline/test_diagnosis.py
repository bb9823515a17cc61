"""A plan that keeps nearly everything says so, and what to look at next."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

import stages
from pipeline.api.run import Run, decide, open_run
from pipeline.diagnosis import CONDITIONS, WEAKEST, diagnose
from pipeline.plan import PlannedStage
from pipeline.signals import measured_plan
from pipeline.store import Store
from tests.conftest import Refine, chat

Jsonl = Callable[..., Path]


@pytest.fixture
def clean(refine: Refine, jsonl: Jsonl, tmp_path: Path) -> Run:
    """A run of 40 conversations in several shards, of which every rule keeps all."""
    records = [chat(i, 2 + i % 3) for i in range(40)]
    records[7]["messages"][1]["content"] = "I am sorry, but I cannot help with that request at all."
    for words in (3, 4, 5):
        said = [{"role": "user", "content": "go"}, {"role": "assistant", "content": " ".join(["well"] * (words - 1))}]
        records[words]["messages"] = said
    answer = " ".join(f"word{i}" for i in range(40))
    for i in (10, 30):
        records[i]["messages"] = [
            {"role": "user", "content": "Say it"},
            {"role": "assistant", "content": f"{answer} {i}"},
        ]
    plan = '[[stage]]\nuse = "heuristics"\n[[stage]]\nuse = "dedup"\n'
    plan += '[[drop]]\nreason = "short"\nwhere = "n_words < 2"\n'
    (tmp_path / "plan.toml").write_text(plan)
    done = refine("run", jsonl(records), "--plan", "plan.toml", "--out", "run", "--shard-rows", 15)
    assert done.returncode == 0, done.stderr
    return open_run(tmp_path / "run")


def test_its_numbers_are_those_of_the_signals(clean: Run) -> None:
    """Shares of the kept conversations, the most frequent first, and the weakest; printed and in the manifest."""
    first, *shown = clean.manifest.remarks["rules"]
    assert first == "these rules keep 100.0% of the conversations: this corpus is clean by them. Of what is kept,"
    signals = clean.signals.collect()
    found = {}
    for line in shown[:-2]:
        share, what, condition = re.fullmatch(r" *([\d.]+)%  (.+)  \((.+)\)", line).groups()  # type: ignore[union-attr]
        assert CONDITIONS[condition] == what
        assert float(share) == round(100 * signals.select(pl.sql_expr(condition).sum()).item() / 40, 1)
        found[condition] = float(share)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert {"refusals > 0", "last_role = 'user'"} <= found.keys()
    worst = signals.drop_nulls("nearest_jaccard").sort("nearest_jaccard", "id", descending=[True, False])
    assert f"{worst['id'][0]} (nearest_jaccard {worst['nearest_jaccard'][0]:.3g})" in shown[-2]
    assert '[[repair]] trim = "unanswered"' in shown[-1]
    assert shown[-1] in str(clean)


def test_it_is_there_from_95_percent_and_knows_the_rules(clean: Run) -> None:
    """38 of 40 kept are enough, 37 are not; what a rule looks at already is not shown again."""
    most = decide(clean, drop=["refusals > 0", "n_words < 4"])
    assert most.counts.rejected == 2
    assert not any("refusals" in line for line in most.manifest.remarks["rules"])
    assert "these rules keep 95.0%" in most.manifest.remarks["rules"][0]
    fewer = decide(clean, drop=["refusals > 0", "n_words < 5"])
    assert fewer.counts.rejected == 3
    assert "rules" not in fewer.manifest.remarks


@pytest.mark.parametrize(("reply", "said"), [("well then it is", []), ("a b c d e " * 3, ["its weakest is "])])
def test_what_has_nothing_of_a_fault_is_not_weak(
    refine: Refine, jsonl: Jsonl, tmp_path: Path, reply: str, said: list[str]
) -> None:
    """A reply that repeats nothing is not the weakest of those that do."""
    messages = [{"role": "user", "content": "say it"}, {"role": "assistant", "content": reply}]
    (tmp_path / "plan.toml").write_text('[[stage]]\nuse = "heuristics"\n')
    refine("run", jsonl([{"messages": messages}]), "--plan", "plan.toml", "--out", "run")
    lines = open_run(tmp_path / "run").manifest.remarks["rules"]
    assert [line[:15] for line in lines if "weakest" in line] == said


def test_it_names_the_same_language_each_time(refine: Refine, jsonl: Jsonl, tmp_path: Path) -> None:
    """Of two that are equally frequent, the first by name is the main one; polars counts values in no fixed order."""
    asked = ("Where is the station, and how long is the walk?", "Wo ist der Bahnhof, und wie lange gehe ich dorthin?")
    source = jsonl({"prompt": f"{asked[i % 2]} {i}", "completion": asked[i % 2]} for i in range(40))
    (tmp_path / "plan.toml").write_text('[[stage]]\nuse = "language"\n')
    assert refine("run", source, "--plan", "plan.toml", "--out", "run").returncode == 0
    store = Store.at(tmp_path / "run")
    found = {diagnose(measured_plan(store), store, 1.0) for _ in range(20)}
    assert [lines[1] for lines in found] == ["   50.0%  are not in de  (language != 'de')"]


def test_every_condition_reads_signals_that_there_are() -> None:
    """Each is over signals of one built-in stage, and true or false."""
    schemas = [PlannedStage(name, stages.find(name)()).signals for name in stages.names()]
    for condition in CONDITIONS:
        names = pl.sql_expr(condition).meta.root_names()
        schema = next(one for one in schemas if set(names) <= set(one))
        assert pl.DataFrame(schema=schema).select(pl.sql_expr(condition)).dtypes == [pl.Boolean], condition
    assert all(any(name in schema for schema in schemas) for name in WEAKEST)
