"""Measure: apply stages to the shards that they have not measured yet, with their fits and merges."""

import contextlib
import errno
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import polars as pl

from pipeline.engine import Engine
from pipeline.plan import Plan, PlannedStage
from pipeline.store import Store
from stages.files import read_frame, rows, save_frame, save_json
from stages.stage import (
    CorruptInputError,
    FittedStage,
    GlobalStage,
    Measure,
    MissingModelError,
    Stage,
    StageParameterError,
    StageRefusedError,
)


class StageFailedError(Exception):
    """A stage raised an error or broke its contract; the message names the stage and the shard."""


_PROMISED = (
    StageFailedError,
    CorruptInputError,
    MissingModelError,
    StageParameterError,
    StageRefusedError,
    OSError,
    MemoryError,
)


class ReportProgress(Protocol):
    """Receives progress: `done` of `total` rows of a step are done; a total of 0 is unknown."""

    def __call__(self, step: str, done: int, total: int, /) -> None: ...


@lru_cache(maxsize=1)  # models are loaded once per process, and freed when the next stage begins
def _open(stage: Stage, folder: Path) -> Measure:
    return stage.open(folder)


@dataclass(frozen=True)
class _Task:
    """Measures one shard; picklable."""

    name: str
    stage: Stage
    raw: Path
    folder: Path

    def __call__(self, shard: str) -> str:
        path = self.raw / shard
        batch = read_frame(path, ["id", *self.stage.reads])
        with _name_errors(self.name, path):
            signals = _open(self.stage, self.folder)(batch.select(self.stage.reads))
            self._check(batch, signals, path)
        save_frame(self.folder / shard, batch.select("id").hstack(signals), {})
        return shard

    def _check(self, batch: pl.DataFrame, signals: pl.DataFrame, path: Path) -> None:
        if signals.schema != self.stage.writes:
            raise StageFailedError(
                f"stage {self.name!r} wrote {dict(signals.schema)} for {path}, expected {dict(self.stage.writes)}"
            )
        if signals.height != batch.height:
            raise StageFailedError(f"stage {self.name!r} wrote {signals.height} rows for the {batch.height} of {path}")
        floats = signals.select(pl.col(pl.Float32, pl.Float64).is_nan().any())
        if nan := [name for name in floats.columns if floats[name].any()]:
            raise StageFailedError(
                f"stage {self.name!r} wrote NaN in {', '.join(nan)} for {path}, expected null for unknown"
            )


@contextlib.contextmanager
def _name_errors(name: str, on: Path, read: Sequence[Path] = ()) -> Iterator[None]:
    """Turn an error that a stage does not promise into one that names the stage and what it worked on.

    If one of the files that it `read` is corrupt, the error names that file instead.
    """
    try:
        yield
    except _PROMISED:
        raise
    except Exception as error:
        if "No space left on device" in str(error):  # polars and Arrow raise their own errors for it
            raise OSError(errno.ENOSPC, "No space left on device", str(on)) from error
        for path in read:
            read_frame(path)
        why = (str(error).splitlines() or ["no message"])[0]
        raise StageFailedError(f"stage {name!r} failed on {on}: {type(error).__name__}: {why}") from error


def measure(plan: Plan, store: Store, engine: Engine, tell: ReportProgress) -> dict[str, float]:
    """Measure whatever the stages of a plan have not measured yet; returns seconds per stage that had work to do."""
    seconds = {}
    for measured in plan.stages:
        start = time.perf_counter()
        if _one(measured, store, engine, tell):
            seconds[measured.name] = round(time.perf_counter() - start, 3)
    return seconds


def _one(measured: PlannedStage, store: Store, engine: Engine, tell: ReportProgress) -> bool:
    """Measure with one stage; return whether there was anything to do."""
    name, stage, folder, shards = measured.name, measured.stage, store.stage(measured.key), store.shards()
    raw = [store.raw(shard) for shard in shards]
    size = {shard: rows(path) for shard, path in zip(shards, raw, strict=True)}
    total = sum(size.values())
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(stage, FittedStage) and not _marker(folder, "fit").exists():
        tell(f"{name}: fit", 0, total)
        with _name_errors(name, store.raw(""), raw):
            stage.fit(raw, folder)
        save_json(_marker(folder, "fit"), {"shards": len(shards)})
        tell(f"{name}: fit", total, total)
    missing = [shard for shard in shards if not _whole(folder / shard, size[shard])]
    done = total - sum(size[shard] for shard in missing)
    tell(name, done, total)
    _open.cache_clear()  # in a process that makes several runs, the same path may hold other models by now
    for shard in engine.map(_Task(name, stage, store.raw(""), folder), missing):
        done += size[shard]
        tell(name, done, total)
    merging = isinstance(stage, GlobalStage) and (bool(missing) or not _is_merged(stage, folder, size))
    if isinstance(stage, GlobalStage) and merging:
        tell(f"{name}: merge", 0, total)
        _marker(folder, "merge").unlink(missing_ok=True)
        measured_shards = [folder / shard for shard in shards]
        with _name_errors(name, folder, (*raw, *measured_shards)):
            stage.merge(raw, measured_shards, folder)
        save_json(_marker(folder, "merge"), {"shards": len(shards)})
        tell(f"{name}: merge", total, total)
    return merging or bool(missing)


def _marker(folder: Path, step: str) -> Path:
    """The file that marks a stage's fit or merge as complete."""
    return folder / f"{step}.json"


def _whole(path: Path, size: int) -> bool:
    """Whether a shard's signals exist; raises `CorruptInputError` if they exist, but not for every row."""
    if not path.exists():
        return False
    if (height := rows(path)) != size:
        raise CorruptInputError(path, f"it has {height} rows, expected {size}")
    return True


def _is_merged(stage: GlobalStage, folder: Path, size: dict[str, int]) -> bool:
    parts = all(_whole(folder / "merged" / shard, n) for shard, n in size.items())
    return parts and _marker(folder, "merge").exists() and all((folder / f"{k}.parquet").exists() for k in stage.pairs)


def complete(plan: Plan, store: Store, shards: Sequence[str]) -> None:
    """Check that all signals exist: a missing file is a `CorruptInputError`, and is measured again."""
    for measured in plan.stages:
        folder, stage = store.stage(measured.key), measured.stage
        paths = [folder / shard for shard in shards]
        if isinstance(stage, GlobalStage):
            paths += [folder / "merged" / shard for shard in shards]
            paths += [folder / f"{kind}.parquet" for kind in stage.pairs]
        for path in paths:
            if not path.exists():
                raise CorruptInputError(path, "it is not there")


def forget(path: Path, store: Store) -> None:
    """Remove a corrupt file of the run and the marker that calls it complete, so that it is made again."""
    path.unlink(missing_ok=True)
    if path.parent == store.raw(""):
        store.shard_list.unlink(missing_ok=True)
    for folder in (path.parent, path.parent.parent):
        _marker(folder, "merge").unlink(missing_ok=True)
        if not re.fullmatch(r"\d+\.parquet", path.name):  # a file that a fit made, such as a model
            _marker(folder, "fit").unlink(missing_ok=True)
