"""What the rules of the default plan drop just under, at, and just over each of their thresholds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pytest

from pipeline.plan import DEFAULT, Plan, find, load
from pipeline.rules import Drop, KeepBest, Pairs, decide
from tests.bench import second_reader as second
from tests.bench import ultrachat as bench

FIRES: dict[str, dict[str, Any]] = {
    "unanswered_copy": {"assistant_turns": 0, "user_turns": 1, "exact_copies": 2},
    "unanswered": {"assistant_turns": 0, "user_turns": 1},
    "empty_reply": {"empty_replies": 1},
    "too_short": {"n_words": 0},
    "truncated": {"truncated_last": True},
    "looping": {"reply_repetition": 1.0},
    "denies_feelings": {"bare_denials": 1},
    "gibberish": {"ppl_z": 10.0, "ppl": 5000.0, "ppl_tokens": 100},
    "key_presses": {"dup_lines": 1.0, "n_lines": 100, "mean_word_len": 1.0},
    "toxic": {"toxicity": 1.0, "toxicity_mean": 1.0},
}
"""Signals with which one rule fires, the others being null."""
THRESHOLDS = [
    ("unanswered_copy", "assistant_turns", 0, (False, True, False)),
    ("unanswered_copy", "user_turns", 0, (False, False, True)),
    ("unanswered_copy", "exact_copies", 1, (False, False, True)),
    ("unanswered", "assistant_turns", 0, (False, True, False)),
    ("unanswered", "user_turns", 0, (False, False, True)),
    ("empty_reply", "empty_replies", 0, (False, False, True)),
    ("too_short", "n_words", 5, (True, False, False)),
    ("looping", "reply_repetition", 0.4, (False, False, True)),
    ("denies_feelings", "bare_denials", 0, (False, False, True)),
    ("gibberish", "ppl_z", 6, (False, False, True)),
    ("gibberish", "ppl", 1000, (False, False, True)),
    ("gibberish", "ppl_tokens", 32, (False, True, True)),
    ("key_presses", "dup_lines", 0.5, (False, False, True)),
    ("key_presses", "n_lines", 20, (False, True, True)),
    ("key_presses", "mean_word_len", 3.5, (True, False, False)),
    ("toxic", "toxicity", 0.9, (False, False, True)),
    ("toxic", "toxicity_mean", 0.1, (False, True, True)),
]
"""Rule, signal, threshold, and whether a conversation is dropped just under it, at it, and just over it."""


@pytest.fixture(scope="module")
def plan() -> Plan:
    return load(DEFAULT)


def around(value: float, kind: pl.DataType) -> list[float]:
    """The last value of a signal's type under a threshold, the threshold, the first value over it."""
    if kind.is_integer():
        return [value - 1, value, value + 1]
    real = np.float32 if kind == pl.Float32 else np.float64
    return [float(np.nextafter(real(value), real(towards))) for towards in (-np.inf, value, np.inf)]


def reasons(plan: Plan, rows: list[dict[str, Any]]) -> list[str | None]:
    """Why each of these conversations is dropped; a signal that is not given is null."""
    schema = pl.Schema({"id": pl.String(), **plan.signals})
    signals = pl.DataFrame([{"id": f"c{i}", **row} for i, row in enumerate(rows)], schema=schema)
    near = pl.DataFrame(schema={"id": pl.String, "other": pl.String, "jaccard": pl.Float32})
    return decide(signals, {"dedup": Pairs(signals["id"], near)}, plan.rules, plan.order)["reason"].to_list()


@pytest.mark.parametrize(("reason", "signal", "threshold", "dropped"), THRESHOLDS)
def test_a_rule_is_exact_at_its_threshold(
    plan: Plan, reason: str, signal: str, threshold: float, dropped: tuple[bool, bool, bool]
) -> None:
    """In the precision of the signal's own type, other conditions of the rule met."""
    values = around(threshold, plan.signals[signal])
    found = reasons(plan, [{**FIRES[reason], signal: value} for value in values])
    assert tuple(one == reason for one in found) == dropped


@pytest.mark.parametrize("reason", FIRES)
def test_each_condition_of_a_rule_is_needed(plan: Plan, reason: str) -> None:
    """With any of its signals unknown the rule does not fire; with all of them it does."""
    assert reasons(plan, [FIRES[reason]]) == [reason]
    assert reason not in reasons(plan, [{**FIRES[reason], signal: None} for signal in FIRES[reason]])


@pytest.mark.parametrize("name", ["sft", "strict", "ultrachat"])
def test_the_other_plans_for_chat_drop_it_too(name: str) -> None:
    """Whatever a rule of the default plan drops; a bare denial is also one of `no_feelings`."""
    rows = [{**row, "no_feelings": row.get("bare_denials")} for row in FIRES.values()]
    assert None not in reasons(load(find(name)), rows)


def test_a_reader_agrees_with_what_the_plan_ultrachat_drops(shared: Path) -> None:
    """With nine in ten of the drops of each reason in each half of the dialogues, all of which were read."""
    dropped = bench.drops(bench.batch(shared / "chat" / "ultrachat_small.parquet"))
    labelled = dropped.join(pl.read_csv(bench.LABELS), on=["prompt_id", "reason"], how="left")
    assert labelled["agree"].null_count() == 0
    agreed = labelled.group_by("reason", "held_out").agg(pl.col("agree").mean())
    assert len(agreed) == 14
    assert cast("float", agreed["agree"].min()) >= 0.9


def test_a_second_reader_agrees_with_what_the_plan_ultrachat_drops(shared: Path) -> None:
    """With nine in ten of the drops of each reason, told which; every label is of a drop of the plan as it is."""
    labels = pl.read_csv(second.SECOND).filter(round=1, plan="ultrachat", corpus=second.ULTRACHAT)
    labels = labels.filter(~pl.col("reason").str.starts_with("kept"))
    dropped = bench.drops(bench.batch(shared / "chat" / "ultrachat_small.parquet"))
    both = second.both_readers(pl.read_csv(second.SECOND)).join(dropped, on=["prompt_id", "reason"])
    assert both.height == labels.height == 131
    assert cast("float", labels.group_by("reason").agg(pl.col("informed").mean())["informed"].min()) >= 0.9


def test_kappa_and_its_bench_are_those_of_cohen() -> None:
    """20 and 15 of 50 alike, 5 and 10 not: kappa 0.4, by hand; 9 of 10: 55 to 100 % (Clopper and Pearson)."""
    one, other = [1] * 25 + [0] * 25, [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    assert second.kappa(pl.Series(one), pl.Series(other)) == pytest.approx(0.4)
    assert second.interval(9, 10) == "55% to 100%"


def test_the_intervals_of_the_bench_are_those_of_wilson() -> None:
    """9 of 10: 0.5958 to 0.9821 (method 3 of Newcombe 1998, by hand)."""
    assert bench.interval(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)


def test_truncated_is_a_flag(plan: Plan) -> None:
    """A conversation is dropped if its last reply is cut, and only then."""
    assert reasons(plan, [{"truncated_last": True}, {"truncated_last": False}]) == ["truncated", None]


def test_near_duplicates_are_dropped_at_three_quarters(plan: Plan) -> None:
    """A pair of just under 0.75 stays; at 0.75 the conversation with fewer words is dropped."""
    (best,) = (rule for rule in plan.rules if isinstance(rule, KeepBest))
    assert (best.reason, best.pairs, best.at_least) == ("near_duplicate", "dedup", 0.75)
    ids = ["a", "b"]
    signals = pl.DataFrame(
        [{"id": id_, "dedup_words": words} for id_, words in zip(ids, (10, 20), strict=True)],
        schema=pl.Schema({"id": pl.String(), **plan.signals}),
    )
    for jaccard, dropped in zip(around(0.75, pl.Float32()), (None, "near_duplicate", "near_duplicate"), strict=True):
        near = pl.DataFrame(
            {"id": ["a"], "other": ["b"], "jaccard": [jaccard]},
            schema={"id": pl.String, "other": pl.String, "jaccard": pl.Float32},
        )
        found = decide(signals, {"dedup": Pairs(signals["id"], near)}, plan.rules, plan.order)
        assert found["reason"].to_list() == [dropped, None]


def test_every_threshold_of_the_default_plan_is_in_the_table(plan: Plan) -> None:
    """A rule that is added, or a number that changes, needs a line here."""
    drops = [rule for rule in plan.rules if isinstance(rule, Drop)]
    assert [rule.reason for rule in drops] == list(FIRES)
    for rule in drops:
        numbers = sorted(float(number) for number in re.findall(r"(?<![\w.])\d+(?:\.\d+)?", rule.where))
        assert numbers == sorted(float(threshold) for reason, _, threshold, _ in THRESHOLDS if reason == rule.reason)
        assert rule.columns() == sorted(FIRES[rule.reason])
