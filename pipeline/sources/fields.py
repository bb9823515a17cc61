"""The fields of messages beside role and content, as typed fields of the output."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import polars as pl

from pipeline.sources.messages import as_json

MAX_FIELDS = 64
"""Maximum number of fields that messages of the output have; those that occur first. The rest stay in raw/."""

_CALLS = pl.List(
    pl.Struct(
        {"id": pl.String(), "type": pl.String(), "function": pl.Struct({"name": pl.String(), "arguments": pl.String()})}
    )
)
TYPES: dict[str, pl.DataType] = {
    "boolean": pl.Boolean(),
    "integer": pl.Int64(),
    "number": pl.Float64(),
    "text": pl.String(),
    "json": pl.String(),  # values of several types, or nested ones
    "calls": _CALLS,
}
"""Types of a column, by the kind of its values."""


class Fields:
    """The fields of a corpus's messages, and the kind of their values, in the order in which they occur."""

    def __init__(self, most: int = MAX_FIELDS) -> None:
        self.kinds: dict[str, str] = {}
        self.most = most
        self.omitted = False
        """Whether there are more."""

    def add(self, fields: str) -> None:
        """Count in the fields of a message, which are a JSON object."""
        self.add_kinds({name: _kind(name, value) for name, value in loads(fields).items()})

    def add_kinds(self, kinds: Mapping[str, str]) -> None:
        """Count in fields, in order, by the kind of their values."""
        for name, kind in kinds.items():
            before = self.kinds.get(name)
            if before is None and len(self.kinds) < self.most:
                self.kinds[name] = kind
            elif before is None:
                self.omitted = True
            elif before != kind:
                self.kinds[name] = "number" if {before, kind} == {"integer", "number"} else "json"


def loads(fields: str) -> dict[str, Any]:
    """The fields of a message from JSON text, which may hold integers of more than 64 bits."""
    try:
        value: dict[str, Any] = orjson.loads(fields)
    except orjson.JSONDecodeError:
        value = json.loads(fields)
    return value


def _kind(name: str, value: object) -> str:
    if name == "tool_calls" and isinstance(value, list) and all(isinstance(v, dict) and "function" in v for v in value):
        return "calls"
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        return "json"
    names = {bool: "boolean", int: "integer", float: "number", str: "text"}
    return names.get(type(value), "json")


def with_fields(messages: pl.Series, details: pl.Series, kinds: Mapping[str, str]) -> pl.Series:
    """Messages with further fields of these kinds, null where a message does not have one.

    Loops over messages that have such fields, because each holds them as JSON.
    """
    rows = pl.DataFrame({"messages": messages, "details": details}).with_row_index("row")
    none = pl.col("messages").list.eval(pl.lit(None, pl.String))
    fields = pl.col("details").list.eval(pl.element().struct.field("fields"))
    each = rows.select("row", "messages", fields=pl.when(pl.col("details").is_null()).then(none).otherwise(fields))
    each = each.filter(pl.col("messages").list.len() > 0).explode("messages", "fields")
    records = [loads(text) if text is not None else {} for text in each["fields"]]
    columns = [_column(name, kind, records) for name, kind in kinds.items()]
    whole = each.unnest("messages").select("row", pl.struct("role", "content", *columns).alias("messages"))
    lists = whole.group_by("row", maintain_order=True).agg("messages")
    empty = rows.filter(pl.col("messages").list.len() == 0).select("row")
    empty = empty.with_columns(pl.Series("messages", [[]] * len(empty), lists.schema["messages"]))
    return pl.concat([lists, empty]).sort("row")["messages"]


def _column(name: str, kind: str, records: Sequence[Mapping[str, Any]]) -> pl.Series:
    values = [record.get(name) for record in records]
    if kind == "json":
        values = [value if isinstance(value, str | None) else as_json(value) for value in values]
    return pl.Series(name, values, TYPES[kind])
