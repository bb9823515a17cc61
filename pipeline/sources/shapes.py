"""Record shapes: how a source's record becomes a conversation."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from pipeline.sources.rows import Unreadable, valid_text

ROLES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "claude": "assistant",
    "model": "assistant",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
}
"""Role names in ShareGPT and similar corpora, and the names used here; other roles keep their names."""


class UnreadableRecordError(ValueError):
    """A record is not a conversation. The message says what it has and what was expected."""


class Conversation(NamedTuple):
    """A parsed record: a raw row without its id and the joined text."""

    source_id: str | None
    prompt: str
    prompt_id: str
    messages: list[dict[str, str]]
    source: str | None
    extra: str | None


Record = Mapping[str, Any]


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", type(None): "null", bool: "a boolean"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise UnreadableRecordError(f"{name} is {_kind(value)}, expected text")
    return value


def _list(record: Record, column: str, of: str) -> list[Any]:
    value = record.get(column)
    if not isinstance(value, list):
        raise UnreadableRecordError(f"{column} is {_kind(value)}, expected a list of {of}")
    return value


def _parts(number: int, parts: Sequence[Any]) -> str:
    texts = []
    for part in parts:
        if not (isinstance(part, Mapping) and isinstance(part.get("text"), str)):
            kind = f"a part of type {part.get('type')!r}" if isinstance(part, Mapping) else _kind(part)
            raise UnreadableRecordError(f"message {number} has {kind}, expected text")
        texts.append(part["text"])
    return "\n".join(texts)


def _message(number: int, message: object, role_key: str, text_key: str) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise UnreadableRecordError(
            f"message {number} is {_kind(message)}, expected an object with {role_key}, {text_key}"
        )
    role = _text(message.get(role_key), f"{role_key} of message {number}").strip().lower()
    content = message.get(text_key)
    if content is None and text_key in message:
        content = ""  # a tool call in OpenAI's format has null content
    if isinstance(content, list):
        content = _parts(number, content)
    return {"role": ROLES.get(role, role), "content": _text(content, f"{text_key} of message {number}")}


def _messages(column: str, role_key: str, text_key: str) -> Callable[[Record], list[dict[str, str]]]:
    def read(record: Record) -> list[dict[str, str]]:
        messages = enumerate(_list(record, column, "messages"), 1)
        return [_message(i, message, role_key, text_key) for i, message in messages]

    return read


def _alternating(record: Record) -> list[dict[str, str]]:
    texts = [_text(turn, f"entry {i} of data") for i, turn in enumerate(_list(record, "data", "texts"), 1)]
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def _plain(record: Record) -> list[dict[str, str]]:
    return [{"role": "text", "content": _text(record.get("text"), "text")}]


class RecordShape(NamedTuple):
    """A record shape: the column that identifies it, a description, and the function that reads its messages."""

    column: str
    describes: str
    messages: Callable[[Record], list[dict[str, str]]]


SHAPES: dict[str, RecordShape] = {
    "ultrachat": RecordShape(
        "messages", "prompt, prompt_id, messages: [{role, content}]", _messages("messages", "role", "content")
    ),
    "ultrachat-original": RecordShape("data", "id, data: [text, text, ...]", _alternating),
    "sharegpt": RecordShape(
        "conversations", "conversations: [{from, value}]", _messages("conversations", "from", "value")
    ),
    "openai": RecordShape("messages", "messages: [{role, content}]", _messages("messages", "role", "content")),
    "text": RecordShape("text", "text", _plain),
}


def recognise(columns: Sequence[str]) -> str | None:
    """The shape of a record with these columns, or None."""
    if "messages" in columns:
        return "ultrachat" if "prompt_id" in columns else "openai"
    for name in ("sharegpt", "ultrachat-original", "text"):
        if SHAPES[name].column in columns:
            return name
    return None


def expected() -> str:
    """The known shapes, for an error message."""
    return "; ".join(f"{name} ({shape.describes})" for name, shape in SHAPES.items())


_OWN = ("id", "source_id", "prompt", "prompt_id", "source")


def _name(record: Record, *keys: str) -> str | None:
    for key in keys:
        value = record.get(key)
        if value is not None and value != "":
            return value if isinstance(value, str) else as_json(value) if isinstance(value, list | dict) else str(value)
    return None


def read(record: object, shape: str) -> Conversation:
    """Read a record of a shape; raises `UnreadableRecordError` if the record is not a conversation of this shape."""
    if isinstance(record, Unreadable):
        raise UnreadableRecordError(record.reason)
    if not isinstance(record, Mapping):
        raise UnreadableRecordError(f"the record is {_kind(record)}, expected an object with {SHAPES[shape].describes}")
    messages = SHAPES[shape].messages(record)
    prompt = record.get("prompt")
    if not isinstance(prompt, str):
        prompt = next((m["content"] for m in messages if m["role"] == "user"), "")
    prompt_id = _name(record, "prompt_id") or hashlib.sha256(prompt.encode("utf-8", "replace")).hexdigest()
    rest = {k: v for k, v in record.items() if k not in _OWN and k != SHAPES[shape].column and v is not None}
    extra = as_json(rest) if rest else None
    return Conversation(_name(record, "id", "source_id"), prompt, prompt_id, messages, _name(record, "source"), extra)


def as_json(value: object) -> str:
    """Any value of a record as JSON; a value that JSON cannot express becomes text."""
    try:
        return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except (orjson.JSONEncodeError, RecursionError):  # an integer of more than 64 bits, a surrogate, nesting
        pass
    try:
        return valid_text(json.dumps(value, default=str, ensure_ascii=False))
    except (RecursionError, ValueError, TypeError):
        return json.dumps(f"{_kind(value)} that JSON cannot hold")
