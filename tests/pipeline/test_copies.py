"""Kinds of duplicate that are exact copies only: a rule uses them, and no file of pairs is written or needed."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from stages.files import save_frame
from stages.stage import PAIRS
from tests.conftest import Refine, chat

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
    before = pl.read_parquet(tmp_path / "run" / "decisions.parquet")
    assert before["reason"].to_list() == [None] * 4 + ["same_prompt", None]
    assert before["duplicate_of"][4] == before["id"][2]
    (folder,) = (tmp_path / "run" / "signals").glob("dedup-*")
    assert not (folder / "prompt.parquet").exists()
    save_frame(folder / "prompt.parquet", pl.DataFrame(schema=PAIRS))
    done = refine("decide", "run")
    assert done.returncode == 0, done.stderr
    assert pl.read_parquet(tmp_path / "run" / "decisions.parquet").equals(before)
