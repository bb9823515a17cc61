"""Write: refined and rejected shards, each with the digest of the decisions that it was written by."""

import hashlib
import io
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import polars as pl

from pipeline import VERSION
from pipeline.engine import Engine, Needs
from pipeline.plan import REPAIR_VERSION, Plan
from pipeline.rules import KeepBest, KeepTop, Rule
from pipeline.signals import TOKEN, decisions_of, signals_of
from pipeline.sources.fields import with_fields
from pipeline.store import Store, read_json
from stages.files import footer, present, read_frame, save_frame
from stages.stage import CorruptInputError

CHAT = ("prompt", "prompt_id", "messages")
"""UltraChat's columns, which come first."""
ORIGIN = ("id", "source_id", "source", "extra")
"""Columns that say where a conversation comes from."""
REDACTED = ("prompt", "messages", "extra", "repairs")
"""Columns in which personal data is redacted."""


class ShardCounts(NamedTuple):
    """Conversations, tokens and redacted items in the refined and the rejected file of a shard."""

    refined: int
    rejected: int
    refined_tokens: int
    rejected_tokens: int
    redacted: int


@dataclass(frozen=True)
class RuleFirings:
    """Conversations by reason: on which the rule fires, and which it is the first to drop."""

    fired: Counter[str]
    dropped: Counter[str]


def save_decisions(store: Store, rules: Sequence[Rule], decisions: Iterable[tuple[str, pl.DataFrame]]) -> RuleFirings:
    """Save the decisions of each shard, and count what the rules did."""
    firings = RuleFirings(Counter(), Counter())
    for shard, decided in decisions:
        save_frame(store.decisions(shard), decided, {})
        firings.fired.update({rule.reason: int(decided[rule.reason].sum()) for rule in rules})
        firings.dropped.update(dict(decided["reason"].drop_nulls().value_counts().iter_rows()))
    return firings


def write(plan: Plan, store: Store, engine: Engine, shards: Sequence[str]) -> Iterator[ShardCounts]:
    """Write the refined and rejected files whose decisions have changed; yields the counts of every shard.

    The first one shows whether workers are worth it for the others.
    """
    task, start = _Task(plan, store), time.perf_counter()
    for _, counts in engine.map(task, shards[:1]):
        yield counts
    seconds = (time.perf_counter() - start) * (len(shards) - 1)
    for _, counts in engine.map(task, shards[1:], Needs(seconds=seconds)):
        yield counts


@dataclass(frozen=True)
class _Task:
    """Writes one shard; picklable."""

    plan: Plan
    store: Store

    def __call__(self, shard: str) -> ShardCounts:
        decisions = decisions_of(self.store.mount(), shard)
        digest = self._digest(decisions)
        refined, rejected = self.store.refined(shard), self.store.rejected(shard)
        kept = int(decisions["keep"].sum())
        dropped = decisions.height - kept
        if (ours := _written(refined, digest)) is not None and (others := _written(rejected, digest)) is not None:
            return ShardCounts(kept, dropped, ours[0], others[0], ours[1] + others[1])
        path = self.store.measured(shard, self.plan.trims)
        raw = read_frame(path)
        if not raw["id"].equals(decisions["id"]):
            raise CorruptInputError(path, "its ids are not those of the decisions")
        raw = self._with_fields(raw).with_columns(tokens=pl.col("text").str.count_matches(TOKEN).cast(pl.Int64))
        items = pl.zeros(raw.height, pl.UInt32, eager=True)
        if redaction := self.plan.redaction:
            raw, items = redaction.frame(raw, [name for name in REDACTED if name in raw.columns])
        frames = self._refined(raw, decisions, shard), self._rejected(raw, decisions, shard)
        masks = (decisions["keep"], ~decisions["keep"])
        tokens, redacted = ([int(of.filter(mask).sum()) for mask in masks] for of in (raw["tokens"], items))
        for path, frame, *counts in zip((refined, rejected), frames, tokens, redacted, strict=True):
            sums = {"refine.tokens": str(counts[0]), **({"refine.redacted": str(counts[1])} if redaction else {})}
            save_frame(path, frame, {"refine.decisions": digest, **sums})
        return ShardCounts(kept, dropped, tokens[0], tokens[1], sum(redacted))

    def _with_fields(self, raw: pl.DataFrame) -> pl.DataFrame:
        """The raw shard with all fields of its messages; without `tools` if the corpus has none."""
        corpus = read_json(self.store.shard_list)
        if kinds := corpus.get("fields"):  # earlier versions wrote neither these nor the column of details
            raw = raw.with_columns(messages=with_fields(raw["messages"], raw["details"], kinds))
        return raw if corpus.get("tools") else raw.drop("tools", strict=False)

    def _digest(self, decisions: pl.DataFrame) -> str:
        """16 hex digits of everything that the files depend on besides the raw shard."""
        text = io.BytesIO()
        decisions.write_csv(text)
        rules = [(rule.reason, rule.where) for rule in self.plan.rules]
        written: tuple[object, ...] = (VERSION, rules, self.plan.columns, [each.key for each in self.plan.stages])
        written += (self.plan.redact,) if self.plan.redact else ()
        written += ((self.plan.trims, REPAIR_VERSION),) if self.plan.trims else ()
        return hashlib.blake2b(text.getvalue() + repr(written).encode(), digest_size=8).hexdigest()

    def _refined(self, raw: pl.DataFrame, decisions: pl.DataFrame, shard: str) -> pl.DataFrame:
        signals = signals_of(self.plan, self.store, shard, self.plan.columns).drop("id")
        return raw.select(*_first(raw), *_origin(raw)).hstack(signals).filter(decisions["keep"])

    def _rejected(self, raw: pl.DataFrame, decisions: pl.DataFrame, shard: str) -> pl.DataFrame:
        read = sorted({c for rule in self.plan.rules if not isinstance(rule, KeepBest) for c in rule.columns()})
        seen = signals_of(self.plan, self.store, shard, read).drop("id")
        alike = ["duplicate_of", "jaccard", *({"cosine"} & set(decisions.columns))]
        frame = (
            raw.select(*_first(raw), *_origin(raw))
            .hstack(decisions.select("reason", *alike, *({"cut"} & set(decisions.columns))))
            .hstack(seen)
        )
        values = {
            rule.reason: ["duplicate_of", rule.column]
            if isinstance(rule, KeepBest)
            else [*rule.columns(), *(["cut"] if isinstance(rule, KeepTop) else [])]
            for rule in self.plan.rules
        }
        frame = frame.with_columns(
            rule=_by_reason({rule.reason: pl.lit(rule.where) for rule in self.plan.rules}),
            values=_by_reason({reason: pl.struct(names).struct.json_encode() for reason, names in values.items()}),
        )
        columns = (*_first(raw), "reason", "rule", "values", *alike, *_origin(raw))
        return frame.select(columns).filter(~decisions["keep"])


def _first(raw: pl.DataFrame) -> tuple[str, ...]:
    return (*CHAT, "tools") if "tools" in raw.columns else CHAT


def _origin(raw: pl.DataFrame) -> tuple[str, ...]:
    return (*ORIGIN, "repairs") if "repairs" in raw.columns else ORIGIN


def _by_reason(values: dict[str, pl.Expr]) -> pl.Expr:
    return pl.coalesce(
        pl.lit(None, pl.String), *(pl.when(pl.col("reason") == reason).then(value) for reason, value in values.items())
    )


def _written(path: Path, digest: str) -> tuple[int, int] | None:
    """Tokens and redacted items in a file that these decisions have written, else None; raises `CorruptInputError`."""
    metadata = footer(path) if present(path) else {}
    if metadata.get("refine.decisions") != digest:
        return None
    read_frame(path)  # verifies its checksums
    return int(metadata["refine.tokens"]), int(metadata.get("refine.redacted", 0))
