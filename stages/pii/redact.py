"""Redaction: personal data in the rows of a frame, replaced by placeholders such as <EMAIL>."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from stages.pii.find import SCREEN, spans


@dataclass(frozen=True)
class Redaction:
    """The kinds of personal data that are replaced, and the regions whose telephone numbers are found."""

    kinds: tuple[str, ...]
    regions: tuple[str, ...]

    def frame(self, frame: pl.DataFrame, columns: Sequence[str]) -> tuple[pl.DataFrame, pl.Series]:
        """The frame with all text in these columns redacted, at any depth, and the number of items in each row."""
        screened = frame.select(pl.any_horizontal(_text(frame, name).str.contains(SCREEN) for name in columns))
        rows = screened.to_series().fill_null(value=False).arg_true()
        items = pl.zeros(frame.height, pl.UInt32, eager=True)
        if not len(rows):
            return frame, items
        counts, changed = [], []
        for row in frame[rows].iter_rows(named=True):  # the few rows that may hold any
            found: list[int] = []
            changed.append({**row, **{name: self._value(row[name], found) for name in columns}})
            counts.append(sum(found))
        others = frame.with_row_index("at").filter(~pl.col("at").is_in(rows.implode()))
        own = pl.DataFrame(changed, frame.schema, orient="row").insert_column(0, rows.cast(pl.UInt32).alias("at"))
        return pl.concat([others, own]).sort("at").drop("at"), items.scatter(rows, counts)

    def text(self, text: str) -> str:
        return self._text(text, [])

    def _value(self, value: Any, found: list[int]) -> Any:  # noqa: ANN401 - any column
        """A value with its strings redacted."""
        if isinstance(value, str):
            return self._text(value, found)
        if isinstance(value, list):
            return [self._value(one, found) for one in value]
        if isinstance(value, dict):
            return {name: self._value(one, found) for name, one in value.items()}
        return value

    def _text(self, text: str, found: list[int]) -> str:
        if text.lstrip()[:1] in {"{", "["} and (inside := self._json(text, found)) is not None:
            return inside
        parts, end = [], 0
        for span in spans(text, self.regions, self.kinds):
            parts += [text[end : span.start], f"<{span.kind.upper()}>"]
            end = span.stop
            found.append(1)
        return "".join((*parts, text[end:]))

    def _json(self, text: str, found: list[int]) -> str | None:
        """JSON with its strings redacted, or None if the text is not JSON."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return None
        before = len(found)
        redacted = self._value(value, found)
        return json.dumps(redacted, ensure_ascii=False) if len(found) > before else text


def _text(frame: pl.DataFrame, name: str) -> pl.Expr:
    """A column as one text per row, which holds all strings of a nested value."""
    column = pl.col(name)
    kind = frame.schema[name]
    if kind == pl.String:
        return column
    if isinstance(kind, pl.List):
        return column.list.eval(pl.element().struct.json_encode()).list.join("\n")
    return column.struct.json_encode()
