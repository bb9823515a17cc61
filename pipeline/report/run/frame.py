"""A complete run as one narrow frame: decisions and the signals that figures show, without text; its duplicates."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from pipeline.duplicates import Bin
from pipeline.manifest import Manifest
from pipeline.ownership import run_at
from pipeline.plan import Plan
from pipeline.rules import Drop, KeepBest, column_of
from pipeline.signals import RuleInputs, decisions_of, measured_plan, signals_of
from pipeline.store import RunFolderError, Store
from stages.files import read_frame
from stages.stage import Axis

MAX_ROWS = 200_000
"""Number of conversations above which figures count a random sample of about so many."""
WORDS = ("n_words", "dedup_words")
"""Signals that count the words of a conversation; the first that was measured is used."""
CLUSTER = "semantic_cluster"
"""The signal with the cluster of meaning of a conversation."""
MAX_SIGNALS = 24
"""Maximum number of signals that a report draws."""
DEFAULT_JACCARD = 0.75
"""Minimum Jaccard of two duplicates if no rule names one."""
_SIDES = re.compile(r"\b([A-Za-z_]\w*)\s*(>=|<=|<>|!=|=|>|<)\s*(-?\d+(?:\.\d+)?(?:[eE]-?\d+)?)")


@dataclass(frozen=True)
class Signal:
    """A signal as a figure draws it."""

    name: str
    unit: str
    log: bool


@dataclass(frozen=True)
class Threshold:
    """A number that a rule compares a signal with."""

    reason: str
    text: str
    at: float


@dataclass(frozen=True)
class Kind:
    """A kind of duplicates that a stage measured, and the minimum Jaccard at which they count."""

    name: str
    at_least: float
    duplicates: Iterable[Bin]
    """The conversations that have a duplicate of this or another kind."""


@dataclass(frozen=True)
class FinishedRun:
    """A complete run, and what a report needs of each conversation."""

    store: Store
    plan: Plan
    manifest: Manifest
    signals: tuple[Signal, ...]
    keep: pl.Series
    """Whether each conversation of the run is kept."""
    words_dropped: dict[int | None, int]
    """Words of all conversations by the number of the rule that dropped them, those kept by None; empty if no stage
    counted words."""
    numbers: pl.Series
    """Numbers in the corpus, from 0, of the conversations in `rows`: all, or a sample if they are many."""
    rows: pl.DataFrame
    """One row per conversation, in the order of the corpus: id, in_shard, source, keep, reason, duplicate_of, jaccard,
    cosine if a rule drops by it, `in_rule0` ... (whether each rule fires, in the order of the plan), language and
    cluster of meaning if they were measured, and signals as Float32. About 200 bytes per conversation; sorting into
    bands adds 100."""

    @property
    def words(self) -> str | None:
        """The signal that counts the words of a conversation; None if none was measured."""
        return next((name for name in WORDS if name in self.rows.columns), None)

    @property
    def sample_note(self) -> str:
        """A sentence on what the figures count, except that of what is left; empty if it is every conversation."""
        if self.rows.height == len(self.keep):
            return ""
        return (
            f"The other figures count a random sample of {self.rows.height:,} of the {len(self.keep):,} conversations."
        )

    @property
    def reasons(self) -> list[str]:
        """Reasons of the rules, in the order of the plan."""
        return [rule.reason for rule in self.plan.rules]


def read_run(folder: Path, most: int = MAX_ROWS) -> FinishedRun:
    """Read a run, and of more than `most` conversations about so many for figures, the same each time.

    Raises `RunFolderError` if it is not complete or in use, `CorruptInputError` if a file is damaged.
    """
    store = run_at(folder)
    plan = measured_plan(store)
    signals = select_signals(plan)
    manifest, draw, words = Manifest.load(store), np.random.default_rng(0), Counter[int | None]()
    share = most / max(manifest.counts.refined + manifest.counts.rejected, 1)
    keeps, parts, numbers, begin = list[pl.Series](), list[pl.DataFrame](), [np.empty(0, np.uint32)], 0
    for shard in store.shards():
        whole = _shard(store, plan, signals, shard)
        words.update(_words_dropped(whole))
        here = np.flatnonzero(draw.random(whole.height) < share)
        keeps.append(whole["keep"])
        parts.append(whole[here])
        numbers.append((begin + here).astype(np.uint32))
        begin += whole.height
    sample = pl.Series(np.concatenate(numbers))
    return FinishedRun(store, plan, manifest, signals, pl.concat(keeps), dict(words), sample, pl.concat(parts))


def _words_dropped(rows: pl.DataFrame) -> dict[int | None, int]:
    """The words of some rows as in `FinishedRun.words_dropped`."""
    counted = [name for name in WORDS if name in rows.columns][:1]
    sums = (rows.group_by(pl.col("reason").to_physical()).agg(pl.col(name).cast(pl.Int64).sum()) for name in counted)
    return dict(row for frame in sums for row in frame.iter_rows())


def _shard(store: Store, plan: Plan, signals: tuple[Signal, ...], shard: str) -> pl.DataFrame:
    names = [signal.name for signal in signals]
    language = ["language"] if plan.signals.get("language") == pl.String else []
    cluster = [CLUSTER] if plan.signals.get(CLUSTER) == pl.UInt32 and CLUSTER not in names else []
    decided, measured = decisions_of(store, shard), signals_of(plan, store, shard, [*names, *language, *cluster])
    if not decided["id"].equals(measured["id"]):
        raise RunFolderError(
            f"{store.decisions(shard)} holds other conversations: start `refine decide {store.folder}`"
        )
    reasons = [rule.reason for rule in plan.rules]
    decisions = decided.select(
        *("keep", pl.col("reason").cast(pl.Enum(reasons)), "duplicate_of", "jaccard"),
        *({"cosine"} & set(decided.columns)),
        **{f"in_rule{i}": reason for i, reason in enumerate(reasons)},
    )
    numbers = [pl.col(name).cast(pl.Float32) for name in names]
    finite = [pl.when(number.is_finite()).then(number) for number in numbers]  # no axis can show infinity
    return (
        read_frame(store.raw(shard), ["id", "source"])
        .with_columns(in_shard=pl.lit(int(Path(shard).stem), pl.UInt32), source=pl.col("source").cast(pl.Categorical))
        .hstack(decisions)
        .hstack(measured.select(*finite, *language, *cluster))
    )


def select_signals(plan: Plan) -> tuple[Signal, ...]:
    """The signals that a report draws, by rank: first choice are those that rules read, then those with an axis."""
    scalar = {name for name, kind in plan.signals.items() if kind.is_numeric() or kind == pl.Boolean}
    ruled = [column for rule in plan.rules if not isinstance(rule, KeepBest) for column in rule.columns()]
    axes: dict[str, Axis] = {}
    for one in plan.stages:
        axes |= one.stage.axes or dict.fromkeys(one.signals, Axis())
    ranked = sorted(axes, key=lambda name: axes[name].rank)
    names = [name for name in dict.fromkeys([*ruled, *ranked]) if name in scalar][:MAX_SIGNALS]
    drawn = sorted(((name, axes.get(name, Axis())) for name in names), key=lambda one: one[1].rank)
    return tuple(Signal(name, axis.unit, axis.log) for name, axis in drawn)


def thresholds(plan: Plan, name: str) -> list[Threshold]:
    """The numbers that rules compare a signal with, as the rules say it: `column operator number`."""
    return [
        Threshold(rule.reason, f"{column} {operator} {number}", float(number))
        for rule in plan.rules
        if isinstance(rule, Drop)
        for column, operator, number in _SIDES.findall(re.sub(r"'[^']*'", "''", rule.where))
        if column == name
    ]


def kinds(plan: Plan, store: Store) -> list[Kind]:
    """The kinds that rules name; if no rule names one, that of the stage `dedup`."""
    named = [(rule.pairs, rule.at_least) for rule in plan.rules if isinstance(rule, KeepBest)]
    if not named and "dedup" in plan.pairs:
        named = [("dedup", DEFAULT_JACCARD)]
    inputs = RuleInputs.read(plan, store, [name for name, _ in named])
    return [Kind(name, at_least, inputs.duplicates) for name, at_least in named]


def have_duplicates(kind: Kind, among: pl.Series) -> pl.Series:
    """Whether each conversation has a duplicate or exact copy; only those that are true in `among` count."""
    answers = pl.repeat(value=False, n=len(among), eager=True)
    for one in kind.duplicates:
        members, groups, near = _alive(kind, one, among)
        several = groups.filter(pl.col("n") > 1)["group"]
        with_one = pl.concat([several, near["id"], near["other"]]).unique()
        have = members.filter(pl.col("among") & pl.col("group").is_in(with_one.implode()))["row"]
        answers = answers.scatter(have, values=True)
    return answers


def both(kind: Kind, among: pl.Series) -> int:
    """Number of pairs of duplicates that are both true in `among`; a group of n exact copies counts as n - 1."""
    found = (_alive(kind, one, among) for one in kind.duplicates)
    return sum(int((groups["n"] - 1).sum()) + near.height for _, groups, near in found)


def _alive(kind: Kind, one: Bin, among: pl.Series) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Rows with duplicates and their groups of exact copies, groups with members in `among`, pairs of those groups."""
    pairs = one.pairs[kind.name]
    members = pl.DataFrame({"row": one.rows, "group": pairs.first, "among": among.gather(one.rows)})
    groups = members.filter("among")["group"].value_counts(name="n")
    near = pairs.near.filter(pl.col(column_of(kind.name)) >= kind.at_least)
    near = near.filter(pl.col(side).is_in(groups["group"].implode()) for side in ("id", "other"))
    return members, groups, near
