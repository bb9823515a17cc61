"""Tool calls, reasoning, tools and media in the stages: what each reads, and what it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from stages.dedup import Dedup
from stages.files import save_frame
from stages.heuristics import Heuristics
from stages.language import Language
from stages.overlap.turns import Turns
from stages.ppl import Perplexity
from stages.stage import RAW, StageParameterError
from stages.text.messages import prose_messages
from stages.toxicity import Toxicity

LONG = " ".join(f"The ferry lands at pier number {i}, below the mill." for i in range(12))
THOUGHT = "First the tide, then the pier. First the tide, then the pier. Now answer."


def details(calls: list[tuple[str, str]] | None = None, reasoning: str | None = None, media: int = 0) -> dict[str, Any]:
    listed = [{"name": name, "arguments": arguments} for name, arguments in calls] if calls else None
    return {"calls": listed, "reasoning": reasoning, "media": media, "fields": "{}"}


Message = tuple[str, str] | tuple[str, str, dict[str, Any]]


def raw(*conversations: list[Message]) -> pl.DataFrame:
    """Conversations of (role, content) or (role, content, details) as a raw shard."""
    rows = []
    for i, each in enumerate(conversations):
        beside = [one[2] if len(one) > 2 else None for one in each]
        prompt = next((one[1] for one in each if one[0] == "user"), "")
        rows.append(
            {
                **dict.fromkeys(RAW),
                "id": f"c-{i}",
                "prompt": prompt,
                "prompt_id": f"p{i}",
                "source": "test",
                "messages": [{"role": one[0], "content": one[1]} for one in each],
                "text": "\n".join(one[1] for one in each),
                "details": beside if any(beside) else None,
            }
        )
    return pl.DataFrame(rows, schema=RAW)


def heuristics(*conversation: Message) -> dict[str, Any]:
    """Signals of a conversation that is measured beside a plain one."""
    return Heuristics().measure(raw([("user", "Hi"), ("assistant", "Hello.")], list(conversation))).to_dicts()[1]


CALL = details([("tide", '{"port": "Ems"}')])


def test_a_call_is_no_empty_message() -> None:
    """A conversation that ends in one ends in a call; its words count."""
    signals = heuristics(("user", "Tide?"), ("assistant", "", CALL))
    assert (signals["tool_calls"], signals["ends_in_call"]) == (1, True)
    assert (signals["empty_replies"], signals["empty_turns"], signals["empty_last"]) == (0, 0, False)
    assert signals["truncated_last"] is None
    assert signals["n_words"] == len(["Tide", "tide", "port", "Ems"])
    assert heuristics(("user", "Tide?"), ("assistant", "", details(reasoning="Hm.")))["empty_replies"] == 1


@pytest.mark.parametrize("ends", [[("tool", "high")], [("assistant", "High.")], [("user", "Thanks")]])
def test_what_follows_a_call_ends_the_conversation(ends: list[Message]) -> None:
    """Then it does not end in the call."""
    signals = heuristics(("user", "Tide?"), ("assistant", "", CALL), *ends)
    assert (signals["tool_calls"], signals["ends_in_call"]) == (1, False)


def test_a_call_in_tags_is_a_call() -> None:
    """Hermes and Qwen write it into the text."""
    text = '<tool_call>\n{"name": "tide", "arguments": {}}\n</tool_call>'
    signals = heuristics(("user", "When is the tide?"), ("assistant", text))
    assert (signals["tool_calls"], signals["ends_in_call"], signals["empty_replies"]) == (1, True, 0)
    assert signals["assistant_chars"] == 0
    assert heuristics(("user", text))["tool_calls"] == 0


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ("At noon.", THOUGHT),
        (f"<think>{THOUGHT}</think>At noon.", None),
        (f"\n<thinking>{THOUGHT}</thinking>At noon.", None),
        (f"{THOUGHT}</think>At noon.", None),
        (f"<|begin_of_thought|>{THOUGHT}<|end_of_thought|>At noon.", None),
    ],
)
def test_reasoning_is_measured_apart_from_the_reply(content: str, field: str | None) -> None:
    """In a field or in tags: its length, its share of the turn, and how much of it repeats; replies do not see it."""
    beside = details(reasoning=field) if field else None
    signals = heuristics(("user", "When?"), ("assistant", content, beside) if beside else ("assistant", content))
    chars = len(THOUGHT)
    assert (signals["reasoning_chars"], signals["assistant_chars"]) == (chars, len("At noon."))
    assert signals["reasoning_share"] == pytest.approx(chars / (chars + len("At noon.")))
    assert signals["reasoning_repetition"] == pytest.approx(len("Firstthetidethenthepier") / chars, abs=0.1)
    assert signals["reply_repetition"] is None  # no reply of five words


@pytest.mark.parametrize("content", ["Write <think> and </think> around it.", "Close it with a tag, as in HTML."])
def test_a_reply_about_tags_is_a_reply(content: str) -> None:
    """Reasoning stands before it: a tag in the middle opens none."""
    signals = heuristics(("user", "How?"), ("assistant", content))
    assert (signals["reasoning_chars"], signals["assistant_chars"]) == (0, len(content))


def test_reasoning_that_was_cut_has_no_reply() -> None:
    """The tag is never closed: nothing was answered."""
    signals = heuristics(("user", "When?"), ("assistant", f"<think>{THOUGHT}"))
    assert (signals["empty_replies"], signals["reasoning_chars"]) == (1, len(THOUGHT))


def test_without_reasoning_its_share_is_unknown() -> None:
    """Null, never a zero that a rule would read; the counts are 0."""
    signals = heuristics(("user", "When?"), ("assistant", "At noon."))
    assert (signals["reasoning_chars"], signals["reasoning_share"], signals["reasoning_repetition"]) == (0, None, None)
    assert (signals["tool_calls"], signals["media_parts"], signals["ends_in_call"]) == (0, 0, False)


def test_media_are_counted_and_are_not_empty() -> None:
    """An image alone is something said."""
    signals = heuristics(("user", "", details(media=2)), ("assistant", "A pier at dusk."))
    assert (signals["media_parts"], signals["empty_turns"]) == (2, 0)


def test_conversations_are_measured_alike_beside_others() -> None:
    """Details of a neighbour do not move those of a conversation, with an empty conversation between them."""
    rich: list[Message] = [("user", "Tide?"), ("assistant", "", CALL), ("assistant", "High.", details(reasoning="Hm."))]
    whole = raw(rich, [], [("user", "Hi")], rich)
    measured = Heuristics().measure(whole)
    assert measured.equals(pl.concat([Heuristics().measure(whole[i : i + 1]) for i in range(4)]))


def merged(folder: Path, frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The merged signals of `dedup`, and its pairs."""
    stage = Dedup()
    save_frame(folder / "raw.parquet", frame)
    save_frame(folder / "measured.parquet", frame.select("id").hstack(stage.measure(frame.select(stage.reads))))
    stage.merge([folder / "raw.parquet"], [folder / "measured.parquet"], folder)
    return pl.read_parquet(folder / "merged" / "measured.parquet"), pl.read_parquet(folder / "dedup.parquet")


def test_conversations_that_call_different_functions_are_no_duplicates(tmp_path: Path) -> None:
    """However long the text that they share; the same calls are a copy, other arguments a near one."""

    def calling(name: str, arguments: str) -> list[Message]:
        return [("user", LONG), ("assistant", "", details([(name, arguments)])), ("tool", "done")]

    same = '{"order": 7}'
    several = [calling("cancel", same), calling("refund", same), calling("ship", same), calling("cancel", same)]
    signals, pairs = merged(
        tmp_path, raw(*several, calling("cancel", '{"order": 8}'), [("user", LONG), ("tool", "done")])
    )
    assert signals["exact_copies"].to_list() == [2, 1, 1, 2, 1, 1]
    assert pairs["id"].to_list() == ["c-0"]
    assert pairs["other"].to_list() == ["c-4"]
    assert pairs["jaccard"].item() < 1


def test_calls_in_tags_have_functions_too(tmp_path: Path) -> None:
    """Those of Hermes differ in one word of the text, and are no duplicates."""

    def calling(name: str) -> list[Message]:
        return [("user", LONG), ("assistant", f'<tool_call>{{"name": "{name}", "arguments": {{}}}}</tool_call>')]

    signals, pairs = merged(tmp_path, raw(calling("cancel"), calling("refund"), calling("cancel")))
    assert signals["exact_copies"].to_list() == [2, 1, 2]
    assert pairs.is_empty()


def test_plain_conversations_have_the_keys_that_they_had() -> None:
    """Beside one that calls a tool, too: bands and keys of the others stay."""
    plain: list[Message] = [("user", LONG), ("assistant", "Yes.")]
    alone = Dedup().measure(raw(plain))
    beside = Dedup().measure(raw(plain, [("user", LONG), ("assistant", "", CALL)]))
    assert beside[:1].equals(alone)
    assert not np.intersect1d(*(beside["band_keys"].to_list())).size


JSON = json.dumps({"rows": [{"id": i, "state": "zzqx"} for i in range(20)]})


def read_by(roles: tuple[str, ...] = (), read: tuple[str, ...] = ("content",)) -> list[str]:
    chat: list[Message] = [
        ("system", "Be kind."),
        ("user", "When is the tide?"),
        ("assistant", "One moment.", details([("tide", JSON)], "Ask for the tide.")),
        ("tool", JSON),
        ("assistant", "<think>So high.</think>At noon."),
    ]
    return prose_messages(raw(chat), roles, read)["content"].to_list()


def test_prose_is_neither_arguments_nor_output_nor_reasoning() -> None:
    """Unless it is asked for."""
    assert read_by() == ["Be kind.", "When is the tide?", "One moment.", "", "At noon."]
    assert read_by(roles=("tool",)) == ["", "", "", JSON, ""]
    assert read_by(read=("reasoning",)) == ["", "", "Ask for the tide.", "", "So high."]
    assert read_by(read=("content", "calls"))[2] == f"One moment.\ntide {JSON}"


def test_language_toxicity_and_perplexity_do_not_read_tools(tmp_path: Path) -> None:
    """The output of a tool changes none of their signals but the position of messages; with `roles` it does."""
    said: list[Message] = [("user", LONG), ("assistant", "The ferry lands below the mill, as it always did.")]
    abuse: Message = (
        "tool",
        "You are a stupid idiot and I hate you. Du bist ein sehr dummer Mensch, und das weiß jeder.",
    )
    both = raw([*said, abuse], said)
    language = Language().measure(both)
    assert language[0].equals(language[1])
    assert Language(roles=("tool",)).measure(both)["language"].to_list() != language["language"].to_list()
    toxicity = Toxicity()
    scored = toxicity.open(tmp_path)(both)
    assert scored["toxicity"][0] == scored["toxicity"][1]
    assert scored["toxicity_unread"].to_list() == [0, 0]
    assert scored["toxicity_turns"].list.len().to_list() == [3, 2]
    read = Toxicity(roles=("tool",)).open(tmp_path)(both)
    assert read["toxicity"][0] > 0.9
    (tmp_path / "text.txt").write_text(LONG.replace(". ", ".\n"))
    ppl = Perplexity(reference=str(tmp_path / "text.txt"))
    ppl.fit([], tmp_path / "ppl")
    scores = ppl.open(tmp_path / "ppl")(both)
    assert scores["ppl"][0] == scores["ppl"][1]


def test_answers_are_compared_without_their_reasoning() -> None:
    """Two conversations with one answer share it, whatever was thought before."""

    def answering(thought: str) -> list[Message]:
        return [("user", "When?"), ("assistant", thought + LONG)]

    thoughts = ("<think>One way.</think>", "<think>Another way.</think>", "")
    measured = Turns().measure(raw(*map(answering, thoughts)))
    assert measured["answer_keys"].n_unique() == measured["opening_key"].n_unique() == 1


@pytest.mark.parametrize("kind", [Language, Toxicity, Perplexity])
@pytest.mark.parametrize("read", [(), ("prose",)])
def test_what_cannot_be_read_is_refused(kind: type[Language | Toxicity | Perplexity], read: tuple[str, ...]) -> None:
    """With what there is to read."""
    with pytest.raises(StageParameterError, match="expected some of content, reasoning, calls"):
        kind(read=read)
