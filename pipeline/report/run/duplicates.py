"""Which conversations have a duplicate in the same corpus, and which pairs are both kept."""

from dataclasses import dataclass

import polars as pl

from pipeline.plan import Plan
from pipeline.rules import KeepBest, Pairs
from pipeline.signals import pairs_of
from pipeline.store import Store

DEFAULT_JACCARD = 0.75
"""Minimum Jaccard of two duplicates if no rule names one."""


@dataclass(frozen=True)
class Kind:
    """A kind of duplicates that a stage measured, and the minimum Jaccard at which they count."""

    name: str
    at_least: float
    pairs: Pairs


def kinds(plan: Plan, store: Store) -> list[Kind]:
    """The kinds that rules name; if no rule names one, that of the stage `dedup`.

    Raises:
        CorruptInputError: a file of pairs cannot be read.
    """
    named = [(rule.pairs, rule.at_least) for rule in plan.rules if isinstance(rule, KeepBest)]
    if not named and "dedup" in plan.pairs:
        named = [("dedup", DEFAULT_JACCARD)]
    pairs = pairs_of(plan, store, [name for name, _ in named])
    return [Kind(name, at_least, pairs[name]) for name, at_least in named]


def have_duplicates(kind: Kind, ids: pl.Series, among: pl.Series) -> pl.Series:
    """Whether each conversation has a duplicate or exact copy; only those that are true in `among` count."""
    rows, groups, near = _alive(kind, ids, among)
    several = groups.filter(pl.col("n") > 1)["group"]
    with_one = pl.concat([several, near["id"], near["other"]]).unique()
    return rows.select(pl.col("among") & pl.col("group").is_in(with_one.implode())).to_series()


def both(kind: Kind, ids: pl.Series, among: pl.Series) -> int:
    """Number of pairs of duplicates that are both true in `among`; a group of n exact copies counts as n - 1."""
    _, groups, near = _alive(kind, ids, among)
    return int((groups["n"] - 1).sum()) + near.height


def _alive(kind: Kind, ids: pl.Series, among: pl.Series) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """All rows with their groups of exact copies, groups with members in `among`, and pairs of those groups."""
    rows = pl.DataFrame({"id": ids, "group": kind.pairs.first, "among": among})
    groups = rows.filter(pl.col("among")).group_by("group").agg(n=pl.len().cast(pl.Int64))
    near = kind.pairs.near.filter(pl.col("jaccard") >= kind.at_least)
    near = near.join(groups, left_on="id", right_on="group", how="semi")
    return rows, groups, near.join(groups, left_on="other", right_on="group", how="semi")
