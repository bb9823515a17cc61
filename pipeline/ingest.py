"""Ingest: any source becomes raw shards, with unreadable rows in quarantine."""

import difflib
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate, chain, groupby, islice
from typing import Any

import numpy as np
import polars as pl

from pipeline.engine import Engine
from pipeline.ownership import changes, check_run, claim, read_origin, read_shard_list, sweep
from pipeline.plan import PlanError
from pipeline.sources import Source, pieces, shapes, trees
from pipeline.sources.fields import MAX_FIELDS, Fields
from pipeline.sources.messages import KNOWN, ROLES, UnreadableRecordError, as_json
from pipeline.sources.rows import Piece, Row, SourceError, Unreadable, row_id, valid_text
from pipeline.sources.shapes import ColumnMap
from pipeline.store import RunFolderError, Store, read_json
from stages import columns
from stages.files import exists, read_frame, remove, save_conversations, save_frame, save_json, sizes_in
from stages.stage import RAW, require

QUARANTINE = pl.Schema(
    {"id": pl.String(), "file": pl.String(), "row": pl.Int64(), "reason": pl.String(), "record": pl.String()}
)
"""Columns of a quarantine shard. `row` counts from 1 in its file; `record` is the original row, cut to
`RECORD_LIMIT`."""

RECORD_LIMIT = 1_000_000
"""Maximum length of a record in quarantine in characters."""
REASON_LIMIT = 1_000
"""Maximum length of a reason in quarantine in characters."""
TOLD = 10_000
"""Rows after which the progress of reading is reported, besides after each shard."""
BYTES_PER_SECOND = 40_000_000
"""About the bytes of JSON Lines that one process reads in a second, by which workers are worth their start."""
MIN_SHARDS = 2
"""Minimum number of shards that are worth several processes."""
MAX_TRIES = 1_000
"""Maximum number of rows that are read to find the shape of a file."""
MIN_ROWS = 1_000
"""Minimum number of rows before the share of unreadable ones can end an ingest early."""


@dataclass(frozen=True)
class Limits:
    """How a source is split into shards, and what share of it may be unreadable."""

    rows: int = 2_000
    """Maximum number of rows of a shard."""
    characters: int = 200_000_000
    """Target size of a shard and its quarantine in characters; a shard ends after the row that reaches it."""
    limit: int | None = None
    """Maximum number of rows to read; all by default."""
    unreadable: float = 0.01
    """Maximum share of unreadable rows."""
    shape: str | None = None
    """The shape of the records; by default that of the first one of each file."""
    map: ColumnMap = shapes.USUAL
    """Columns that the user names."""
    sample: float | None = None
    """Share of the conversations to take; all by default. A hash of roles and contents decides, so that the same ones
    are taken from the source in any order, format or number of files, and copies are taken together."""

    @classmethod
    def of(cls, origin: Mapping[str, Any]) -> "Limits":
        """The limits in a run's source.json."""
        columns = ColumnMap.parse(origin.get("map"))
        shape, sample = origin["shape"], origin.get("sample")
        return cls(origin["rows"], origin["characters"], origin["limit"], shape=shape, map=columns, sample=sample)

    def __post_init__(self) -> None:
        """Refuse an unknown shape by a PlanError, and a number out of its range by a StageParameterError."""
        require("--limit", self.limit, self.limit is None or self.limit >= 1, "at least 1")
        require("--shard-rows", self.rows, self.rows >= 1, "at least 1")
        require("--max-unreadable", self.unreadable, 0 <= self.unreadable <= 1, "a share from 0 to 1")
        if self.shape is not None and self.shape not in shapes.SHAPES:
            raise PlanError(f"--shape is {self.shape!r}, expected {shapes.expected()}")
        if self.sample is not None and not 0 < self.sample <= 1:
            raise PlanError(f"--sample is {self.sample:g}, expected a share above 0 and up to 1, such as 1% or 0.01")

    def draws(self, text: str) -> bool:
        """Whether the sample holds a conversation, whose roles and contents are the text."""
        if self.sample is None:
            return True
        digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
        return int.from_bytes(digest) < self.sample * 2**64


@dataclass
class _Shard:
    conversations: list[tuple[Any, ...]] = field(default_factory=list)
    quarantined: list[tuple[Any, ...]] = field(default_factory=list)
    characters: int = 0

    def __len__(self) -> int:
        return len(self.conversations) + len(self.quarantined)


@dataclass
class _Count:
    seen: int = 0
    """Rows of the source so far, of which a sample takes some."""
    rows: int = 0
    quarantined: int = 0
    replaced: int = 0
    first: str = ""
    shapes: dict[str, list[str]] = field(default_factory=dict)
    """Files by the shape of their records."""
    roles: Counter[str] = field(default_factory=Counter)
    """Messages by role, of the roles that no stage knows."""
    fields: Fields = field(default_factory=Fields)
    tools: bool = False
    shards: list[dict[str, Any]] = field(default_factory=list)
    """As the shard list names them."""

    def add(self, later: "_Count") -> None:
        """Count in the rows that follow."""
        self.seen, self.tools = later.seen, self.tools or later.tools
        self.rows += later.rows
        self.quarantined += later.quarantined
        self.replaced += later.replaced
        self.first = self.first or later.first
        self.roles.update(later.roles)
        self.fields.add_kinds(later.fields.kinds)
        self.shards += later.shards

    def save(self, store: Store) -> None:
        """Save the counts, so that a stream that breaks off need not be read from its beginning."""
        save_json(store.progress, {**vars(self), "fields": self.fields.kinds})

    @classmethod
    def load(cls, store: Store) -> "_Count":
        """The counts of an interrupted ingest; those of none if there was none, or a shard of it is gone."""
        if not exists(store.progress):
            return cls()
        try:
            values = read_json(store.progress)
            count = cls(**{**values, "roles": Counter(values["roles"]), "fields": Fields()})
            count.fields.add_kinds(values["fields"])
            shards = {str(shard["name"]) for shard in count.shards}
        except (RunFolderError, KeyError, TypeError, AttributeError):
            return cls()
        return count if shards <= sizes_in(store.raw("")).keys() else cls()

    def check(self, share: float, source: str) -> None:
        if self.quarantined > share * self.rows:
            raise SourceError(
                f"{self.quarantined:,} of {self.rows:,} rows of {source} cannot be read, more than the "
                f"{share:.2%} allowed; the first: {self.first}; see quarantine/: repair them, name their shape with "
                "--shape or their fields with --map, or allow more with --max-unreadable"
            )


def ingest(
    source: Source,
    store: Store,
    limits: Limits,
    tell: Callable[[int], None] = lambda _rows: None,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Write the raw shards of a source and, last, their list. If the list exists, nothing is read.

    Returns the shard list: source, shape, rows, quarantined, replaced, shards, notes. `tell` is called with the number
    of rows read so far. The engine, if any, reads large files of JSON Lines and Parquet; the shards are the same.

    Raises:
        SourceError: the source cannot be read, is empty, has no known shape, or has too many unreadable rows.
        RunFolderError: the folder belongs to another source.
    """
    shard_list = read_shard_list(store)
    source, identity, changed = check(source, store, limits, complete=shard_list is not None)
    if shard_list is None:
        claim(store, changed, goes_on=source.rows_after(0) is not None)
        save_json(store.source, identity)
        shard_list = _read_all(source, _Task(store, limits, identity["digest"]), tell, engine)
        sizes_in(store.folder, anew=True)
        shard_list["notes"] = [*shard_list.get("notes", ()), *_source_notes(source, store, shard_list)]
        save_json(store.shard_list, shard_list)
    if exists(store.progress):
        remove(store.progress)
    sweep(store, shard_list["shards"])
    return shard_list


def check(source: Source, store: Store, limits: Limits, *, complete: bool) -> tuple[Source, dict[str, Any], list[str]]:
    """The source as it is read, its source.json, and by which keys the one in the folder differs from that.

    Writes nothing. `complete`: the folder holds all of an ingest.

    Raises:
        RunFolderError: no run can write there, or the folder belongs to another source.
    """
    check_run(store)
    if inside := [path for path in source.paths() if path.resolve().is_relative_to(store.folder.resolve())]:
        raise RunFolderError(
            f"{store.folder} holds {valid_text(str(inside[0]))} of {source.name}, and a run would overwrite it: "
            "choose another --out"
        )
    before = read_origin(store)
    source = source.again(before)
    identity = {"source": source.name, "digest": source.digest(), **asdict(limits), **source.origin()}
    del identity["unreadable"], identity["map"]  # the first decides whether the run continues, not what it holds
    if limits.map.columns:
        identity["map"] = dict(limits.map.columns)
    if limits.sample is None:
        del identity["sample"]
    return source, identity, changes(store, identity, before, complete=complete)


@dataclass(frozen=True)
class _Task:
    """Reads the rows of a shard and writes it; picklable."""

    store: Store
    limits: Limits
    digest: str

    def __call__(self, key: str) -> tuple[int, "_Count | None"]:
        """The number of the shard, and what it counts; None if the rows make more than one shard.

        `key` is JSON: the number, that of the first row in the source, and the pieces with their shapes.
        """
        number, seen, pieces = json.loads(key)
        count = _Count(seen=seen, fields=Fields(sys.maxsize))
        shards = _shards(_piece_rows(pieces), self.digest, self.limits, count)
        shard = next(shards)
        if next(shards, None) is not None:
            return number, None
        self.save(number, shard, count)
        return number, count

    def save(self, number: int, shard: _Shard, count: _Count) -> None:
        """Write a shard and its quarantine."""
        name = f"{number:05d}.parquet"
        if shard.quarantined:
            frame = pl.DataFrame(shard.quarantined, schema=QUARANTINE, orient="row")
            save_frame(self.store.quarantine(name), frame, {})
        save_conversations(self.store.raw(name), pl.DataFrame(shard.conversations, schema=RAW, orient="row"), {})
        count.shards.append({"name": name, "rows": len(shard.conversations), "quarantined": len(shard.quarantined)})


def _read_all(source: Source, task: _Task, tell: Callable[[int], None], engine: Engine | None) -> dict[str, Any]:
    start, limits, count = time.perf_counter(), task.limits, _Count.load(task.store)

    def check() -> None:
        tell(count.seen)
        if count.rows >= MIN_ROWS:
            count.check(limits.unreadable, source.name)

    goes_on = source.rows_after(0) is not None
    keys = _keys(source, limits, engine, count.shapes) if engine else []
    rows: Iterator[tuple[str, Row]]
    if engine and keys:
        _read_apart(task, keys, engine, count, check)
        rows = chain.from_iterable(_piece_rows(json.loads(key)[-1]) for key in keys[len(count.shards) :])
    else:
        rows = _rows_left(source, limits, count)
    for shard in _shards(rows, task.digest, limits, count, tell):
        task.save(len(count.shards), shard, count)
        if goes_on and not any(shape.startswith("oasst") for shape in count.shapes):
            count.save(task.store)
        check()
    count.check(limits.unreadable, source.name)
    if limits.sample is not None and not count.rows:
        raise SourceError(
            f"{source.name}: a sample of {limits.sample:g} of its {count.seen:,} rows is empty: take more"
        )
    return {
        "source": source.name,
        "digest": task.digest,
        "shape": ", ".join(count.shapes),
        "files": source.files(),
        "rows": count.rows,
        **({} if limits.sample is None else {"sample": {"share": limits.sample, "rows": count.seen}}),
        "quarantined": count.quarantined,
        "replaced": count.replaced,
        "seconds": round(time.perf_counter() - start, 3),
        "notes": _notes(count),
        "fields": count.fields.kinds,
        "tools": count.tools,
        "shards": count.shards,
    }


def _rows_left(source: Source, limits: Limits, count: _Count) -> Iterator[tuple[str, Row]]:
    """Rows with their shapes: all, or those of a stream that an interrupted ingest has not read."""
    left = source.rows_after(count.seen) if count.seen else None
    if left is None:
        return _shaped(source, limits, count.shapes)
    shape = next(iter(count.shapes))  # a stream is one file
    return ((shape, row) for row in islice(left, None if limits.limit is None else limits.limit - count.seen))


def _keys(source: Source, limits: Limits, engine: Engine, files: dict[str, list[str]]) -> list[str]:
    """The keys of `_Task` for a source that is worth several processes; none if it must be read in order.

    `files` collects files by shape.
    """
    seconds = sum(path.stat().st_size for path in source.paths()) / BYTES_PER_SECOND
    if engine.processes(MIN_SHARDS, seconds) == 1 or limits.sample is not None:  # where a sample is cut is not known
        return []
    cut = source.pieces(limits.rows) or []
    cut = cut if limits.limit is None else _first(cut, limits.limit)
    default = limits.shape or (_shape(_rows(cut), limits.map, source.name)[0] if cut else "")
    shape_of = {}
    for file, some in groupby(cut, key=lambda piece: piece.file):
        shape_of[file] = limits.shape or _shape(_rows(some), limits.map, source.name, default)[0]
    if any(shape.startswith("oasst") for shape in shape_of.values()):
        return []  # a conversation is made of many rows
    for file, shape in shape_of.items():
        files.setdefault(shape, []).append(file)
    seen = accumulate((piece.rows for piece in cut), initial=0)
    shards = groupby(zip(seen, cut, strict=False), key=lambda each: each[0] // limits.rows)
    return [json.dumps([n, n * limits.rows, [(shape_of[p.file], p) for _, p in some]]) for n, some in shards]


def _first(some: Sequence[Piece], limit: int) -> list[Piece]:
    """The pieces up to a number of rows."""
    seen = accumulate((piece.rows for piece in some), initial=0)
    cut = (piece._replace(rows=min(piece.rows, limit - n)) for n, piece in zip(seen, some, strict=False))
    return [piece for piece in cut if piece.rows > 0]


def _rows(some: Iterable[Piece]) -> Iterator[Row]:
    return chain.from_iterable(map(pieces.rows_of, some))


def _piece_rows(some: Sequence[tuple[str, Sequence[Any]]]) -> Iterator[tuple[str, Row]]:
    """Rows with the shapes of their pieces, as in a key of `_Task`."""
    return ((shape, row) for shape, piece in some for row in pieces.rows_of(Piece(*piece)))


def _read_apart(task: _Task, keys: list[str], engine: Engine, count: _Count, check: Callable[[], None]) -> None:
    """Read shards by an engine, and count them in order.

    If one reaches `Limits.characters` before it has all its rows, neither it nor the shards after it count: they are
    cut elsewhere.
    """
    parts: dict[int, _Count | None] = {}
    for _, (number, part) in engine.map(task, keys):
        parts[number] = part
        while (counted := parts.pop(len(count.shards), None)) is not None:
            count.add(counted)
            check()


def _source_notes(source: Source, store: Store, shard_list: dict[str, Any]) -> Iterator[str]:
    """What is left out of the source's folder, and how many of the records' own ids are not unique."""
    if note := source.note(store.folder):
        yield note
    raw = (read_frame(store.raw(shard["name"]), ["source_id"])["source_id"] for shard in shard_list["shards"])
    hashes = columns.write((column.drop_nulls().hash().to_numpy() for column in raw), np.uint64, store.folder)
    if repeats := len(hashes) - len(columns.unique(hashes, store.folder)):
        yield f"{repeats:,} of {len(hashes):,} source ids repeat an earlier one: `source_id` is kept, `id` is unique"


def rows_of(source: Source, limits: Limits) -> Iterator[Row]:
    """The rows that ingest makes conversations of, numbered from 0 by the ids of the conversations."""
    return (row for _, row in _shaped(source, limits, {}))


def _shaped(source: Source, limits: Limits, files: dict[str, list[str]]) -> Iterator[tuple[str, Row]]:
    """Rows with the shape of their file, by default that of its first object; `files` collects files by shape."""
    shape = limits.shape or ""
    rows: Iterator[Row] = islice(source.rows(), limits.limit)
    if not shape:
        shape, rows = _shape(rows, limits.map, source.name)
    for file, group in groupby(rows, key=lambda row: row.file):
        of_file, members = (shape, group) if limits.shape else _shape(group, limits.map, source.name, shape)  # noqa: B031
        files.setdefault(of_file, []).append(file)
        if of_file.startswith("oasst"):
            members = trees.conversations(members, best=of_file == "oasst-best")
        for row in members:
            yield of_file, row


def _shape(rows: Iterator[Row], columns: ColumnMap, name: str, default: str = "") -> tuple[str, Iterator[Row]]:
    """The shape of the first object, or the default if none of the first `MAX_TRIES` rows is one, and all rows."""
    seen: list[Row] = []
    for row in islice(rows, MAX_TRIES):
        seen.append(row)
        if isinstance(row.value, dict):
            shape = shapes.recognise(row.value, columns)
            if shape is None:
                raise SourceError(_unknown(row))
            return shape, chain(seen, rows)
    if default:
        return default, chain(seen, rows)
    if not seen:
        raise SourceError(f"{name} holds no rows: nothing to refine")
    first = seen[0].value
    why = first.reason if isinstance(first, Unreadable) else "the record is not an object"
    raise SourceError(f"{name}: none of the first {len(seen)} rows is a record; the first: {why}")


def recognise(source: Source, limits: Limits) -> str:
    """The shape of a source's records, of which one of the first `MAX_TRIES` must be one.

    Raises:
        SourceError: the source cannot be read, is empty, has no known shape, or none of these can be read.
    """
    rows: Iterator[Row] = islice(source.rows(), limits.limit)
    shape, rows = (limits.shape, rows) if limits.shape else _shape(rows, limits.map, source.name)
    first = ""
    for row in islice(rows, MAX_TRIES):
        try:
            if not shape.startswith("oasst"):  # a conversation is made of many rows
                shapes.read(row.value, shape, limits.map)
        except UnreadableRecordError as error:
            first = first or f"{row.file}, row {row.number}: {error}"
        else:
            return shape
    raise SourceError(f"{source.name}: none of the first rows can be read as {shape}; the first: {first}")


def _unknown(row: Row) -> str:
    if "text" in row.value:
        others = ", ".join(sorted(shapes.SPEECH & row.value.keys()))
        return (
            f"{row.file}: a record with text and {others} is more than a plain document: say which columns hold what "
            "with --map, such as --map prompt=question,reply=text, or read the text alone with --shape text"
        )
    return (
        f"{row.file}: a record with {_fields(row.value)} has none of the known shapes: {', '.join(shapes.SHAPES)}; "
        "name its columns with --map, such as --map messages=thread,role=who,content=body, or name a shape with --shape"
    )


def _notes(count: _Count) -> list[str]:
    """Sentences for the user about how the records were read."""
    notes = []
    if len(count.shapes) > 1:
        each = [f"{shape} in {_several(files)}" for shape, files in count.shapes.items()]
        notes.append(f"the files have several shapes: {'; '.join(each)}")
    if "preference" in count.shapes:
        files = _several(count.shapes["preference"])
        notes.append(
            f"{files}: of each pair, chosen is read, rejected is kept in extra; --map reply=rejected reads the other"
        )
    if count.fields.omitted:
        notes.append(
            f"messages have more than {MAX_FIELDS} different fields: refined/ and rejected/ have the {MAX_FIELDS} that "
            "occur first, raw/ has all"
        )
    if count.replaced:
        notes.append(
            f"{count.replaced:,} of {count.rows:,} rows hold invalid text, which was replaced by U+FFFD: if a file is "
            "in another encoding than UTF-8, convert it"
        )
    if count.roles:
        each = [_role(role, messages) for role, messages in count.roles.most_common(10)]
        notes.append(f"roles that are not known, whose messages are neither the user's nor a reply: {', '.join(each)}")
    return notes


def _several(files: list[str]) -> str:
    return files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1:,} more"


def _role(role: str, messages: int) -> str:
    near = difflib.get_close_matches(role, ROLES, n=1)
    hint = f", did you mean {near[0]}?" if near else ""
    return f"{valid_text(role[:100])!r} ({messages:,} message{'s' * (messages > 1)}{hint})"


def _fields(record: dict[Any, Any]) -> str:
    names = [valid_text(str(name)[:100]) for name in islice(record, 20)]
    return ", ".join(names) + (" ..." if len(record) > len(names) else "") if names else "no fields"


def _shards(
    rows: Iterator[tuple[str, Row]],
    digest: str,
    limits: Limits,
    count: _Count,
    tell: Callable[[int], None] = lambda _rows: None,
) -> Iterator[_Shard]:
    """Rows in shards. Loops over rows, because each may be malformed in its own way and must not end the others."""
    shard = _Shard()
    for shape, row in rows:
        identity = row_id(digest, count.seen)
        count.seen += 1
        if count.seen % TOLD == 0:
            tell(count.seen)
        try:
            read = shapes.read(row.value, shape, limits.map)
        except UnreadableRecordError as error:
            if limits.draws(_record(row)):
                _put_aside(shard, identity, row, str(error), count)
        else:
            if limits.sample is not None and not limits.draws(_spoken(read)):
                continue
            count.rows += 1
            text = "\n".join(message["content"] for message in read.messages)
            count.replaced += row.replaced
            kept = (identity, *read[:4], text, read.source or row.file, *read[5:])  # in the order of RAW
            shard.conversations.append(kept)
            shard.characters += _characters(kept) + _inspect(read, count)
        if len(shard) >= limits.rows or shard.characters >= limits.characters:
            yield shard
            shard = _Shard()
    if len(shard):
        yield shard


def _inspect(read: shapes.Conversation, count: _Count) -> int:
    """Characters of the roles and details; counts unknown roles, and the fields of messages."""
    characters = 0
    for message in read.messages:
        characters += len(message["role"])
        if message["role"] not in KNOWN:
            count.roles[message["role"]] += 1
    for detail in read.details or ():
        if detail is not None:
            count.fields.add(detail["fields"])
            characters += len(detail["fields"]) + len(detail["reasoning"] or "")
    count.tools |= read.tools is not None
    return characters


def _spoken(read: shapes.Conversation) -> str:
    return "\0".join(part for message in read.messages for part in (message["role"], message["content"]))


def _record(row: Row) -> str:
    return row.value.record if isinstance(row.value, Unreadable) else as_json(row.value)


def _put_aside(shard: _Shard, identity: str, row: Row, reason: str, count: _Count) -> None:
    count.rows += 1
    count.quarantined += 1
    reason = valid_text(reason[:REASON_LIMIT])
    count.first = count.first or f"{row.file}, row {row.number}: {reason}"
    put = (identity, row.file, row.number, reason, valid_text(_record(row)[:RECORD_LIMIT]))
    shard.quarantined.append(put)
    shard.characters += _characters(put)


def _characters(row: tuple[Any, ...]) -> int:
    return sum(len(value) for value in row if isinstance(value, str))
