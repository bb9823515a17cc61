"""Counts of repeated answers equal those of a plain loop."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.files import read_frame, save_frame
from stages.overlap.turns import Turns
from stages.stage import StageParameterError
from tests import strategies
from tests.stages.dedup_reference import words

Made = list[list[dict[str, str]]]


def signals(stage: Turns, made: Made, folder: Path, parts: int = 1) -> pl.DataFrame:
    """The stage's signals of conversations in shards."""
    whole = strategies.raw(made)
    size, raw = -(-len(made) // parts), []
    for i in range(parts):
        raw.append(folder / "raw" / f"{i:05}.parquet")
        save_frame(raw[-1], shard := whole[i * size : (i + 1) * size])
        measured = shard.select("id").hstack(stage.measure(shard.select(stage.reads)))
        save_frame(folder / raw[-1].name, measured)
    stage.merge(raw, [folder / path.name for path in raw], folder)
    return pl.concat([read_frame(folder / "merged" / path.name) for path in raw]).drop("id")


def reference(made: Made, least: int, opening: int) -> list[dict[str, Any]]:
    """An independent slow reference, over the words themselves."""
    said = [[tuple(words(m["content"])) for m in row if m["role"] == "assistant"] for row in made]
    answers = [{one for one in row if len(one) >= least} for row in said]
    openings = [row[0][:opening] if row and len(row[0]) >= opening else None for row in said]
    count, opens = Counter(one for row in answers for one in row), Counter(openings)
    seen: set[tuple[str, ...]] = set()
    rows = []
    for given_here, begins in zip(answers, openings, strict=True):
        n, repeated = len(given_here), sum(count[one] > 1 for one in given_here)
        rows.append(
            {
                "repeated_answers": repeated if n else None,
                "repeated_answer_share": repeated / n if n else None,
                "earlier_answer_share": len(given_here & seen) / n if n else None,
                "answer_copies": max(count[one] for one in given_here) if n else None,
                "opening_copies": opens[begins] if begins is not None else None,
            }
        )
        seen |= given_here
    return rows


few = st.lists(st.sampled_from(["Yes", "no,", "maybe", "天气", "later"]), max_size=4).map(" ".join)
turn = st.fixed_dictionaries({"role": st.sampled_from(["assistant", "assistant", "user"]), "content": few})


@settings(max_examples=36, deadline=None)
@given(made=st.lists(st.lists(turn, max_size=4), min_size=1, max_size=10), parts=st.integers(1, 3))
def test_counts_are_those_of_a_plain_loop(made: Made, parts: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Over any shards: repeated answers, what came earlier, copies, openings."""
    found = signals(Turns(words=2, opening=2), made, tmp_path_factory.mktemp("turns"), parts)
    expected = pl.DataFrame(reference(made, 2, 2), schema=found.schema)
    assert found.equals(expected)


def test_case_punctuation_and_space_make_no_difference_and_short_answers_do_not_count(tmp_path: Path) -> None:
    """An answer of ten words counts; "You are welcome!" does not."""
    long = "As a model, I am not able to help you with that."
    made = [
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": long}],
        [{"role": "user", "content": "b"}, {"role": "assistant", "content": "You are welcome!"}],
        [{"role": "user", "content": "c"}, {"role": "assistant", "content": long.upper().replace(" ", "\n")}],
        [{"role": "user", "content": long}, {"role": "assistant", "content": "You are welcome!"}],
    ]
    found = signals(Turns(), made, tmp_path)
    assert found["answer_copies"].to_list() == [2, None, 2, None]
    assert found["earlier_answer_share"].to_list() == [0, None, 1, None]
    listed = json.loads((tmp_path / "turns.json").read_text())
    assert listed["answers"] == [{"conversations": 2, "first": "test-000000000", "begins": long}]
    assert listed["openings"] == listed["answers"]


def test_a_rule_on_what_came_earlier_leaves_one_of_each_group(shared: Path, tmp_path: Path) -> None:
    """In identity templates every answer that is dropped is still in a conversation that is kept."""
    made = pl.read_parquet(shared / "chat" / "vicuna_identity.parquet")["messages"].to_list()
    found = signals(Turns(), made, tmp_path, 2)
    dropped = found["earlier_answer_share"].fill_null(0) >= 1
    kept = {one for row, gone in zip(made, dropped, strict=True) if not gone for one in _answers(row)}
    assert dropped.sum() > 300
    assert all(_answers(row) <= kept for row, gone in zip(made, dropped, strict=True) if gone)


def _answers(row: list[dict[str, str]]) -> set[tuple[str, ...]]:
    given_here = (tuple(words(m["content"])) for m in row if m["role"] == "assistant")
    return {one for one in given_here if len(one) >= 10}


def test_no_words_are_no_answer() -> None:
    """A length under one is refused by name."""
    with pytest.raises(StageParameterError, match="turns: words is 0"):
        Turns(words=0)
    with pytest.raises(StageParameterError, match="turns: opening is -1"):
        Turns(opening=-1)
