"""Signals and decisions of a run, read back from its folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.plan import Plan
from pipeline.rules import Pairs
from pipeline.store import Store
from stages.files import read_frame
from stages.stage import (
    CorruptInputError,
    GlobalStage,
)


def signals_of(plan: Plan, store: Store, shard: str, columns: Sequence[str]) -> pl.DataFrame:
    """Signals of a shard: `id` and the columns asked for, rows as in the raw shard.

    Raises:
        CorruptInputError: a signal file cannot be read, or is of other conversations.
    """
    found = read_frame(store.raw(shard), ["id"])
    for path, names in _files(plan, store, shard, set(columns)):
        part = read_frame(path, ["id", *names])
        if not part["id"].equals(found["id"]):
            raise CorruptInputError(path, "its ids are not those of the raw shard")
        found = found.hstack(part.drop("id"))
    return found.select("id", *columns)


def _files(plan: Plan, store: Store, shard: str, columns: set[str]) -> Iterator[tuple[Path, list[str]]]:
    for measured in plan.stages:
        folder, stage = store.stage(measured.key), measured.stage
        if names := [name for name in stage.writes if name in columns]:
            yield folder / shard, names
        if isinstance(stage, GlobalStage) and (names := [name for name in stage.merges if name in columns]):
            yield folder / "merged" / shard, names


def pairs_of(plan: Plan, store: Store, kinds: Sequence[str]) -> dict[str, Pairs]:
    """Duplicates of the kinds that rules name, as the stages found them.

    Raises:
        CorruptInputError: a file of pairs cannot be read.
    """
    found = {}
    for kind in dict.fromkeys(kinds):
        measured = plan.pairs[kind]
        assert isinstance(measured.stage, GlobalStage)  # noqa: S101  only those find pairs
        column = measured.stage.pairs[kind]
        first = pl.concat([signals_of(plan, store, shard, [column]) for shard in store.shards()])[column]
        found[kind] = Pairs(first, read_frame(store.stage(measured.key) / f"{kind}.parquet"))
    return found


def decisions_of(store: Store, shard: str) -> pl.DataFrame:
    """The decisions of one shard, the row group of its number.

    Raises:
        CorruptInputError: the file cannot be read.
    """
    try:
        with pq.ParquetFile(store.decisions, page_checksum_verification=True) as file:
            frame = pl.from_arrow(file.read_row_group(int(Path(shard).stem)))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptInputError(store.decisions, str(error).splitlines()[0]) from error
    assert isinstance(frame, pl.DataFrame)  # noqa: S101  a table is never a Series
    return frame
