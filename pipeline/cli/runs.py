"""Output of `run`, `decide`, `signals`, `stages`, `plan` and `status`."""

from __future__ import annotations

import json
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from rich.text import Text

import stages as staging
from pipeline import plan as planning
from pipeline.api.run import PreparedRun, Run, notes, open_run
from pipeline.ingest import recognise
from pipeline.ownership import RUNS, any_run_at, in_use, run_folders
from pipeline.sources import SourceError
from pipeline.store import RunFolderError, Store, read_json
from pipeline.terminal import console, safe, table
from stages.files import exists, save, sizes_in
from stages.stage import MissingModelError, parameters

if TYPE_CHECKING:
    from pipeline.api.plant import Audit, Damage
    from pipeline.api.push import Push
    from pipeline.api.report import Report


def finish(run: Run, *, as_json: bool) -> None:
    """Print the summary of a run."""
    if as_json:
        print_json({"out": run.store.name, **run.manifest.summary()})
    else:
        run.print(console())


def print_report(report: Report, *, fail: bool, as_json: bool) -> None:
    """Print a report, and exit with 1 if a check failed and `fail` is true."""
    if as_json:
        print_json({"report": str(report.page), **report.numbers})
    else:
        report.print(console())
    if fail and report.failed:
        sys.exit(1)


def print_push(push: Push, *, as_json: bool) -> None:
    """Print what was pushed, or would be."""
    if as_json:
        print_json(asdict(push))
    else:
        push.print(console())


def print_damage(damage: Damage, *, as_json: bool) -> None:
    """Print what was planted."""
    if as_json:
        kinds = [{"kind": plot.kind.name, "planted": plot.planted, "note": plot.note} for plot in damage.kinds]
        counts = {"conversations": damage.conversations, "omitted": damage.omitted}
        print_json({"out": str(damage.path), **counts, "kinds": kinds})
    else:
        damage.print(console())


def print_audit(audit: Audit, *, as_json: bool) -> None:
    """Print what a run found of the damage."""
    if as_json:
        kinds = {name: {**asdict(one), "recall": one.share} for name, one in audit.kinds.items()}
        untouched = {**asdict(audit.untouched), "share": audit.untouched.share}
        print_json({"kinds": kinds, "untouched": untouched, "baseline": audit.baseline and asdict(audit.baseline)})
    else:
        audit.print(console())


def dry_run(run: PreparedRun, *, verbose: bool, as_json: bool) -> None:
    """Print what a run would do, and exit with 1 if it cannot."""
    source, plan, limits, folder = run.source, run.plan, run.limits, run.folder
    states = {measured.name: _state_of(measured) for measured in plan.stages}
    missing = [state for able, state in states.values() if not able]
    shape = None
    try:
        shape = recognise(source, limits)
        run.check()
    except SourceError as error:
        missing.append(str(error))
    if as_json:
        print_json(
            {
                "source": source.name,
                "shape": shape,
                "out": str(folder),
                "stages": [{"use": name, "state": state} for name, (_, state) in states.items()],
                "repairs": list(plan.trims),
                "rules": [{"reason": rule.reason, "where": rule.where} for rule in plan.rules],
                "left_out": list(plan.left_out),
                "can_run": not missing,
            }
        )
    else:
        out = console()
        rows = f"the first {limits.limit:,} rows of " if limits.limit else ""
        rows = f"a sample of {100 * limits.sample:.3g}% of {rows}" if limits.sample else rows
        what = f"{len(plan.stages)} stages, {len(plan.signals)} signals, {len(plan.rules)} rules"
        target = f"{rows}{source.name} ({shape or 'unknown shape'}) into {folder}"
        out.print(Text(safe(f"would refine {target}: {what}")), soft_wrap=True)
        able = f"cannot run: {'; '.join(missing)}" if missing else "can run: nothing is missing"
        out.print(Text(safe(able)), soft_wrap=True)
        _print_plan(plan, states, verbose=verbose)
        if note := source.note(folder):
            out.print(Text(safe(note)))
    if missing:
        sys.exit(1)


def _state_of(measured: planning.PlannedStage) -> tuple[bool, str]:
    """Whether a stage has its models, and a description of its state."""
    try:
        measured.stage.models()
    except MissingModelError as error:
        return False, safe(str(error))
    return True, "; ".join(measured.stage.notes())


def _print_plan(plan: planning.Plan, states: dict[str, tuple[bool, str]], *, verbose: bool) -> None:
    out = console()
    rows: list[tuple[object, ...]] = [
        (each.name, ", ".join(each.signals) if verbose else len(each.signals), states[each.name][1])
        for each in plan.stages
    ]
    out.print(table("\nStages", ("stage", "signals", "note"), rows, frozenset() if verbose else frozenset({1})))
    repairs: list[tuple[object, ...]] = [(one.trim, planning.TRIMS[one.trim], one.because) for one in plan.repairs]
    if repairs:
        out.print(table("\nRepairs", ("repair", "trims", "because"), repairs))
    rules: list[tuple[object, ...]] = [(rule.reason, rule.where, rule.because) for rule in plan.rules]
    out.print(table("\nRules", ("reason", "drops where", "because"), rules))
    for note in notes(replace(plan, stages=())):
        out.print(Text(safe(note)))


def signals(folder: Path, out: Path | None) -> None:
    """Write all signals of a run to one file, which may not lie in the run folder, or print a summary of each."""
    run = open_run(folder)
    if out is None:
        frame = run.signals.collect()
        rows = [(column.name, str(column.dtype), column.null_count(), *_range(column)) for column in frame.drop("id")]
        head = ("signal", "type", "unknown", "min", "median", "max")
        console().print(table(f"{frame.height:,} conversations", head, list(rows), frozenset(range(2, len(head)))))
        return
    if out.suffix not in WRITERS:
        raise RunFolderError(f"--out is {out}, expected a file that ends in {', '.join(WRITERS)}")
    if out.resolve().is_relative_to(run.path.resolve()):
        raise RunFolderError(f"--out is {out}, a file in the run folder: choose another place")
    save(out, lambda aside: WRITERS[out.suffix](run.signals, aside))
    sys.stdout.write(safe(f"{out}: {len(run.signals.collect_schema()) - 1} signals\n"))


def _write_csv(frame: pl.LazyFrame, path: Path) -> None:
    """Write a CSV, which has no lists: their values are joined by spaces."""
    lists = [name for name, dtype in frame.collect_schema().items() if dtype.is_nested()]
    frame.with_columns(pl.col(lists).cast(pl.List(pl.String)).list.join(" ")).sink_csv(path)


WRITERS: dict[str, Callable[[pl.LazyFrame, Path], object]] = {
    ".parquet": pl.LazyFrame.sink_parquet,
    ".csv": _write_csv,
    ".jsonl": pl.LazyFrame.sink_ndjson,
}
"""Writers of a table, by the ending of its file."""


def _range(column: pl.Series) -> tuple[str, ...]:
    """Minimum, median and maximum of numbers; empty for other types."""
    if not column.dtype.is_numeric():
        return ("", "", "")
    ends: list[Any] = [column.min(), column.median(), column.max()]
    return tuple("" if value is None else f"{value:.4g}" for value in ends)


def stages(name: str | None, *, as_json: bool) -> None:
    """Print the stages, or one with its parameters and signals."""
    tables: dict[str, dict[str, Any]] = {}
    for use in [name] if name else staging.names():
        planned = planning.PlannedStage(use, staging.find(use)())
        tables[use] = {
            "summary": planned.stage.summary,
            "parameters": parameters(planned.stage),
            "signals": {column: str(dtype) for column, dtype in planned.signals.items()},
            "doc": planned.stage.__doc__,
        }
    if as_json:
        print_json(tables)
        return
    out = console()
    for use, stage in tables.items():
        out.print(Text(f"{use}: {stage['summary']}", style="bold"))
        if name:
            out.print(Text(str(stage["doc"])))
            out.print(Text("parameters: " + ", ".join(f"{k} = {v!r}" for k, v in stage["parameters"].items())))
        out.print(Text("  " + ", ".join(f"{k} ({v})" if name else k for k, v in stage["signals"].items()) + "\n"))


def print_plan(plan: str | None, *, as_json: bool) -> None:
    """Print a plan, if it can be used: the TOML file with its comments, or as JSON with every parameter."""
    path = planning.find(plan)
    checked = planning.load(path)
    if as_json:
        print_json(tomllib.loads(planning.dumps(checked)))
    else:
        sys.stdout.write(path.read_text(encoding="utf-8"))


def print_plans(*, as_json: bool) -> None:
    """Print the names of the plans that come with refine, and what each is for."""
    if as_json:
        print_json(planning.named())
    else:
        console().print(table("", ("plan", "for"), list(planning.named().items())))


def status(folders: Sequence[Path], *, as_json: bool) -> None:
    """Print the progress of runs, by default of all in data/runs/ and the current folder."""
    states = [_progress(any_run_at(place)) for place in folders or run_folders()]
    if as_json:
        print_json(states)
        return
    if not states:
        console().print(f"no runs in {RUNS} or the current folder: `refine run` makes one")
        return
    rows = [tuple(state[key] for key in ("run", "state", "source", "rows", "refined", "stages")) for state in states]
    head = ("run", "state", "source", "rows", "refined", "shards measured")
    console().print(table("", head, rows, frozenset({3, 4})))


def _progress(store: Store) -> dict[str, Any]:
    shards = read_json(store.shard_list) if exists(store.shard_list) else None
    manifest = read_json(store.manifest) if exists(store.manifest) else None
    origin = read_json(store.source)
    names = {shard["name"] for shard in shards["shards"]} if shards else set()
    done = Counter[str]()
    for stage, _, file in (path.partition("/") for path in sorted(sizes_in(store.stage("")))):
        done[stage] += file in names
    total = len(shards["shards"]) if shards else "?"
    state = "running" if in_use(store) else "complete" if manifest else "interrupted"
    return {
        "run": store.name,
        "state": state,
        "source": origin["source"] + (f" (sample of {100 * origin['sample']:.3g}%)" if "sample" in origin else ""),
        "sample": origin.get("sample"),
        "rows": shards["rows"] if shards else 0,
        "refined": manifest["counts"]["refined"] if manifest else "",
        "stages": ", ".join(f"{name.rpartition('-')[0]} {n}/{total}" for name, n in done.items()),
    }


def print_json(value: object) -> None:
    """Print a value as indented JSON."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")
