"""Planted damage: each kind does what its name says, the same every time, and to no conversation but its own."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest
from typer.main import get_command

from pipeline import sources
from pipeline.cli import app
from pipeline.ingest import Limits, ingest
from pipeline.plant import PlantError, PlantOptions, plant
from pipeline.plant.kinds import KINDS, OPENINGS, REFUSALS, REPEATS
from pipeline.plant.material import MIN_FOREIGN
from pipeline.plant.near_copies import MIN_SHINGLES, near_copy
from pipeline.store import Store
from stages.files import read_frame
from stages.stage import RAW
from stages.toxicity.words import comments
from tests.conftest import Refine, contents

Jsonl = Callable[..., Path]
COPIES = ("exact_copy", "near_copy_95", "near_copy_85", "near_copy_75")
VOCABULARY = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "r", "s", "lt", "mo", "ke")]
FRENCH = (
    "Je pense que la maison de mes parents est trop loin de la ville",
    "Nous avons mangé hier soir dans un petit restaurant près de la gare",
    "Il faut que tu viennes avec nous demain parce que les enfants t'attendent",
)


def talk(i: int, replies: int = 6, words: int = 20) -> dict[str, Any]:
    """A conversation of random words, several messages with typographic marks, the same for the same number."""
    draw = Random(i)
    said = [" ".join(draw.choices(VOCABULARY, k=words)) for _ in range(2 * replies)]
    messages = [{"role": ("user", "assistant")[j % 2], "content": f"{text}, don't."} for j, text in enumerate(said)]
    return {"id": f"t{i}", "prompt": messages[0]["content"], "prompt_id": f"p{i}", "messages": messages}


def frame(records: list[dict[str, Any]]) -> pl.DataFrame:
    """Records as ingest writes them."""
    rows = [
        {
            **record,
            "source_id": record["id"],
            "text": "\n".join(message["content"] for message in record["messages"]),
            "source": "here",
            "extra": None,
        }
        for record in records
    ]
    return pl.DataFrame(rows, schema=RAW)


RAW_FRAME = frame([talk(i) for i in range(150)])


def texts(messages: list[dict[str, str]]) -> list[str]:
    return [message["content"] for message in messages]


def of(messages: list[dict[str, str]], role: str) -> list[str]:
    return [message["content"] for message in messages if message["role"] == role]


def planted(kind: str, raw: pl.DataFrame = RAW_FRAME, share: float = 0.1, **more: Any) -> list[tuple[Any, Any]]:
    """The messages of each conversation before and after damage of one kind."""
    rows = plant(raw, PlantOptions((kind,), share, **more)).rows.filter(planted_kind=kind)
    before = dict(raw.select("id", "messages").iter_rows())
    names = rows.select(pl.coalesce("planted_of", "id")).to_series()
    return [(before[name], after) for name, after in zip(names, rows["messages"].to_list(), strict=True)]


def jaccard(a: list[str], b: list[str]) -> float:
    """Independent of the house: sets of word 5-grams by Python's `re`."""
    sets = []
    for one in (a, b):
        words = re.findall(r"\w+", "\n".join(one).lower())
        sets.append({tuple(words[i : i + 5]) for i in range(len(words) - 4)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_the_same_corpus_and_options_give_the_same_rows() -> None:
    """And another seed gives others."""
    names = tuple(name for name in KINDS if name not in {"eval_item", "other_language"})
    one, same, other = (plant(RAW_FRAME, PlantOptions(names, 0.05, seed)).rows for seed in (0, 0, 1))
    assert one.equals(same)
    assert not one.equals(other)


def test_each_kind_has_its_share_and_nothing_else_changes() -> None:
    """Edits are made in place, copies are added, untouched rows are those of the source in its order."""
    damaged = plant(RAW_FRAME, PlantOptions(share=0.05))
    counts = Counter(damaged.rows["planted_kind"].drop_nulls())
    assert counts == {name: 8 for name in KINDS if name not in {"eval_item", "other_language"}}  # 7.5 rounds to even
    assert {plot.kind.name: plot.planted for plot in damaged.plots if plot.planted} == counts
    assert damaged.rows.height == RAW_FRAME.height + 8 * len(COPIES)
    columns = ["id", "prompt", "prompt_id", "messages", "source", "extra"]
    untouched = damaged.rows.filter(pl.col("planted_kind").is_null()).select(columns)
    assert untouched.equals(RAW_FRAME.filter(pl.col("id").is_in(untouched["id"].implode())).select(columns))
    in_place = damaged.rows.filter(pl.col("planted_of").is_null())
    assert in_place["id"].equals(RAW_FRAME["id"])
    assert set(damaged.rows.drop_nulls("planted_of")["planted_kind"]) == set(COPIES)


def test_a_conversation_is_damaged_or_copied_at_most_once() -> None:
    """Even if the kinds together want more than there are; what is short says so."""
    damaged = plant(RAW_FRAME, PlantOptions(share=0.2))
    rows = damaged.rows.drop_nulls("planted_kind")
    assert rows.select(pl.coalesce("planted_of", "id").is_unique().all()).item()
    assert rows.height == RAW_FRAME.height
    short = [plot for plot in damaged.plots if plot.planted < 30]
    assert short
    assert all(plot.note for plot in short)


@pytest.mark.parametrize("percent", [95, 85, 75])
def test_a_near_copy_has_its_jaccard(percent: int) -> None:
    """Within 0.01, as an independent computation measures it."""
    pairs = planted(f"near_copy_{percent}")
    assert len(pairs) == 15
    for before, after in pairs:
        assert jaccard(texts(before), texts(after)) == pytest.approx(percent / 100, abs=0.01)


@pytest.mark.parametrize(("words", "there"), [(MIN_SHINGLES + 3, False), (MIN_SHINGLES + 4, True)])
def test_a_near_copy_needs_enough_shingles(words: int, there: bool) -> None:
    """One shingle fewer, and there is none."""
    text = " ".join(f"w{i}" for i in range(words))
    copy = near_copy([{"role": "text", "content": text}], 0.85, Random(0))
    assert (copy is not None) == there
    assert copy is None or jaccard([text], texts(copy)) == pytest.approx(0.85, abs=0.01)


def test_a_near_copy_counts_characters_where_no_spaces_are_written() -> None:
    """In Chinese, each character is a word, as for `dedup`."""
    text = "".join(chr(0x4E00 + i) for i in range(300))
    copy = near_copy([{"role": "text", "content": text}], 0.85, Random(0))
    assert copy is not None
    assert jaccard([" ".join(text)], [" ".join(copy[0]["content"])]) == pytest.approx(0.85, abs=0.01)


def test_an_exact_copy_is_one() -> None:
    """Message by message."""
    assert all(before == after for before, after in planted("exact_copy"))


def test_shuffled_words_are_the_same_words() -> None:
    """In each message, in another order."""
    for before, after in planted("shuffled_words"):
        assert texts(before) != texts(after)
        assert [sorted(a.split()) for a in texts(before)] == [sorted(a.split()) for a in texts(after)]


def test_words_of_scripts_without_spaces_are_characters() -> None:
    """A Chinese conversation of two clauses has enough to be shuffled and cut, and gets no spaces."""
    user, reply = "".join(map(chr, range(0x4E00, 0x4E06))), "".join(map(chr, range(0x4F00, 0x4F14)))
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": f"{reply} and so on"}]
    raw = frame([{"id": "c", "prompt": user, "prompt_id": "p", "messages": messages}])
    ((_, shuffled),) = planted("shuffled_words", raw)
    assert [sorted(text) for text in texts(shuffled)] == [sorted(text) for text in texts(messages)]
    assert texts(shuffled) != texts(messages)
    ((_, cut),) = planted("truncated", raw)
    assert messages[1]["content"].startswith(cut[1]["content"])
    assert 0 < len(cut[1]["content"]) < len(messages[1]["content"])


def test_a_truncated_conversation_ends_within_its_last_reply() -> None:
    """What is before it stays."""
    for before, after in planted("truncated"):
        assert after[:-1] == before[: len(after) - 1]
        cut, whole = after[-1]["content"], before[len(after) - 1]["content"]
        assert after[-1]["role"] == "assistant"
        assert whole.startswith(cut)
        assert 0 < len(cut.split()) < len(whole.split())


def test_one_reply_is_emptied_or_refused() -> None:
    """And only one, of the assistant."""
    for kind, allowed in (("empty_reply", {""}), ("refusal", set(REFUSALS))):
        for before, after in planted(kind):
            changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
            assert [a["role"] for a, _ in changed] == ["assistant"]
            assert changed[0][1]["content"] in allowed


def test_every_reply_opens_with_boilerplate() -> None:
    """And goes on as before."""
    for before, after in planted("boilerplate"):
        assert of(before, "user") == of(after, "user")
        for a, b in zip(of(before, "assistant"), of(after, "assistant"), strict=True):
            assert any(b == opening + a for opening in OPENINGS)


def test_toxic_messages_are_held_out_comments() -> None:
    """A third of the messages, rounded up, become comments that people labelled offensive."""
    offensive = set(comments(held_out=True).filter(is_offensive=1)["text"])
    for before, after in planted("toxic"):
        changed = [b for a, b in zip(texts(before), texts(after), strict=True) if a != b]
        assert len(changed) == 4
        assert set(changed) <= offensive


def test_mojibake_can_be_read_back() -> None:
    """As UTF-8, it is the text with a typographic apostrophe."""
    for before, after in planted("mojibake"):
        assert "\u00e2\u20ac\u2122" in after[0]["content"]
        back = [text.encode("cp1252").decode("utf-8") for text in texts(after)]
        assert back == [text.replace("'", "\u2019") for text in texts(before)]


def test_a_line_is_repeated() -> None:
    """The last one of one reply."""
    for before, after in planted("repeated_lines"):
        ((a, b),) = [(a, b) for a, b in zip(texts(before), texts(after), strict=True) if a != b]
        assert b.split("\n") == [a] * (REPEATS + 1)


def test_swapped_replies_are_those_of_another_conversation() -> None:
    """Users stay; all replies are still there, none in its place."""
    pairs = planted("swapped_replies")
    assert Counter(text for a, _ in pairs for text in of(a, "assistant")) == Counter(
        text for _, b in pairs for text in of(b, "assistant")
    )
    for before, after in pairs:
        assert of(before, "user") == of(after, "user")
        assert not set(of(before, "assistant")) & set(of(after, "assistant"))


def test_replies_of_one_conversation_cannot_be_swapped() -> None:
    """A lone conversation is not called damaged."""
    with pytest.raises(PlantError, match="swapped_replies: 1 wanted"):
        plant(RAW_FRAME.head(1), PlantOptions(("swapped_replies",)))


def test_a_corpus_without_a_conversation_to_damage_is_named_as_such() -> None:
    """Questions without a reply are none."""
    questions = RAW_FRAME.head(3).with_columns(pl.col("messages").list.head(1))
    with pytest.raises(PlantError, match="into 3 conversations: none has 5 words and, if a user speaks, a reply"):
        plant(questions, PlantOptions())


@pytest.mark.parametrize("french", [MIN_FOREIGN - 1, MIN_FOREIGN])
def test_replies_in_another_language_come_from_the_corpus(french: int) -> None:
    """If it has enough of them."""
    english = "Well I think that we should go to the house of my parents because it is late"
    said = [FRENCH[i % 3] if i < french else english for i in range(3 * french)]
    records = [
        {
            **talk(i),
            "messages": [{"role": "user", "content": f"{text} {i}"}, {"role": "assistant", "content": f"{text}. {i}"}],
        }
        for i, text in enumerate(said)
    ]
    options = PlantOptions(("other_language", "exact_copy"))
    (_, plot) = plant(frame(records), options).plots
    assert plot.planted == (6 if french == MIN_FOREIGN else 0)
    assert french == MIN_FOREIGN or plot.note.startswith("99 replies of the corpus are in another language than en")
    if french == MIN_FOREIGN:
        for _, after in planted("other_language", frame(records), 0.02):
            assert after[1]["content"].startswith(FRENCH)


def test_evaluation_items_are_planted_with_their_answers(tmp_path: Path) -> None:
    """At the end of a conversation."""
    (tmp_path / "items.jsonl").write_text('{"question": "Why?", "answer": "So."}\n{"question": "Who?"}\n')
    items = [[("user", "Why?"), ("assistant", "So.")], [("user", "Who?")]]
    pairs = planted("eval_item", evals=str(tmp_path))
    for before, after in pairs:
        assert after[: len(before)] == before
        assert [(m["role"], m["content"]) for m in after[len(before) :]] in items
    assert len(pairs) == 15


def test_what_has_flaws_already_is_not_damaged() -> None:
    """A user without a reply, or four words: its drop would say nothing about the damage."""
    unanswered = [{**talk(i), "messages": talk(i)["messages"][:1]} for i in range(100, 150)]
    short = [
        {**talk(i), "messages": [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c d"}]}
        for i in range(150, 200)
    ]
    five = [
        {**talk(i), "messages": [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c d e"}]}
        for i in range(200, 205)
    ]
    rows = plant(frame([*unanswered, *short, *five]), PlantOptions(("exact_copy",), 1.0)).rows
    assert set(rows["planted_of"].drop_nulls()) == {f"t{i}" for i in range(200, 205)}


def test_plain_documents_are_damaged_where_no_reply_is_needed() -> None:
    """Copies and shuffled words; kinds that need replies say that nothing is fit for them."""
    documents = [{**talk(i), "messages": [{"role": "text", "content": talk(i)["prompt"]}]} for i in range(50)]
    found = {plot.kind.name: plot for plot in plant(frame(documents), PlantOptions()).plots}
    assert found["exact_copy"].planted == found["shuffled_words"].planted == found["toxic"].planted == 1
    assert found["empty_reply"].planted == 0
    assert found["empty_reply"].note == "1 wanted: no conversation is fit for it"


def test_the_damaged_corpus_is_a_source(refine: Refine, jsonl: Jsonl, tmp_path: Path) -> None:
    """`refine run` takes it as it is; other fields and the truth are kept; the same command gives the same bytes."""
    jsonl([{**talk(i), "topic": "x"} for i in range(60)])
    for out in ("damaged", "again"):
        assert refine("plant", "corpus.jsonl", "--out", out, "--share", 0.1).returncode == 0
    assert contents(tmp_path / "damaged") == contents(tmp_path / "again")
    assert [path.name for path in (tmp_path / "damaged").iterdir()] == ["00000.parquet"]
    done = refine("run", "damaged", "--stages", "heuristics", "--out", "r")
    assert done.returncode == 0, done.stderr
    extra = read_frame(tmp_path / "r" / "raw" / "00000.parquet")["extra"].str.json_path_match("$.planted_kind")
    assert Counter(extra.drop_nulls())["exact_copy"] == 6
    topics = read_frame(tmp_path / "r" / "raw" / "00000.parquet")["extra"].str.json_path_match("$.extra")
    assert set(topics) == {'{"topic":"x"}'}


def test_conversations_with_tool_calls_stay_as_they_are(refine: Refine, jsonl: Jsonl, tmp_path: Path) -> None:
    """Calls, flags and tools included; others are damaged beside them."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    asked = {"role": "user", "content": "What is the weather in the town by the river?", "weight": 1}
    calling = {
        "messages": [asked, {"role": "assistant", "content": "", "tool_calls": [call]}],
        "tools": [{"name": "f"}],
    }
    path = jsonl([*(talk(i) for i in range(10)), *([calling] * 10)])
    done = refine("plant", path, "--share", "0.5", "--kinds", "shuffled_words,exact_copy", "--out", "damaged")
    assert done.returncode == 0, done.stderr
    rows = pl.read_parquet(tmp_path / "damaged" / "*.parquet")
    assert rows.height == 20 + rows["planted_of"].drop_nulls().len()
    same = rows.filter(pl.col("messages").list.first().struct.field("weight") == 1)
    assert same.height == 10
    assert same["planted_kind"].null_count() == 10
    assert [one["messages"][1]["tool_calls"] for one in same.to_dicts()] == [[call]] * 10
    assert rows["planted_kind"].drop_nulls().len() > 0


def test_rows_that_cannot_be_read_are_counted(refine: Refine, jsonl: Jsonl) -> None:
    """They are not in the damaged corpus, and the output says so."""
    jsonl([*(talk(i) for i in range(100)), {"messages": 7}])
    done = refine("plant", "corpus.jsonl", "--out", "damaged", "--kinds", "empty_reply", "--share", 0.1)
    assert "damaged: 100 conversations, 10 of them planted; 1 rows that could not be read are omitted" in done.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--kinds", "typos"], "--kinds names 'typos', expected some of exact_copy, near_copy_95"),
        (["--kinds", ","], "--kinds is ',', which names no kind"),
        (["--kinds", "toxic", "--evals", "x"], "--evals is for the kind eval_item, which --kinds does not name"),
        (["--share", 0], "--share is 0, expected a share above 0 and up to 1"),
        (["--share", 1.01], "--share is 1.01, expected a share above 0 and up to 1"),
        (["--kinds", "eval_item"], "eval_item: no evaluation set is named: --evals names a file or a folder"),
        (["--evals", "none.jsonl"], "no evaluation sets at 'none.jsonl'"),
        (["--out", "full"], "--out is full, which is there already"),
        (["--out", "corpus/damaged"], "--out is corpus/damaged, a folder in the source corpus"),
    ],
)
def test_errors_name_what_to_do(refine: Refine, jsonl: Jsonl, tmp_path: Path, words: list[object], says: str) -> None:
    """One sentence, and nothing is written."""
    (tmp_path / "corpus").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    jsonl([talk(i) for i in range(20)]).rename(tmp_path / "corpus" / "corpus.jsonl")
    before = contents(tmp_path)
    done = refine("plant", "corpus", "--out", "damaged", *words)
    assert done.returncode == 1
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert contents(tmp_path) == before


def test_the_help_names_every_kind() -> None:
    """In their order."""
    options = {each.name: each for each in get_command(app).commands["plant"].params}  # type: ignore[attr-defined]
    assert ", ".join(KINDS) in options["kinds"].help


@pytest.mark.slow
def test_the_planted_default_is_what_the_command_writes(tmp_path: Path) -> None:
    """`chitchat-planted` has the rows of `refine plant chitchat`, whose ids are those of a run of chitchat."""
    store = Store(tmp_path / "run")
    ingest(sources.find("chitchat"), store, Limits())
    raw = pl.concat([read_frame(store.raw(shard)) for shard in store.shards()])
    records = [row.value for row in sources.find("chitchat-planted").rows()]
    damaged = plant(raw, PlantOptions()).rows
    assert pl.DataFrame(records, schema=damaged.schema).equals(damaged)
    assert len(records) == 7168 + 4 * 143
