"""Repairs: only whole turns go, the original can be restored, and signals are those of the repaired text."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.api.run import open_run
from pipeline.compare import corpora
from pipeline.compare.checks import corpora_checks
from pipeline.estimate import Estimate
from pipeline.plan import TRIMS, PlanError, dumps, load
from pipeline.repair import repaired, restore
from pipeline.signals import scan_signals
from pipeline.sources.shapes import prompt_id
from pipeline.store import Store
from stages.heuristics.turns import chat_signals
from tests import strategies
from tests.conftest import Refine, call, chat, contents, read_shards

Jsonl = Callable[..., Path]

WHOLE, CUT, OPEN = "A whole sentence of several words.", "I would go there by the", "Here:\n```python\nx = 1"
turns = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "user", "assistant", "system", "tool"]),
        "content": st.sampled_from([WHOLE, CUT, OPEN, "", " \n", "\x1b[31m</script>", "<think>a</think>"]),
    }
)
corpus = st.lists(st.lists(turns, max_size=7), min_size=1, max_size=8)
some_trims = st.sets(st.sampled_from(sorted(TRIMS)), min_size=1).map(sorted)

PLAN = (
    "".join(f'[[repair]]\ntrim = "{trim}"\n' for trim in TRIMS)
    + """
[[stage]]
use = "heuristics"

[[stage]]
use = "dedup"

[[stage]]
use = "ppl"
order = 3

[[drop]]
reason = "unanswered"
where = "assistant_turns = 0 AND user_turns > 0"

[[keep_best]]
reason = "near_duplicate"
pairs = "dedup"
at_least = 0.75
"""
)


@given(corpus, some_trims)
@settings(max_examples=50)
def test_repairs_are_final_and_reversible(made: list[list[dict[str, str]]], trims: list[str]) -> None:
    """A second time they change nothing; the original comes back; a conversation without change keeps its row."""
    raw = strategies.raw(made)
    once = repaired(raw, trims)
    twice = repaired(once.drop("repairs"), trims)
    assert twice["repairs"].null_count() == raw.height
    assert twice.drop("repairs").equals(once.drop("repairs"))
    for row, before in zip(once.to_dicts(), made, strict=True):
        assert restore(row["messages"], row["repairs"] or ()) == before
        assert row["text"] == "\n".join(one["content"] for one in row["messages"])
    same = once["repairs"].is_null()
    assert once.filter(same).drop("repairs").equals(raw.filter(same))


@given(corpus)
@settings(max_examples=50)
def test_what_the_rules_would_drop_is_gone_if_a_reply_remains(made: list[list[dict[str, str]]]) -> None:
    """A repaired conversation has no empty reply, no cut one at its end and no unanswered user there, by the signals.

    A conversation that still has one of these keeps no reply to a user without it.
    """
    raw = strategies.raw(made)
    signals = chat_signals(repaired(raw, sorted(TRIMS)))
    for before, (empty, truncated, last) in zip(
        made, signals.select("empty_replies", "truncated_last", "last_role").iter_rows(), strict=True
    ):
        sound = [one for one in before if one["content"].strip() and not one["content"].startswith("<think>")]
        sound = [one for one in sound if one["role"] in {"user", "assistant"}]
        roles = [one["role"] for one in sound if one["role"] == "user" or one["content"] == WHOLE]
        if empty or truncated or last == "user":
            first = roles.index("user") if "user" in roles else len(roles)
            assert "assistant" not in roles[first:], before


def test_many_turns_are_repaired_in_linear_time() -> None:
    """30,000 cut replies, or empty turns, one after the other take well under a second; records do not grow either."""
    cut = [{"role": ("user", "assistant")[i % 2], "content": CUT} for i in range(30_000)]
    holes = [{"role": ("user", "assistant")[i % 2], "content": WHOLE * (i % 2 == 0)} for i in range(30_000)]
    holes.append({"role": "assistant", "content": WHOLE})
    start = time.process_time()
    rows = repaired(strategies.raw([cut, holes]), sorted(TRIMS)).to_dicts()
    assert time.process_time() - start < 10  # in quadratic time minutes
    assert [len(row["messages"]) for row in rows] == [2, 2]
    assert sum(len(one["removed"]) for row in rows for one in row["repairs"]) < 10_000_000


def conversation(*said: str) -> list[dict[str, str]]:
    """Turns, each written "u:", "a:", "s:" or "t:" and its text."""
    roles = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    return [{"role": roles[one[0]], "content": one[2:]} for one in said]


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        (["u:Hi", "a:Hello.", "u:Bye"], ["u:Hi", "a:Hello."], [("unanswered", 2, 1)]),
        (["u:Hi", "a:Hello.", "t:42", "u:Bye", "s:Stop"], ["u:Hi", "a:Hello."], [("unanswered", 2, 3)]),
        (["u:Hi", "a:Hello.", "t:42"], ["u:Hi", "a:Hello.", "t:42"], []),
        (["u:Hi", "u:Hello?"], ["u:Hi", "u:Hello?"], []),
        (["a:Hello.", "u:Hi"], ["a:Hello.", "u:Hi"], []),
        (["u:Hi", "a:Hello.", "u:How?", f"a:{CUT}"], ["u:Hi", "a:Hello."], [("truncated", 2, 2)]),
        (["u:Hi", f"a:{CUT}"], ["u:Hi", f"a:{CUT}"], []),
        (
            ["u:Hi", "a:Hello.", f"a:{CUT}", "u:How?", f"a:{OPEN}", "u:And?"],
            ["u:Hi", "a:Hello."],
            [("unanswered", 5, 1), ("truncated", 3, 2), ("truncated", 2, 1)],
        ),
        (["u:Hi", f"a:{CUT}", "u:How?", f"a:{CUT}"], ["u:Hi", f"a:{CUT}"], [("truncated", 2, 2)]),
        (["u:Hi", "a: ", "u:Well?", "a:Yes."], ["u:Hi\nWell?", "a:Yes."], [("empty", 0, 3)]),
        (["u:Hi", "a:", "u:", "a:Yes."], ["u:Hi", "a:Yes."], [("empty", 1, 2)]),
        (["u:Hi", "a:Yes.", "u:", "a:No.", "u:\n", "a:Well."], ["u:Hi", "a:Yes.\nNo.\nWell."], [("empty", 1, 5)]),
        (["u:Hi", "a:Yes.", "u:How?", "a:"], ["u:Hi", "a:Yes."], [("empty", 3, 1), ("unanswered", 2, 1)]),
        (["u:", "a:Hi"], ["u:", "a:Hi"], []),
        (["u:Hi", "a:Yes.", "t:", "a:No."], ["u:Hi", "a:Yes.", "t:", "a:No."], []),
    ],
)
def test_each_repair(before: list[str], after: list[str], changes: list[tuple[str, int, int]]) -> None:
    """What goes, where, and how many messages; not the last reply to a user, and no tool's or system's empty turn."""
    made = repaired(strategies.raw([conversation(*before)]), sorted(TRIMS)).to_dicts()[0]
    assert made["messages"] == conversation(*after)
    assert [(one["trim"], one["turn"], len(json.loads(one["removed"]))) for one in made["repairs"] or ()] == changes


def test_a_turn_with_a_call_or_an_image_is_not_empty_and_all_fields_come_back(refine: Refine, jsonl: Jsonl) -> None:
    """Removed messages keep their fields; the prompt of joined turns is all the user says first."""
    call = {"id": "1", "type": "function", "function": {"name": "tide", "arguments": '{"n": 1}'}}
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x.png"}}]}
    tail = [{"role": "user", "content": "And \x1b?", "weight": 2**70, "who": {"a": [1]}}]
    asked = [image, {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": ""}]
    records: list[dict[str, Any]] = [{"messages": [*asked, {"role": "assistant", "content": "High."}, *tail]}]
    records += [{"messages": conversation("u:Hi", "a:", "u:there", "a:Yes.")}]
    plan = Path(jsonl([], "x").parent / "plan.toml")
    plan.write_text(PLAN)
    done = refine("run", jsonl(records), "--plan", plan, "--stages", "heuristics", "--out", "run", "--json")
    assert done.returncode == 0, done.stderr
    first, second = open_run(plan.parent / "run").refined.collect().to_dicts()
    (change,) = first["repairs"]
    assert json.loads(change["removed"]) == tail
    assert [one["role"] for one in first["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert first["messages"][1]["tool_calls"][0]["function"] == call["function"]
    assert (second["prompt"], second["prompt_id"]) == ("Hi\nthere", prompt_id("Hi\nthere"))


def conversations(n: int = 60) -> list[dict[str, Any]]:
    """A third ends on a user, some have an empty or a cut reply, some are copies once they are trimmed."""
    records = [chat(i, 4) for i in range(n)]
    for i, record in enumerate(records):
        said = record["messages"]
        if i % 3 == 0:
            said.append({"role": "user", "content": f"Thank you {i}, goodbye and so long."})
        if i % 5 == 0:
            said[3]["content"] = CUT
        if i % 7 == 0:
            said[1]["content"] = ""
    return [
        *records,
        *({**one, "messages": [*one["messages"], {"role": "user", "content": "Bye"}]} for one in records[:6]),
    ]


UNREPAIRED = PLAN[PLAN.index("[[stage]]") :]


def run(folder: Path, plan: str, records: list[dict[str, Any]], *, workers: int = 1) -> Path:
    """Run a plan over records, in shards of 20 rows, into a folder."""
    place = folder.parent
    (place / "plan.toml").write_text(plan)
    (place / "corpus.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    words = ("run", "corpus.jsonl", "--plan", "plan.toml", "--out", folder, "--shard-rows", 20, "--workers", workers)
    done = call(*words, cwd=place)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def repaired_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all repairs, which no test changes."""
    return run(tmp_path_factory.mktemp("repaired") / "run", PLAN, conversations())


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the same corpus and stages without repairs, which no test changes."""
    return run(tmp_path_factory.mktemp("plain") / "run", UNREPAIRED, conversations())


FILES = ("raw", "repaired", "signals", "decisions", "refined", "rejected")


def files(run: Path) -> dict[str, dict[str, bytes]]:
    return {part: contents(run / part) for part in FILES if (run / part).exists()}


@pytest.mark.usefixtures("workers_at_once")
def test_signals_are_those_of_the_repaired_text(repaired_run: Path, plain_run: Path, tmp_path: Path) -> None:
    """Of every stage, as in a run of the repaired corpus; raw stays raw; the same for two workers."""
    assert files(run(tmp_path / "two", PLAN, conversations(), workers=2)) == files(repaired_run)
    assert contents(repaired_run / "raw") == contents(plain_run / "raw")
    rows = read_shards(repaired_run / "repaired")
    again = run(tmp_path / "again", UNREPAIRED, rows.select("prompt", "prompt_id", "messages").to_dicts())
    ids = ["id", "dedup_copy_of", "prompt_copy_of", "cluster"]
    ours, theirs = (
        scan_signals(Store(one)).with_columns(pl.col(ids).str.tail(9)).collect() for one in (repaired_run, again)
    )
    assert ours.equals(theirs)
    decided = [open_run(one).decisions.select("keep", "reason").collect() for one in (repaired_run, again)]
    assert decided[0].equals(decided[1])
    assert (decided[0]["reason"] == "near_duplicate").sum() >= 4  # copies but for the line that was trimmed


def test_a_run_may_change_its_repairs(
    repaired_run: Path, plain_run: Path, refine: Refine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bytes of a new run, there and back; stages that fit no model measure the changed conversations only."""
    plain = Path(shutil.copytree(plain_run, tmp_path / "run"))
    measured: list[int] = []

    def counted(batch: pl.DataFrame) -> pl.DataFrame:
        measured.append(len(batch))
        return chat_signals(batch)

    monkeypatch.setattr("stages.heuristics.chat_signals", counted)
    monkeypatch.setattr("pipeline.run.estimate", lambda *_, **__: Estimate())
    before = files(plain)
    run(plain, PLAN, conversations())
    now = files(plain)
    assert sum(measured) == open_run(plain).counts.repaired < 66
    assert {**now, "signals": {}} == {**files(repaired_run), "signals": {}}
    assert now["signals"].items() >= files(repaired_run)["signals"].items()
    assert refine("decide", plain, "--plan", plain.parent / "other.toml").returncode == 1  # there is no such plan
    (plain.parent / "other.toml").write_text(UNREPAIRED)
    done = refine("decide", plain, "--plan", plain.parent / "other.toml")
    assert done.returncode == 0, done.stderr
    back = files(plain)
    assert {**back, "signals": {}} == {**before, "signals": {}}
    assert not (plain / "repaired").exists()
    (plain.parent / "other.toml").write_text(PLAN.replace('[[repair]]\ntrim = "empty"\n', ""))
    refused = refine("decide", plain, "--plan", plain.parent / "other.toml")
    assert (refused.returncode, "models and repairs" in refused.stderr) == (1, True)


def test_a_damaged_repaired_shard_is_made_again(repaired_run: Path, tmp_path: Path) -> None:
    """As any file of a run, to the same bytes."""
    copy = Path(shutil.copytree(repaired_run, tmp_path / "run"))
    shard = copy / "repaired" / "00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-200])
    (copy / "refined" / "00001.parquet").unlink()
    assert files(run(copy, PLAN, conversations())) == files(repaired_run)


@pytest.mark.usefixtures("no_pictures")
def test_what_was_repaired_is_counted_and_shown(
    repaired_run: Path, plain_run: Path, refine: Refine, tmp_path: Path
) -> None:
    """In summary, manifest, card and page, as the column `repairs` has it; `show` prints what was removed."""
    run = open_run(repaired_run)
    rows = pl.concat([run.refined.select("repairs").collect(), run.rejected.select("repairs").collect()])
    kinds = {
        trim: sum(any(c["trim"] == trim for c in one or ()) for one in rows["repairs"].to_list()) for trim in TRIMS
    }
    assert {one.trim: one.conversations for one in run.manifest.repairs} == kinds
    assert min(kinds.values()) > 0
    assert run.counts.repaired == len(rows["repairs"].drop_nulls())
    assert f"~ unanswered {kinds['unanswered']}" in " ".join(str(run).split())
    card = (run.path / "README.md").read_text()
    assert f"{run.counts.repaired:,} conversations were repaired" in card
    shown = refine("show", run.path, "--repaired", "-n", 99, "--full")
    assert shown.stdout.count("repaired: unanswered, at turn") == kinds["unanswered"]
    assert "Thank you 3, goodbye" in shown.stdout
    kept = refine("show", run.path, "--repaired", "--kept", "-n", 99, "--json")
    assert len(json.loads(kept.stdout)) == run.refined.select(pl.col("repairs").is_not_null().sum()).collect().item()
    page = refine("report", run.path, "--out", tmp_path / "page")
    assert page.returncode == 0, page.stderr
    assert f"{run.counts.repaired} conversations were repaired before" in (tmp_path / "page" / "index.html").read_text()
    assert refine("show", plain_run, "--repaired").returncode == 1


def test_what_was_removed_is_redacted(refine: Refine, jsonl: Jsonl, tmp_path: Path) -> None:
    """Personal data does not leave by the column `repairs`."""
    said = conversation("u:Hi there you", "a:Hello to you too.", "u:Write to jane.doe@acme.org")
    redacts = '[write]\nredact = ["email"]\n[[stage]]\nuse = "pii"\n[[repair]]\ntrim = "unanswered"\n'
    (tmp_path / "plan.toml").write_text(redacts)
    done = refine("run", jsonl([{"messages": said}]), "--plan", "plan.toml", "--out", "run")
    assert done.returncode == 0, done.stderr
    (change,) = open_run(tmp_path / "run").refined.collect()["repairs"][0]
    assert json.loads(change["removed"]) == [{"role": "user", "content": "Write to <EMAIL>"}]


def test_both_versions_of_a_conversation_are_on_one_side_of_a_split(
    refine: Refine, jsonl: Jsonl, tmp_path: Path
) -> None:
    """In one cluster and with one key, however long the trimmed end is, or a test set would be in a training pool."""
    records = [chat(i, 4) for i in range(6)]
    records[2]["messages"].append({"role": "user", "content": " ".join(f"word{i}" for i in range(200))})
    (tmp_path / "plan.toml").write_text('[[repair]]\ntrim = "unanswered"\n[[stage]]\nuse = "heuristics"\n')
    assert refine("run", jsonl(records), "--plan", "plan.toml", "--out", "run").returncode == 0
    both = corpora.pair("raw", "refined", tmp_path / "run", None, grouped=True)
    union = both.union
    rows = union.frame.with_row_index().filter(pl.col("id").str.ends_with("2"))["index"].to_list()
    assert len(rows) == 2
    assert len(set(union.groups[rows])) == len(set(union.keys[rows])) == 1
    assert len(set(union.groups)) == 6
    assert "word199" in union.frame["text"][rows[0]]
    (check,) = corpora_checks(both)
    assert (check.passed, "0 of 6 conversations of refined are not in raw, 1 are edited" in check.found) == (True, True)
    refused = refine("ablate", "run", "--no-train", "--out", tmp_path / "page")
    assert (refused.returncode, "[[repair]]" in refused.stderr) == (1, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('[[repair]]\ntrim = "unanswerd"', "expected empty, truncated, unanswered"),
        ('[[repair]]\nbecause = "why"', "trim is None"),
        ('[[repair]]\ntrim = "empty"\n[[repair]]\ntrim = "empty"', "two [[repair]] trim 'empty'"),
        ('[[repair]]\ntrims = "empty"', "did you mean 'trim'"),
        ('[repair]\ntrim = "empty"', "written as [[repair]]"),
    ],
)
def test_a_wrong_repair_is_refused(change: str, message: str, tmp_path: Path) -> None:
    """Before any work, with what was expected."""
    (tmp_path / "plan.toml").write_text(change)
    with pytest.raises(PlanError) as error:
        load(tmp_path / "plan.toml")
    assert message in str(error.value)


def test_a_plan_keeps_its_repairs_and_records_as_they_came_are_refused(
    refine: Refine, jsonl: Jsonl, tmp_path: Path
) -> None:
    """A plan is read back from what a run saves; the order of its repairs does not matter."""
    (tmp_path / "plan.toml").write_text(PLAN)
    plan = load(tmp_path / "plan.toml")
    (tmp_path / "again.toml").write_text(dumps(plan))
    assert load(tmp_path / "again.toml") == plan
    turned = replace(plan, repairs=plan.repairs[::-1])
    (tmp_path / "turned.toml").write_text(dumps(turned))
    assert [one.key for one in load(tmp_path / "turned.toml").stages] == [one.key for one in plan.stages]
    shown = refine("run", jsonl([chat(1)]), "--plan", "plan.toml", "--out", "run", "--dry-run")
    assert all(removes in shown.stdout for removes in TRIMS.values())
    done = refine("run", jsonl([chat(1)]), "--plan", "plan.toml", "--out", "run", "--as", "source")
    assert (done.returncode, "the plan repairs them" in done.stderr) == (1, True)
