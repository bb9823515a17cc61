"""Ingest: any source becomes raw shards, with unreadable rows in quarantine."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from typing import Any

import polars as pl

from pipeline.ownership import check_run, claim, read_origin, read_shard_list, sweep
from pipeline.plan import PlanError
from pipeline.sources import Source, shapes
from pipeline.sources.rows import Row, SourceError, Unreadable, valid_text
from pipeline.store import RunFolderError, Store
from stages.files import read_frame, save_frame, save_json
from stages.stage import RAW

QUARANTINE = pl.Schema(
    {"id": pl.String(), "file": pl.String(), "row": pl.Int64(), "reason": pl.String(), "record": pl.String()}
)
"""Columns of a quarantine shard. `row` counts from 1 in its file; `record` is the original row, cut to
`RECORD_LIMIT`."""

RECORD_LIMIT = 1_000_000
"""Maximum length of a record in quarantine in characters."""
REASON_LIMIT = 1_000
"""Maximum length of a reason in quarantine in characters."""
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
    """The shape of the records; by default that of the first one."""

    def __post_init__(self) -> None:
        """Refuse an unknown shape by a PlanError."""
        if self.shape is not None and self.shape not in shapes.SHAPES:
            raise PlanError(f"--shape is {self.shape!r}, expected {shapes.expected()}")


@dataclass
class _Shard:
    conversations: list[tuple[Any, ...]] = field(default_factory=list)
    quarantined: list[tuple[Any, ...]] = field(default_factory=list)
    characters: int = 0

    def __len__(self) -> int:
        return len(self.conversations) + len(self.quarantined)


@dataclass
class _Count:
    rows: int = 0
    quarantined: int = 0
    replaced: int = 0
    first: str = ""

    def check(self, share: float, source: str) -> None:
        if self.quarantined > share * self.rows:
            raise SourceError(
                f"{self.quarantined:,} of {self.rows:,} rows of {source} cannot be read, more than the "
                f"{share:.2%} allowed; the first: {self.first}; see quarantine/: repair them, name their shape with "
                "--shape, or allow more with --max-unreadable"
            )


def ingest(
    source: Source, store: Store, limits: Limits, tell: Callable[[int], None] = lambda _rows: None
) -> dict[str, Any]:
    """Write the raw shards of a source and, last, their list. If the list exists, nothing is read.

    Returns the shard list: source, shape, rows, quarantined, replaced, shards, notes. `tell` is called with the number
    of rows read so far.

    Raises:
        SourceError: the source cannot be read, is empty, has no known shape, or has too many unreadable rows.
        RunFolderError: the folder belongs to another source.
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
    del identity["unreadable"]  # decides whether the run continues, not what it holds
    shard_list = read_shard_list(store)
    claim(store, identity, before, complete=shard_list is not None)
    if shard_list is None:
        save_json(store.source, identity)
        shard_list = _read_all(source, store, limits, identity["digest"], tell)
        shard_list["notes"] = [*shard_list.get("notes", ()), *_source_notes(source, store, shard_list)]
        save_json(store.shard_list, shard_list)
    sweep(store, shard_list["shards"])
    return shard_list


def _read_all(source: Source, store: Store, limits: Limits, digest: str, tell: Callable[[int], None]) -> dict[str, Any]:
    start = time.perf_counter()
    rows = source.rows()
    shape, rows = _shape(rows, limits.shape, source.name)
    count, shards = _Count(), []
    for number, shard in enumerate(_shards(islice(rows, limits.limit), digest, shape, limits, count)):
        name = f"{number:05d}.parquet"
        if shard.quarantined:
            save_frame(store.quarantine(name), pl.DataFrame(shard.quarantined, schema=QUARANTINE, orient="row"), {})
        save_frame(store.raw(name), pl.DataFrame(shard.conversations, schema=RAW, orient="row"), {})
        shards.append({"name": name, "rows": len(shard.conversations), "quarantined": len(shard.quarantined)})
        tell(count.rows)
        if count.rows >= MIN_ROWS:
            count.check(limits.unreadable, source.name)
    count.check(limits.unreadable, source.name)
    return {
        "source": source.name,
        "digest": digest,
        "shape": shape,
        "files": source.files(),
        "rows": count.rows,
        "quarantined": count.quarantined,
        "replaced": count.replaced,
        "seconds": round(time.perf_counter() - start, 3),
        "shards": shards,
    }


def _source_notes(source: Source, store: Store, shard_list: dict[str, Any]) -> Iterator[str]:
    """What is left out of the source's folder, and how many of the records' own ids are not unique."""
    if note := source.note(store.folder):
        yield note
    raw = [read_frame(store.raw(shard["name"]), ["source_id"])["source_id"] for shard in shard_list["shards"]]
    ids = pl.concat([column.drop_nulls().hash() for column in raw])
    if repeats := len(ids) - ids.n_unique():
        yield f"{repeats:,} of {len(ids):,} source ids repeat an earlier one: `source_id` is kept, `id` is unique"


def _shape(rows: Iterator[Row], shape: str | None, name: str) -> tuple[str, Iterator[Row]]:
    """The shape of the records, by default that of the first object, and all rows."""
    if shape is not None:
        return shape, rows
    seen: list[Row] = []
    for row in islice(rows, 1000):
        seen.append(row)
        if isinstance(row.value, dict):
            shape = shapes.recognise(list(row.value))
            if shape is None:
                raise SourceError(
                    f"{row.file}: a record with {_fields(row.value)} has none of the known "
                    f"shapes: {shapes.expected()}; rename the fields, or name a shape with --shape"
                )
            return shape, chain(seen, rows)
    if not seen:
        raise SourceError(f"{name} holds no rows: nothing to refine")
    first = seen[0].value
    why = first.reason if isinstance(first, Unreadable) else "the record is not an object"
    raise SourceError(f"{name}: none of the first {len(seen)} rows is a record; the first: {why}")


def _fields(record: dict[Any, Any]) -> str:
    names = [valid_text(str(name)[:100]) for name in islice(record, 20)]
    return ", ".join(names) + (" ..." if len(record) > len(names) else "") if names else "no fields"


def _shards(rows: Iterator[Row], digest: str, shape: str, limits: Limits, count: _Count) -> Iterator[_Shard]:
    """Rows in shards. Loops over rows, because each may be malformed in its own way and must not end the others."""
    shard = _Shard()
    for row in rows:
        identity = f"{digest}-{count.rows:09d}"
        count.rows += 1
        try:
            read = shapes.read(row.value, shape)
        except shapes.UnreadableRecordError as error:
            _put_aside(shard, identity, row, str(error), count)
        else:
            text = "\n".join(message["content"] for message in read.messages)
            count.replaced += row.replaced
            kept = (identity, *read[:4], text, read.source or row.file, read.extra)  # in the order of RAW
            shard.conversations.append(kept)
            shard.characters += _characters(kept) + sum(len(message["role"]) for message in read.messages)
        if len(shard) >= limits.rows or shard.characters >= limits.characters:
            yield shard
            shard = _Shard()
    if len(shard):
        yield shard


def _put_aside(shard: _Shard, identity: str, row: Row, reason: str, count: _Count) -> None:
    count.quarantined += 1
    reason = valid_text(reason[:REASON_LIMIT])
    count.first = count.first or f"{row.file}, row {row.number}: {reason}"
    record = row.value.record if isinstance(row.value, Unreadable) else shapes.as_json(row.value)
    put = (identity, row.file, row.number, reason, valid_text(record[:RECORD_LIMIT]))
    shard.quarantined.append(put)
    shard.characters += _characters(put)


def _characters(row: tuple[Any, ...]) -> int:
    return sum(len(value) for value in row if isinstance(value, str))
