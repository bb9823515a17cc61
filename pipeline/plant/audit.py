"""What a run found of the damage that was planted into its source, by kind and rule, and what it dropped besides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from pipeline import plan as planning
from pipeline.plant import TRUTH
from pipeline.plant.kinds import KINDS
from pipeline.signals import decisions_of
from pipeline.store import RunFolderError, Store
from stages.files import read_frame

CONFIDENCE = 0.95
"""Confidence level of the intervals."""
UNTOUCHED = "(untouched)"
"""What stands for a kind where nothing was planted."""
MENDS = {"truncated": "truncated", "empty_reply": "empty"}
"""Kinds of damage that a repair removes, and the repair that does."""
COLUMNS = pl.Schema(
    {
        "source_id": pl.String(),
        "kind": pl.Enum([*KINDS]),
        "keep": pl.Boolean(),
        "reason": pl.String(),
        "repaired": pl.Boolean(),
    }
)
"""Columns of `outcomes`."""


@dataclass(frozen=True)
class Recall:
    """What became of the conversations of one kind, or of the untouched ones.

    Attributes:
        total: number of conversations; copies are counted, not their originals.
        dropped: how many of them were dropped; of a copy and its original, one that was dropped is enough.
        interval: Wilson's 95 % interval of `share` (Wilson 1927), which also holds near 0 and 1.
        by_rule: how many were dropped for each reason, most frequent first.
        repaired: how many were kept because a repair of the plan has removed their damage, as in `MENDS`.
    """

    total: int
    dropped: int
    interval: tuple[float, float]
    by_rule: Mapping[str, int]
    repaired: int = 0

    @property
    def share(self) -> float:
        """Share that was dropped or repaired: the recall of a kind, the false drops of what is untouched."""
        return (self.dropped + self.repaired) / max(self.total, 1)


@dataclass(frozen=True)
class Baseline:
    """How many of the untouched conversations a run of the undamaged source drops."""

    dropped: int
    """Conversations dropped there."""
    only_here: int
    """Conversations that are dropped in the damaged corpus alone."""


@dataclass(frozen=True)
class Findings:
    """The recall of each kind, in the order of `KINDS`; the untouched conversations, and their baseline if known."""

    kinds: Mapping[str, Recall]
    untouched: Recall
    baseline: Baseline | None = None


def audit(store: Store, clean: Store | None = None) -> Findings | None:
    """Compare the decisions of a complete run with what was planted; None if nothing was.

    Args:
        store: the run.
        clean: a complete run of the undamaged source with the same plan.

    Raises:
        RunFolderError: `clean` has another plan, or is not a run of the source that was damaged.
        CorruptInputError: a file of a run is damaged.
    """
    rows = outcomes(store)
    planted = rows.drop_nulls("kind")
    if planted.is_empty():
        return None
    by_kind = planted.partition_by("kind", as_dict=True)
    kinds = {name: _recall(by_kind[name,]) for name in KINDS if (name,) in by_kind}
    untouched = rows.filter(pl.col("kind").is_null())
    return Findings(kinds, _recall(untouched), None if clean is None else _baseline(store, clean, untouched))


def planted_kinds(store: Store) -> pl.Series:
    """The kind of each conversation of a run in the order of the corpus, `UNTOUCHED` if nothing was planted into it."""
    every = pl.Enum([*KINDS, UNTOUCHED])
    return pl.concat([_truth(store, shard, ())["kind"].cast(every).fill_null(UNTOUCHED) for shard in store.shards()])


def outcomes(store: Store) -> pl.DataFrame:
    """One row per conversation, columns as in `COLUMNS`; the outcome of a copy is that of the pair.

    The originals of copies are omitted: they are neither planted nor untouched.
    """
    trims = planning.load(store.plan).trims
    rows = pl.concat([_truth(store, shard, trims) for shard in store.shards()])
    originals = rows.select(planted_of="source_id", keep_of="keep", reason_of="reason")
    pairs = rows.join(originals.unique("planted_of"), on="planted_of", how="left", maintain_order="left")
    found = pairs.with_columns(
        keep=pl.col("keep") & pl.col("keep_of").fill_null(value=True), reason=pl.coalesce("reason", "reason_of")
    )
    return found.join(rows.select(source_id="planted_of").drop_nulls(), on="source_id", how="anti").select(
        pl.col(name).cast(dtype) for name, dtype in COLUMNS.items()
    )


def _truth(store: Store, shard: str, trims: Sequence[str]) -> pl.DataFrame:
    """The truth and the decision of each conversation of a shard; a kind that refine does not plant is no truth.

    `repaired` is whether one of the repairs `trims` has removed the damage of a conversation that is kept.
    """
    raw = read_frame(store.raw(shard), ["source_id", "extra"])
    extra = pl.when(pl.col("extra").str.contains('"planted_kind":"', literal=True)).then("extra")
    truth = raw.select("source_id", **{name: extra.str.json_path_match(f"$.{name}") for name in TRUTH})
    known = pl.when(pl.col("planted_kind").is_in([*KINDS]))
    truth = truth.select("source_id", kind=known.then("planted_kind"), planted_of=known.then("planted_of"))
    truth = truth.hstack(decisions_of(store, shard).select("keep", "reason"))
    if not trims:
        return truth.with_columns(repaired=pl.lit(value=False))
    trim = pl.col("kind").replace_strict(MENDS, default=None, return_dtype=pl.String)
    made = pl.col("repairs").list.eval(pl.element().struct.field("trim")).list.contains(trim)
    rows = truth.hstack(read_frame(store.repaired(shard), ["repairs"])).with_columns(
        repaired=pl.col("keep") & made.fill_null(value=False)
    )
    return rows.drop("repairs")


def _recall(rows: pl.DataFrame) -> Recall:
    from scipy.stats import binomtest

    repaired = int(rows["repaired"].sum())
    dropped = rows.filter(~pl.col("keep"))["reason"].value_counts().sort("count", "reason", descending=[True, False])
    n = int(dropped["count"].sum())
    ends = binomtest(n + repaired, max(rows.height, 1)).proportion_ci(CONFIDENCE, method="wilson")
    return Recall(rows.height, n, (float(ends.low), float(ends.high)), dict(dropped.iter_rows()), repaired)


def _baseline(store: Store, clean: Store, untouched: pl.DataFrame) -> Baseline:
    """What the same plan drops of the untouched conversations in the undamaged source, whose ids they keep."""
    if clean.plan.read_bytes() != store.plan.read_bytes():
        raise RunFolderError(f"{clean.folder} and {store.folder} have different plans: run both with the same one")
    parts = [decisions_of(clean, shard).select(source_id="id", keep_there="keep") for shard in clean.shards()]
    both = untouched.join(pl.concat(parts), on="source_id")
    if both.height < untouched.height:
        raise RunFolderError(
            f"{clean.folder} holds {both.height:,} of the {untouched.height:,} untouched conversations of "
            f"{store.folder}, expected all: name a run of the source that was damaged"
        )
    return Baseline(
        int(both.select((~pl.col("keep_there")).sum()).item()),
        int(both.select((pl.col("keep_there") & ~pl.col("keep")).sum()).item()),
    )
