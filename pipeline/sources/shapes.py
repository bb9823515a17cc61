"""Record shapes: how a source's record becomes a conversation."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from pipeline.sources.messages import (
    Details,
    Keys,
    Messages,
    UnreadableRecordError,
    as_json,
    joined,
    kind_of,
    parsed_json,
    read_messages,
    said,
    text_of,
)
from pipeline.sources.rows import SourceError, Unreadable

Record = Mapping[str, Any]

THREADS = ("messages", "conversations", "conversation", "dialogue", "dialog", "turns", "chat")
"""Columns that may hold a list of messages, the first present one counts."""
SYSTEMS = ("system", "system_prompt", "system_message")
"""Columns that may hold a system prompt beside the conversation."""
TOOLS = ("tools", "functions")
"""Columns that may hold descriptions of tools."""
PROMPTS = ("prompt", "question", "query", "input")
"""Columns that may hold what a reply answers."""
REPLIES = ("reply", "completion", "response", "output", "answer", "answers")
"""Columns that may hold the reply to a prompt."""
MEANINGS = ("messages", "role", "content", "system", "tools", "prompt", "reply", "text")
"""What `--map` can name a column for."""
SPEECH = frozenset((*THREADS, *PROMPTS, *REPLIES, "instruction", "chosen", "role", "from", "speaker", "parent_id"))
"""Columns beside `text` that show that a record is more than a plain document."""

_TRANSCRIPT = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")  # hh-rlhf


@dataclass(frozen=True)
class ColumnMap:
    """The columns that a user names: meaning -> column, or for `role` and `content` the field of a message."""

    columns: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str | Mapping[str, str] | None) -> "ColumnMap":
        """The map in "messages=thread,role=who"; raises `SourceError` if it is none."""
        given = _pairs(text) if isinstance(text, str) else list((text or {}).items())
        pairs = tuple((meaning.strip(), column.strip()) for meaning, column in given)
        for meaning, column in pairs:
            if meaning not in MEANINGS or not column:
                raise SourceError(
                    f"map has {f'{meaning}={column}'!r}, expected MEANING=COLUMN with one of {', '.join(MEANINGS)}"
                )
        return cls(pairs)

    @cached_property
    def keys(self) -> Keys:
        """The fields of a message, those that the user names first."""
        mine, usual = dict(self.columns), Keys()
        role, text = ((mine[name],) if name in mine else () for name in ("role", "content"))
        return Keys((*role, *usual.role), (*text, *usual.text))

    @cached_property
    def of_record(self) -> dict[str, str]:
        """Meaning -> column, without the fields of a message."""
        return {meaning: column for meaning, column in self.columns if meaning not in {"role", "content"}}

    def view(self, record: Record) -> Record:
        """The record with the named columns under the names of their meanings."""
        if not self.of_record:
            return record
        rest = {name: value for name, value in record.items() if name not in self.of_record.values()}
        return {**rest, **{meaning: record.get(column) for meaning, column in self.of_record.items()}}


USUAL = ColumnMap()
"""No columns are named."""


def _pairs(text: str) -> list[tuple[str, str]]:
    parts = [part.partition("=") for part in text.split(",") if part.strip()]
    return [(meaning, column) for meaning, _, column in parts]


class Conversation(NamedTuple):
    """A parsed record: a raw row without its id and the joined text."""

    source_id: str | None
    prompt: str
    prompt_id: str
    messages: list[dict[str, str]]
    source: str | None
    extra: str | None
    details: list[Details | None] | None
    tools: str | None


class Part(NamedTuple):
    """What a shape reads of a record: the messages, and the columns that they stand in."""

    messages: Messages
    columns: tuple[str, ...]


def _list(value: object, column: str, of: str) -> list[Any]:
    value = parsed_json(value) if isinstance(value, str) and isinstance(parsed_json(value), list) else value
    if not isinstance(value, list):
        what = f"{column} is {kind_of(value)}, expected a list of {of}"
        raise UnreadableRecordError(f"{what}, or JSON text of one" if isinstance(value, str) else what)
    return value


def _thread(*columns: str) -> Callable[[Record, Keys], Part]:
    def read(record: Record, keys: Keys) -> Part:
        column, value = columns[0], record.get(columns[0])
        if type(value) is not list:
            column = thread_of(record, columns) or next((name for name in columns if name in record), column)
            value = _list(record.get(column), column, "messages")
        return Part(read_messages(value, keys), (column,))

    return read


def thread_of(record: Record, columns: Sequence[str] = THREADS) -> str | None:
    """The first of these columns that holds a list of messages, of texts, or either as JSON text."""
    for name in columns:
        value = record.get(name)
        value = parsed_json(value) if isinstance(value, str) else value
        if isinstance(value, list) and (name != "turns" or not any(isinstance(one, str) for one in value)):
            return name
    return None


def _alternating(record: Record, _keys: Keys) -> Part:
    texts = [
        text_of(turn, f"entry {i} of data") for i, turn in enumerate(_list(record.get("data"), "data", "texts"), 1)
    ]
    return Part(
        Messages([{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(texts)]), ("data",)
    )


def _plain(record: Record, _keys: Keys) -> Part:
    return Part(said("text", text_of(record.get("text"), "text")), ("text",))


def _answered(*replies: str) -> Callable[[Record, Keys], Part]:
    """A reader of records with a reply in one of these columns, and beside it what the reply answers."""

    def read(record: Record, keys: Keys) -> Part:
        column = _first(record, replies) or replies[0]
        before, columns = _context(record, keys)
        reply = _reply(record.get(column), column, keys)
        if reply.messages and reply.messages[0]["role"] in {"user", "system"}:
            return Part(reply, (column,))  # the whole conversation, its prompt included
        return Part(joined(before, reply), (*columns, column))

    return read


def _first(record: Record, columns: Sequence[str]) -> str | None:
    return next((name for name in columns if record.get(name) is not None), None)


def _context(record: Record, keys: Keys) -> tuple[Messages, tuple[str, ...]]:
    """What a reply answers, and the columns that it stands in."""
    if thread := thread_of(record):
        return _thread(thread)(record, keys).messages, (thread,)
    if _first(record, ("instruction",)):
        text_of(record["instruction"], "instruction")
        columns = tuple(name for name in ("instruction", "input", "context") if isinstance(record.get(name), str))
        text = "\n".join(record[name] for name in columns if record[name].strip() or name == "instruction")
        now = said("user", text)
    elif prompt := _first(record, PROMPTS):
        value = record[prompt]
        columns = (prompt,)
        messages = value if isinstance(value, list) else parsed_json(value) if isinstance(value, str) else None
        whole = isinstance(messages, list) and all(isinstance(one, dict) for one in messages)
        now = read_messages(messages or [], keys) if whole else _transcript(text_of(value, prompt), "user")
    else:
        return Messages([]), ()
    past = record.get("history")
    if not isinstance(past, list):
        return now, columns
    turns = [text for pair in past for text in (pair if isinstance(pair, list) else [pair])]
    return joined(read_messages(turns, keys), now), (*columns, "history")


def _reply(value: object, column: str, keys: Keys) -> Messages:
    """A reply: a text, a message, or messages, either also as JSON text."""
    parsed = parsed_json(value) if isinstance(value, str) else value
    if isinstance(parsed, list) and parsed and all(isinstance(one, dict) for one in parsed):
        if all({"name", "arguments"} <= one.keys() for one in parsed):  # xlam: the reply is its calls
            return read_messages([{keys.role[0]: "assistant", "tool_calls": parsed}], keys)
        return read_messages(parsed, keys)
    if isinstance(parsed, dict) and any(name in parsed for name in (*keys.role, *keys.text)):
        role = next((parsed[name] for name in keys.role if parsed.get(name) is not None), "assistant")
        return read_messages([{**parsed, keys.role[0]: role}], keys)
    return _transcript(text_of(value, column), "assistant")


def _transcript(text: str, role: str) -> Messages:
    """The turns of a transcript in the form of hh-rlhf; any other text is one message of the role."""
    if not text.startswith("\n\nHuman:"):
        return said(role, text)
    turns = _TRANSCRIPT.split(text)[1:]
    pairs = [
        ("user" if who == "Human" else "assistant", what) for who, what in zip(turns[::2], turns[1::2], strict=True)
    ]
    if role == "user" and pairs[-1] == ("assistant", ""):
        pairs.pop()  # the reply stands in another column
    return joined(*(said(*pair) for pair in pairs))


class RecordShape(NamedTuple):
    """A record shape: what such a record has, and the function that reads its messages."""

    describes: str
    read: Callable[[Record, Keys], Part]


SHAPES: dict[str, RecordShape] = {
    "ultrachat": RecordShape("prompt, prompt_id, messages: [{role, content}]", _thread("messages")),
    "ultrachat-original": RecordShape("id, data: [text, text, ...]", _alternating),
    "sharegpt": RecordShape("conversations: [{from, value}]", _thread("conversations")),
    "openai": RecordShape("messages: [{role, content}]", _thread("messages")),
    "chat": RecordShape("conversation, dialogue, dialog, turns or chat: [{role, content}]", _thread(*THREADS[2:])),
    "alpaca": RecordShape("instruction, input, output, history", _answered(*REPLIES)),
    "prompt": RecordShape("prompt, completion or response; question, answer", _answered(*REPLIES)),
    "preference": RecordShape("prompt or messages, chosen, rejected", _answered("chosen")),
    "oasst": RecordShape("message_id, parent_id, role, text: every path from a root", _thread("messages")),
    "oasst-best": RecordShape("the same with rank: the best-ranked path of each root", _thread("messages")),
    "text": RecordShape("text", _plain),
}


def recognise(record: Record, columns: ColumnMap = USUAL) -> str | None:
    """The shape of a record, or None."""
    view = columns.view(record)
    if "text" in columns.of_record:
        return "text"
    if {"message_id", "parent_id", "role", "text"} <= view.keys():
        return "oasst"
    thread = thread_of(view) or next((name for name in THREADS[:2] if name in view), None)
    if "chosen" in view and "reply" not in view and not (thread and _ends_in_reply(view, thread, columns.keys)):
        return "preference"
    if "reply" not in view and thread:
        names = {"messages": "ultrachat" if "prompt_id" in view else "openai", "conversations": "sharegpt"}
        return names.get(thread, "chat")
    if isinstance(view.get("data"), list):
        return "ultrachat-original"
    is_text = "text" in view and not SPEECH & view.keys()
    return _shape_of_reply(view) or ("text" if is_text else None)


def _shape_of_reply(record: Record) -> str | None:
    if not any(name in record for name in REPLIES):
        return None
    answers = "reply" in record or any(name in record for name in PROMPTS)
    return "alpaca" if "instruction" in record else "prompt" if answers else None


def _ends_in_reply(record: Record, thread: str, keys: Keys) -> bool:
    try:
        messages = _thread(thread)(record, keys).messages.messages
    except UnreadableRecordError:
        return False
    return bool(messages) and messages[-1]["role"] == "assistant"


def expected() -> str:
    """The known shapes, for an error message."""
    return "; ".join(f"{name} ({shape.describes})" for name, shape in SHAPES.items())


_OWN = ("id", "source_id", "prompt_id", "source")
_SYSTEM_NAMES, _TOOL_NAMES = frozenset(SYSTEMS), frozenset(TOOLS)
_ANSWERED = ("alpaca", "prompt", "preference")


def _name(record: Record, *keys: str) -> str | None:
    for key in keys:
        value = record.get(key)
        if value is not None and value != "":
            return value if isinstance(value, str) else as_json(value) if isinstance(value, list | dict) else str(value)
    return None


def prompt_id(prompt: str) -> str:
    """The id of a prompt whose record has none, by which equal prompts have equal ids."""
    return hashlib.sha256(prompt.encode("utf-8", "replace")).hexdigest()


def read(record: object, shape: str, columns: ColumnMap = USUAL) -> Conversation:
    """Read a record of a shape; raises `UnreadableRecordError` if the record is not a conversation of this shape."""
    if isinstance(record, Unreadable):
        raise UnreadableRecordError(record.reason)
    if not isinstance(record, dict):
        raise UnreadableRecordError(
            f"the record is {kind_of(record)}, expected an object with {SHAPES[shape].describes}"
        )
    view = columns.view(record) if columns.columns else record
    try:
        (messages, details), used = SHAPES[shape].read(view, columns.keys)
    except UnreadableRecordError as error:
        if lacks := [column for column in columns.of_record.values() if column not in record]:
            raise UnreadableRecordError(
                f"{error} (the record has no column {lacks[0]!r}, which the map names)"
            ) from error
        raise
    if shape != "text" and (system := _system(view, messages)):
        messages, details = joined(said("system", view[system]), Messages(messages, details))
        used = (*used, system)
    prompt = view.get("prompt")
    if isinstance(prompt, str) and shape not in _ANSWERED:
        used = (*used, "prompt")
    else:
        prompt = next((m["content"] for m in messages if m["role"] == "user"), "")
    tools = _tools(view) if shape != "text" and not _TOOL_NAMES.isdisjoint(view) else None
    if tools:
        used = (*used, tools)
    identity = _name(view, "prompt_id") or prompt_id(prompt)
    extra = _extra(record, [columns.of_record.get(name, name) for name in used])
    names = _name(view, "id", "source_id"), _name(view, "source")
    described = None if tools is None else view[tools] if isinstance(view[tools], str) else as_json(view[tools])
    return Conversation(names[0], prompt, identity, messages, names[1], extra, details, described)


def _extra(record: Record, used: Sequence[str]) -> str | None:
    """The fields that stand nowhere else, as JSON."""
    rest = {k: v for k, v in record.items() if v is not None and k not in _OWN and k not in used}
    return as_json(rest) if rest else None


def _tools(record: Record) -> str | None:
    return next((name for name in TOOLS if record.get(name)), None)


def _system(record: Record, messages: Sequence[Mapping[str, str]]) -> str | None:
    """The column of the system prompt that stands beside a conversation without one."""
    if _SYSTEM_NAMES.isdisjoint(record) or (messages and messages[0]["role"] == "system"):
        return None
    return next((name for name in SYSTEMS if isinstance(record.get(name), str) and record[name].strip()), None)
