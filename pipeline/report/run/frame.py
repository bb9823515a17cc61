"""A complete run as one narrow frame: decisions and the signals that figures show, without text."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pipeline.manifest import Manifest
from pipeline.ownership import run_at
from pipeline.plan import Plan
from pipeline.report.run.signals import Signal, select_signals
from pipeline.signals import decisions_of, measured_plan, signals_of
from pipeline.store import RunFolderError, Store
from stages.files import read_frame


@dataclass(frozen=True)
class FinishedRun:
    """A complete run, and what a report needs of each conversation."""

    store: Store
    plan: Plan
    manifest: Manifest
    signals: tuple[Signal, ...]
    rows: pl.DataFrame
    """One row per conversation, in the order of the corpus: id, in_shard, source, keep, reason, duplicate_of, jaccard,
    `in_rule0` ... (whether each rule fires, in the order of the plan), language if it was measured, and signals as
    Float32. About 200 bytes per conversation; sorting into bands adds 100."""

    @property
    def reasons(self) -> list[str]:
        """Reasons of the rules, in the order of the plan."""
        return [rule.reason for rule in self.plan.rules]

    def has(self, *names: str) -> bool:
        """Whether all of these signals were measured."""
        return all(name in self.rows.columns for name in names)


def read_run(folder: Path) -> FinishedRun:
    """Read a run.

    Raises:
        RunFolderError: it is not a complete run, is in use, or a stage of its plan was not measured.
        CorruptInputError: a file of the run cannot be read.
    """
    store = run_at(folder)
    plan = measured_plan(store)
    signals = select_signals(plan)
    rows = pl.concat([_shard(store, plan, signals, shard) for shard in store.shards()])
    return FinishedRun(store, plan, Manifest.load(store), signals, rows)


def _shard(store: Store, plan: Plan, signals: tuple[Signal, ...], shard: str) -> pl.DataFrame:
    """The rows of one shard."""
    names = [signal.name for signal in signals]
    language = ["language"] if plan.signals.get("language") == pl.String else []
    measured = signals_of(plan, store, shard, [*names, *language]).with_columns(_finite(name) for name in names)
    fired = {rule.reason: f"in_rule{i}" for i, rule in enumerate(plan.rules)}
    decided = decisions_of(store, shard)
    if not decided["id"].equals(measured["id"]):
        raise RunFolderError(f"{store.decisions} holds other conversations: start `refine decide {store.folder}`")
    kept = ("keep", "reason", "duplicate_of", "jaccard")
    return (
        read_frame(store.raw(shard), ["id", "source"])
        .with_columns(in_shard=pl.lit(int(Path(shard).stem), pl.UInt32), source=pl.col("source").cast(pl.Categorical))
        .hstack(decided.select(*kept, pl.col("reason").alias("_")).drop("_"))
        .with_columns(pl.col("reason").cast(pl.Enum(list(fired))))
        .hstack(decided.select(list(fired)).rename(fired))
        .hstack(measured.drop("id"))
    )


def _finite(name: str) -> pl.Expr:
    """A signal as Float32; an infinite value becomes null, since no axis can show it."""
    value = pl.col(name).cast(pl.Float32)
    return pl.when(value.is_finite()).then(value).alias(name)
