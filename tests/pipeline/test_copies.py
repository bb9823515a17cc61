"""Kinds of duplicate that are exact copies only: a rule uses them, and no file of pairs is written or needed."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import plan as planning
from pipeline.api.run import open_run
from pipeline.duplicates import Duplicates
from pipeline.rules import Drop, KeepBest, Pairs, decide, find_duplicates
from pipeline.signals import RuleInputs, scan, scan_signals
from pipeline.store import Store
from stages.files import save_frame
from stages.stage import PAIRS
from tests.conftest import Refine, chat, contents

PLAN = """
[[stage]]
use = "dedup"

[[keep_best]]
reason = "same_prompt"
pairs = "prompt"
at_least = 0.9
"""


def test_a_rule_keeps_one_of_each_prompt(refine: Refine, tmp_path: Path) -> None:
    """The first of the conversations with one prompt stays; a run with the empty file of an earlier version opens."""
    records = [chat(i) for i in range(6)]
    records[4] = {
        **chat(7),
        "prompt": chat(2)["prompt"],
        "messages": [chat(2)["messages"][0], *chat(7)["messages"][1:]],
    }
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "plan.toml").write_text(PLAN)
    done = refine("run", "c.jsonl", "--plan", "plan.toml", "--out", "run")
    assert done.returncode == 0, done.stderr
    before = pl.read_parquet(tmp_path / "run" / "decisions" / "*.parquet")
    assert before["reason"].to_list() == [None] * 4 + ["same_prompt", None]
    assert before["duplicate_of"][4] == before["id"][2]
    (folder,) = (tmp_path / "run" / "signals").glob("dedup-*")
    assert not (folder / "prompt.parquet").exists()
    save_frame(folder / "prompt.parquet", pl.DataFrame(schema=PAIRS))
    done = refine("decide", "run")
    assert done.returncode == 0, done.stderr
    assert pl.read_parquet(tmp_path / "run" / "decisions" / "*.parquet").equals(before)


BOTH = f"""
order = ["dedup_words DESC"]

[[drop]]
reason = "short"
where = "dedup_words < 20"

[[keep_best]]
reason = "near"
pairs = "dedup"
at_least = 0.6
{PLAN.replace('use = "dedup"', 'use = "dedup"' + chr(10) + "turn_jaccard = 0.0")}"""


@pytest.mark.parametrize("shard_rows", [1, 7, 1000])
def test_decisions_by_shard_are_those_of_the_whole(refine: Refine, tmp_path: Path, shard_rows: int) -> None:
    """Conversations with a duplicate are decided together, whatever shards they are in, and all others alone."""
    records = [chat(i % 13 if i % 3 else i, 2 + i % 4) for i in range(36)]
    for i in range(0, 36, 4):
        records[i]["messages"][-1]["content"] += f" and {i} more"
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "plan.toml").write_text(BOTH)
    done = refine("run", "c.jsonl", "--plan", "plan.toml", "--out", "run", "--shard-rows", shard_rows, "--workers", 1)
    assert done.returncode == 0, done.stderr
    store, plan = Store(tmp_path / "run"), planning.load(tmp_path / "plan.toml")
    signals, folder = scan_signals(store).collect(), next((tmp_path / "run" / "signals").glob("dedup-*"))
    pairs = {
        "dedup": Pairs(signals["dedup_copy_of"], pl.read_parquet(folder / "dedup.parquet")),
        "prompt": Pairs(signals["prompt_copy_of"], pl.DataFrame(schema=PAIRS)),
    }
    whole = decide(signals, pairs, plan.rules, plan.order)
    assert set(whole["reason"].drop_nulls()) == {"short", "near", "same_prompt"}
    assert scan(store, "decisions").collect().equals(whole)
    inputs = RuleInputs.read(plan, store)
    for most in (1, 3, 7):
        assert pl.concat(inputs.decide(plan.rules, most)).equals(whole)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Conversations with the first copies of their texts and prompts, and pairs of near-duplicates."""
    size = draw(st.integers(1, 40))
    of_text = [draw(st.integers(max(0, i - 4), i)) for i in range(size)]
    texts = [of_text[i] if of_text[of_text[i]] == of_text[i] else i for i in range(size)]
    prompts = [min(draw(st.sampled_from([i, 0, 3])), i) for i in range(size)]
    prompts = [i if prompts[one] != one else one for i, one in enumerate(prompts)]
    sides = st.tuples(st.integers(0, size - 1), st.integers(0, size - 1), st.sampled_from([0.6, 0.75, 0.9]))
    pairs = {(texts[a], texts[b]): j for a, b, j in draw(st.lists(sides, max_size=40)) if texts[a] < texts[b]}
    ids = pl.Series([f"c-{i:03}" for i in range(size)])
    columns = {"id": ids, "text": ids.gather(texts), "same": ids.gather(prompts)}
    ranks = st.lists(st.one_of(st.none(), st.integers(0, 3)), min_size=size, max_size=size)
    numbers = {name: pl.Series(draw(ranks), dtype=pl.Int64) for name in ("words", "score")}
    near = [(ids[a], ids[b], jaccard) for (a, b), jaccard in pairs.items()]
    return pl.DataFrame({**columns, **numbers}), pl.DataFrame(near, PAIRS, orient="row")


@settings(max_examples=40, deadline=None)
@given(graphs(), st.sampled_from([1, 3, 7]), st.sampled_from([1, 5, 40]), st.permutations(["words DESC", "score"]))
def test_duplicates_decided_in_bins_are_those_of_the_whole(
    graph: tuple[pl.DataFrame, pl.DataFrame], most: int, rows: int, order: list[str]
) -> None:
    """Whatever the graph, the bins, the shards and the order; each conversation with a duplicate is in one bin."""
    signals, near = graph
    low = Drop("low", "score = 0")
    chosen = (low, KeepBest("near", "dedup", 0.75), KeepBest("prompt", "prompt", 1.0))
    answers = {"low": low.apply(signals)}
    whole = {"dedup": Pairs(signals["text"], near), "prompt": Pairs(signals["same"], pl.DataFrame(schema=PAIRS))}
    firsts, parts = {"dedup": "text", "prompt": "same"}, [near[:5], near[5:]]
    with tempfile.TemporaryDirectory() as folder:
        found = Duplicates(Path(folder), firsts, {"dedup": parts, "prompt": []}, [signals])
        for begin in range(0, signals.height, rows):
            found.add(signals[begin : begin + rows], begin, [term.split()[0] for term in order])
        bins, dropped = list(found.bins(most)), []
        for one in bins:
            fires = {"low": answers["low"].gather(one.rows)}
            part = find_duplicates(one.partners, fires, one.pairs, chosen, order)
            dropped.append(part.with_columns(row=one.rows.gather(part["row"])))
    expected = find_duplicates(signals, answers, whole, chosen, order)
    assert pl.concat([expected.clear(), *dropped]).sort("row").equals(expected)
    assert not pl.concat(one.rows for one in bins).is_duplicated().any()


def test_a_run_of_an_earlier_version_is_decided_again(refine: Refine, tmp_path: Path) -> None:
    """It kept all decisions in one file; the sentence names the command that opens it, which removes that file.

    Its raw shards hold a column of texts, those of a run that was continued by this version do not.
    """
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(chat(i)) + "\n" for i in range(6)))
    (tmp_path / "plan.toml").write_text(PLAN)
    assert refine("run", "c.jsonl", "--plan", "plan.toml", "--out", "run", "--shard-rows", 3).returncode == 0
    raw, refined = open_run(tmp_path / "run").raw.collect(), contents(tmp_path / "run" / "refined")
    save_frame(tmp_path / "run" / "raw" / "00001.parquet", raw[3:], {})
    assert open_run(tmp_path / "run").raw.collect().equals(raw)
    save_frame(tmp_path / "run" / "raw" / "00000.parquet", raw[:3], {})
    folder = tmp_path / "run" / "decisions"
    (folder / "00000.parquet").rename(tmp_path / "run" / "decisions.parquet")
    shutil.rmtree(folder)
    shutil.rmtree(tmp_path / "run" / "refined")
    done = refine("show", "run", "--id", raw["id"][0])
    assert done.returncode == 1
    assert "an earlier version of refine made it: start `refine decide run`" in done.stderr
    assert refine("decide", "run").returncode == 0
    assert (folder / "00000.parquet").exists()
    assert contents(tmp_path / "run" / "refined") == refined
    assert not (tmp_path / "run" / "decisions.parquet").exists()
