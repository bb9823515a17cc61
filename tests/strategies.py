"""Conversations as hypothesis draws them: ordinary, odd and hostile."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import polars as pl
from hypothesis import strategies as st

from pipeline.sources.messages import REASONING, Keys
from pipeline.sources.shapes import PROMPTS, REPLIES, SYSTEMS, THREADS, TOOLS
from stages.stage import RAW

ODD = [
    "",
    " ",
    "\n\n\n",
    "\0",
    "\ufffd\ufffd",
    "!!! ??? ...",
    "مرحبا بالعالم، كيف حالك اليوم؟",
    "\u202eright to left\u202c",
    "今天天气很好。我们去公园吧!",
    "e\u0301a\u0308 I\u0307 \u0130stanbul ß ﬁ ǅ",
    "👩‍👩‍👧‍👦 🇯🇵 \U0010ffff \ue000",
    "\u200b\u200d\u2028\u2029\x85\x1c",
    "```python\nprint('<script>alert(1)</script>')\n```",
    "\x1b[31mred\x1b[0m",
    "As an AI language model, I cannot do that.",
    "a" * 5000,
    "word " * 3000,
    "{}" * 500,
    "1234567890 " * 20,
    "' OR 1=1; -- $(rm -rf /) `id`",
]
"""Texts that have broken a tool of the field at some time."""

words = st.sampled_from(["the", "river", "runs", "under", "a", "stone", "bridge", "Hello", "please", "no", "42", "x_1"])
sentences = st.lists(words, min_size=1, max_size=12).map(lambda said: " ".join(said).capitalize() + ".")
texts = st.one_of(
    sentences,
    st.lists(sentences, min_size=2, max_size=6).map("\n".join),
    st.sampled_from(ODD),
    st.text(st.characters(codec="utf-8"), max_size=80),
)
roles = st.sampled_from(["user", "assistant", "user", "assistant", "system", "tool", "text"])
messages = st.fixed_dictionaries({"role": roles, "content": texts})
conversations = st.lists(messages, max_size=6)
corpora = st.lists(conversations, min_size=1, max_size=12)


def raw(made: Sequence[Sequence[dict[str, str]]], begin: int = 0) -> pl.DataFrame:
    """Conversations as a raw shard, numbered from `begin`."""
    rows = []
    for i, said in enumerate(made, begin):
        prompt = next((m["content"] for m in said if m["role"] == "user"), "")
        text = "\n".join(m["content"] for m in said)
        rows.append((f"test-{i:09d}", None, prompt, f"p{i}", list(said), text, "test", None, None, None))
    return pl.DataFrame(rows, schema=RAW, orient="row")


names = st.sampled_from(["topic", "score", "licence", "größe", "meta data", "\u202eodd", "extra"])
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(-1e9, 1e9), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=3)),
    max_leaves=6,
)
others = st.dictionaries(names, values, max_size=3)
"""Fields that no shape reads, nested ones and nulls included."""

functions = st.fixed_dictionaries({"name": st.sampled_from(["tide", "book_pier"]), "arguments": others.map(json.dumps)})
calls = st.fixed_dictionaries({"id": words, "type": st.just("function"), "function": functions})
flags = st.fixed_dictionaries(
    {},
    optional={
        "name": texts,
        "weight": st.sampled_from([0, 1, 0.5]),
        "train": st.booleans(),
        "reasoning_content": texts,
        "tool_call_id": words,
        "tool_calls": st.lists(calls, max_size=2),
        "header": values,
    },
)
parts = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, texts),
    st.builds(lambda text: {"type": "text", "value": text}, texts),
    st.just({"type": "image_url", "image_url": {"url": "file:a.png"}}),
    texts,
)
contents = st.one_of(texts, st.none(), st.lists(parts, max_size=3))


def _turns(role: str, text: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    spoken = st.sampled_from(["human", "gpt", "user", "Assistant", "tool", "observation", "narrator"])
    turn = st.builds(lambda who, what, more: {role: who, text: what, **more}, spoken, contents, flags)
    return st.lists(turn, min_size=1, max_size=4)


threads = st.one_of(_turns("role", "content"), _turns("from", "value"))
histories = st.lists(st.lists(texts, min_size=2, max_size=2), max_size=2)


def _record(**columns: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    more = st.fixed_dictionaries({}, optional={"id": words, "system": texts, "tools": st.lists(others, max_size=2)})
    return st.builds(lambda own, beside, rest: {**rest, **beside, **own}, st.fixed_dictionaries(columns), more, others)


_columns = st.sampled_from(
    [
        *THREADS,
        *PROMPTS,
        *REPLIES,
        *SYSTEMS,
        *TOOLS,
        "data",
        "chosen",
        "instruction",
        "history",
        "text",
        "id",
        "parent_id",
    ]
)
_keys = st.sampled_from(
    [
        *Keys().role,
        *Keys().text,
        *REASONING,
        "type",
        "text",
        "tool_calls",
        "function_call",
        "function",
        "arguments",
        "image",
    ]
)
_tags = ["[", "{}", '[{"role": 1}]', "<think>", "a</think>b", "<tool_call>", "\n\nHuman: a", "\n\nHuman:"]
_words = st.sampled_from(["user", "gpt", "function_call", "tool", "text", "tool_use", "tool_result", "human", *_tags])
_anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), _words, _words),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_keys, inner, max_size=4)),
    max_leaves=12,
)
_fields = st.dictionaries(_keys, _anything, max_size=4)
_chats = st.lists(st.builds(lambda role, more: {"role": role, **more}, _words, _fields), min_size=1, max_size=3)
hostile = st.builds(
    lambda rest, column, chat: {**rest, column: chat},
    st.dictionaries(_columns, _anything, max_size=4),
    _columns,
    st.one_of(_anything, _chats),
)
"""Records whose columns are those of shapes, and hold anything."""

records: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "ultrachat": _record(prompt=texts, prompt_id=words, messages=threads),
    "openai": _record(messages=st.one_of(threads, threads.map(json.dumps))),
    "sharegpt": _record(conversations=threads),
    "chat": _record(dialogue=threads),
    "ultrachat-original": st.fixed_dictionaries({"id": words, "data": st.lists(texts, max_size=4)}),
    "alpaca": _record(instruction=texts, input=texts, output=texts, history=histories),
    "prompt": _record(prompt=texts, completion=texts, label=st.booleans()),
    "preference": _record(prompt=texts, chosen=st.one_of(texts, threads), rejected=st.one_of(texts, threads)),
    "text": st.fixed_dictionaries({"text": texts, "topic": values}),
}
"""Records of every shape but tables of messages."""
