"""All signals of a run as one table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl

from pipeline import plan as planning
from pipeline.plan import Plan
from pipeline.signals import signals_of
from pipeline.store import RunFolderError, Store, save_frame
from stages.files import save
from stages.stage import GlobalStage

FORMATS = (".parquet", ".csv", ".jsonl")
"""Endings of the files that signals can be written to."""


def scan(store: Store) -> pl.LazyFrame:
    """Scan the signals: id and a column per signal, a row per conversation, in the order of the raw shards.

    Raises:
        RunFolderError: a stage of the run's plan was not measured, or has changed since.
    """
    plan, shards = _plan(store), store.shards()
    frames = [pl.scan_parquet([store.raw(shard) for shard in shards]).select("id")]
    for measured in plan.stages:
        stage, folder = measured.stage, store.stage(measured.key)
        frames.append(pl.scan_parquet([folder / shard for shard in shards]).select(list(stage.writes)))
        if isinstance(stage, GlobalStage) and stage.merges:
            frames.append(pl.scan_parquet([folder / "merged" / shard for shard in shards]).select(list(stage.merges)))
    return pl.concat(frames, how="horizontal")


def load(store: Store) -> pl.DataFrame:
    """Read the signals that `scan` scans, and check that each belongs to its conversation.

    Raises:
        RunFolderError: as in `scan`.
        CorruptInputError: a signal file is damaged.
    """
    plan = _plan(store)
    return pl.concat([signals_of(plan, store, shard, list(plan.signals)) for shard in store.shards()])


def write(store: Store, out: Path) -> pl.DataFrame:
    """Write the signals to a file in the format that its ending names; nested columns of a .csv are JSON.

    Raises:
        RunFolderError: the ending is unknown, the file lies in the run folder, or as in `scan`.
        CorruptInputError: a signal file is damaged.
    """
    if out.suffix not in FORMATS:
        raise RunFolderError(f"--out is {out}, expected a file that ends in {', '.join(FORMATS)}")
    if out.resolve().is_relative_to(store.folder.resolve()):
        raise RunFolderError(f"--out is {out}, a file in the run folder: choose another place")
    frame = load(store)
    into: dict[str, Callable[[Path], object]] = {
        ".csv": lambda aside: frame.with_columns(_flat(frame)).write_csv(aside),
        ".jsonl": frame.write_ndjson,
    }
    if out.suffix in into:
        save(out, into[out.suffix])
    else:
        save_frame(out, frame)
    return frame


def _flat(frame: pl.DataFrame) -> list[pl.Series]:
    """The nested columns as JSON, which a CSV can hold."""
    nested = [column for column in frame if column.dtype.is_nested()]
    return [pl.Series(column.name, [json.dumps(value) for value in column.to_list()]) for column in nested]


def _plan(store: Store) -> Plan:
    plan = planning.load(store.plan)
    for measured in plan.stages:
        if not store.stage(measured.key).exists():
            raise RunFolderError(
                f"{store.folder} holds no signals of stage {measured.name!r} as it is now: its code or models changed; "
                f"start `refine run` again with its source, --out {store.folder} and --plan {store.plan}"
            )
    return plan
