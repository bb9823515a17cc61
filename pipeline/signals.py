"""Signals and decisions of a run, read back from its folder: shard by shard, or as lazy frames of the whole run.

A file that cannot be read is a `CorruptInputError`; a plan that was not measured, a `RunFolderError`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import plan as planning
from pipeline import rules
from pipeline.plan import Plan
from pipeline.rules import Drop, KeepBest, Pairs, Rule
from pipeline.store import RunFolderError, Store
from stages.files import read_frame
from stages.stage import PAIRS, CorruptInputError, GlobalStage


def signals_of(plan: Plan, store: Store, shard: str, columns: Sequence[str]) -> pl.DataFrame:
    """Signals of a shard: `id` and these columns, rows as in the raw shard."""
    frame = read_frame(store.raw(shard), ["id"])
    for folder, names in _folders(plan, store, set(columns)):
        part = read_frame(folder / shard, ["id", *names])
        if not part["id"].equals(frame["id"]):
            raise CorruptInputError(folder / shard, "its ids are not those of the raw shard")
        frame = frame.hstack(part.drop("id"))
    return frame.select("id", *columns)


def _folders(plan: Plan, store: Store, columns: set[str]) -> Iterator[tuple[Path, list[str]]]:
    """The folders of shards that hold these columns, each with those that it holds."""
    for measured in plan.stages:
        folder, stage = store.stage(measured.key), measured.stage
        if names := [name for name in stage.writes if name in columns]:
            yield folder, names
        if isinstance(stage, GlobalStage) and (names := [name for name in stage.merges if name in columns]):
            yield folder / "merged", names


def pairs_of(plan: Plan, store: Store, kinds: Sequence[str]) -> dict[str, Pairs]:
    """Duplicates by kind; raises `CorruptInputError` if a file of pairs cannot be read."""
    pairs = {}
    for kind in dict.fromkeys(kinds):
        measured = plan.pairs[kind]
        assert isinstance(measured.stage, GlobalStage)  # noqa: S101  only those find pairs
        column = {**measured.stage.copies, **measured.stage.pairs}[kind]
        first = pl.concat([signals_of(plan, store, shard, [column]) for shard in store.shards()])[column]
        near = store.stage(measured.key) / f"{kind}.parquet"
        pairs[kind] = Pairs(first, read_frame(near) if kind in measured.stage.pairs else pl.DataFrame(schema=PAIRS))
    return pairs


@dataclass(frozen=True)
class RuleInputs:
    """Everything that the rules of a plan decide on, for all conversations of a run."""

    signals: pl.DataFrame
    pairs: Mapping[str, Pairs]
    order: tuple[str, ...]

    @classmethod
    def read(cls, plan: Plan, store: Store) -> RuleInputs:
        """Read the signals and pairs that a plan's rules name."""
        read = [column for rule in plan.rules if isinstance(rule, Drop) for column in rule.columns()]
        columns = list(dict.fromkeys([*read, *(term.split()[0] for term in plan.order)]))
        signals = pl.concat([signals_of(plan, store, shard, columns) for shard in store.shards()])
        kinds = [rule.pairs for rule in plan.rules if isinstance(rule, KeepBest)]
        return cls(signals, pairs_of(plan, store, kinds), plan.order)

    def decide(self, chosen: Sequence[Rule]) -> pl.DataFrame:
        """Apply rules of the plan; see `rules.decide`."""
        return rules.decide(self.signals, self.pairs, chosen, self.order)

    def nulls(self, chosen: Sequence[Rule]) -> dict[str, int]:
        """Conversations in which each `Drop` rule is unknown, by reason."""
        drops = [rule for rule in chosen if isinstance(rule, Drop)]
        return {rule.reason: int(self.signals.select(rule.condition().is_null().sum()).item()) for rule in drops}


def decisions_of(store: Store, shard: str) -> pl.DataFrame:
    """The decisions of one shard, which are the row group of its number."""
    try:
        with pq.ParquetFile(store.decisions, page_checksum_verification=True) as file:
            frame = pl.from_arrow(file.read_row_group(int(Path(shard).stem)))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptInputError(store.decisions, str(error).splitlines()[0]) from error
    assert isinstance(frame, pl.DataFrame)  # noqa: S101  a table is never a Series
    return frame


def measured_plan(store: Store) -> Plan:
    """The plan of a run whose signals are all there."""
    plan = planning.load(store.plan)
    check_measured(plan, store)
    return plan


def check_measured(plan: Plan, store: Store) -> None:
    """Refuse a plan that names a stage which this run has not measured."""
    for measured in plan.stages:
        if not store.stage(measured.key).exists():
            raise RunFolderError(
                f"{store.folder} holds no signals of stage {measured.name!r} with these parameters, code and models: "
                f"start `refine run` again with its source, this plan and --out {store.folder} to measure them"
            )


def scan_signals(store: Store) -> pl.LazyFrame:
    """Every signal of a complete run: `id` and one column per signal, one row per conversation, rows as in `scan`."""
    plan, shards = measured_plan(store), store.shards()
    parts = [scan(store, "raw").select("id")]
    for folder, names in _folders(plan, store, set(plan.signals)):
        parts.append(pl.scan_parquet([folder / shard for shard in shards], glob=False).select(names))
    return pl.concat(parts, how="horizontal").select("id", *plan.signals)  # a signal shard has its raw shard's rows


def scan(store: Store, part: Literal["raw", "refined", "rejected"]) -> pl.LazyFrame:
    """The conversations of one part of a complete run, in the order of the source."""
    return pl.scan_parquet([store.folder / part / shard for shard in store.shards()], glob=False)
