"""A run from source to manifest: ingest, measure, decide, write."""

import contextlib
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from pipeline import card, manifest, measure
from pipeline.diagnosis import diagnose
from pipeline.engine import Engine
from pipeline.engine.local import Local
from pipeline.estimate import Estimate, estimate
from pipeline.ingest import Limits, ingest, rows_of
from pipeline.manifest import Manifest
from pipeline.measure import ReportProgress
from pipeline.ownership import lock_run, sweep
from pipeline.plan import Plan, dumps
from pipeline.repair import repair
from pipeline.signals import RuleInputs, check_measured, scan
from pipeline.sources import Source, originals
from pipeline.store import RunFolderError, Store, read_json
from pipeline.write import ShardCounts, save_decisions, write
from stages.files import remove, rows, save, sizes_in
from stages.stage import CorruptInputError


class AccountingError(AssertionError):
    """Conversations were lost or duplicated between source and output: a bug of refine."""


@dataclass
class ActiveRun:
    """A run under way; `warn` is called with a sentence that must be read, and `seconds` are wall time per step."""

    store: Store
    plan: Plan
    engine: Engine
    tell: ReportProgress
    warn: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)
    whole: float = 0.0
    """Of a sample, about the seconds of wall time for the whole source; 0 if unknown."""
    held: Callable[[], None] = lambda: None
    """Raises an error if another process writes in this run by now."""

    def carry_out(self, source: Source, limits: Limits, *, as_source: bool = False) -> Manifest:
        """Ingest, measure, decide and write whatever is missing or corrupt, and return the manifest.

        With `as_source` the kept records are also written as they came.
        """
        removed: set[Path] = set()
        with lock_run(self.store) as self.held:
            while True:
                try:
                    done = self._carry_out(source, limits)
                    break
                except CorruptInputError as error:
                    path = self.store.here(error.path)
                    if path in removed:  # it was made again and is corrupt again: the disk is at fault
                        raise
                    removed.add(path)
                    self.warn(f"{error}; it is made again")
                    measure.forget(path, self.store)
            self._write_originals(source if as_source else None, limits)
        return done

    def decide_again(self, *, as_source: bool = False) -> Manifest:
        """Apply the plan to signals that were measured; raises `RunFolderError` if some were not, or one is corrupt."""
        before = read_json(self.store.source)
        source = originals.find_again(before) if as_source else None
        with lock_run(self.store) as self.held:
            check_measured(self.plan, self.store)
            try:
                done = self._decide(read_json(self.store.shard_list))
            except CorruptInputError as error:
                measure.forget(self.store.here(error.path), self.store)
                raise RunFolderError(f"{error}; start `refine run` again with --out {self.store.name}") from error
            self._write_originals(source, Limits.of(before))
        return done

    def _write_originals(self, source: Source | None, limits: Limits) -> None:
        """Write the kept records as they came to kept/, or remove those of earlier decisions if there is no source."""
        if source is not None:
            self.tell("kept", 0, 0)
            kept = scan(self.store, "decisions").filter("keep").select(pl.col("id").str.extract(r"(\d+)$"))
            numbers = set(kept.cast(pl.Int64).collect()["id"])
            originals.write(source, rows_of(source, limits), numbers, self.store.kept)
            self.tell("kept", len(numbers), len(numbers))
        elif self.store.kept.exists():
            shutil.rmtree(self.store.kept)
            self.warn("kept/ held the records of earlier decisions and is removed; --as source writes it again")

    def _carry_out(self, source: Source, limits: Limits) -> Manifest:
        start = time.perf_counter()
        self.tell("ingest", 0, 0)
        shards = self._ingest(source, limits)
        self.tell("ingest", shards["rows"], shards["rows"])
        of = f" of {shards['sample']['rows']:,}" if "sample" in shards else ""
        self.warn(f"{shards['source']}: {shards['rows']:,}{of} records of shape {shards['shape']}")
        for note in shards.get("notes", ()):
            self.warn(note)
        self.seconds["ingest"] = round(time.perf_counter() - start, 3)
        self.engine.agree(manifest.Handshake(self.store, tuple(each.stage for each in self.plan.stages)))
        self._repair(shards)
        early = measure.prepare(self.plan, self.store, self.engine, self.tell)
        expected = self._estimate(shards, limits)
        self.held()
        late = measure.measure(self.plan, self.store, self.engine, self.tell, expected.seconds)
        self.seconds |= {name: early.get(name, 0.0) + late.get(name, 0.0) for name in (*early, *late)}
        return self._decide(shards)

    def _ingest(self, source: Source, limits: Limits) -> dict[str, Any]:
        """Read a source where it is: nodes of a cluster may not see it."""
        reader = self.engine if self.engine.here else Local(len(os.sched_getaffinity(0)))
        try:
            return ingest(source, self.store, limits, lambda rows: self.tell("ingest", rows, 0), reader)
        finally:
            if reader is not self.engine:
                reader.close()

    def _repair(self, shards: dict[str, Any]) -> None:
        """Repair what is not repaired yet, with its progress."""
        start, total = time.perf_counter(), shards["rows"] - shards["quarantined"]
        names = [shard["name"] for shard in shards["shards"]]
        repair(self.plan.trims, self.store, self.engine, names, lambda done: self.tell("repair", done, total))
        if self.plan.trims:
            self.seconds["repair"] = round(time.perf_counter() - start, 3)

    def _estimate(self, shards: dict[str, Any], limits: Limits) -> Estimate:
        """About how long the stages will take, which is reported if it is long; unknown for a single shard."""
        count, sample = len(shards["shards"]), shards.get("sample")
        if count == 1 and not sample:
            return Estimate()
        expected = estimate(self.plan, self.store, everything=sample is not None)
        if sentence := expected.sentence(self.engine, count, shards["rows"]):
            self.warn(sentence)
        if sample and not expected.unknown:
            factor, count = sample["rows"] / shards["rows"], math.ceil(sample["rows"] / limits.rows)
            whole = expected.wall(self.engine, count, factor)
            self.whole = sum(whole.values()) + 2 * shards["seconds"]  # what is read is then written, twice
        return expected

    def _decide(self, shards: dict[str, Any]) -> Manifest:
        start = time.perf_counter()
        names = [shard["name"] for shard in shards["shards"]]
        measure.complete(self.plan, self.store, names)
        remarks = {each.name: tuple(each.stage.remarks(self.store.stage(each.key))) for each in self.plan.stages}
        remarks = {stage: lines for stage, lines in remarks.items() if lines}
        for stage, lines in remarks.items():
            for line in lines:
                self.warn(f"{stage}: {line}")
        if notes := shards.get("notes"):
            remarks = {"ingest": tuple(notes), **remarks}
        repairs = repair(self.plan.trims, self.store, self.engine, names)
        inputs = RuleInputs.read(self.plan, self.store)
        nulls = inputs.nulls()
        decisions = inputs.decide(self.plan.rules)  # may raise, so before any file is changed
        with contextlib.suppress(RunFolderError):  # steps with nothing to do keep the time of the earlier run
            before = Manifest.load(self.store)
            self.seconds = {**before.seconds, **self.seconds}
            self.whole = self.whole or (before.sample.seconds if before.sample else 0.0)
        self.held()
        remove(self.store.manifest)
        text = dumps(self.plan)
        save(self.store.plan, lambda aside: aside.write_text(text, encoding="utf-8"))
        firings = save_decisions(self.store, self.plan.rules, zip(names, decisions, strict=True))
        del inputs, decisions  # what they hold grows with the corpus
        self.seconds["decide"] = round(time.perf_counter() - start, 3)
        start = time.perf_counter()
        written = self._write(names, shards)
        self.seconds["write"] = round(time.perf_counter() - start, 3)
        share = written.refined / max(written.refined + written.rejected, 1)
        if lines := diagnose(self.plan, self.store, share):
            remarks = {**remarks, "rules": lines}
        done = manifest.record(
            self.plan,
            shards,
            firings,
            nulls,
            repairs=repairs,
            written=written,
            seconds=self.seconds,
            remarks=remarks,
            whole=self.whole,
        )
        text = card.text(done)
        save(self.store.card, lambda aside: aside.write_text(text, encoding="utf-8"))
        self.held()
        done.save(self.store)
        return done

    def _write(self, names: list[str], shards: dict[str, Any]) -> ShardCounts:
        total, done, sums = shards["rows"] - shards["quarantined"], 0, ShardCounts(0, 0, 0, 0, 0)
        sweep(self.store, shards["shards"])
        self.tell("write", 0, total)
        for written in write(self.plan, self.store, self.engine, names):
            sums = ShardCounts(*(a + b for a, b in zip(sums, written, strict=True)))
            done += written.refined + written.rejected
            self.tell("write", done, total)
        heights = self._heights(sums, shards)
        if sum(heights.values()) != shards["rows"]:
            out = " + ".join(f"{n} {folder}" for folder, n in heights.items())
            raise AccountingError(f"{shards['rows']} conversations came in, and {out} went out")
        if sums.refined == 0:
            self.warn("nothing is kept: every conversation was dropped; `refine show` says why")
        return sums

    def _heights(self, sums: ShardCounts, shards: dict[str, Any]) -> dict[str, int]:
        """Conversations in the output folders, counted as a reader would; those of a bucket are listed, not read."""
        folders = ("refined", "rejected", "quarantine")
        files = {folder: sizes_in(self.store.folder / folder, anew=True) for folder in folders}
        if not self.store.bucket:
            return {f: sum(rows(self.store.folder / f / name) for name in names) for f, names in files.items()}
        both = files["refined"].keys() & files["rejected"].keys()
        if missing := {shard["name"] for shard in shards["shards"]} - both:
            raise CorruptInputError(self.store.refined(min(missing)), "it is not there")
        return {"refined": sums.refined, "rejected": sums.rejected, "quarantine": shards["quarantined"]}
