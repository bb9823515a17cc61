"""Measure: apply stages to the shards that they have not measured yet, with their fits and merges."""

import contextlib
import errno
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import polars as pl

from pipeline.engine import Engine, Needs
from pipeline.plan import Plan, PlannedStage
from pipeline.store import SHARD, Store, read_json
from stages.files import exists, fetch, present, publish_new, read_frame, remove, save_frame, save_json, sizes_in
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
    """Receives progress: `done` of `total` rows of a step are done; a total of 0 is unknown.

    `share` is the share of the step's work that is done, by default that of the rows; `seconds` about how long the
    whole step will take, 0 if unknown. A fit or merge that begins to read the corpus again reports 0 rows again.
    """

    def __call__(
        self, step: str, done: int, total: int, share: float | None = None, seconds: float = 0.0, /
    ) -> None: ...


class _Reading(list[Path]):
    """The shards that a fit or merge reads; it reports the rows before each one that is taken."""

    def __init__(self, paths: Sequence[Path], sizes: Sequence[int], tell: Callable[[int], None]) -> None:
        super().__init__(paths)
        self._before, self._tell = list(accumulate(sizes, initial=0)), tell

    def __iter__(self) -> Iterator[Path]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401  a path or, for a slice, a list
        if isinstance(index, int):
            self._tell(self._before[index])
        return super().__getitem__(index)

    def __reduce__(self) -> tuple[type[list[Path]], tuple[list[Path]]]:
        return list, (self[:],)  # a stage may send it to another process


@lru_cache(maxsize=1)  # models are loaded once per process, and freed when the next stage begins
def _open(stage: Stage, folder: Path, fitted: tuple[str, ...]) -> Measure:
    fetch_fitted(folder, fitted)
    return stage.open(folder)


@dataclass(frozen=True)
class _Task:
    """Measures one shard; picklable."""

    name: str
    stage: Stage
    store: Store
    key: str
    fitted: tuple[str, ...]
    """Files in the stage's folder that `open` may read."""
    trims: tuple[str, ...] = ()
    earlier: str = ""
    """The key of the signals of the conversations as they were before repairs, if there are any."""

    def __call__(self, shard: str) -> None:
        path = self.store.mount().measured(shard, self.trims)
        before = self.earlier and present(self.store.stage(self.earlier) / shard)
        if before:
            signals = self._repaired(path, read_frame(before))
        else:
            signals = self._measure(read_frame(path, ["id", *self.stage.reads]), path)
        save_frame(self.store.stage(self.key) / shard, signals, {})

    def _repaired(self, path: Path, before: pl.DataFrame) -> pl.DataFrame:
        """The signals of a shard: those from before its repairs, but for the conversations that they changed."""
        batch = read_frame(path, ["id", "repairs", *(name for name in self.stage.reads if name != "id")])
        if not batch["id"].equals(before["id"]):
            raise CorruptInputError(path, "its ids are not those of the signals before its repairs")
        changes = batch["repairs"].is_not_null()
        anew = self._measure(batch.filter(changes), path)
        rows = pl.concat([changes.not_().arg_true(), changes.arg_true()])
        return pl.concat([before.filter(~changes), anew]).with_columns(rows.alias("row")).sort("row").drop("row")

    def _measure(self, batch: pl.DataFrame, path: Path) -> pl.DataFrame:
        folder = self.store.stage(self.key)
        with _name_errors(self.name, path):
            signals = _open(self.stage, folder, self.fitted)(batch.select(self.stage.reads))
            self._check(batch, signals, path)
        return batch.select("id").hstack(signals)

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


@dataclass(frozen=True)
class _FitPart:
    """Does a part of a fit; picklable."""

    name: str
    stage: FittedStage
    store: Store
    shards: Sequence[Path]
    key: str

    def __call__(self, part: str) -> None:
        folder, shards = self.store.stage(self.key), self.shards
        if self.store.bucket:  # the paths are those of the machine that asks
            shards = [self.store.here(path) for path in shards]
            fetch_fitted(folder, sizes_in(folder, anew=True))  # another machine may have done it
        with _name_errors(self.name, shards[0].parent if shards else folder, shards):
            self.stage.fit_part(part, shards, folder)
        publish_new(folder)


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


def prepare(plan: Plan, store: Store, engine: Engine, tell: ReportProgress) -> dict[str, float]:
    """Do the fits that do not read the corpus; returns seconds per stage."""
    return _timed(plan, lambda each: not _fits_corpus(each.stage) and _Step(each, store, tell).fit(engine, 0.0))


def measure(
    plan: Plan, store: Store, engine: Engine, tell: ReportProgress, seconds: Mapping[str, float] = MappingProxyType({})
) -> dict[str, float]:
    """Measure whatever the stages of a plan have not measured yet; returns seconds per stage that had work to do.

    `seconds` are those that one process needs for the whole corpus, by "stage" and "stage: fit", where known.
    """

    def one(planned: PlannedStage) -> bool:
        step = _Step(planned, store, tell)
        fitted = step.fit(engine, seconds.get(f"{planned.name}: fit", 0.0))
        measured = step.measure(engine, seconds.get(planned.name, 0.0))
        return step.merge(anew=measured) or measured or fitted

    return _timed(plan, one)


def _timed(plan: Plan, work: Callable[[PlannedStage], bool]) -> dict[str, float]:
    """Seconds that some work on each stage took, where there was anything to do."""
    seconds = {}
    for planned in plan.stages:
        start = time.perf_counter()
        if work(planned):
            seconds[planned.name] = round(time.perf_counter() - start, 3)
    return seconds


def _fits_corpus(stage: Stage) -> bool:
    return not isinstance(stage, FittedStage) or stage.fits_corpus


class _Step:
    """The steps of a stage; each returns whether there was anything to do."""

    def __init__(self, planned: PlannedStage, store: Store, tell: ReportProgress) -> None:
        self.name, self.stage, self.folder = planned.name, planned.stage, store.stage(planned.key)
        self.store, self.shards, self.tell, self.trims = store, store.shards(), tell, planned.trims
        reuses = planned.trims and not isinstance(self.stage, FittedStage)  # a fit sees the whole corpus
        self.earlier = replace(planned, trims=()).key if reuses else ""
        self.raw = [store.measured(shard, planned.trims) for shard in self.shards]
        self.size = {str(shard["name"]): int(shard["rows"]) for shard in read_json(store.shard_list)["shards"]}
        self.total = sum(self.size.values())
        self.folder.mkdir(parents=True, exist_ok=True)

    def fit(self, engine: Engine, seconds: float) -> bool:
        stage, step = self.stage, f"{self.name}: fit"
        if not isinstance(stage, FittedStage) or exists(_marker(self.folder, "fit")):
            return False
        parts = stage.fit_parts
        whole = (seconds or math.inf) if len(self.shards) > 1 else 0.0  # the time of a single shard is not estimated
        seconds /= engine.processes(len(parts), whole)
        self.tell(step, 0, self.total, 0.0, seconds)
        reading = self._reading(self.raw, step, seconds)
        task = _FitPart(self.name, stage, self.store, reading, self.folder.name)
        for done, _ in enumerate(engine.map(task, parts, Needs(seconds=whole)), 1):
            if done < len(parts):  # `fit` is still to come
                self.tell(step, self.total * done // len(parts), self.total, None, seconds)
        fetch_fitted(self.folder, sizes_in(self.folder, anew=True))
        with _name_errors(self.name, self.store.measured("", self.trims), self.raw):
            stage.fit(reading, self.folder)
        publish_new(self.folder)
        for name in fitted_files(sizes_in(self.folder)):
            if not (self.folder / name).exists():  # of a part
                remove(self.folder / name)
        save_json(_marker(self.folder, "fit"), {"shards": len(self.shards)})
        self.tell(step, self.total, self.total)
        return True

    def measure(self, engine: Engine, seconds: float) -> bool:
        there = sizes_in(self.folder, anew=True)
        missing = [shard for shard in self.shards if shard not in there]
        done = self.total - sum(self.size[shard] for shard in missing)
        raw = sizes_in(self.store.measured("", self.trims))
        work = {shard: raw.get(shard, 0) for shard in self.shards}
        whole, worked = sum(work[shard] for shard in missing), 0
        seconds *= whole / max(sum(work.values()), 1)
        left = seconds / engine.processes(len(missing), seconds or math.inf)
        self.tell(self.name, done, self.total, 0.0 if missing else 1.0, left)
        _open.cache_clear()  # in a process that makes several runs, the same path may hold other models by now
        fitted = fitted_files(there)
        task = _Task(self.name, self.stage, self.store, self.folder.name, fitted, self.trims, self.earlier)
        needs = Needs(gpus=int(self.stage.uses_gpu), seconds=seconds or math.inf)
        for shard, _ in engine.map(task, missing, needs):
            done, worked = done + self.size[shard], worked + work[shard]
            self.tell(self.name, done, self.total, worked / max(whole, 1), left)
        sizes_in(self.folder, anew=True)
        return bool(missing)

    def merge(self, *, anew: bool) -> bool:
        stage, step = self.stage, f"{self.name}: merge"
        if not isinstance(stage, GlobalStage) or not (anew or not _is_merged(stage, self.folder, self.shards)):
            return False
        self.tell(step, 0, self.total, 0.0)
        remove(_marker(self.folder, "merge"))
        measured = [self.folder / shard for shard in self.shards]
        with _name_errors(self.name, self.folder, (*self.raw, *measured)):
            stage.merge(self._reading(self.raw, step), self._reading(measured, step), self.folder)
        publish_new(self.folder)
        save_json(_marker(self.folder, "merge"), {"shards": len(self.shards)})
        self.tell(step, self.total, self.total)
        return True

    def _reading(self, paths: Sequence[Path], step: str, seconds: float = 0.0) -> _Reading:
        return _Reading(paths, list(self.size.values()), lambda done: self.tell(step, done, self.total, None, seconds))


def _marker(folder: Path, step: str) -> Path:
    """The file that marks a stage's fit or merge as complete."""
    return folder / f"{step}.json"


def fitted_files(names: Iterable[str]) -> tuple[str, ...]:
    """Files of a stage's folder that are not of a shard."""
    return tuple(name for name in names if not SHARD.fullmatch(name.rpartition("/")[2]))


def fetch_fitted(folder: Path, names: Iterable[str]) -> None:
    """Have the files that a fit wrote, on whatever machine, on this one."""
    for name in fitted_files(names):
        fetch(folder / name)


def _is_merged(stage: GlobalStage, folder: Path, shards: Sequence[str]) -> bool:
    there = sizes_in(folder)
    parts = [*(f"merged/{shard}" for shard in shards), *(f"{kind}.parquet" for kind in stage.pairs), "merge.json"]
    return all(part in there for part in parts)


def complete(plan: Plan, store: Store, shards: Sequence[str]) -> None:
    """Check that all signals exist: a missing file is a `CorruptInputError`, and is measured again."""
    for measured in plan.stages:
        folder, stage = store.stage(measured.key), measured.stage
        there, paths = sizes_in(folder), list(shards)
        if isinstance(stage, GlobalStage):
            paths += [f"merged/{shard}" for shard in shards]
            paths += [f"{kind}.parquet" for kind in stage.pairs]
        for path in paths:
            if path not in there:
                raise CorruptInputError(folder / path, "it is not there")


def forget(path: Path, store: Store) -> None:
    """Remove a corrupt file of the run and the marker that calls it complete, so that it is made again."""
    remove(path)
    if path.parent == store.raw(""):
        remove(store.shard_list)
    for folder in (path.parent, path.parent.parent):
        remove(_marker(folder, "merge"))
        if not re.fullmatch(r"\d+\.parquet", path.name):  # a file that a fit made, such as a model
            remove(_marker(folder, "fit"))
