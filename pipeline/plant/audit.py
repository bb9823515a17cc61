"""What a run found of the damage that was planted into its source, by kind and rule, and what it dropped besides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline import plan as planning
from pipeline.plant import TRUTH
from pipeline.plant.kinds import KINDS
from pipeline.signals import decisions_of, scratch_folder
from pipeline.store import RunFolderError, Store
from stages import columns
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
_NONE = pl.DataFrame(schema={**{name: COLUMNS[name] for name in COLUMNS if name != "source_id"}, "len": pl.UInt32})
"""Numbers of conversations, `len`, by outcome."""


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
    counts, fates = _NONE, None if clean is None else _Fates.of(clean, store)
    for rows in outcomes(store):
        both = pl.concat([counts, rows.group_by(_NONE.columns[:-1]).len()])
        counts = both.group_by(_NONE.columns[:-1]).agg(pl.col("len").sum())
        if fates:
            fates.add(rows.filter(pl.col("kind").is_null()))
    by_kind = counts.partition_by("kind", as_dict=True)
    if not by_kind.keys() - {(None,)}:
        return None
    kinds = {name: _recall(by_kind[name,]) for name in KINDS if (name,) in by_kind}
    return Findings(kinds, _recall(by_kind.get((None,), _NONE)), fates.baseline() if fates else None)


def planted_kinds(store: Store) -> pl.Series:
    """The kind of each conversation of a run in the order of the corpus, `UNTOUCHED` if nothing was planted into it."""
    every = pl.Enum([*KINDS, UNTOUCHED])
    return pl.concat([_truth(store, shard, ())["kind"].cast(every).fill_null(UNTOUCHED) for shard in store.shards()])


def outcomes(store: Store) -> Iterator[pl.DataFrame]:
    """One row per conversation, columns as in `COLUMNS`, a shard at a time; the outcome of a copy is that of the pair.

    The originals of copies are omitted: they are neither planted nor untouched. Copies come last. Originals are found
    by 64-bit hashes of their ids. Memory: 200 bytes per copy.
    """
    trims, shards = planning.load(store.plan).trims, store.shards()
    names = (_planted(store, shard)["planted_of"].drop_nulls().hash().to_numpy() for shard in shards)
    folder = scratch_folder(store)
    of_copies = columns.unique(columns.write(names, np.uint64, folder), folder)
    copies, originals = list[pl.DataFrame](), list[pl.DataFrame]()
    for shard in shards:
        rows = _truth(store, shard, trims)
        original = pl.Series(columns.holds(of_copies, rows["source_id"].hash().to_numpy()))
        copy = rows["planted_of"].is_not_null()
        originals.append(rows.filter(original).select(planted_of="source_id", keep_of="keep", reason_of="reason"))
        copies.append(rows.filter(copy & ~original))
        yield rows.filter(~copy & ~original).select(COLUMNS.names()).cast(COLUMNS)
    pairs = pl.concat(copies).join(pl.concat(originals).unique("planted_of"), on="planted_of", how="left")
    yield pairs.with_columns(
        keep=pl.col("keep") & pl.col("keep_of").fill_null(value=True), reason=pl.coalesce("reason", "reason_of")
    ).select(pl.col(name).cast(dtype) for name, dtype in COLUMNS.items())


def _truth(store: Store, shard: str, trims: Sequence[str]) -> pl.DataFrame:
    """The truth and the decision of each conversation of a shard; a kind that refine does not plant is no truth.

    `repaired` is whether one of the repairs `trims` has removed the damage of a conversation that is kept.
    """
    truth = _planted(store, shard).hstack(decisions_of(store, shard).select("keep", "reason"))
    if not trims:
        return truth.with_columns(repaired=pl.lit(value=False))
    trim = pl.col("kind").replace_strict(MENDS, default=None, return_dtype=pl.String)
    made = pl.col("repairs").list.eval(pl.element().struct.field("trim")).list.contains(trim)
    rows = truth.hstack(read_frame(store.repaired(shard), ["repairs"])).with_columns(
        repaired=pl.col("keep") & made.fill_null(value=False)
    )
    return rows.drop("repairs")


def _planted(store: Store, shard: str) -> pl.DataFrame:
    """What was planted into each conversation of a shard: source_id, kind, planted_of."""
    raw = read_frame(store.raw(shard), ["source_id", "extra"])
    extra = pl.when(pl.col("extra").str.contains('"planted_kind":"', literal=True)).then("extra")
    truth = raw.select("source_id", **{name: extra.str.json_path_match(f"$.{name}") for name in TRUTH})
    known = pl.when(pl.col("planted_kind").is_in([*KINDS]))
    return truth.select("source_id", kind=known.then("planted_kind"), planted_of=known.then("planted_of"))


def _recall(counts: pl.DataFrame) -> Recall:
    """The recall from the number of conversations of each outcome."""
    from scipy.stats import binomtest

    total, repaired = int(counts["len"].sum()), int(counts.filter("repaired")["len"].sum())
    dropped = counts.filter(~pl.col("keep")).group_by("reason").agg(pl.col("len").sum())
    dropped = dropped.sort("len", "reason", descending=[True, False])
    n = int(dropped["len"].sum())
    ends = binomtest(n + repaired, max(total, 1)).proportion_ci(CONFIDENCE, method="wilson")
    return Recall(total, n, (float(ends.low), float(ends.high)), dict(dropped.iter_rows()), repaired)


@dataclass
class _Fates:
    """What the same plan drops in the undamaged source, of the untouched conversations, whose ids they keep.

    Ids are compared by 64-bit hashes, which are in files.
    """

    clean: Store
    store: Store
    every: NDArray[np.uint64]  # hashes of ids of the clean run, sorted
    dropped: NDArray[np.uint64]  # those that it drops
    total: int = 0
    known: int = 0
    there: int = 0
    only_here: int = 0

    @classmethod
    def of(cls, clean: Store, store: Store) -> _Fates:
        if clean.plan.read_bytes() != store.plan.read_bytes():
            raise RunFolderError(f"{clean.folder} and {store.folder} have different plans: run both with the same one")
        folder, shards = scratch_folder(store), clean.shards()

        def hashes(chosen: pl.Expr) -> NDArray[np.uint64]:
            parts = (decisions_of(clean, shard).filter(chosen)["id"].hash().to_numpy() for shard in shards)
            return columns.unique(columns.write(parts, np.uint64, folder), folder)

        return cls(clean, store, hashes(pl.lit(value=True)), hashes(~pl.col("keep")))

    def add(self, untouched: pl.DataFrame) -> None:
        hashes = untouched["source_id"].hash().to_numpy()
        there = columns.holds(self.dropped, hashes)
        self.total += len(hashes)
        self.known += int(columns.holds(self.every, hashes).sum())
        self.there += int(there.sum())
        self.only_here += int((~untouched["keep"].to_numpy() & ~there).sum())

    def baseline(self) -> Baseline:
        if self.known < self.total:
            raise RunFolderError(
                f"{self.clean.folder} holds {self.known:,} of the {self.total:,} untouched conversations of "
                f"{self.store.folder}, expected all: name a run of the source that was damaged"
            )
        return Baseline(self.there, self.only_here)
