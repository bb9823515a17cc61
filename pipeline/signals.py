"""Signals and decisions of a run, read back from its folder: shard by shard, or as lazy frames of the whole run.

A file that cannot be read is a `CorruptInputError`; a plan that was not measured, a `RunFolderError`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from pipeline import plan as planning
from pipeline import rules
from pipeline.duplicates import MAX_PARTNERS, Duplicates
from pipeline.plan import Plan
from pipeline.rules import Drop, KeepBest, KeepTop, Rule
from pipeline.store import RunFolderError, Store
from stages.files import Frames, exists, fetch, read_batches, read_frame, with_derived
from stages.stage import CorruptInputError, GlobalStage

TOKEN = r"\w+|[^\w\s]"  # noqa: S105  a pattern
"""Pattern of a token: a word or a punctuation mark. A BPE vocabulary of 50,000 gives about as many."""


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


@dataclass(frozen=True)
class RuleInputs:
    """What the rules of a plan decide on, read shard by shard.

    Memory: two bits per conversation and `Drop` rule; a bin of conversations that have a duplicate, whose decisions
    depend on each other; 100 bytes per conversation with `KeepTop` rules, and 20 for each of them.
    """

    store: Store
    answers: Mapping[str, pl.Series]
    """Whether each `Drop` rule fires on each conversation, by reason; null if it is unknown."""
    duplicates: Duplicates
    """The conversations that have a duplicate, with the columns of the order."""
    order: tuple[str, ...]
    candidates: Mapping[str, pl.DataFrame]
    """The ranking of each `KeepTop` rule, by reason."""

    @classmethod
    def read(cls, plan: Plan, store: Store, kinds: Sequence[str] = ()) -> RuleInputs:
        """Read the signals and pairs that a plan's rules name, and those of more kinds of duplicates."""
        drops = [rule for rule in plan.rules if isinstance(rule, Drop)]
        tops = [rule for rule in plan.rules if isinstance(rule, KeepTop)]
        named = {rule.pairs: None for rule in plan.rules if isinstance(rule, KeepBest)} | dict.fromkeys(kinds)
        duplicates = _duplicates(plan, store, tuple(named))
        ranks = [term.split()[0] for term in plan.order]
        firsts = [_first_column(plan, kind) for kind in named]
        columns = list(dict.fromkeys([*(c for rule in drops for c in rule.columns()), *ranks, *firsts]))
        answers: list[list[pl.Series]] = [[] for _ in drops]
        ranked: list[list[pl.DataFrame]] = [[] for _ in tops]
        begin = 0
        for shard in store.shards():
            signals = signals_of(plan, store, shard, columns)
            for rule, of_rule in zip(drops, answers, strict=True):
                of_rule.append(rule.apply(signals))
            for top, of_top in zip(tops, ranked, strict=True):
                of_top.append(_ranking(plan, store, shard, top))
            duplicates.add(signals, begin, ranks)
            begin += signals.height
        whole = {rule.reason: pl.concat(answer) for rule, answer in zip(drops, answers, strict=True)}
        candidates = {top.reason: pl.concat(of_top) for top, of_top in zip(tops, ranked, strict=True)}
        return cls(store, whole, duplicates, plan.order, candidates)

    def decide(self, chosen: Sequence[Rule], most: int = MAX_PARTNERS) -> Iterator[pl.DataFrame]:
        """Apply rules of the plan; gives the decisions of each shard as `rules.decide` gives those of all.

        Duplicates are decided in bins of about `most` conversations, which changes nothing.
        """
        parts = []
        for one in self.duplicates.bins(most):
            fires = {reason: answer.gather(one.rows) for reason, answer in self.answers.items()}
            found = rules.find_duplicates(one.partners, fires, one.pairs, chosen, self.order)
            parts.append(_mapped(found.with_columns(row=one.rows.gather(found["row"])), scratch_folder(self.store)))
        tops, cuts = rules.select_top(self.candidates, self.answers, [part["row"] for part in parts], chosen)
        return self._conclude(chosen, parts, {**self.answers, **tops}, cuts)

    def _conclude(
        self,
        chosen: Sequence[Rule],
        duplicates: Sequence[pl.DataFrame],
        all_answers: Mapping[str, pl.Series],
        cuts: pl.Series,
    ) -> Iterator[pl.DataFrame]:
        begin = 0
        for shard in self.store.shards():
            ids = read_frame(self.store.raw(shard), ["id"])["id"]
            end = begin + len(ids)
            ends = np.array([begin, end])
            here = pl.concat(part[slice(*part["row"].search_sorted(ends, "left"))] for part in duplicates)
            answers = {reason: answer[begin:end] for reason, answer in all_answers.items()}
            yield rules.conclude(ids, answers, here.with_columns(pl.col("row") - begin), chosen, cuts[begin:end])
            begin = end

    def nulls(self) -> dict[str, int]:
        """Conversations on which each `Drop` rule is unknown, by reason."""
        return {reason: answer.null_count() for reason, answer in self.answers.items()}


def _ranking(plan: Plan, store: Store, shard: str, top: KeepTop) -> pl.DataFrame:
    """What a rule ranks a shard by."""
    per = [top.per] if top.per not in {"", "source"} else []
    signals = signals_of(plan, store, shard, list(dict.fromkeys((*top.columns(), *per))))
    if more := [*(["text"] if top.tokens else []), *(["source"] if top.per == "source" else [])]:
        raw = read_frame(store.measured(shard, plan.trims), more)
        if top.tokens:
            raw = raw.with_columns(tokens=pl.col("text").str.count_matches(TOKEN)).drop("text")
        signals = signals.hstack(raw)
    return rules.ranking(top, signals)


def _first_column(plan: Plan, kind: str) -> str:
    """The signal with the first exact copy of each conversation, for a kind of duplicates."""
    stage = plan.pairs[kind].stage
    assert isinstance(stage, GlobalStage)  # noqa: S101  only those find pairs
    return {**stage.copies, **stage.pairs}[kind]


def _duplicates(plan: Plan, store: Store, kinds: Sequence[str]) -> Duplicates:
    """The duplicates of these kinds; conversations are still to be added."""
    firsts = {kind: _first_column(plan, kind) for kind in kinds}
    folders = _folders(plan, store, set(firsts.values()))
    copies = (read_frame(folder / shard, ["id", *names]) for folder, names in folders for shard in store.shards())
    return Duplicates(scratch_folder(store), firsts, {kind: _near(plan, store, kind) for kind in kinds}, copies)


def _near(plan: Plan, store: Store, kind: str) -> Iterator[pl.DataFrame]:
    """The pairs of near-duplicates of a kind; raises `CorruptInputError` if their file cannot be read."""
    measured = plan.pairs[kind]
    assert isinstance(measured.stage, GlobalStage)  # noqa: S101  only those find pairs
    if kind in measured.stage.pairs:
        yield from read_batches(store.stage(measured.key) / f"{kind}.parquet")


def _mapped(frame: pl.DataFrame, folder: Path | None) -> pl.DataFrame:
    """A frame in a temporary file."""
    frames = Frames(folder, frame.schema)
    frames.add(frame)
    return frames.whole


def scratch_folder(store: Store) -> Path | None:
    """Where temporary files go: the run's folder, or if that is read-only, the system's."""
    return store.folder if os.access(store.folder, os.W_OK) else None


def decisions_of(store: Store, shard: str) -> pl.DataFrame:
    """The decisions of one shard."""
    _check_decided(store)
    return read_frame(store.decisions(shard))


def _check_decided(store: Store) -> None:
    """Refuse a run whose decisions are in one file."""
    if not (store.bucket or store.decisions("").is_dir()):
        raise RunFolderError(
            f"{store.folder} has no folder decisions/, because an earlier version of refine made it: start "
            f"`refine decide {store.folder}`"
        )


def measured_plan(store: Store) -> Plan:
    """The plan of a run whose signals are all there."""
    plan = planning.load(store.plan)
    check_measured(plan, store)
    return plan


def check_measured(plan: Plan, store: Store) -> None:
    """Refuse a plan that names a stage which this run has not measured."""
    for measured in plan.stages:
        if not exists(store.stage(measured.key)):
            raise RunFolderError(
                f"{store.folder} holds no signals of stage {measured.name!r} with these parameters, code, models and "
                f"repairs: start `refine run` again with its source, this plan and --out {store.folder} to measure them"
            )


def scan_signals(store: Store) -> pl.LazyFrame:
    """Every signal of a complete run: `id` and one column per signal, one row per conversation, rows as in `scan`."""
    plan, shards = measured_plan(store), store.shards()
    parts = [scan(store, "raw").select("id")]
    for folder, names in _folders(plan, store, set(plan.signals)):
        parts.append(pl.scan_parquet([fetch(folder / shard) for shard in shards], glob=False).select(names))
    return pl.concat(parts, how="horizontal").select("id", *plan.signals)  # a signal shard has its raw shard's rows


def scan(store: Store, part: Literal["raw", "decisions", "refined", "rejected"]) -> pl.LazyFrame:
    """One part of a complete run, in the order of the source."""
    if part == "decisions":
        _check_decided(store)
    files = [fetch(store.folder / part / shard) for shard in store.shards()]
    if part != "raw":
        return pl.scan_parquet(files, glob=False)
    # shards of earlier versions hold a column of texts, and a run that was continued has shards of both kinds
    return with_derived(pl.scan_parquet(files, glob=False, missing_columns="insert", extra_columns="ignore"))
