"""Which conversations have a near-duplicate beside them in the same corpus, and which pairs are kept both."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from pipeline.plan import Plan
from pipeline.rules import KeepBest, Pairs
from pipeline.signals import pairs_of
from pipeline.store import Store

DEFAULT = 0.75
"""The Jaccard from which on two conversations are duplicates, where no rule says one."""


@dataclass(frozen=True)
class Kind:
    """A kind of duplicates as a stage found them, and from which Jaccard on they count."""

    name: str
    at_least: float
    found: Pairs


def kinds(plan: Plan, store: Store) -> list[Kind]:
    """The kinds that rules name; where none does, those of the stage `dedup`.

    Raises:
        CorruptInputError: a file of pairs cannot be read.
    """
    said = [(rule.pairs, rule.at_least) for rule in plan.rules if isinstance(rule, KeepBest)]
    wanted = said or ([("dedup", DEFAULT)] if "dedup" in plan.pairs else [])
    found = pairs_of(plan, store, [name for name, _ in wanted])
    return [Kind(name, at_least, found[name]) for name, at_least in wanted]


def duplicated(kind: Kind, ids: pl.Series, among: pl.Series) -> pl.Series:
    """For each conversation whether it has a duplicate, both being `among` (a boolean each); exact copies count."""
    rows, groups, near = _alive(kind, ids, among)
    several = groups.filter(pl.col("n") > 1)["group"]
    with_one = pl.concat([several, near["id"], near["other"]]).unique()
    return rows.select(pl.col("among") & pl.col("group").is_in(with_one.implode())).to_series()


def both(kind: Kind, ids: pl.Series, among: pl.Series) -> int:
    """Pairs of duplicates that are both `among`; a group of n exact copies counts n - 1."""
    _, groups, near = _alive(kind, ids, among)
    return int((groups["n"] - 1).sum()) + near.height


def _alive(kind: Kind, ids: pl.Series, among: pl.Series) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """All rows with their groups of exact copies; groups with members `among`; pairs of such groups."""
    rows = pl.DataFrame({"id": ids, "group": kind.found.first, "among": among})
    groups = rows.filter(pl.col("among")).group_by("group").agg(n=pl.len().cast(pl.Int64))
    near = kind.found.near.filter(pl.col("jaccard") >= kind.at_least)
    near = near.join(groups, left_on="id", right_on="group", how="semi")
    return rows, groups, near.join(groups, left_on="other", right_on="group", how="semi")
