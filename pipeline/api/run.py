"""`refine.run`, `refine.decide`, `refine.open_run`: a run from Python, and its tables as polars frames."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import polars as pl

from pipeline import ingest, sources, terminal
from pipeline import plan as planning
from pipeline import run as running
from pipeline.api.tables import Display, Summary
from pipeline.engine import Engine, EngineError
from pipeline.engine.local import Local
from pipeline.ingest import Limits
from pipeline.manifest import Counts, Manifest
from pipeline.ownership import RUNS, RunState, check_run, read_shard_list, run_at
from pipeline.plan import ADDED, Plan, PlanError
from pipeline.signals import scan, scan_signals
from pipeline.sources import originals
from pipeline.sources.hub import Hub
from pipeline.sources.shapes import ColumnMap
from pipeline.store import RunFolderError, Store
from pipeline.store.bucket import url_of
from pipeline.terminal import ProgressReporter
from stages.files import exists
from stages.stage import require

ENGINES = ("local", "ray")
"""Engines that a run can use."""


@dataclass(frozen=True, repr=False)
class Run(Display):
    """A complete run.

    Attributes:
        path: the folder of the run.
        manifest: counts, rules, stages, inputs and versions, as manifest.json holds them.
    """

    path: Path
    manifest: Manifest

    @property
    def store(self) -> Store:
        """The paths of its files."""
        return Store.at(self.path).mount()

    @property
    def counts(self) -> Counts:
        """Numbers of conversations and tokens."""
        return self.manifest.counts

    @property
    def seconds(self) -> dict[str, float]:
        """Wall time in seconds per step."""
        return self.manifest.seconds

    @property
    def raw(self) -> pl.LazyFrame:
        """The conversations as ingested: id, messages, text and their origin."""
        return scan(self.store, "raw")

    @property
    def signals(self) -> pl.LazyFrame:
        """All signals in one frame: id and a column per signal, a row per conversation, in the order of `raw`."""
        return scan_signals(self.store)

    @property
    def decisions(self) -> pl.LazyFrame:
        """id, keep, reason, duplicate_of, jaccard and a boolean per rule, a row per conversation.

        With a rule that keeps the best of pairs of `semantic` also `cosine`, with one that keeps the first `cut`.
        """
        return scan(self.store, "decisions")

    @property
    def refined(self) -> pl.LazyFrame:
        """The kept conversations, with the signals that the plan writes beside them."""
        return scan(self.store, "refined")

    @property
    def rejected(self) -> pl.LazyFrame:
        """The dropped conversations, with reason, rule and the values of the signals that the rule reads."""
        return scan(self.store, "rejected")

    def summaries(self) -> Sequence[Summary]:
        """Return the conversations in, dropped by each rule, and out."""
        counts = self.counts
        n = max(counts.ingested, 1)
        rows: list[tuple[object, ...]] = [("in", counts.ingested, "100.0 %", "")]
        rows += [
            (f"~ {one.trim}", one.conversations, f"{one.conversations / n:.1%}", f"trims {planning.TRIMS[one.trim]}")
            for one in self.manifest.repairs
        ]
        rows += [
            (f"- {rule.reason}", rule.dropped, f"{rule.dropped / n:.1%}", rule.where) for rule in self.manifest.rules
        ]
        if counts.quarantined:
            rows.append(("- quarantined", counts.quarantined, f"{counts.quarantined / n:.1%}", "unreadable"))
        rows.append(("out", counts.refined, f"{counts.refined / n:.1%}", f"{counts.refined_tokens:,} tokens"))
        remarks = "".join(f"\n{line}" for line in (*self.manifest.remarks.get("ingest", ()), *_whole(self.manifest)))
        remarks += "".join(f"\n{line}" for line in self.manifest.remarks.get("rules", ()))
        remarks += f"\n{counts.redacted:,} items of personal data were redacted" if counts.redacted else ""
        seconds = ", ".join(f"{step} {taken:.1f}" for step, taken in self.seconds.items())
        parts = [*(["quarantine/"] if counts.quarantined else []), *(["kept/"] if exists(self.store.kept) else [])]
        made = ", ".join(["README.md, refined/, rejected/, decisions/", *parts, "manifest.json"])
        note = f"{remarks}\nseconds: {seconds}\n{self.store.name}: {made}"
        return [Summary("", ("", "conversations", "share", "where"), rows, frozenset({1, 2}), note)]


def _whole(manifest: Manifest) -> Iterator[str]:
    """What a sample says about the whole source."""
    if sample := manifest.sample:
        low, high = manifest.kept()
        yield (
            f"this is {sample}; of the whole, {low:.1%} to {high:.1%} would be kept (fewer if near-duplicates lie "
            f"outside the sample){f', in about {terminal.duration(sample.seconds)}' if sample.seconds else ''}"
        )


@dataclass(frozen=True)
class PreparedRun:
    """A run that can be carried out, but has not written anything yet."""

    source: sources.Source
    plan: Plan
    limits: Limits
    folder: Path
    as_source: bool = False
    engine: str = "local"
    address: str | None = None

    def __post_init__(self) -> None:
        """Refuse an engine that does not exist, and an address that would have no effect."""
        if self.engine not in ENGINES:
            raise EngineError(f"--engine is {self.engine!r}, expected {' or '.join(ENGINES)}")
        if self.address is not None and self.engine != "ray":
            raise EngineError(f"--address is {self.address!r}, but it applies to --engine ray alone: omit it")

    def carry_out(self, workers: int, *, progress: bool) -> Run:
        """Carry out the run; see `run`."""
        require("--workers", workers, workers >= 0, "at least 0")
        for measured in self.plan.stages:
            measured.stage.models()  # a missing model is reported before any work
        self._check_as_source()
        with terminal.progress(show=progress), ProgressReporter() as reporter:
            for note in (*notes(self.plan), *self._notes()):
                reporter.warn(note)
            engine = self._start(workers or len(os.sched_getaffinity(0)), reporter.warn)
            everywhere = self.engine == "ray" and not url_of(self.folder)
            store = Store.at(self.folder.absolute() if everywhere else self.folder)
            active = running.ActiveRun(store, self.plan, engine, reporter, reporter.warn)
            try:
                manifest = active.carry_out(self.source, self.limits, as_source=self.as_source)
            except (Exception, KeyboardInterrupt):  # the command line ends at once instead, without waiting for workers
                engine.close()
                raise
            engine.close()
        return Run(self.folder, manifest)

    def check(self) -> None:
        """Refuse a folder that belongs to another run, and what cannot be written as it came; writes nothing."""
        self._check_as_source()
        store = Store.at(self.folder)
        check_run(store)
        if exists(store.source):  # else the source need not be hashed
            ingest.check(self.source, store, self.limits, complete=read_shard_list(store) is not None)

    def _check_as_source(self) -> None:
        if self.as_source:
            _check_as_they_came(self.plan)
            if url_of(self.folder):
                raise RunFolderError(f"--as source writes files of this machine, and --out is {self.folder}: omit one")
            originals.check(self.source)

    def _start(self, workers: int, warn: Callable[[str], None]) -> Engine:
        if self.engine == "local":
            return Local(workers)
        from pipeline.engine.ray import Ray

        return Ray(self.address, workers, warn)

    def _notes(self) -> Iterator[str]:
        if self.limits.sample is not None and isinstance(self.source, Hub):
            yield "the whole dataset is streamed to take a sample of it; --limit N reads its first N rows alone"


def _check_as_they_came(plan: Plan) -> None:
    if plan.redact:
        raise PlanError("--as source writes the records as they came, but the plan redacts them: omit one of the two")
    if plan.repairs:
        raise PlanError("--as source writes the records as they came, but the plan repairs them: omit one of the two")


def chosen_plan(
    plan: Path | str | None,
    stages: str | Sequence[str] | None,
    drop: str | Sequence[str],
    map: str | Mapping[str, str] | None = None,  # noqa: A002
) -> Plan:
    """Read a plan, restrict it to the stages that were picked, add the rules, name the columns, and check it."""
    chosen = planning.load(planning.find(plan))
    if map is not None:
        chosen = replace(chosen, map=ColumnMap.parse(map).columns)
    if isinstance(stages, str):
        stages = [name.strip() for name in stages.split(",") if name.strip()]
    if stages is not None:
        chosen = chosen.with_stages(stages)
    return chosen.with_drops([drop] if isinstance(drop, str) else drop).check()


def share(text: float | str) -> float:
    """The share that "1%" or 0.01 is."""
    number = str(text).strip()
    try:
        return float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        raise planning.PlanError(f"--sample is {text!r}, expected a share such as 1% or 0.01") from None


def folder_of(source: sources.Source, out: Path | str | None) -> Path:
    """The folder of a run; by default a new one in data/runs/, named after the source and the time."""
    if out is not None:
        if str(out) in {"", "."}:
            raise RunFolderError("--out is empty or the current folder: name a folder for the run")
        return Path(out)
    word = re.sub(r"[^A-Za-z0-9]+", "-", Path(source.name).name.split(".")[0]).strip("-")[:40] or "run"
    folder = RUNS / f"{word}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    return folder.with_name(f"{folder.name}-{os.getpid()}") if folder.exists() else folder


def run(
    source: str | Path | None = None,
    *,
    stages: str | Sequence[str] | None = None,
    plan: Path | str | None = None,
    drop: str | Sequence[str] = (),
    out: Path | str | None = None,
    workers: int = 0,
    engine: str = "local",
    address: str | None = None,
    limit: int | None = None,
    sample: float | str | None = None,
    shape: str | None = None,
    map: str | Mapping[str, str] | None = None,  # noqa: A002
    as_: str | None = None,
    split: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    shard_rows: int = 2000,
    max_unreadable: float = 0.01,
    progress: bool = False,
) -> Run:
    """Refine a corpus as `refine run` does: ingest, measure, decide, write.

    Args:
        source: a file of records, a folder of them, a saved Dataset or a hub id; by default the embedded corpus.
        stages: names of the stages to measure, as a list or comma-separated; by default all of the plan.
        plan: a plan in TOML, or the name of one that comes with refine, such as "sft"; by default "default".
        drop: additional rules in SQL, such as "ppl > 800" or "noisy: ppl > 800".
        out: the folder of the run, which is resumed if it was interrupted; by default a new one in data/runs/.
        workers: worker processes; 0: one per core. A cluster uses all its cores.
        engine: "local", or "ray" for a Ray cluster.
        address: "auto" or "host:port" of a Ray cluster; by default a Ray of this machine.
        limit: number of rows to read; by default all.
        sample: share of the conversations to take, such as 0.01 or "1%", for a first look; by default all.
        shape: shape of the records; by default recognised for each file.
        map: columns by what they hold, such as {"messages": "thread", "role": "who"}; by default the plan's.
        as_: "source" also writes the kept records as they came, with all fields, to kept/ of the run.
        split: split of a hub dataset or a saved DatasetDict.
        config: configuration of a hub dataset.
        revision: revision of a hub dataset.
        shard_rows: maximum number of rows per shard.
        max_unreadable: maximum share of unreadable rows; above it the run stops.
        progress: show progress and notes on stderr.

    Raises:
        RefineError: the run cannot be carried out; the message says why and what to do.
    """
    data = sources.find(None if source is None else str(source), split=split, config=config, revision=revision)
    chosen = chosen_plan(plan, stages, drop, map)
    columns = ColumnMap.parse(dict(chosen.map))
    limits = Limits(
        *(shard_rows, Limits.characters, limit, max_unreadable, shape, columns),
        None if sample is None else share(sample),
    )
    prepared = PreparedRun(data, chosen, limits, folder_of(data, out), originals.is_asked(as_), engine, address)
    return prepared.carry_out(workers, progress=progress)


def notes(plan: Plan) -> list[str]:
    """Return what a user should know about the plan's stages and rules."""
    sentences = [f"{measured.name}: {note}" for measured in plan.stages for note in measured.stage.notes()]
    if plan.left_out:
        sentences.append(f"rules omitted, because a stage that they need was not picked: {', '.join(plan.left_out)}")
    return sentences


def decide(
    run: Run | Path | str,
    *,
    plan: Path | str | None = None,
    drop: str | Sequence[str] = (),
    as_: str | None = None,
    progress: bool = False,
) -> Run:
    """Apply changed rules to a run as `refine decide` does; nothing is measured again.

    Args:
        run: a run, or its folder.
        plan: a plan in TOML, or the name of one that comes with refine; by default the run's own.
        drop: additional rules in SQL; they replace those that an earlier `drop` added.
        as_: "source" also writes the kept records as they came to kept/ of the run; the source must be where it was.
        progress: show progress and notes on stderr.

    Raises:
        RefineError: the rules cannot be applied; the message says why and what to do.
    """
    folder = run.path if isinstance(run, Run) else Path(run)
    store = run_at(folder, RunState.INGESTED)
    if plan is None and not exists(store.plan):
        raise RunFolderError(
            f"{folder} has no plan yet: start `refine run` again with its source and --out {folder}, or name a plan "
            "with --plan"
        )
    before = planning.load(planning.find(plan) if plan is not None else store.plan)
    chosen = before.with_drops([drop] if isinstance(drop, str) else drop).check()
    removed = [rule.where for rule in before.rules if rule.because == ADDED and rule not in chosen.rules]
    if originals.is_asked(as_):
        _check_as_they_came(chosen)
    with terminal.progress(show=progress), ProgressReporter() as reporter:
        if removed:
            reporter.warn(f"rules of an earlier --drop no longer apply: {', '.join(removed)}")
        active = running.ActiveRun(store, chosen, Local(1), reporter, reporter.warn)
        manifest = active.decide_again(as_source=originals.is_asked(as_))
    return Run(folder, manifest)


def open_run(folder: Path | str) -> Run:
    """Open a complete run; raises `RunFolderError` if the folder does not exist or is no run, or it is not complete."""
    return Run(Path(folder), Manifest.load(run_at(Path(folder))))
