"""A message of a record: its role, its text, and what it holds beside them (tool calls, reasoning, media, flags)."""

import base64
import json
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import orjson

from pipeline.sources.rows import valid_text

CALL = "call"
"""The role of ShareGPT's messages that are a tool call; such a message becomes the assistant's."""

ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "ai", "chatbot", "chatgpt", "bing", "bard"), "assistant"),
    **dict.fromkeys(("claude", "llm"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "function_response", "observation", "tool_response", "ipython"), "tool"),
    **dict.fromkeys(("function_call", "tool_call", "tool_calls"), CALL),
    "text": "text",
}
"""Role names in common corpora, and the names used here; other roles keep their names, in lower case."""

KNOWN = frozenset(ROLES.values())
"""The roles that stages know."""

REASONING = ("reasoning_content", "reasoning", "thinking", "thought")
"""Fields of a message that hold reasoning; the first with text counts."""

Details = dict[str, Any]
"""What a message holds beside role and content, in the fields of `stages.stage.DETAILS`."""

_TEXT_PARTS = (None, "text", "input_text", "output_text", "refusal")
_CALL_PARTS = ("tool_use", "tool_call", "function_call")
_TEXT_KEYS = ("text", "value", "content", "refusal")
_CALL_FIELDS = ("tool_calls", "function_call")
_READ = frozenset((*REASONING, *_CALL_FIELDS))
_NONE: Details = {"calls": None, "reasoning": None, "media": 0}
_SPEAKERS = ("user", "assistant", "system")


class UnreadableRecordError(ValueError):
    """A record is not a conversation. The message says what it has and what was expected."""


class Keys(NamedTuple):
    """The fields of a message that may hold its role and its text, the first present one counts."""

    role: tuple[str, ...] = ("role", "from")
    text: tuple[str, ...] = ("content", "value")


class Messages(NamedTuple):
    """The messages of a conversation, and their details: None if no message has any."""

    messages: list[dict[str, str]]
    details: list[Details | None] | None = None


def joined(*parts: Messages) -> Messages:
    """The messages of all parts, in order."""
    details = [one for part in parts for one in part.details or [None] * len(part.messages)]
    return Messages([one for part in parts for one in part.messages], details if any(details) else None)


def kind_of(value: object) -> str:
    """The JSON type of a value, for an error message."""
    names = {dict: "an object", list: "a list", str: "text", type(None): "null", bool: "a boolean"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def text_of(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise UnreadableRecordError(f"{name} is {kind_of(value)}, expected text")
    return value


def said(role: str, text: str) -> Messages:
    """One message of text."""
    return Messages([{"role": role, "content": text}])


def read_messages(values: Sequence[Any], keys: Keys) -> Messages:
    """Read a list of messages, or of texts, of which the first is the user's and the next the assistant's.

    Raises:
        UnreadableRecordError: an entry is no message.
    """
    if values and isinstance(values[0], str) and all(isinstance(value, str) for value in values):
        parsed = [parsed_json(value) for value in values]
        if not all(isinstance(value, dict) for value in parsed):
            return Messages([{"role": ("user", "assistant")[i % 2], "content": v} for i, v in enumerate(values)])
        values = parsed
    messages: list[dict[str, str]] = []
    details: list[Details | None] = []
    role_key, text_key = _keys_of(values[0], keys) if values else ("", "")
    for number, value in enumerate(values, 1):
        role, text = (value.get(role_key), value.get(text_key)) if type(value) is dict else (None, None)
        if type(role) is str and type(text) is str and ROLES.get(role, CALL) is not CALL:  # the usual message
            others = _others(value, role_key, text_key) if len(value) > 2 else None  # noqa: PLR2004  those two
            if not others or _READ.isdisjoint(others):
                messages.append({"role": ROLES[role], "content": text})
                details.append({**_NONE, "fields": as_json(others)} if others else None)
                continue
        for message, detail in _entry(number, value, keys):
            messages.append(message)
            details.append(detail)
    return Messages(messages, details if any(details) else None)


def _others(message: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {name: value for name, value in message.items() if value is not None and name not in keys}


def _keys_of(message: object, keys: Keys) -> tuple[str, str]:
    """The names of the fields of role and text in a message; the first ones if there are none."""
    has = message if isinstance(message, dict) else {}
    if has.get(keys.role[0]) is not None and has.get(keys.text[0]) is not None:
        return keys.role[0], keys.text[0]
    role, text = (next((k for k in names if has.get(k) is not None), None) for names in keys)
    return role or keys.role[0], text or next((k for k in keys.text if k in has), keys.text[0])


def _entry(number: int, value: object, keys: Keys) -> list[tuple[dict[str, str], Details | None]]:
    if not isinstance(value, dict):
        raise UnreadableRecordError(
            f"message {number} is {kind_of(value)}, expected an object with {keys.role[0]}, {keys.text[0]}"
        )
    if all(value.get(key) is None for key in keys.role):
        pair = {name: text for name, text in value.items() if text is not None}
        if pair and all(ROLES.get(name) in _SPEAKERS and isinstance(text, str) for name, text in pair.items()):
            return [({"role": ROLES[name], "content": text}, None) for name, text in pair.items()]  # {human, assistant}
    return [_message(number, value, keys)]


def _message(number: int, message: Mapping[str, Any], keys: Keys) -> tuple[dict[str, str], Details | None]:
    role_key, text_key = _keys_of(message, keys)
    if message.get(role_key) is None:
        raise UnreadableRecordError(f"{role_key} of message {number} is null, expected text (found: {_names(message)})")
    role = text_of(message.get(role_key), f"{role_key} of message {number}").strip().lower()
    role = ROLES.get(role, role)
    parts, content = _Parts(), message.get(text_key)
    others = _others(message, role_key, text_key)
    if role == CALL:
        role, content = "assistant", parts.add_call_text(content)
    elif isinstance(content, list | dict):
        content = content if isinstance(content, list) else [content]
        role = "tool" if content and all(_is_result(part) for part in content) else role
        content = parts.add(number, content)
    for name in _CALL_FIELDS:
        if name in others and (calls := _calls(others[name])) is not None:
            del others[name]
            parts.calls += calls
    if content is None and (text_key in message or parts.calls or any(name in others for name in REASONING)):
        content = ""  # a message that is a tool call has null content, or none
    return {"role": role, "content": text_of(content, f"{text_key} of message {number}")}, parts.details(others)


def _names(value: Mapping[str, Any]) -> str:
    return ", ".join(valid_text(str(name)[:100]) for name in islice(value, 10)) or "nothing"


def _is_result(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "tool_result"


class _Parts:
    """What is collected from a message besides its text."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.reasoning: list[str] = []
        self.media = 0
        self.whole: Sequence[Any] | None = None

    def add(self, number: int, parts: Sequence[Any]) -> str:
        """The text of the parts of a message."""
        texts = [text for part in parts if (text := self._part(number, part)) is not None]
        if self.media or any(map(_is_result, parts)):
            self.whole = parts  # its text does not tell all
        return "\n".join(texts)

    def _part(self, number: int, part: object) -> str | None:
        if isinstance(part, str):
            return part
        if not isinstance(part, dict):
            raise UnreadableRecordError(f"message {number} has {kind_of(part)}, expected text")
        kind = part.get("type")
        text: str | None = next((part[key] for key in _TEXT_KEYS if isinstance(part.get(key), str)), None)
        if kind in _TEXT_PARTS and text is not None:
            return text
        if kind in _CALL_PARTS:
            self.calls += _calls(part) or []
        elif _is_result(part):
            content = part.get("content")
            return self.add(number, content) if isinstance(content, list) else text
        elif kind in REASONING and isinstance(thought := part.get(kind, text), str):
            self.reasoning.append(thought)
        elif kind in _TEXT_PARTS and not {key for key in part if part[key] is not None} - {"type", *_TEXT_KEYS}:
            raise UnreadableRecordError(f"a part of message {number} has no text (found: {_names(part)})")
        else:
            self.media += 1
        return None

    def add_call_text(self, content: object) -> str:
        """The text of a message that is a call; empty if the call can be read."""
        calls = _calls(content) or []
        self.calls += calls
        return content if isinstance(content, str) and any(not call["function"]["name"] for call in calls) else ""

    def details(self, others: dict[str, Any]) -> Details | None:
        """The details of the message, whose other fields are `others`; None if there is nothing."""
        thought = None
        if not _READ.isdisjoint(others):
            thought = next((others[k] for k in REASONING if isinstance(others.get(k), str) and others[k]), None)
        reasoning = thought or ("\n".join(self.reasoning) or None)
        if self.calls:
            others["tool_calls"] = self.calls
        if self.reasoning and not thought:
            others["reasoning_content"] = reasoning
        if self.whole is not None:
            others["parts"] = self.whole
        if not others:
            return None
        calls = [call["function"] for call in self.calls] or None
        return {"calls": calls, "reasoning": reasoning, "media": self.media, "fields": as_json(others)}


def _calls(value: object) -> list[dict[str, Any]] | None:
    """Tool calls in OpenAI's form, their arguments as JSON text; None if the value holds none.

    The value is a call, a list of calls, or either as JSON text. Text that is not JSON is one call without a name.
    """
    if isinstance(value, str):
        parsed = parsed_json(value)
        if parsed is None:
            return [_call({"name": "", "arguments": value})] if value.strip() else None
        value = parsed
    entries: list[Any] = value if isinstance(value, list) else [value]
    calls = [parsed_json(entry) if isinstance(entry, str) else entry for entry in entries]
    return [_call(call) for call in calls] if calls and all(isinstance(call, dict) for call in calls) else None


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    inner = function if isinstance(function, dict) else call
    name = inner.get("name", function)
    arguments: Any = next(
        (inner[key] for key in ("arguments", "parameters", "input") if inner.get(key) is not None), {}
    )
    written = {
        "name": name if isinstance(name, str) else "",
        "arguments": arguments if isinstance(arguments, str) else as_json(arguments),
    }
    identity, kind = call.get("id"), call.get("type")
    return {
        "id": identity if isinstance(identity, str) else None,
        "type": kind if isinstance(kind, str) and kind not in _CALL_PARTS else "function",
        "function": written,
    }


def parsed_json(text: str) -> Any:  # noqa: ANN401  any JSON
    """The object or list that a text holds as JSON, else None."""
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        return orjson.loads(text)
    except (orjson.JSONDecodeError, RecursionError):
        return None


def as_json(value: object) -> str:
    """Any value of a record as JSON; a value that JSON cannot express becomes text, bytes in base64."""
    try:
        return orjson.dumps(value, default=_as_text, option=orjson.OPT_NON_STR_KEYS).decode()
    except (orjson.JSONEncodeError, RecursionError):  # an integer of more than 64 bits, a surrogate, nesting
        pass
    try:
        return valid_text(json.dumps(value, default=_as_text, ensure_ascii=False))
    except (RecursionError, ValueError, TypeError):
        return json.dumps(f"{kind_of(value)} that JSON cannot hold")


def _as_text(value: object) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
