"""Rules: whether each conversation is kept, and why, by its signals alone. Pure: frames in, a frame out."""

import contextlib
import difflib
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.stage import reason as first_line

MAX_LISTED = 20
"""Maximum number of columns that a message lists in full."""


def measure_of(kind: str) -> str:
    """How a kind of pairs is measured: by their Jaccard, or for `semantic` by their cosine."""
    return "cosine" if kind == "semantic" else "Jaccard"


def column_of(kind: str) -> str:
    """The column of a kind of pairs with this measure, `jaccard` or `cosine`."""
    return measure_of(kind).lower()


class RuleError(ValueError):
    """A rule cannot be applied; the message names the rule, what was found and what was expected."""


@dataclass(frozen=True)
class Drop:
    """Drop the conversations for which an SQL condition over signals is true; null does not drop."""

    reason: str
    where: str
    because: str = ""

    def condition(self) -> pl.Expr:
        """The condition as an expression; raises `RuleError` if it is not SQL."""
        with _blame(self.reason, self.where, "is not SQL"):
            return pl.sql_expr(self.where)

    def apply(self, signals: pl.DataFrame) -> pl.Series:
        """Whether the condition is true of each row; raises `RuleError` if it cannot be applied."""
        condition = self.condition()
        with _blame(self.reason, self.where, "cannot be applied"):
            return signals.select(where=condition)["where"]

    def columns(self) -> list[str]:
        """Names of the signals that the condition reads, sorted."""
        return sorted(set(self.condition().meta.root_names()))


@dataclass(frozen=True)
class KeepBest:
    """Keep the best of conversations that are duplicates of each other.

    The rows that no `Drop` rule dropped are visited best first. A row is dropped if it pairs with a row already kept at
    a Jaccard, or cosine, at or above `at_least`. So no two kept rows are duplicates, and every dropped row has a kept
    duplicate.
    """

    reason: str
    pairs: str
    at_least: float
    because: str = ""

    @property
    def where(self) -> str:
        """The rule in words."""
        return f"{self.pairs} pair with a better one at {self.column} >= {self.at_least:g}"

    @property
    def measure(self) -> str:
        """What `at_least` is for these pairs."""
        return measure_of(self.pairs)

    @property
    def column(self) -> str:
        """The column with the measure of these pairs."""
        return column_of(self.pairs)


@dataclass(frozen=True)
class KeepTop:
    """Keep the conversations that come first by an expression over signals, up to a size.

    It sees what the rules before it keep: all `Drop` and `KeepBest` rules, and earlier `KeepTop` rules. Conversations
    are taken in order until the next one would exceed the size. An unknown value comes last; of equal values the first
    in the corpus is taken.
    """

    reason: str
    by: str
    """An SQL expression over signals, and ASC or DESC, such as "target_weight_mean DESC"."""
    share: float = 0.0
    """The size as a share of the conversations that the rule sees, 0 to 1. One of the three sizes is given."""
    conversations: int = 0
    tokens: int = 0
    """The size in tokens (words and punctuation marks), as a run counts them."""
    per: str = ""
    """A signal, or `source`: the size holds for each of its values."""
    gumbel: float = 0.0
    """Scale of Gumbel noise added to `by`. With 1, the conversations are drawn without replacement with probabilities
    proportional to exp(by), as DSIR samples by its log importance weights."""
    seed: int = 0
    because: str = ""

    @property
    def where(self) -> str:
        """The rule in words."""
        size = f"{self.share:.1%} of the conversations" if self.share else f"{self.conversations:,} conversations"
        size = f"{self.tokens:,} tokens" if self.tokens else size
        noise = f", with Gumbel noise {self.gumbel:g} of seed {self.seed}" if self.gumbel else ""
        return f"not among the first {size} by {self.by}{f' of each {self.per}' if self.per else ''}{noise}"

    def value(self, signals: pl.DataFrame) -> pl.Series:
        """The expression of each row, float64; raises `RuleError` if it cannot be computed."""
        expression = self.expression()
        with _blame(self.reason, self.by, "cannot be computed"):
            return signals.select(value=expression.cast(pl.Float64))["value"]

    def expression(self) -> pl.Expr:
        """The expression without ASC or DESC; raises `RuleError` if it is not SQL."""
        with _blame(self.reason, self.by, "is not SQL"):
            return pl.sql_expr(_ranked_by(self.by)[0])

    def columns(self) -> list[str]:
        """Names of the signals that the expression reads, sorted."""
        return sorted(set(self.expression().meta.root_names()))


Rule = Drop | KeepBest | KeepTop


@contextlib.contextmanager
def _blame(reason: str, sql: str, fault: str) -> Iterator[None]:
    """Name the rule in an error of polars."""
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise RuleError(f"rule {reason!r}: {sql!r} {fault} ({first_line(error)})") from error


def _ranked_by(by: str) -> tuple[str, bool]:
    """The expression of `by`, and whether its largest value comes first."""
    expression, _, direction = by.strip().rpartition(" ")
    if expression and direction.upper() in {"ASC", "DESC"}:
        return expression, direction.upper() == "DESC"
    return by, False


@dataclass(frozen=True)
class Pairs:
    """Duplicates of one kind, as a stage measured them."""

    first: pl.Series
    """Per conversation, the id of the first exact copy of its text, which may be its own."""
    near: pl.DataFrame
    """id, other, and jaccard or cosine: near-duplicates among these first copies."""


def check(rules: Sequence[Rule], order: Sequence[str], signals: pl.Schema, pairs: Sequence[str]) -> None:
    """Refuse a rule that reads a column no stage writes, is not boolean, names unknown pairs, or repeats a reason."""
    seen: set[str] = set()
    for rule in rules:
        if not rule.reason.strip() or not rule.reason.isprintable():
            raise RuleError(f"a rule's reason is {rule.reason!r}, expected one or a few printable words")
        if rule.reason in seen:
            raise RuleError(f"two rules give the reason {rule.reason!r}: give each its own")
        seen.add(rule.reason)
        here = f"rule {rule.reason!r}"
        if isinstance(rule, Drop):
            _check_condition(rule, signals)
        elif isinstance(rule, KeepTop):
            _check_top(rule, signals)
        elif rule.pairs not in pairs:
            raise RuleError(f"{here}: no stage finds pairs {rule.pairs!r}; there are {', '.join(pairs) or 'none'}")
        elif not 0 < rule.at_least <= 1:
            raise RuleError(f"{here}: at_least is {rule.at_least}, expected a {rule.measure} above 0 and at most 1")
    for term in order:
        column, _ = _ordered(term)
        if column not in signals:
            raise RuleError(f"order of keep_best: no stage writes the column {column!r}; {_instead(column, signals)}")


def _instead(column: str, signals: pl.Schema) -> str:
    """The columns for a message: all if they are few, else similar ones."""
    if len(signals) <= MAX_LISTED:
        return f"there are {', '.join(signals) or 'none'}"
    lower = {name.lower(): name for name in signals}
    near = [lower[name] for name in difflib.get_close_matches(column.lower(), lower, n=5, cutoff=0.5)]
    hint = f"did you mean {', '.join(near)}? " if near else ""
    return f"{hint}`refine stages` lists all {len(signals)}"


def _check_condition(rule: Drop, signals: pl.Schema) -> None:
    """Refuse a condition that reads missing signals, or that is not true or false of one conversation by itself."""
    where = f"rule {rule.reason!r}: {rule.where!r}"
    condition = rule.condition()
    for column in rule.columns():
        if column not in signals:
            raise RuleError(f"rule {rule.reason!r}: no stage writes the column {column!r}; {_instead(column, signals)}")
    if not rule.columns():
        raise RuleError(f"{where} reads no signal: expected a condition on one or more")
    if _looks_at_all(condition):
        raise RuleError(
            f"{where} looks at all conversations at once, expected a condition on each one: compute percentiles and "
            "the like in the merge of a stage"
        )
    answer = rule.apply(_unknown_rows(rule, signals))
    if answer.len() != 2 or answer.dtype != pl.Boolean:  # noqa: PLR2004  the rows that went in
        raise RuleError(f"{where} is {answer.dtype}, expected a condition that is true or false")


def _check_top(rule: KeepTop, signals: pl.Schema) -> None:
    """Refuse a selection that reads missing signals, has not one size, or ranks by more than one conversation."""
    here = f"rule {rule.reason!r}"
    for column in (*rule.columns(), *([rule.per] if rule.per not in {"", "source"} else [])):
        if column not in signals:
            raise RuleError(f"{here}: no stage writes the column {column!r}; {_instead(column, signals)}")
    if not rule.columns():
        raise RuleError(f"{here}: {rule.by!r} reads no signal: expected an expression over one or more")
    sizes = [size for size in (rule.share, rule.conversations, rule.tokens) if size]
    if len(sizes) != 1 or sizes[0] < 0 or rule.share > 1:
        raise RuleError(f"{here}: expected one of share (above 0, at most 1), conversations and tokens")
    rows = _unknown_rows(rule, signals)
    if rule.value(rows).len() != rows.height or _looks_at_all(rule.expression()):
        raise RuleError(f"{here}: {rule.by!r} looks at all conversations at once, expected a value of each one")


_OF_ALL = re.compile(r'"(Agg|Over|Len|Quantile|Correlation|Explode)"')
"""Parts of a serialised expression whose value is not one of each row by itself."""
_NAMES = re.compile(r'"(String|Column)":"(\\.|[^"\\])*"')
"""Texts and columns of one, which may have any name."""


def _looks_at_all(expression: pl.Expr) -> bool:
    """Whether a value depends on other conversations; shards, which are computed one by one, would change it."""
    return bool(_OF_ALL.search(_NAMES.sub("", expression.meta.serialize(format="json"))))


def _unknown_rows(rule: Drop | KeepTop, signals: pl.Schema) -> pl.DataFrame:
    """Two rows of nulls with the signals that a rule reads."""
    return pl.DataFrame(schema={name: signals[name] for name in rule.columns()}).clear(2)


def _ordered(term: str) -> tuple[str, bool]:
    """The column of a term of the order, such as "n_words DESC", and whether its largest value comes first."""
    column, _, direction = term.strip().partition(" ")
    direction = direction.strip().upper()
    if direction not in {"", "ASC", "DESC"}:
        raise RuleError(f"order of keep_best: {term!r} should be a column, or a column and ASC or DESC")
    return column, direction == "DESC"


def decide(
    signals: pl.DataFrame, pairs: Mapping[str, Pairs], rules: Sequence[Rule], order: Sequence[str] = ()
) -> pl.DataFrame:
    """Decide which conversations to keep.

    Args:
        signals: `id` and the columns that the rules read, one row per conversation; for `KeepTop` rules also `tokens`
            and `source`.
        pairs: duplicates by kind, for the `KeepBest` rules; `first` is aligned with `signals`.
        rules: the first rule that fires gives the reason; all `Drop` rules come before all `KeepBest` rules, and these
            before all `KeepTop` rules.
        order: how duplicates are ranked, such as ("n_words DESC", "ppl"); null is worst, ties go by id.

    Returns:
        id, keep, reason (null if kept), duplicate_of, jaccard, and one boolean per rule, named by its reason. A `Drop`
        rule fires whatever the other rules do; `KeepBest` and `KeepTop` rules see only what the rules before them keep.
        With a `KeepBest` rule over pairs of `semantic` there is also `cosine`, and what it drops has no `jaccard`. With
        a `KeepTop` rule there is also `cut`, the value of the last conversation that it took (of the same group).
    """
    answers = {rule.reason: rule.apply(signals) for rule in rules if isinstance(rule, Drop)}
    duplicates = find_duplicates(signals, answers, pairs, rules, order)
    candidates = {rule.reason: ranking(rule, signals) for rule in rules if isinstance(rule, KeepTop)}
    tops, cuts = select_top(candidates, answers, [duplicates["row"]], rules)
    return conclude(signals["id"], {**answers, **tops}, duplicates, rules, cuts)


def ranking(rule: KeepTop, signals: pl.DataFrame) -> pl.DataFrame:
    """What a `KeepTop` rule ranks by: `value` (with its noise; larger is better), `size` and `group`, a row each.

    Columns: `id`, the signals of the rule, `tokens` if its size is in tokens, and `source` if it is per source.
    """
    _, largest = _ranked_by(rule.by)
    value = rule.value(signals).fill_nan(None) * (1.0 if largest else -1.0)
    if rule.gumbel:
        value += pl.Series(rule.gumbel * _gumbel(signals["id"], rule.seed))
    group = signals[rule.per].cast(pl.String).fill_null("") if rule.per else pl.repeat("", len(value), eager=True)
    size = signals["tokens"].cast(pl.Int64) if rule.tokens else pl.repeat(1, len(value), dtype=pl.Int64, eager=True)
    return pl.DataFrame({"value": value, "size": size, "group": group.cast(pl.Categorical)})


def _gumbel(ids: pl.Series, seed: int) -> NDArray[np.float64]:
    """A draw of the standard Gumbel distribution for each id, whatever their order; a loop, one hash per id."""
    key = seed.to_bytes(8, "little", signed=True)
    bits = b"".join(hashlib.blake2b(one.encode(), digest_size=8, key=key).digest() for one in ids)
    uniform = (np.frombuffer(bits, "<u8").astype(np.float64) + 0.5) / 2.0**64
    return np.asarray(-np.log(-np.log(np.minimum(uniform, np.nextafter(1.0, 0.0)))))


def select_top(
    candidates: Mapping[str, pl.DataFrame],
    answers: Mapping[str, pl.Series],
    duplicates: Sequence[pl.Series],
    rules: Sequence[Rule],
) -> tuple[dict[str, pl.Series], pl.Series]:
    """Whether each `KeepTop` rule drops each row, by reason, and the cut of the rule that does.

    `candidates` is the `ranking` of each rule; `answers` are those of `Drop` rules, and `duplicates` the rows that
    `KeepBest` rules drop, in parts.
    """
    tops = [rule for rule in rules if isinstance(rule, KeepTop)]
    if not tops:
        return {}, pl.Series(dtype=pl.Float64)
    height = candidates[tops[0].reason].height
    alive = ~_any([answers[rule.reason] for rule in rules if isinstance(rule, Drop)], height)
    for rows in duplicates:
        alive = alive.scatter(rows, values=False)
    fires, cuts = {}, pl.repeat(None, height, dtype=pl.Float64, eager=True)
    for rule in tops:
        taken, cut = _take(rule, candidates[rule.reason].with_row_index("row").filter(alive), height)
        fires[rule.reason] = alive & ~taken
        cuts = cuts.zip_with(~fires[rule.reason], cut)
        alive &= taken
    return fires, cuts


def _take(rule: KeepTop, seen: pl.DataFrame, height: int) -> tuple[pl.Series, pl.Series]:
    """Whether each of all rows is taken, and the cut of its group: the value of the last one taken, as the user's."""
    _, largest = _ranked_by(rule.by)
    ranked = seen.sort("value", descending=True, nulls_last=True, maintain_order=True)
    used = pl.col("size").cum_sum().over("group")
    room = (
        (pl.len().over("group") * rule.share + 0.5).floor() if rule.share else pl.lit(rule.conversations or rule.tokens)
    )
    ranked = ranked.with_columns(taken=used <= room).with_columns(taken=pl.col("taken").cum_min().over("group"))
    last = pl.col("value").filter(pl.col("taken")).last().over("group")
    ranked = ranked.with_columns(cut=last if largest else -last)
    taken = pl.repeat(value=False, n=height, eager=True).scatter(ranked["row"], ranked["taken"])
    return taken, pl.repeat(None, height, dtype=pl.Float64, eager=True).scatter(ranked["row"], ranked["cut"])


def find_duplicates(
    signals: pl.DataFrame,
    answers: Mapping[str, pl.Series],
    pairs: Mapping[str, Pairs],
    rules: Sequence[Rule],
    order: Sequence[str],
) -> pl.DataFrame:
    """The rows that `KeepBest` rules drop: row, best (the rule's reason), duplicate_of, jaccard; in the order of rows.

    With a rule over pairs of `semantic` there is also `cosine`. `answers` are those of the `Drop` rules, by reason.
    Conversations without a duplicate need not be among `signals`; all that are paired with one of them must be.
    """
    alive = ~_any([answers[rule.reason] for rule in rules if isinstance(rule, Drop)], signals.height)
    kinds = [(rule, pairs[rule.pairs]) for rule in rules if isinstance(rule, KeepBest)]
    return _walk(_best_first(signals, alive, order), kinds, signals["id"])


def conclude(
    ids: pl.Series,
    answers: Mapping[str, pl.Series],
    duplicates: pl.DataFrame,
    rules: Sequence[Rule],
    cuts: pl.Series,
) -> pl.DataFrame:
    """Decisions on conversations; columns as in `decide`.

    `answers` are those of `Drop` and `KeepTop` rules, by reason, `duplicates` those of `find_duplicates`, and `cuts`
    those of `select_top`.
    """
    ordered = sorted(rules, key=lambda rule: (Drop, KeepBest, KeepTop).index(type(rule)))
    names = [f"rule{i}" for i in range(len(ordered))]  # a reason may be any text, even a pattern of columns
    rows = duplicates["row"]
    columns = {
        name: pl.repeat(None, len(ids), dtype=kind, eager=True).scatter(rows, duplicates[name])
        for name, kind in duplicates.drop("row").schema.items()
    }
    fires = {
        name: columns["best"] == rule.reason if isinstance(rule, KeepBest) else answers[rule.reason]
        for rule, name in zip(ordered, names, strict=True)
    }
    decided = pl.DataFrame({"id": ids, **columns, **fires}).with_columns(pl.col(names).fill_null(value=False))
    reasons = (pl.when(pl.col(name)).then(pl.lit(rule.reason)) for rule, name in zip(ordered, names, strict=True))
    reason = pl.coalesce(pl.lit(None, pl.String), *reasons)
    first = ["id", "keep", "reason", *(name for name in columns if name != "best")]
    if any(isinstance(rule, KeepTop) for rule in rules):
        decided, first = decided.with_columns(cut=cuts), [*first, "cut"]
    renamed = {name: rule.reason for rule, name in zip(ordered, names, strict=True)}
    return decided.with_columns(reason=reason, keep=reason.is_null()).select(*first, *names).rename(renamed)


def _any(answers: Sequence[pl.Series], height: int) -> pl.Series:
    """Whether one of the answers is true of each row; unknown is not."""
    fires = pl.repeat(value=False, n=height, eager=True)
    for answer in answers:
        fires |= answer.fill_null(value=False)
    return fires


def _best_first(signals: pl.DataFrame, alive: pl.Series, order: Sequence[str]) -> list[int]:
    """Rows that no `Drop` rule drops, the best first."""
    terms = [_ordered(term) for term in order]
    columns = {f"by{i}": signals[column] for i, (column, _) in enumerate(terms)}
    ranked = pl.DataFrame({"id": signals["id"], **columns}).with_row_index("row").filter(alive)
    down = [*(largest for _, largest in terms), False]
    return ranked.sort([*columns, "id"], descending=down, nulls_last=True)["row"].to_list()


def _walk(best_first: Sequence[int], kinds: Sequence[tuple[KeepBest, Pairs]], ids: pl.Series) -> pl.DataFrame:
    """The rows dropped as duplicates; see `find_duplicates`.

    A loop over rows, because each answer depends on those before it.
    """
    graphs = [(rule.reason, *_graph(rule, pairs, ids)) for rule, pairs in kinds]
    kept: list[dict[int, int]] = [{} for _ in graphs]  # per kind: group -> its kept row
    dropped: list[tuple[int, str, int, float]] = []
    for row in best_first:
        for (reason, group, near), kept_of in zip(graphs, kept, strict=True):
            if (duplicate := _kept_duplicate(group[row], near, kept_of)) is not None:
                dropped.append((row, reason, *duplicate))
                break
        else:
            for (_, group, _), kept_of in zip(graphs, kept, strict=True):
                kept_of[group[row]] = row
    dropped.sort()
    column = {rule.reason: rule.column for rule, _ in kinds}
    values = {
        name: [value if column[reason] == name else None for _, reason, _, value in dropped]
        for name in dict.fromkeys(["jaccard", *column.values()])
    }
    return pl.DataFrame(
        {
            "row": pl.Series([row for row, *_ in dropped], dtype=pl.Int64),
            "best": pl.Series([reason for _, reason, *_ in dropped], dtype=pl.String),
            "duplicate_of": ids.gather([other for _, _, other, _ in dropped]),
            **{name: pl.Series(of_measure, dtype=pl.Float32) for name, of_measure in values.items()},
        }
    )


Near = Mapping[int, Sequence[tuple[int, float]]]


def _graph(rule: KeepBest, pairs: Pairs, ids: pl.Series) -> tuple[Sequence[int], Near]:
    """Each row's group, which is the row number of its first exact copy, and each group's neighbours."""
    rows = pl.DataFrame({"id": ids}).with_row_index("row")
    group = pairs.first.to_frame("id").join(rows, on="id", how="left", maintain_order="left")["row"]
    if group.null_count():
        raise RuleError(f"rule {rule.reason!r}: pairs {rule.pairs!r} name conversations that are not in the run")
    near = pairs.near.filter(pl.col(rule.column) >= rule.at_least)
    near = near.join(rows, on="id").join(rows.rename({"id": "other", "row": "other_row"}), on="other")
    neighbours: defaultdict[int, list[tuple[int, float]]] = defaultdict(list)
    for a, b, alike in near.select("row", "other_row", rule.column).iter_rows():
        neighbours[a].append((b, alike))
        neighbours[b].append((a, alike))
    return group.to_list(), neighbours


def _kept_duplicate(group: int, near: Near, kept_of: Mapping[int, int]) -> tuple[int, float] | None:
    """The nearest kept row that pairs with this group, and how alike they are; of several, the first in the corpus."""
    if group in kept_of:
        return kept_of[group], 1.0
    candidates = [(kept_of[other], alike) for other, alike in near.get(group, ()) if other in kept_of]
    return max(candidates, key=lambda pair: (pair[1], -pair[0]), default=None)
