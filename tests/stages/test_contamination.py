"""Overlap with evaluation sets equals a plain search for n-grams, and names the matching item."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.overlap.contamination import Contamination
from stages.overlap.evals import parts
from stages.stage import MissingModelError, StageParameterError
from tests import strategies
from tests.conftest import Refine
from tests.stages.dedup_reference import words


def measured(stage: Contamination, texts: list[str]) -> pl.DataFrame:
    """The stage's signals of texts."""
    return stage.open(Path())(pl.DataFrame({"text": texts}, schema={"text": pl.String}))


def grams(text: str, n: int, shortest: int) -> set[tuple[str, ...]]:
    """The n-grams of a part of an item; all words of a shorter question."""
    found = words(text)
    if len(found) < n:
        return {tuple(found)} if len(found) >= shortest else set()
    return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)}


def reference(items: list[list[str]], text: str, stage: Contamination) -> tuple[int, float]:
    """Number of distinct n-grams and the largest share of a part, by an independent slow reference."""
    split = [[grams(part, stage.n, stage.n if k else stage.shortest) for k, part in enumerate(item)] for item in items]
    owners = defaultdict(set)
    for number, item in enumerate(split):
        for gram in set().union(*item):
            owners[gram].add(number)
    rare = {gram for gram, here in owners.items() if len(here) <= stage.common}
    said = words(text)
    there = {g for g in rare if any(tuple(said[i : i + len(g)]) == g for i in range(len(said) - len(g) + 1))}
    shares = [len(part & there) / len(part & rare) for item in split for part in item if part & rare]
    return len(there), max(shares, default=0)


few = st.lists(st.sampled_from(["a", "B,", "a b", "b a b", "天气", "c", "a b c a"]), max_size=7).map(" ".join)


@settings(max_examples=90, deadline=None)
@given(
    items=st.lists(st.lists(few, min_size=1, max_size=3), min_size=1, max_size=8),
    texts=st.lists(few, min_size=1, max_size=6),
    sizes=st.tuples(st.integers(2, 6), st.integers(1, 3), st.integers(1, 3)),
)
def test_hits_are_those_of_a_plain_search(
    items: list[list[str]], texts: list[str], sizes: tuple[int, int, int], tmp_path_factory: Any
) -> None:
    """Counts and shares, of long and short parts, ignoring n-grams of many items."""
    path = tmp_path_factory.mktemp("evals") / "set.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": item[0], "answers": item[1:]}) for item in items))
    n, shortest, common = sizes
    stage = Contamination(str(path), n, min(shortest, n), common)
    if not any(grams(part, n, n if k else min(shortest, n)) for item in items for k, part in enumerate(item)):
        with pytest.raises(StageParameterError, match="none of which has"):
            stage.notes()
        return
    try:
        found = measured(stage, texts)
    except StageParameterError:  # every n-gram is common
        assert all(reference(items, text, stage) == (0, 0) for item in items for text in item)
        return
    for row, text in zip(found.iter_rows(named=True), texts, strict=True):
        count, share = reference(items, text, stage)
        assert row["contaminated_ngrams"] == count
        assert row["contamination"] == pytest.approx(share, abs=1e-6)
        assert (row["eval_item"] is None) == (share == 0)


QUESTION = "If a 40,000 km wide pizza were put into orbit around the Sun, how long would one turn take?"
ANSWER = "About two years and ten months, by the third law of Kepler, whatever the pizza weighs or tastes of."
ITEM = {"question_id": "q7", "question": QUESTION, "answer": ANSWER, "choices": {"text": ["Paris", ANSWER[::-1]]}}


def _jsonl(path: Path) -> Path:
    path.with_suffix(".jsonl").write_text(json.dumps(ITEM) + "\n")
    return path.with_suffix(".jsonl")


def _packed(path: Path) -> Path:
    path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(json.dumps(ITEM).encode()))
    return path.with_suffix(".jsonl.gz")


def _array(path: Path) -> Path:
    path.with_suffix(".json").write_text(json.dumps({"version": 1, "data": [ITEM]}))
    return path.with_suffix(".json")


def _parquet(path: Path) -> Path:
    pl.DataFrame([ITEM]).write_parquet(path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


@pytest.mark.parametrize("write", [_jsonl, _packed, _array, _parquet])
def test_an_item_is_found_in_every_form_and_named(write: Callable[[Path], Path], tmp_path: Path) -> None:
    """The rejected row can say which set, which item and which field."""
    path = write(tmp_path / "physics")
    found = measured(Contamination(str(tmp_path)), [f"Well. {ANSWER.upper()}", "Paris", ANSWER[:40]]).to_dicts()
    assert found[0]["contamination"] == 1
    assert found[0]["eval_set"] == path.name
    assert found[0]["eval_item"] == f"q7: {ANSWER[:80]}"
    assert found[0]["eval_field"] == "answer"
    assert [row["contamination"] for row in found[1:]] == [0, 0]
    assert found[1]["eval_set"] is None


def test_a_text_file_holds_an_item_a_line_or_a_paragraph(tmp_path: Path) -> None:
    """Blank lines separate items; without them each line is an item."""
    lines, paragraphs = tmp_path / "lines.txt", tmp_path / "paragraphs.txt"
    lines.write_text(f"{QUESTION}\n{ANSWER}\n")
    paragraphs.write_text(f"{QUESTION}\n{ANSWER}\n\nAnother one.\n")
    assert [part.text for part in parts(str(lines))] == [QUESTION, ANSWER]
    assert [part.text for part in parts(str(paragraphs))] == [f"{QUESTION}\n{ANSWER}", "Another one."]


def test_messages_are_parts_with_their_role(tmp_path: Path) -> None:
    """A dialogue as an evaluation item."""
    path = tmp_path / "dialogues.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": QUESTION}, {"role": "x", "content": ANSWER}]}))
    assert [(part.name, part.field) for part in parts(str(path))] == [
        ("row 1", "messages.user"),
        ("row 1", "messages.x"),
    ]


def test_a_phrase_of_many_items_is_not_contamination(tmp_path: Path) -> None:
    """The instructions of a set, in each of its items, drop nothing; an item's own words are still found."""
    phrase = "Choose the best answer from the following four options and explain in one sentence why it is so."
    path = tmp_path / "set.jsonl"
    questions = [f"{phrase} {' '.join(f'word{i * 20 + k}' for k in range(20))}" for i in range(12)]
    path.write_text("\n".join(json.dumps({"prompt": question}) for question in questions))
    found = measured(Contamination(str(path)), [phrase, questions[3]])
    assert found["contamination"].to_list() == [0, 1]
    assert measured(Contamination(str(path), common=12), [phrase])["contamination"][0] > 0


def test_of_equal_shares_the_part_with_more_is_named_then_the_first(tmp_path: Path) -> None:
    """The rejected row does not depend on the order of the matches."""
    path = tmp_path / "set.jsonl"
    texts = [QUESTION, f"{ANSWER} And so on.", f"{ANSWER} And so on.", ANSWER]
    path.write_text("\n".join(json.dumps({"id": f"q{i}", "prompt": text}) for i, text in enumerate(texts)))
    found = measured(Contamination(str(path)), [" ".join(texts)])
    assert found["eval_item"][0].startswith("q1: ")


def test_a_short_answer_is_no_evidence(tmp_path: Path) -> None:
    """A question of at least eight words is searched for as a whole; an assistant's phrase is not."""
    path = tmp_path / "set.jsonl"
    asked, said = "How many legs do eleven spiders have together?", "Is there anything else I can help you with?"
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    path.write_text(json.dumps({"messages": turns}) + "\n" + json.dumps({"answer": said}))
    assert measured(Contamination(str(path)), [asked, said])["contamination"].to_list() == [1, 0]
    assert "1 of them have no text of 8 words" in Contamination(str(path)).notes()[0]


def test_measuring_parts_is_measuring_the_whole(tmp_path: Path) -> None:
    """A row's signals do not depend on its neighbours, nor on their order."""
    path = tmp_path / "odd.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in [*strategies.ODD, QUESTION, ANSWER]))
    texts = [*strategies.ODD, ANSWER, "word " * 200_000, f"{QUESTION} {ANSWER}"]
    stage = Contamination(str(path))
    whole = measured(stage, texts)
    assert pl.concat([measured(stage, texts[:9]), measured(stage, texts[9:])]).equals(whole)
    assert measured(stage, texts[::-1]).reverse().equals(whole)


def test_hostile_items_are_shown_on_one_short_line(tmp_path: Path) -> None:
    """Control characters of an item do not reach a terminal."""
    path = tmp_path / "set.jsonl"
    text = "\x1b[31mred\n" + ANSWER * 50
    path.write_text(json.dumps({"id": "a" * 500, "text": text}))
    shown = measured(Contamination(str(path)), [text])["eval_item"][0]
    assert shown.isprintable()
    assert len(shown) <= 162


def test_without_evaluation_sets_nothing_is_known_and_said_so() -> None:
    """Null is not "clean"."""
    stage = Contamination()
    assert measured(stage, ["some text"]).row(0) == (None,) * 5
    assert "`evals` is not set" in stage.notes()[0]


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    """A missing folder, a set without a known column, a damaged file, parameters out of range."""
    with pytest.raises(MissingModelError, match="no evaluation sets at '/nowhere'"):
        Contamination("/nowhere").digest()
    (bad := tmp_path / "bad.jsonl").write_text('{"a": "x"}\n')
    with pytest.raises(
        StageParameterError, match=r"bad\.jsonl' has the columns a: expected one such as prompt, question"
    ):
        Contamination(str(bad)).notes()
    bad.write_text('{"prompt": ')
    with pytest.raises(StageParameterError, match=r"bad\.jsonl' is not JSON on line 1"):
        Contamination(str(bad)).notes()
    bad.write_text("")
    with pytest.raises(StageParameterError, match="has 0 items, none of which has 8 words"):
        Contamination(str(bad)).notes()
    bad.write_text('{"prompt": "x"}\n3\n')
    with pytest.raises(StageParameterError, match="item 2 is int, expected an object or a text"):
        list(parts(str(bad)))
    with pytest.raises(StageParameterError, match="shortest is 14, expected 1 to n words"):
        Contamination(shortest=14)


def test_other_items_are_another_stage(tmp_path: Path) -> None:
    """A changed evaluation set is measured again, also by the same process."""
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps({"prompt": QUESTION}))
    stage = Contamination(str(path))
    before = stage.digest()
    assert measured(stage, [ANSWER])["contamination"][0] == 0
    path.write_text(json.dumps({"prompt": ANSWER}))
    assert stage.digest() != before
    assert measured(stage, [ANSWER])["contamination"][0] == 1


def test_the_rejected_row_names_the_item(refine: Refine, jsonl: Any, tmp_path: Path) -> None:
    """From the command line: the conversation with the question is dropped, and the values show set and item."""
    (tmp_path / "evals").mkdir()
    _jsonl(tmp_path / "evals" / "physics")
    corpus = jsonl(
        [
            {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}]}
            for text in (QUESTION, "Hello there")
        ]
    )
    plan = tmp_path / "plan.toml"
    plan.write_text(
        '[[stage]]\nuse = "contamination"\nevals = "evals"\n\n[[drop]]\nreason = "contaminated"\n'
        'where = "contamination >= 0.5 AND eval_set IS NOT NULL AND eval_item IS NOT NULL"\n'
    )
    done = refine("run", corpus, "--plan", plan, "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rejected = pl.read_parquet(tmp_path / "run" / "rejected" / "*.parquet")
    values = json.loads(rejected["values"][0])
    assert rejected.height == 1
    assert values == {"contamination": 1.0, "eval_item": f"q7: {QUESTION[:80]}", "eval_set": "physics.jsonl"}
    said = " ".join((done.stdout + done.stderr).split())
    assert "physics.jsonl: at least half of a question, answer or message of 1 of its items is in 1 conv" in said


def test_hostile_texts_do_no_harm(tmp_path: Path) -> None:
    """Odd texts as items and as conversations: each matches itself if it is long enough, and nothing fails."""
    path = tmp_path / "odd.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in strategies.ODD))
    found = measured(Contamination(str(path)), strategies.ODD)
    long = [len(words(text)) >= 8 for text in strategies.ODD]
    assert (found["contamination"] == 1).to_list() == long
