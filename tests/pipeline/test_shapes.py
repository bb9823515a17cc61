"""Record shapes: how each is recognised and read, and the notes and errors about it."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import sources
from pipeline.ingest import Limits, ingest
from pipeline.sources import SourceError
from pipeline.sources.fields import with_fields
from pipeline.sources.shapes import SHAPES, ColumnMap
from pipeline.store import Store, read_json
from stages.dedup import Dedup
from stages.files import read_frame
from stages.heuristics import Heuristics
from stages.text.messages import prose_messages
from tests import strategies
from tests.conftest import Refine, read_shards

Jsonl = Callable[..., Path]

ASKED, ANSWERED = "Where does the old ferry land today?", "At the second pier, below the mill."
PLAIN = [("user", ASKED), ("assistant", ANSWERED)]


def take(source: Path, out: Path, **limits: Any) -> list[dict[str, Any]]:
    """Ingest a source and read its raw rows."""
    ingest(sources.find(str(source)), Store(out), Limits(**limits))
    return read_shards(out / "raw").to_dicts()


def said(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in row["messages"]]


def pair(role: str, text: str, who: str = "user", whose: str = "assistant") -> list[dict[str, Any]]:
    return [{role: who, text: ASKED}, {role: whose, text: ANSWERED}]


CHAT = pair("role", "content")
SHAREGPT = pair("from", "value", "human", "gpt")

SAME: dict[str, tuple[str, dict[str, Any]]] = {
    "singular": ("chat", {"conversation": CHAT, "model": "m"}),
    "dialogue": ("chat", {"dialogue": SHAREGPT}),
    "dialog_of_texts": ("chat", {"dialog": [ASKED, ANSWERED]}),
    "turns": ("chat", {"turns": CHAT}),
    "chat": ("chat", {"chat": CHAT, "turns": 2}),
    "conversations_role_content": ("sharegpt", {"conversations": CHAT}),
    "conversations_role_value": ("sharegpt", {"conversations": pair("role", "value")}),
    "messages_from_content": ("openai", {"messages": pair("from", "content", "human", "gpt")}),
    "pairs": ("chat", {"conversation": [{"human": ASKED, "assistant": ANSWERED}]}),
    "json_text": ("openai", {"messages": json.dumps(CHAT)}),
    "json_text_sharegpt": ("sharegpt", {"conversations": json.dumps(SHAREGPT, indent=2)}),
    "json_text_each": ("openai", {"messages": [json.dumps(one) for one in CHAT]}),
    "alpaca": ("alpaca", {"instruction": ASKED, "input": "", "output": ANSWERED}),
    "alpaca_with_text": ("alpaca", {"text": "### Instruction", "instruction": ASKED, "output": ANSWERED}),
    "dolly": ("alpaca", {"instruction": ASKED, "context": "", "response": ANSWERED, "category": "qa"}),
    "completion": ("prompt", {"prompt": ASKED, "completion": ANSWERED}),
    "response": ("prompt", {"question": ASKED, "response": ANSWERED}),
    "completion_as_messages": ("prompt", {"prompt": CHAT[:1], "completion": CHAT[1:]}),
    "kto": ("prompt", {"prompt": ASKED, "completion": ANSWERED, "label": False}),
    "preference_of_texts": ("preference", {"prompt": ASKED, "chosen": ANSWERED, "rejected": "No."}),
    "preference_of_messages": ("preference", {"prompt": ASKED, "chosen": CHAT, "rejected": CHAT[:1]}),
    "preference_after_a_turn": ("preference", {"conversations": SHAREGPT[:1], "chosen": SHAREGPT[1], "rejected": {}}),
    "preference_with_prompt_messages": ("preference", {"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": CHAT[1:]}),
    "preference_of_transcripts": (
        "preference",
        {"chosen": f"\n\nHuman: {ASKED}\n\nAssistant: {ANSWERED}", "rejected": "\n\nHuman: a\n\nAssistant: b"},
    ),
    "parts_text": ("openai", {"messages": [{"role": "user", "content": [{"type": "text", "text": ASKED}]}, CHAT[1]]}),
    "parts_value": ("openai", {"messages": [{"role": "user", "content": [{"type": "text", "value": ASKED}]}, CHAT[1]]}),
    "parts_plain": ("openai", {"messages": [{"role": "user", "content": [ASKED]}, CHAT[1]]}),
    "parts_input": (
        "openai",
        {
            "messages": [
                {"role": "user", "content": [{"type": "input_text", "text": ASKED}]},
                {"role": "assistant", "content": [{"type": "output_text", "text": ANSWERED}]},
            ]
        },
    ),
    **{
        f"role_{name}": ("sharegpt", {"conversations": pair("from", "value", "user", name)})
        for name in ("bot", "AI", "chatbot", "model", "GPT", "Assistant ", "chatgpt")
    },
    **{
        f"role_{name}": ("openai", {"messages": pair("role", "content", name)})
        for name in ("human", "prompter", "User", "HUMAN")
    },
}
"""Records that are the same conversation, each with its shape."""


@pytest.mark.parametrize("name", SAME)
def test_every_record_becomes_the_same_conversation(jsonl: Jsonl, tmp_path: Path, name: str) -> None:
    """Whatever its columns and roles are called; the shape is that of its columns."""
    shape, record = SAME[name]
    (row,) = take(jsonl([record]), tmp_path / "r")
    assert said(row) == PLAIN
    assert row["prompt"] == ASKED
    assert row["text"] == f"{ASKED}\n{ANSWERED}"
    assert read_json(tmp_path / "r" / "raw" / "shards.json")["shape"] == shape


def test_what_a_shape_does_not_read_is_in_extra(jsonl: Jsonl, tmp_path: Path) -> None:
    """The other side of a pair, a label, a formatted text: nothing that came in is missing."""
    for i, name in enumerate(("preference_of_texts", "kto", "alpaca_with_text", "preference_of_messages")):
        _, record = SAME[name]
        (row,) = take(jsonl([record]), tmp_path / str(i))
        rest = json.loads(row["extra"])
        assert rest.items() <= record.items()
        assert rest.keys() == record.keys() & {"rejected", "label", "text", "prompt"} - (
            {"prompt"} if name != "preference_of_messages" else set()
        )


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (
            {"instruction": "Sum up.", "input": "A long day.", "output": "Long.", "history": [["Hi", "Hello"]]},
            [("user", "Hi"), ("assistant", "Hello"), ("user", "Sum up.\nA long day."), ("assistant", "Long.")],
        ),
        (
            {"system_prompt": "Be brief.", "question": "Why?", "response": "So."},
            [("system", "Be brief."), ("user", "Why?"), ("assistant", "So.")],
        ),
        (
            {"prompt": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", "chosen": " d", "rejected": " e"},
            [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", " d")],
        ),
        ({"prompt_id": "p", "messages": CHAT, "chosen": CHAT, "rejected": []}, PLAIN),
    ],
)
def test_what_a_reply_answers_comes_before_it(
    jsonl: Jsonl, tmp_path: Path, record: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    """Input, history, system prompt and earlier turns; a conversation with its reply is read as it is."""
    (row,) = take(jsonl([record]), tmp_path / "r")
    assert said(row) == expected


@pytest.mark.parametrize(
    "record",
    [
        {"system": "You sail.", "conversations": SHAREGPT},
        {"system": "You sail.", "messages": CHAT},
        {"system_prompt": "You sail.", "conversation": CHAT},
        {"messages": [{"role": "developer", "content": "You sail."}, *CHAT]},
    ],
)
def test_a_system_prompt_beside_the_conversation_is_its_first_message(
    refine: Refine, jsonl: Jsonl, tmp_path: Path, record: dict[str, Any]
) -> None:
    """So that `has_system` says true; it is not in extra a second time."""
    path = jsonl([record])
    assert refine("run", path, "--stages", "heuristics", "--out", "r", "--workers", "1").returncode == 0
    (row,) = pl.read_parquet(tmp_path / "r" / "raw" / "*.parquet").to_dicts()
    assert said(row) == [("system", "You sail."), *PLAIN]
    assert row["extra"] is None
    assert pl.read_parquet(tmp_path / "r" / "signals" / "heuristics-*" / "*.parquet")["has_system"].to_list() == [True]


def test_a_conversation_with_a_system_message_keeps_the_field_beside_it(jsonl: Jsonl, tmp_path: Path) -> None:
    """It is not prepended a second time, nor lost."""
    (row,) = take(jsonl([{"system": "B", "messages": [{"role": "system", "content": "A"}, *CHAT]}]), tmp_path / "r")
    assert said(row) == [("system", "A"), *PLAIN]
    assert json.loads(row["extra"]) == {"system": "B"}


def calls_of(row: dict[str, Any]) -> list[list[tuple[str, Any]] | None]:
    return [
        [(call["name"], json.loads(call["arguments"])) for call in one["calls"]] if one and one["calls"] else None
        for one in row["details"] or []
    ]


CALL = {"id": "c", "type": "function", "function": {"name": "tide", "arguments": '{"port": "Ems"}'}}


def test_a_reply_may_be_calls_alone(jsonl: Jsonl, tmp_path: Path) -> None:
    """As JSON text beside the descriptions of the tools."""
    answers = json.dumps([{"name": "tide", "arguments": {"port": "Ems"}}])
    (row,) = take(jsonl([{"query": ASKED, "tools": '[{"name": "tide"}]', "answers": answers}]), tmp_path / "r")
    assert said(row) == [("user", ASKED), ("assistant", "")]
    assert calls_of(row)[1] == [("tide", {"port": "Ems"})]
    assert (row["tools"], row["extra"]) == ('[{"name": "tide"}]', None)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"speaker": "A", "utterance": "x"}, "role of message 1 is null, expected text (found: speaker, utterance)"),
        ({"role": "user"}, "content of message 1 is null, expected text"),
        ({"role": ["user"], "content": "x"}, "role of message 1 is a list, expected text"),
    ],
)
def test_a_message_that_cannot_be_read_says_what_it_has(
    jsonl: Jsonl, tmp_path: Path, message: dict[str, Any], reason: str
) -> None:
    """So that the user can name its fields with --map."""
    with pytest.raises(SourceError, match=re.escape(f"{reason}; see quarantine/: repair them, name their shape")):
        take(jsonl([{"messages": [message]}]), tmp_path / "r")


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "tide", "arguments": {"port": "Ems"}}]},
        {"role": "assistant", "content": None, "tool_calls": json.dumps([CALL])},
        {"role": "assistant", "function_call": {"name": "tide", "arguments": '{"port": "Ems"}'}},
        {"role": "function_call", "content": '{"name": "tide", "arguments": {"port": "Ems"}}'},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "tide", "input": {"port": "Ems"}}]},
    ],
)
def test_a_tool_call_is_a_message_of_the_assistant(jsonl: Jsonl, tmp_path: Path, message: dict[str, Any]) -> None:
    """In the form of OpenAI, of ShareGPT, of Anthropic: the same call, whether content is null or absent."""
    (row,) = take(jsonl([{"messages": [CHAT[0], message, {"role": "observation", "content": "high"}]}]), tmp_path / "r")
    assert said(row) == [("user", ASKED), ("assistant", ""), ("tool", "high")]
    assert calls_of(row)[1] == [("tide", {"port": "Ems"})]
    fields = json.loads(row["details"][1]["fields"])
    assert fields["tool_calls"][0]["function"] == {"name": "tide", "arguments": '{"port":"Ems"}'} or (
        json.loads(fields["tool_calls"][0]["function"]["arguments"]) == {"port": "Ems"}
    )


def test_a_call_that_cannot_be_parsed_keeps_its_text(jsonl: Jsonl, tmp_path: Path) -> None:
    """It is a call without a name, not an empty message."""
    (row,) = take(
        jsonl([{"conversations": [SHAREGPT[0], {"from": "function_call", "value": "tide(Ems"}]}]), tmp_path / "r"
    )
    assert said(row)[1] == ("assistant", "tide(Ems")
    assert row["details"][1]["calls"] == [{"name": "", "arguments": "tide(Ems"}]


@pytest.mark.parametrize("part", [{"type": "image_url", "image_url": {"url": "u"}}, {"type": "audio"}, {"image": "x"}])
def test_parts_that_are_no_text_are_kept_and_counted(jsonl: Jsonl, tmp_path: Path, part: dict[str, Any]) -> None:
    """Stages read the text beside them; a message of an image alone is no empty one."""
    content = [part, {"type": "text", "text": ASKED}]
    (row,) = take(jsonl([{"messages": [{"role": "user", "content": content}, CHAT[1]]}]), tmp_path / "r")
    assert said(row) == PLAIN
    assert row["details"][0]["media"] == 1
    assert json.loads(row["details"][0]["fields"]) == {"parts": content}


def test_a_tools_answer_among_anthropics_parts_is_a_message_of_the_tool(jsonl: Jsonl, tmp_path: Path) -> None:
    """Although its role says user."""
    part = {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": "high"}]}
    result = {"role": "user", "content": [part]}
    (row,) = take(jsonl([{"messages": [CHAT[0], result]}]), tmp_path / "r")
    assert said(row) == [("user", ASKED), ("tool", "high")]


def test_a_plain_conversation_has_no_details(jsonl: Jsonl, tmp_path: Path) -> None:
    """Null fields, as Parquet writes them, are none."""
    (row,) = take(jsonl([{"messages": [{**one, "name": None, "tool_calls": None} for one in CHAT]}]), tmp_path / "r")
    assert (row["details"], row["tools"]) == (None, None)


def test_roles_that_are_not_known_are_told_once(refine: Refine, jsonl: Jsonl) -> None:
    """With their numbers and the nearest known one, not by a corpus that is silently dropped."""
    records = [
        {"messages": [CHAT[0], {"role": role, "content": "Aye."}]} for role in ("narrator", "asistant", "narrator")
    ]
    done = refine("run", jsonl(records), "--stages", "heuristics", "--out", "r", "--workers", "1")
    assert done.stderr.count("roles that are not known") == 1
    assert "'narrator' (2 messages), 'asistant' (1 message, did you mean assistant?)" in done.stderr


def test_a_folder_may_hold_several_shapes(refine: Refine, jsonl: Jsonl, tmp_path: Path) -> None:
    """Each file has its own; the run says which, and the manifest names them all."""
    (tmp_path / "in").mkdir()
    for i, name in enumerate(("alpaca", "singular", "kto", "completion")):
        jsonl([SAME[name][1]], name=f"in/{i}.jsonl")
    done = refine("run", "in", "--stages", "heuristics", "--out", "r", "--workers", "1")
    assert "alpaca in 0.jsonl; chat in 1.jsonl; prompt in 2.jsonl and 1 more" in done.stderr
    assert [said(row) for row in pl.read_parquet(tmp_path / "r" / "raw" / "*.parquet").to_dicts()] == [PLAIN] * 4
    assert read_json(tmp_path / "r" / "manifest.json")["source"]["shape"] == "alpaca, chat, prompt"


def test_which_side_of_a_pair_is_read_is_said_and_can_be_chosen(refine: Refine, jsonl: Jsonl, tmp_path: Path) -> None:
    """Chosen by default; the other one stays in extra."""
    path = jsonl([SAME["preference_of_texts"][1]])
    done = refine("run", path, "--stages", "heuristics", "--out", "a", "--workers", "1")
    assert "corpus.jsonl: of each pair, chosen is read" in done.stderr
    (row,) = take(path, tmp_path / "b", map=ColumnMap.parse("reply=rejected"))
    assert said(row) == [("user", ASKED), ("assistant", "No.")]
    assert json.loads(row["extra"]) == {"chosen": ANSWERED}


@pytest.mark.parametrize("other", [{"role": "user"}, {"instruction": "Translate."}, {"parent_id": None}])
def test_a_text_with_a_role_or_an_instruction_is_not_read_as_a_document(
    jsonl: Jsonl, tmp_path: Path, other: dict[str, Any]
) -> None:
    """Not silently; --shape text reads it."""
    path = jsonl([{"text": "Bonjour", **other}])
    with pytest.raises(SourceError, match=rf"a record with text and {next(iter(other))} is more than a plain document"):
        take(path, tmp_path / "a")
    assert said(take(path, tmp_path / "b", shape="text")[0]) == [("text", "Bonjour")]


THREAD = {"thread": [{"who": "human", "body": ASKED}, {"who": "gpt", "body": ANSWERED}], "messages": "2"}


def test_columns_can_be_named(refine: Refine, jsonl: Jsonl, tmp_path: Path) -> None:
    """On the command line or in the plan, which is then that of the run; a column that is not read is in extra."""
    path = jsonl([THREAD])
    named = "messages=thread,role=who,content=body"
    done = refine("run", path, "--stages", "heuristics", "--map", named, "--out", "a", "--workers", "1")
    assert done.returncode == 0, done.stderr
    (tmp_path / "p.toml").write_text(
        '[map]\nmessages = "thread"\nrole = "who"\ncontent = "body"\n[[stage]]\nuse = "heuristics"\n'
    )
    done = refine("run", path, "--plan", "p.toml", "--out", "b", "--workers", "1")
    assert done.returncode == 0, done.stderr
    for name in ("a", "b"):
        (row,) = pl.read_parquet(tmp_path / name / "refined" / "*.parquet").to_dicts()
        assert said(row) == PLAIN
        assert json.loads(row["extra"]) == {"messages": "2"}
        assert 'messages = "thread"' in (tmp_path / name / "plan.toml").read_text()
    again = refine("run", path, "--stages", "heuristics", "--map", "messages=other", "--out", "a")
    assert "belongs to another run: its map is" in again.stderr


@pytest.mark.parametrize(
    ("record", "named", "expected"),
    [
        ({"ask": ASKED, "say": ANSWERED, "text": "x"}, "prompt=ask,reply=say", PLAIN),
        ({"body": "Once.", "role": "author"}, "text=body", [("text", "Once.")]),
        ({"rules": "Sail.", "messages": CHAT}, "system=rules", [("system", "Sail."), *PLAIN]),
        ({"messages": CHAT, "abilities": [{"name": "tide"}]}, "tools=abilities", PLAIN),
        ({"prompt": ASKED, "completion": ANSWERED, "data": {"seed": 1}}, "", PLAIN),
    ],
)
def test_every_meaning_can_be_named(
    jsonl: Jsonl, tmp_path: Path, record: dict[str, Any], named: str, expected: list[tuple[str, str]]
) -> None:
    """Prompt and reply, a document, a system prompt, tools; what is named is in extra no more, what is not stays."""
    (row,) = take(jsonl([record]), tmp_path / "r", map=ColumnMap.parse(named))
    assert said(row) == expected
    rest = json.loads(row["extra"] or "{}")
    assert rest == {name: record[name] for name in ("text", "role", "data") if name in record}
    assert row["tools"] == ('[{"name":"tide"}]' if "abilities" in record else None)


@pytest.mark.parametrize("named", ["thread", "messages=", "message=thread"])
def test_a_map_that_says_nothing_is_refused(named: str) -> None:
    """With what was found and what may be named."""
    with pytest.raises(SourceError, match=r"map has .*, expected MEANING=COLUMN with one of messages, role"):
        ColumnMap.parse(named)


TREE: list[dict[str, Any]] = [
    {"message_id": "a", "parent_id": None, "role": "prompter", "text": "one", "lang": "en"},
    {"message_id": "b", "parent_id": "a", "role": "assistant", "text": "two", "rank": 1},
    {"message_id": "c", "parent_id": "a", "role": "assistant", "text": "three", "rank": 0},
    {"message_id": "d", "parent_id": "c", "role": "prompter", "text": "four"},
    {"message_id": "e", "parent_id": None, "role": "prompter", "text": "five"},
]


def test_every_path_of_a_table_of_messages_is_a_conversation(jsonl: Jsonl, tmp_path: Path) -> None:
    """Whatever the order of its rows; each message keeps its other fields."""
    rows = take(jsonl(TREE), tmp_path / "a")
    paths = [["one", "two"], ["one", "three", "four"], ["five"]]
    assert [[text for _, text in said(row)] for row in rows] == paths
    assert said(rows[0]) == [("user", "one"), ("assistant", "two")]
    assert [row["source_id"] for row in rows] == ["b", "d", "e"]
    assert json.loads(rows[0]["details"][0]["fields"]) == {"message_id": "a", "lang": "en"}
    backwards = take(jsonl(TREE[::-1], name="b.jsonl"), tmp_path / "b")
    assert [[text for _, text in said(row)] for row in backwards] == paths[::-1]


def test_the_best_ranked_path_is_the_one_of_the_lowest_ranks(jsonl: Jsonl, tmp_path: Path) -> None:
    """One conversation per root."""
    rows = take(jsonl(TREE), tmp_path / "r", shape="oasst-best")
    assert [[text for _, text in said(row)] for row in rows] == [["one", "three", "four"], ["five"]]


def test_a_message_that_no_root_leads_to_is_quarantined(jsonl: Jsonl, tmp_path: Path) -> None:
    """One without a parent in the table, a circle, an id that occurs twice, none at all: each with its row."""
    bad: list[dict[str, Any]] = [
        {"message_id": "x", "parent_id": "nowhere", "role": "prompter", "text": "x"},
        {"message_id": "y", "parent_id": "z", "role": "prompter", "text": "y"},
        {"message_id": "z", "parent_id": "y", "role": "assistant", "text": "z"},
        {"message_id": "a", "parent_id": None, "role": "prompter", "text": "again"},
        {"parent_id": None, "role": "prompter", "text": "no id"},
    ]
    assert len(take(jsonl([*TREE, *bad]), tmp_path / "r", unreadable=1.0)) == 3
    aside = pl.read_parquet(tmp_path / "r" / "quarantine" / "*.parquet").sort("row")
    assert aside["row"].to_list() == [6, 7, 8, 9, 10]
    assert aside["reason"].str.contains("no root leads").to_list() == [True, True, True, False, False]


@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(records=st.lists(strategies.hostile, min_size=1, max_size=4), shape=st.sampled_from([None, *SHAPES]))
def test_no_record_ends_a_run_but_by_one_sentence(records: list[dict[str, Any]], shape: str | None) -> None:
    """Each is a conversation or in quarantine, with every shape; what is read can be measured and written."""
    with tempfile.TemporaryDirectory() as folder:
        path, store = Path(folder, "in.jsonl"), Store(Path(folder, "r"))
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        try:
            done = ingest(sources.find(str(path)), store, Limits(shape=shape, unreadable=1.0))
        except SourceError:
            return
        raw = read_frame(store.raw("00000.parquet"))
        assert raw.height + done["quarantined"] == done["rows"]
        assert Heuristics().measure(raw.select(Heuristics.reads)).height == raw.height
        assert Dedup().measure(raw.select(Dedup.reads)).height == raw.height
        assert prose_messages(raw, (), ("content", "reasoning", "calls"))["content"].null_count() == 0
        assert (
            with_fields(raw["messages"], raw["details"], done["fields"]).list.len().equals(raw["messages"].list.len())
        )


INPUTS: dict[str, tuple[str, list[int]]] = {
    "alpaca_with_text": ("heuristics", [6, 6]),
    "conversation_singular": ("heuristics", [10]),
    "conversations_role_content": ("heuristics", [10]),
    "messages_as_json_text": ("language", [5]),
    "parts_value": ("heuristics", [5]),
    "preference_chosen": ("heuristics", [6]),
    "roles_bot_ai": ("heuristics", [10]),
    "system_field": ("heuristics", [6]),
    "tool_calls_content_absent": ("heuristics", [10]),
    "tool_calls_dedup": ("dedup", [8]),
    "tool_calls_null_content": ("heuristics,dedup", [10]),
}
"""Folder -> the stages of its command, and the conversations of each file, all of which are kept."""


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_that_failed_are_read(refine: Refine, shared: Path, tmp_path: Path, name: str) -> None:
    """Each as its expected.txt says: nothing is refused, nothing dropped for its shape."""
    folder = shared / "inputs" / name
    if not folder.is_dir():
        pytest.skip("the inputs that failed (../shared/data/inputs) are not on this machine")
    names, counts = INPUTS[name]
    for path, count in zip(sorted(folder.glob("*.jsonl")), counts, strict=True):
        out = tmp_path / path.stem
        done = refine("run", path, "--stages", names, "--out", out, "--workers", "1")
        assert done.returncode == 0, done.stderr
        rows = pl.read_parquet(out / "refined" / "*.parquet").to_dicts()
        assert len(rows) == count
        roles = {message["role"] for row in rows for message in row["messages"]}
        assert {"user", "assistant"} <= roles <= {"user", "assistant", "system", "tool"}
        assert ("system" in roles) == (name == "system_field")
