"""Rules look at signals only, never at text, and say keep or drop and why. Pure: frames in, a frame out."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl


class RuleError(ValueError):
    """A rule cannot be applied; the message names the rule, what was found and what there is."""


@dataclass(frozen=True)
class Drop:
    """Drop the conversations for which an SQL condition over signals is true; null is not a reason."""

    reason: str
    where: str
    because: str = ""

    def condition(self) -> pl.Expr:
        """The condition as an expression.

        Raises:
            RuleError: it is not SQL.
        """
        try:
            return pl.sql_expr(self.where)
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            raise RuleError(f"rule {self.reason!r}: {self.where!r} is no SQL condition ({_first(error)})") from error

    def columns(self) -> list[str]:
        """The signals it reads, in order of their names."""
        return sorted(set(self.condition().meta.root_names()))


@dataclass(frozen=True)
class KeepBest:
    """Of conversations that are duplicates of each other keep the best.

    The rows that all `Drop` rules left alive are walked best first; a row that pairs at `at_least` (Jaccard) or more
    with a row already kept is dropped. So no two kept rows are duplicates, and every dropped one has a kept duplicate.
    """

    reason: str
    pairs: str
    at_least: float
    because: str = ""

    @property
    def where(self) -> str:
        """The rule as a reader would say it."""
        return f"{self.pairs} pair with a better one at jaccard >= {self.at_least:g}"


Rule = Drop | KeepBest


@dataclass(frozen=True)
class Pairs:
    """Duplicates of one kind, as a stage measured them."""

    first: pl.Series
    """For each conversation the id of the first one that is an exact copy of it; its own where it is alone."""
    near: pl.DataFrame
    """id, other, jaccard: near-duplicates among those first ones."""


def check(rules: Sequence[Rule], order: Sequence[str], signals: pl.Schema, pairs: Sequence[str]) -> None:
    """Refuse rules that cannot be applied to these signals.

    Raises:
        RuleError: a column that no stage writes, a condition that is no boolean, an unknown kind of pairs, or a reason
            that is given twice.
    """
    seen: set[str] = set()
    for rule in rules:
        if not rule.reason.strip() or not rule.reason.isprintable():
            raise RuleError(f"a rule's reason is {rule.reason!r}, expected a word or a few")
        if rule.reason in seen:
            raise RuleError(f"two rules give the reason {rule.reason!r}: give each its own")
        seen.add(rule.reason)
        if isinstance(rule, KeepBest):
            _check_pairs(rule, pairs)
        else:
            _check_condition(rule, signals)
    for term in order:
        if _ordered(term)[0] not in signals:
            column = _ordered(term)[0]
            raise RuleError(f"order of keep_best: no stage writes the column {column!r}; {_there(column, signals)}")


def _first(error: BaseException) -> str:
    """An error of polars without the lines that follow the first."""
    return (str(error).splitlines() or ["no message"])[0]


def _there(column: str, signals: pl.Schema) -> str:
    """What columns there are: all of a few, or the nearest of many."""
    if len(signals) <= 20:  # noqa: PLR2004  what a reader takes in
        return f"there are {', '.join(signals) or 'none'}"
    lower = {name.lower(): name for name in signals}
    near = [lower[name] for name in difflib.get_close_matches(column.lower(), lower, n=5, cutoff=0.5)]
    hint = f"did you mean {', '.join(near)}? " if near else ""
    return f"{hint}`refine stages` lists all {len(signals)}"


def _check_pairs(rule: KeepBest, pairs: Sequence[str]) -> None:
    if rule.pairs not in pairs:
        raise RuleError(
            f"rule {rule.reason!r}: no stage finds pairs {rule.pairs!r}; there are {', '.join(pairs) or 'none'}"
        )
    if not 0 < rule.at_least <= 1:
        raise RuleError(f"rule {rule.reason!r}: at_least is {rule.at_least}, expected a Jaccard above 0, at most 1")


def _check_condition(rule: Drop, signals: pl.Schema) -> None:
    """A condition reads signals that are there, and is true or false of one conversation by itself."""
    condition = rule.condition()
    for column in rule.columns():
        if column not in signals:
            raise RuleError(f"rule {rule.reason!r}: no stage writes the column {column!r}; {_there(column, signals)}")
    if not rule.columns():
        raise RuleError(f"rule {rule.reason!r}: {rule.where!r} reads no signal: expected a condition on one or more")
    if any(word in condition.meta.serialize(format="json") for word in ('"Agg"', '"Over"', '"Len"')):
        raise RuleError(
            f"rule {rule.reason!r}: {rule.where!r} looks at all conversations at once, expected a condition on each; "
            "percentiles and the like are for a stage's merge"
        )
    try:
        found = pl.DataFrame(schema=signals).clear(2).select(condition.alias("where"))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise RuleError(f"rule {rule.reason!r}: {rule.where!r} cannot be applied ({_first(error)})") from error
    if found.height != 2 or found.schema["where"] != pl.Boolean:  # noqa: PLR2004  the rows that went in
        kind = found.schema["where"]
        raise RuleError(f"rule {rule.reason!r}: {rule.where!r} is {kind}, expected a condition that is true or false")


def _ordered(term: str) -> tuple[str, bool]:
    """A term of the order, such as "n_words DESC": its column, and whether the largest comes first."""
    column, _, way = term.strip().partition(" ")
    if way.strip().upper() not in {"", "ASC", "DESC"}:
        raise RuleError(f"order of keep_best: {term!r} should be a column, or a column and ASC or DESC")
    return column, way.strip().upper() == "DESC"


def decide(
    signals: pl.DataFrame, pairs: Mapping[str, Pairs], rules: Sequence[Rule], order: Sequence[str] = ()
) -> pl.DataFrame:
    """Say keep or drop for each conversation, and why.

    Args:
        signals: `id` and the columns that the rules read, one row a conversation.
        pairs: the kinds of duplicates that `KeepBest` rules name; `first` is aligned with `signals`.
        rules: the first that fires gives the reason; all `Drop` rules come before all `KeepBest` ones.
        order: which of two duplicates is the better one, such as ("n_words DESC", "ppl"); the rest by id.

    Returns:
        id, keep, reason (null where kept), duplicate_of, jaccard, and one boolean a rule, named by its reason. Drop
        rules say whether they fire whatever the others say; KeepBest only sees what the Drop rules left.

    Raises:
        RuleError: a condition cannot be applied.
    """
    drops = [rule for rule in rules if isinstance(rule, Drop)]
    bests = [rule for rule in rules if isinstance(rule, KeepBest)]
    ordered: list[Rule] = [*drops, *bests]
    names = [f"rule{i}" for i in range(len(ordered))]  # a reason may be any text, even a pattern of columns
    decided = signals.select(
        "id", *(_fires(signals, rule).alias(name) for rule, name in zip(drops, names, strict=False))
    )
    alive = ~decided.select(x=pl.any_horizontal(pl.lit(value=False), *names[: len(drops)]))["x"]
    best_first = _best_first(signals, alive, order)
    verdicts = _walk(best_first, [(rule, pairs[rule.pairs]) for rule in bests], signals["id"])
    decided = decided.join(verdicts, on="id", how="left", maintain_order="left")
    decided = decided.with_columns(
        (pl.col("best").fill_null("") == rule.reason).alias(name)
        for rule, name in zip(bests, names[len(drops) :], strict=True)
    )
    said = (pl.when(pl.col(name)).then(pl.lit(rule.reason)) for rule, name in zip(ordered, names, strict=True))
    reason = pl.coalesce(pl.lit(None, pl.String), *said)
    columns = {name: rule.reason for rule, name in zip(ordered, names, strict=True)}
    kept = ("id", "keep", "reason", "duplicate_of", "jaccard")
    return decided.with_columns(reason=reason, keep=reason.is_null()).select(*kept, *names).rename(columns)


def _fires(signals: pl.DataFrame, rule: Drop) -> pl.Series:
    """Where a rule's condition is true."""
    try:
        return signals.select(where=rule.condition())["where"].fill_null(value=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise RuleError(f"rule {rule.reason!r}: {rule.where!r} cannot be applied ({_first(error)})") from error


def _best_first(signals: pl.DataFrame, alive: pl.Series, order: Sequence[str]) -> list[int]:
    """Rows that are alive, the best first; null counts as worst, ties go by id."""
    terms = [_ordered(term) for term in order]
    columns = {f"by{i}": signals[column] for i, (column, _) in enumerate(terms)}
    ranked = pl.DataFrame({"id": signals["id"], **columns}).with_row_index("row").filter(alive)
    down = [*(largest for _, largest in terms), False]
    return ranked.sort([*columns, "id"], descending=down, nulls_last=True)["row"].to_list()


def _walk(best_first: Sequence[int], kinds: Sequence[tuple[KeepBest, Pairs]], ids: pl.Series) -> pl.DataFrame:
    """Rows dropped as duplicates: id, best (the rule's reason), duplicate_of, jaccard.

    A loop over rows, because each answer depends on the ones before; only rows with a pair or a copy do any work.
    """
    graphs = [(rule.reason, *_graph(rule, found, ids)) for rule, found in kinds]
    kept: list[dict[int, int]] = [{} for _ in graphs]  # group -> its kept row, for each kind
    dropped: list[tuple[int, str, int, float]] = []
    for row in best_first:
        for (reason, group, near), kept_of in zip(graphs, kept, strict=True):
            found = _kept_duplicate(group[row], near, kept_of)
            if found is not None:
                dropped.append((row, reason, *found))
                break
        else:
            for (_, group, _), kept_of in zip(graphs, kept, strict=True):
                kept_of[group[row]] = row
    rows = [row for row, *_ in dropped]
    return pl.DataFrame(
        {
            "id": ids.gather(rows),
            "best": pl.Series([reason for _, reason, *_ in dropped], dtype=pl.String),
            "duplicate_of": ids.gather([other for _, _, other, _ in dropped]),
            "jaccard": pl.Series([jaccard for *_, jaccard in dropped], dtype=pl.Float32),
        }
    )


Near = Mapping[int, Sequence[tuple[int, float]]]


def _graph(rule: KeepBest, found: Pairs, ids: pl.Series) -> tuple[Sequence[int], Near]:
    """Each row's group (the row number of its first exact copy), and each group's neighbours at the threshold."""
    rows = pl.DataFrame({"id": ids}).with_row_index("row")
    group = found.first.to_frame("id").join(rows, on="id", how="left", maintain_order="left")["row"]
    if group.null_count():
        raise RuleError(f"rule {rule.reason!r}: pairs {rule.pairs!r} name conversations that are not in the corpus")
    near = found.near.filter(pl.col("jaccard") >= rule.at_least)
    near = near.join(rows, on="id").join(rows.rename({"id": "other", "row": "other_row"}), on="other")
    neighbours: defaultdict[int, list[tuple[int, float]]] = defaultdict(list)
    for a, b, jaccard in near.select("row", "other_row", "jaccard").iter_rows():
        neighbours[a].append((b, jaccard))
        neighbours[b].append((a, jaccard))
    return group.to_list(), neighbours


def _kept_duplicate(group: int, near: Near, kept_of: Mapping[int, int]) -> tuple[int, float] | None:
    """The nearest row already kept that pairs with this group, and its Jaccard."""
    if group in kept_of:
        return kept_of[group], 1.0
    there = [(jaccard, kept_of[other]) for other, jaccard in near.get(group, ()) if other in kept_of]
    if not there:
        return None
    jaccard, row = max(there, key=lambda pair: (pair[0], -pair[1]))
    return row, jaccard
