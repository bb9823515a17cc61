"""What `refine dedup` reads: columns of Parquet or JSON files in batches, and the texts in them.

A file that cannot be read, or lacks a column, is a `SourceError`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import polars as pl

from pipeline.sources import SourceError, record_files
from stages import readers
from stages.readers import UnreadableFileError
from stages.stage import reason
from stages.text.corpus import TEXTS

BATCH_BYTES = 1 << 25
"""Target size of a batch in bytes."""
CALLS = ("tool_calls", "function_call")
"""Fields of a message that calls a tool."""
CONTENTS: pl.DataType = pl.List(pl.Struct(dict.fromkeys(TEXTS, pl.String())))
MESSAGES: pl.DataType = pl.List(pl.Struct(dict.fromkeys((*TEXTS, *CALLS), pl.String())))
"""Messages of JSON files; what is no text is JSON text."""
MAX_LINES = 1000
"""Maximum number of lines in which the first value of a JSON column is looked for; `Columns.schema` has parsed them."""
MAX_BYTES = 1 << 20
"""Size in bytes of a batch of these lines."""
MAX_NAMES = 20
"""Maximum number of columns that an error names."""
MAX_ROWS = 3
"""Maximum number of rows that a fault of ids names."""


@dataclass(frozen=True)
class Columns:
    """The rows of some files, numbered consecutively.

    Attributes:
        name: of the file or folder, as it was typed.
        paths: the files; tables without rows, and empty shards before the first record, are omitted.
        schema: columns of the first file. Those of JSON are the fields of its first records, of type Unknown.
        note: what the folder holds besides; see `Listing.note`.
    """

    name: str
    paths: tuple[Path, ...]
    schema: pl.Schema
    note: str

    @classmethod
    def of(cls, path: Path) -> Columns:
        """The columns of a file or of the files in a folder; a `SourceError` if there is no file, or no row."""
        listing = record_files(path)
        paths = [*filter(_may_have_rows, listing.paths)]
        while paths:
            with reading(paths[0]):
                if schema := readers.schema(paths[0]):
                    return cls(str(path), tuple(paths), schema, listing.note())
            paths.pop(0)
        raise SourceError(f"{path} holds no rows: nothing to compare")

    def whole_schema(self) -> pl.Schema:
        """Columns with their types. Types in JSON are inferred from all records."""
        if not any(map(is_json, self.paths)):
            return self.schema
        union = pl.DataFrame()
        for path in self.paths:
            with reading(path):
                for frame in readers.frames(path, size=BATCH_BYTES):
                    union = pl.concat([union, frame.clear()], how="diagonal_relaxed")
        return union.schema

    def parts(self, schema: pl.Schema) -> Iterator[pl.DataFrame]:
        """Columns of all rows in batches, cast to the types in `schema`. A field that a JSON record lacks is null."""
        for path in self.paths:
            with reading(path):
                yield from readers.frames(path, schema, BATCH_BYTES)


def is_json(path: Path) -> bool:
    """Whether a file holds JSON, whose columns have no types."""
    return readers.ending(path) in readers.JSON


def listed(schema: pl.Schema) -> str:
    """The names of at most `MAX_NAMES` columns, for an error."""
    return ", ".join(islice(schema, MAX_NAMES)) + (" ..." if len(schema) > MAX_NAMES else "") if schema else "none"


def _may_have_rows(path: Path) -> bool:
    """Whether a file is JSON, which then lacks no column, or a table with rows."""
    if is_json(path):
        return True
    with reading(path):
        columns = pl.Schema(list(readers.schema(path).items())[:1])
        return any(map(len, readers.frames(path, columns, 1)))


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Name the file in errors of reading."""
    try:
        yield
    except UnreadableFileError as error:
        raise SourceError(f"{path} {error}: convert or repair it, or choose another file") from error
    except (pl.exceptions.PolarsError, OSError) as error:
        raise SourceError(f"{path} cannot be read ({reason(error)}): repair it, or choose another file") from error


@dataclass(frozen=True)
class TextColumn:
    """A column of some files: text, or lists of messages, whose text is all contents joined by a newline.

    Tables of text hold a list of messages as JSON; then `as_json` is true.
    """

    columns: Columns
    name: str
    kind: pl.DataType
    as_json: bool = False

    @classmethod
    def of(cls, columns: Columns, name: str) -> TextColumn:
        """The column `name`, of text or conversations, else a `SourceError`; `messages` instead of a missing `text`."""
        schema = columns.schema
        if name == "text" and name not in schema and "messages" in schema:
            name = "messages"
        if name not in schema:
            there = f"there are {listed(schema)}"
            raise SourceError(f"{columns.name} has no column {name!r}: name one with --column ({there})")
        for path in filter(is_json, columns.paths[1:]):
            with reading(path):
                if (fields := readers.schema(path)) and name not in fields:
                    raise SourceError(f"{path} has no column {name!r}, which the first file has")
        kind = schema[name]
        if kind == pl.Unknown:
            kind = _json_kind(columns, name)
        turn = kind.inner if isinstance(kind, pl.List) else None
        conversation = isinstance(turn, pl.Struct) and any(pl.Field(name, pl.String) in turn.fields for name in TEXTS)
        if (kind.is_nested() and not conversation) or kind.is_numeric():
            raise SourceError(
                f"{columns.name}: the column {name!r} is {kind}, expected text, or a list of messages with role and "
                f"content (text)"
            )
        if conversation:
            return cls(columns, name, kind)
        return cls(columns, name, pl.String(), _is_json_of_messages(columns, name))

    def parts(self) -> Iterator[pl.Series]:
        """All texts in parts; null is the empty text."""
        for part in self.columns.parts(pl.Schema({self.name: self.kind})):
            texts = self._decode(part[self.name]) if self.as_json else part[self.name]
            if texts.dtype != pl.String:
                self._refuse_calls(part[self.name])
                texts = self._joined(texts)
            yield texts.fill_null("")

    def _joined(self, messages: pl.Series) -> pl.Series:
        """The text of each conversation; a SourceError if no message has one, since all would seem to be copies."""
        fields = messages.dtype.inner.fields  # type: ignore[attr-defined]
        has = [one.name for one in fields if one.name in TEXTS and one.dtype == pl.String]
        contents = messages.list.eval(pl.coalesce(*(pl.element().struct.field(name) for name in has)))
        if contents.list.len().sum() and not contents.list.drop_nulls().list.len().sum():
            raise SourceError(
                f"{self.columns.name}: no message of the column {self.name!r} has {' or '.join(TEXTS)}: name another "
                "column, or take `refine run --stages dedup`, which reads all shapes"
            )
        return contents.list.eval(pl.element().fill_null("")).list.join("\n")

    def _refuse_calls(self, messages: pl.Series) -> None:
        """Refuse messages that call tools: their contents alone do not tell whether two conversations are alike."""
        if messages.dtype == pl.String:
            found = messages.str.contains(rf'"(?:{"|".join(CALLS)})"\s*:\s*(?:"[^"]|\{{|\[\s*[^\s\]])')
        else:
            fields = [one for one in messages.dtype.inner.fields if one.name in CALLS]  # type: ignore[attr-defined]
            if not fields:
                return
            calls = pl.any_horizontal([_calls(pl.element(), one) for one in fields]).fill_null(value=False)
            found = messages.list.eval(calls).list.any()
        if found.any():
            raise SourceError(
                f"{self.columns.name}: messages of the column {self.name!r} call tools, and `refine dedup` compares "
                "contents alone: take `refine run --stages dedup`, which compares calls too"
            )

    def _decode(self, texts: pl.Series) -> pl.Series:
        try:
            return texts.str.json_decode(CONTENTS)
        except pl.exceptions.PolarsError as error:
            raise SourceError(
                f"{self.columns.name}: the column {self.name!r} begins with messages as JSON text and ends otherwise "
                f"({reason(error)[:200]}): repair it, or name another column"
            ) from error


def _calls(message: pl.Expr, field: pl.Field) -> pl.Expr:
    """Whether a field of a message holds a call."""
    value = message.struct.field(field.name)
    if field.dtype == pl.String:
        return value.is_not_null() & ~value.is_in(["", "[]", "null"])
    return (value.list.len() > 0) if isinstance(field.dtype, pl.List) else value.is_not_null()


def _is_json_of_messages(columns: Columns, name: str) -> bool:
    """Whether the first text of a column is a list of messages in JSON."""
    with reading(columns.paths[0]):
        parts = readers.frames(columns.paths[0], pl.Schema({name: pl.String()}), MAX_BYTES)
        text = next((part[name].drop_nulls().first() for part in parts), None)
    try:
        value = json.loads(str(text))
    except (ValueError, RecursionError):
        return False
    return (
        isinstance(value, list) and bool(value) and all(isinstance(one, dict) and one.keys() & TEXTS for one in value)
    )


def _json_kind(columns: Columns, name: str) -> pl.DataType:
    """Whether the first value of a JSON column that is not null is a conversation; else it is read as text."""
    path = columns.paths[0]
    with reading(path):
        lines = (line for _, batch in readers.lines(path, MAX_BYTES) for line in batch)
        for number, line in enumerate(islice(lines, MAX_LINES), 1):
            if line.strip():
                value = readers.parse(line, number).get(name)
                if isinstance(value, list):
                    texts = all(
                        isinstance(one, dict) and not any(isinstance(one.get(name), list | dict) for name in TEXTS)
                        for one in value
                    )
                    return MESSAGES if texts else pl.List(pl.Unknown())
                if value is not None:
                    break
    return pl.String()


@dataclass
class Ids:
    """A column of ids as text, in parts, iterated more than once; up to `most` bytes of ids are kept in memory."""

    columns: Columns
    name: str
    most: int = 1 << 26
    _kept: list[pl.Series] | None = None

    def __iter__(self) -> Iterator[pl.Series]:
        if self._kept is not None:
            yield from self._kept
            return
        kept, size = list[pl.Series](), 0.0
        for part in self.columns.parts(pl.Schema({self.name: pl.String()})):
            ids = part[self.name].rename("id").fill_null("")
            size += ids.estimated_size()
            kept = [*kept, ids] if size <= self.most else []
            yield ids
        self._kept = kept if size <= self.most else None

    def fault(self) -> str:
        """What keeps the ids from naming every row; empty if nothing does. Memory: 24 bytes per row."""
        keys = pl.concat([pl.Series([], dtype=pl.UInt64), *(ids.hash() for ids in self)])
        empty = keys == pl.Series([""]).hash()[0]
        for fault, rows in (("is empty", empty), ("repeats an earlier id", ~keys.is_first_distinct())):
            if len(at := rows.arg_true()):
                more = f" and {len(at) - MAX_ROWS:,} more" if len(at) > MAX_ROWS else ""
                names = ", ".join(map(str, at.head(MAX_ROWS)))
                return f"{fault} in row{'s' * (len(at) > 1)} {names}{more} (counted from 0)"
        return ""


@dataclass
class Texts:
    """The texts of one or more corpora, one after the other, iterated more than once.

    Up to `most` bytes of texts are kept in memory; larger corpora are read again. `counts` has the rows of each corpus,
    once they have been iterated, and `tell` is called with the number of rows read so far.
    """

    corpora: Sequence[TextColumn]
    most: int = 1 << 28
    tell: Callable[[int], None] | None = None
    counts: list[int] = field(default_factory=list)
    _kept: list[pl.Series] = field(default_factory=list)
    _whole: bool = False

    def __iter__(self) -> Iterator[pl.Series]:
        if self._whole:
            yield from self._kept
            return
        self._kept, self.counts, size = [], [], 0.0
        for corpus in self.corpora:
            self.counts.append(0)
            for texts in corpus.parts():
                self.counts[-1] += len(texts)
                size += texts.estimated_size()
                self._kept = [*self._kept, texts] if size <= self.most else []
                if self.tell:
                    self.tell(sum(self.counts))
                yield texts
        self._whole = size <= self.most
