"""What the commands of the command line do, and how they say it."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.text import Text

import stages as staging
from pipeline import plan as planning
from pipeline import sources
from pipeline.cli.errors import sentence
from pipeline.engine import Local
from pipeline.ingest import Limits
from pipeline.manifest import Manifest
from pipeline.plan import Plan, PlanError
from pipeline.run import Run
from pipeline.sources import shapes
from pipeline.store import RunFolderError, Store, read_json
from pipeline.terminal import ProgressReporter, console, safe, table
from stages.stage import GlobalStage, MissingModelError, parameters

RUNS = Path("data/runs")
"""Where runs lie by default, in the folder that refine is started in."""


@dataclass(frozen=True)
class RunOptions:
    """Where and how fast, as said on the command line."""

    source: str | None
    split: str | None
    config: str | None
    revision: str | None
    out: Path | None
    workers: int
    as_json: bool

    def found(self) -> sources.Source:
        """The source that is meant."""
        return sources.find(self.source, split=self.split, config=self.config, revision=self.revision)

    def folder(self, name: str) -> Path:
        """The run folder; a new one where none is named."""
        if self.out is not None:
            if str(self.out) in {"", "."}:
                raise RunFolderError("--out is empty or the folder you are in: name a folder for the run")
            return self.out
        word = re.sub(r"[^A-Za-z0-9]+", "-", Path(name).name.split(".")[0]).strip("-")[:40] or "run"
        made = RUNS / f"{word}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
        return made if not made.exists() else made.with_name(f"{made.name}-{os.getpid()}")


def shape(said: str | None) -> str | None:
    """A shape's name, checked."""
    if said is not None and said not in shapes.SHAPES:
        raise PlanError(f"--shape is {said!r}; there are {shapes.expected()}")
    return said


def plan(path: Path | None, names: str | None, drops: list[str]) -> Plan:
    """The plan that flags and file say, checked."""
    chosen = planning.load(path or planning.DEFAULT)
    if names is not None:
        chosen = chosen.picked([name.strip() for name in names.split(",") if name.strip()])
    return chosen.with_drops(drops).check()


def run(asked: RunOptions, chosen: Plan, limits: Limits) -> None:
    """Carry out a run and print its summary."""
    source = asked.found()
    chosen = _able(chosen)
    store = Store(asked.folder(source.name))
    engine = Local(asked.workers or len(os.sched_getaffinity(0)))
    with ProgressReporter() as told:
        for note in _notes(chosen):
            told.warn(note)
        try:
            manifest = Run(store, chosen, engine, told, told.warn).carry_out(source, limits)
        except Exception:
            engine.close()
            raise
        engine.close()
    _finish(store, manifest, as_json=asked.as_json)


def _able(chosen: Plan) -> Plan:
    """The plan, when all its models are there; said before any work."""
    for measured in chosen.stages:
        measured.stage.models()
    return chosen


def _notes(chosen: Plan) -> list[str]:
    notes = [f"{measured.name}: {note}" for measured in chosen.stages for note in measured.stage.notes()]
    if chosen.left_out:
        notes.append(f"rules left out, because a stage they need was not picked: {', '.join(chosen.left_out)}")
    return notes


def dry_run(asked: RunOptions, chosen: Plan, limits: Limits) -> None:
    """Say what a run would do, and exit with 1 where it cannot."""
    source = asked.found()
    Store(asked.folder(source.name)).check()
    first = next(iter(source.rows()), None)
    found = limits.shape or (shapes.recognise(list(first.value)) if first and isinstance(first.value, dict) else None)
    can, rows = True, []
    for measured in chosen.stages:
        try:
            measured.stage.models()
            said = "; ".join(measured.stage.notes()) or "can run"
        except MissingModelError as error:
            can, said = False, sentence(error)
        rows.append((measured.name, said, ", ".join(measured.signals)))
    does = {
        "source": source.name,
        "shape": found,
        "out": str(asked.folder(source.name)),
        "stages": [{"use": name, "state": said} for name, said, _ in rows],
        "rules": [{"reason": rule.reason, "where": rule.where} for rule in chosen.rules],
        "left_out": list(chosen.left_out),
        "can_run": can and found is not None,
    }
    if asked.as_json:
        _print_json(does)
    else:
        out = console()
        limit = f", the first {limits.limit:,} rows" if limits.limit else ""
        out.print(Text(safe(f"source  {source.name} ({found or 'no known shape'}{limit})\nout     {does['out']}\n")))
        out.print(table("Stages", ("stage", "state", "signals"), list(rows)))
        out.print(_rules(chosen))
        for note in _notes(replace(chosen, stages=())):
            out.print(Text(note))
    if not does["can_run"]:
        sys.exit(1)


def _rules(chosen: Plan) -> Any:  # noqa: ANN401  a rich table
    rows: list[tuple[object, ...]] = [(rule.reason, rule.where, rule.because) for rule in chosen.rules]
    return table("\nRules", ("reason", "drops where", "because"), rows)


def decide(folder: Path, path: Path | None, drops: list[str], *, as_json: bool) -> None:
    """Apply a run's plan, another one, or more rules, to the signals that are there."""
    store = Store(folder)
    store.shards()
    if path is None and not store.plan.exists():
        raise RunFolderError(
            f"{folder} has no plan yet: start `refine run` again with its source and --out {folder}, or name one with "
            "--plan"
        )
    chosen = planning.load(path or store.plan).with_drops(drops).check()
    with ProgressReporter() as told:
        manifest = Run(store, chosen, Local(1), told, told.warn).decide_again()
    _finish(store, manifest, as_json=as_json)


def _finish(store: Store, manifest: Manifest, *, as_json: bool) -> None:
    if as_json:
        _print_json({"out": str(store.folder), **manifest.summary()})
        return
    out, counts = console(), manifest.counts
    n = max(counts.ingested, 1)
    rows: list[tuple[object, ...]] = [("in", counts.ingested, "100.0 %", "")]
    rows += [(f"- {rule.reason}", rule.dropped, f"{rule.dropped / n:.1%}", rule.where) for rule in manifest.rules]
    if counts.quarantined:
        rows.append(("- quarantined", counts.quarantined, f"{counts.quarantined / n:.1%}", "could not be read"))
    rows.append(("out", counts.refined, f"{counts.refined / n:.1%}", f"{counts.refined_tokens:,} tokens"))
    out.print(table("", ("", "conversations", "share", "where"), rows, frozenset({1, 2})))
    seconds = ", ".join(f"{step} {taken:.1f}" for step, taken in manifest.seconds.items())
    out.print(
        Text(f"\nseconds: {seconds}\n{store.folder}: README.md, refined/, rejected/, decisions.parquet, manifest.json")
    )


def stages(name: str | None, *, as_json: bool) -> None:
    """List the stages, or one with its parameters and signals."""
    known = {use: staging.find(use) for use in ([name] if name else staging.names())}
    told: dict[str, dict[str, Any]] = {}
    for use, kind in known.items():
        merged = kind.merges if issubclass(kind, GlobalStage) else {}
        signals = {column: str(what) for column, what in {**kind.writes, **merged}.items()}
        told[use] = {"summary": kind.summary, "parameters": parameters(kind()), "signals": signals, "doc": kind.__doc__}
    if as_json:
        _print_json(told)
        return
    out = console()
    for use, what in told.items():
        out.print(Text(f"{use}: {what['summary']}", style="bold"))
        if name:
            out.print(Text(str(what["doc"])))
            out.print(Text("parameters: " + ", ".join(f"{k} = {v!r}" for k, v in what["parameters"].items())))
        out.print(Text("  " + ", ".join(f"{k} ({v})" if name else k for k, v in what["signals"].items()) + "\n"))


def status(folder: Path | None, *, as_json: bool) -> None:
    """How far one run, or every run in data/runs/, is."""
    if folder is not None and not Store(folder).source.exists():
        raise RunFolderError(f"{folder} is not a run folder: it has no source.json")
    folders = [folder] if folder else sorted(path.parent for path in RUNS.glob("*/source.json"))
    told = [_state(Store(path)) for path in folders]
    if as_json:
        _print_json(told)
        return
    if not told:
        console().print(f"no runs in {RUNS}: `refine run` makes one")
        return
    rows = [tuple(one[key] for key in ("run", "state", "source", "rows", "refined", "stages")) for one in told]
    console().print(
        table("", ("run", "state", "source", "rows", "refined", "shards measured"), rows, frozenset({3, 4}))
    )


def _state(store: Store) -> dict[str, Any]:
    shards = read_json(store.shard_list) if store.shard_list.exists() else None
    manifest = Manifest.load(store) if store.manifest.exists() else None
    names = {shard["name"] for shard in shards["shards"]} if shards else set()
    done = {
        path.name: sum(file.name in names for file in path.glob("*.parquet"))
        for path in sorted(store.stage("").glob("*"))
    }
    total = len(shards["shards"]) if shards else "?"
    state = "running" if store.in_use() else "complete" if manifest else "interrupted"
    return {
        "run": str(store.folder),
        "state": state,
        "source": read_json(store.source)["source"],
        "rows": shards["rows"] if shards else 0,
        "refined": manifest.counts.refined if manifest else "",
        "stages": ", ".join(f"{name.rpartition('-')[0]} {n}/{total}" for name, n in done.items()),
    }


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")
