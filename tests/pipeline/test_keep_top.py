"""Selection: the best conversations by an order, up to a size, after all rules that drop."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import plan as planning
from pipeline.plan import PlanError
from pipeline.rules import Drop, KeepBest, KeepTop, Pairs, RuleError, check, decide
from tests.conftest import Refine, chat

SIGNALS = pl.DataFrame(
    {
        "id": [f"x-{n}" for n in range(8)],
        "score": [0.1, 0.9, None, 0.5, 0.9, 0.3, 0.7, 0.2],
        "bad": [False, False, False, True, False, False, False, False],
        "tokens": [10, 30, 5, 5, 20, 40, 10, 10],
        "source": list("aabbaabb"),
    }
)


def taken(*rules: Drop | KeepBest | KeepTop, signals: pl.DataFrame = SIGNALS) -> list[int]:
    """Rows that are kept."""
    return decide(signals, {}, rules)["keep"].arg_true().to_list()


def test_each_size_takes_the_best_until_the_next_would_exceed_it() -> None:
    """A share of what is there, a number, or tokens; of equal values the first comes first, unknown ones last."""
    assert taken(KeepTop("t", "score DESC", share=0.5)) == [1, 3, 4, 6]
    assert taken(KeepTop("t", "score DESC", conversations=1)) == [1]
    assert taken(KeepTop("t", "score ASC", conversations=2)) == [0, 7]
    assert taken(KeepTop("t", "score DESC", tokens=60)) == [1, 4, 6]
    assert taken(KeepTop("t", "score DESC", tokens=59)) == [1, 4]
    assert taken(KeepTop("t", "score DESC", tokens=29)) == []
    assert taken(KeepTop("t", "score DESC", conversations=7)) == [0, 1, 3, 4, 5, 6, 7]
    assert taken(KeepTop("t", "0 - score", conversations=2)) == [1, 4]


def test_a_size_holds_for_each_group() -> None:
    """With `per`, for each value of a signal or source."""
    assert taken(KeepTop("t", "score DESC", conversations=1, per="source")) == [1, 6]
    assert taken(KeepTop("t", "score DESC", share=0.5, per="source")) == [1, 3, 4, 6]


def test_it_sees_only_what_the_rules_before_it_keep() -> None:
    """A dropped or duplicate conversation takes no place; of two selections the second chooses from the first's."""
    drop = Drop("bad", "bad")
    assert taken(drop, KeepTop("t", "score DESC", share=0.5)) == [1, 4, 5, 6]  # 3.5 of 7 is 4
    first, second = KeepTop("t", "score DESC", conversations=4), KeepTop("u", "tokens", conversations=2)
    assert taken(drop, first, second) == [4, 6]
    copies = pl.Series(["x-0", "x-1", "x-2", "x-3", "x-1", "x-5", "x-6", "x-7"])
    same = Pairs(copies, pl.DataFrame(schema={"id": pl.String, "other": pl.String, "jaccard": pl.Float32}))
    rules: list[KeepTop | KeepBest] = [KeepTop("t", "score DESC", conversations=2), KeepBest("copy", "dedup", 0.75)]
    found = decide(SIGNALS, {"dedup": same}, rules)
    assert found.filter("keep")["id"].to_list() == ["x-1", "x-6"]
    assert found["reason"].to_list() == ["t", None, "t", "t", "copy", "t", None, "t"]


def test_who_is_not_taken_has_the_cut() -> None:
    """The value of the last that was taken, in its group, as the signal has it."""
    found = decide(SIGNALS, {}, [KeepTop("t", "score DESC", conversations=2, per="source")])
    assert found.filter(~pl.col("keep")).select("id", "cut").rows() == [
        ("x-0", 0.9),
        ("x-2", 0.5),
        ("x-5", 0.9),
        ("x-7", 0.5),
    ]
    assert found.filter("keep")["cut"].null_count() == 4
    assert decide(SIGNALS, {}, [KeepTop("t", "score", conversations=3)])["cut"].drop_nulls().unique().to_list() == [0.3]


@given(order=st.permutations(range(8)), share=st.sampled_from([0.25, 0.5, 0.9]), seed=st.integers(0, 5))
def test_noise_depends_on_the_id_and_the_seed_alone(order: list[int], share: float, seed: int) -> None:
    """Whatever the order of the rows, the same conversations are drawn, but for ties."""
    rule = KeepTop("t", "score DESC", share=share, gumbel=1, seed=seed)
    signals = SIGNALS.with_columns(pl.col("score").fill_null(0.0))
    whole, shuffled = decide(signals, {}, [rule]), decide(signals[order], {}, [rule])
    assert set(whole.filter("keep")["id"]) == set(shuffled.filter("keep")["id"])


def test_gumbel_noise_draws_in_proportion_to_the_weights() -> None:
    """One of two, with log weights ln 3 and 0, is the first in three of four draws (Xie et al. 2023)."""
    ids, sources = [f"x-{n}" for n in range(200)], [f"pair {n // 2}" for n in range(200)]
    pairs = pl.DataFrame({"id": ids, "source": sources, "w": [math.log(3), 0.0] * 100})
    rule = KeepTop("t", "w DESC", conversations=1, per="source", gumbel=1)
    drawn = [taken(replace(rule, seed=n), signals=pairs) for n in range(20)]
    assert {len(rows) for rows in drawn} == {100}
    share = np.mean([row % 2 == 0 for rows in drawn for row in rows])
    assert abs(share - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 2000)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (KeepTop("t", "score DESC"), "one of share"),
        (KeepTop("t", "score DESC", share=0.5, conversations=3), "one of share"),
        (KeepTop("t", "score DESC", share=1.5), "one of share"),
        (KeepTop("t", "score DESC", conversations=-1), "one of share"),
        (KeepTop("t", "scores DESC", share=0.5), "did you mean|there are"),
        (KeepTop("t", "score DESC", share=0.5, per="cluster"), "cluster"),
        (KeepTop("t", "1 DESC", share=0.5), "reads no signal"),
        (KeepTop("t", "source DESC", share=0.5), "cannot be computed|source"),
        (KeepTop("t", "max(score) DESC", share=0.5), "all conversations at once"),
        (KeepTop("t", "score - AVG(score) DESC", share=0.5), "all conversations at once"),
        (KeepTop("t", "score / MAX(score) OVER (PARTITION BY bad)", share=0.5), "all conversations at once"),
        (KeepTop("t", "score ) DESC", share=0.5), "not SQL"),
    ],
)
def test_a_rule_that_cannot_be_applied_is_refused(rule: KeepTop, message: str) -> None:
    """Before any work, with what was expected."""
    with pytest.raises(RuleError, match=message):
        check([rule], [], pl.Schema({"score": pl.Float64(), "bad": pl.Boolean(), "tokens": pl.Int64()}), [])


PLAN = """
[[stage]]
use = "heuristics"

[[drop]]
reason = "short"
where = "n_turns < 3"

[[keep_top]]
reason = "not_selected"
by = "n_words DESC"
share = 0.4
per = "source"
because = "own reading"
"""


def test_a_plan_with_a_selection_is_read_and_written(tmp_path: Path) -> None:
    """`dumps` gives what `load` reads; a misspelt key and a missing one are named."""
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    plan = planning.load(path)
    assert plan.rules[-1] == KeepTop("not_selected", "n_words DESC", share=0.4, per="source", because="own reading")
    path.write_text(planning.dumps(plan))
    assert planning.load(path) == plan
    path.write_text(PLAN.replace("share =", "shares ="))
    with pytest.raises(PlanError, match="did you mean 'share'"):
        planning.load(path)
    path.write_text(PLAN.replace('by = "n_words DESC"\n', ""))
    with pytest.raises(PlanError, match="has no by"):
        planning.load(path)


def test_a_run_selects_the_same_for_any_shards_and_workers_and_selects_again(
    refine: Refine, jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    """Reasons, values and cuts are in rejected/; `refine decide` with another size measures nothing."""
    source, plan = jsonl([chat(n, 2 + n % 5) for n in range(200)]), tmp_path / "plan.toml"
    plan.write_text(PLAN)
    kept = []
    for workers, rows in ((1, 300), (2, 30)):
        out = tmp_path / f"run{workers}"
        done = refine("run", source, "--plan", plan, "--out", out, "--shard-rows", rows, "--workers", workers, "--json")
        assert done.returncode == 0, done.stderr
        summary = json.loads(done.stdout)
        kept.append(pl.read_parquet(out / "refined" / "*.parquet")["id"].to_list())
        seen = 200 - summary["by_rule"]["short"]
        assert summary["refined"] == len(kept[-1]) == int(seen * 0.4 + 0.5)
    assert kept[0] == kept[1]
    rejected = pl.read_parquet(out / "rejected" / "*.parquet").filter(reason="not_selected")
    values = [json.loads(one) for one in rejected["values"]]
    assert all(one["n_words"] <= one["cut"] for one in values)
    assert len({one["cut"] for one in values}) == 1
    plan.write_text(PLAN.replace("share = 0.4", "tokens = 500"))
    done = refine("decide", out, "--plan", plan, "--json")
    assert done.returncode == 0, done.stderr
    assert 0 < json.loads(done.stdout)["refined_tokens"] <= 500
