"""Write: refined and rejected shards, each with the digest of the decisions that it was written by."""

import hashlib
import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pyarrow.parquet as pq

from pipeline import VERSION
from pipeline.engine import Engine
from pipeline.plan import Plan
from pipeline.rules import Drop
from pipeline.signals import decisions_of, signals_of
from pipeline.sources.fields import with_fields
from pipeline.store import Store, read_json
from stages.files import footer, plain_table, read_frame, save, save_frame
from stages.stage import CorruptInputError

CHAT = ("prompt", "prompt_id", "messages")
"""UltraChat's columns, which come first."""
ORIGIN = ("id", "source_id", "source", "extra")
"""Columns that say where a conversation comes from."""

TOKEN = r"\w+|[^\w\s]"  # noqa: S105  a pattern
"""Pattern of a token: a word or a punctuation mark. A BPE vocabulary of 50,000 gives about as many."""


class ShardCounts(NamedTuple):
    """Conversations and tokens in the refined and the rejected file of a shard."""

    refined: int
    rejected: int
    refined_tokens: int
    rejected_tokens: int


def save_decisions(store: Store, decisions: pl.DataFrame, sizes: Sequence[int]) -> None:
    """Save decisions with one row group per shard, so that those of one shard can be read alone."""
    table = plain_table(decisions)

    def into(path: Path) -> None:
        with pq.ParquetWriter(path, table.schema, compression="zstd", write_page_checksum=True) as file:
            begin = 0
            for size in sizes:
                file.write_table(table.slice(begin, size), row_group_size=max(size, 1))
                begin += size

    save(store.decisions, into)


def write(plan: Plan, store: Store, engine: Engine, shards: Sequence[str]) -> Iterator[ShardCounts]:
    """Write the refined and rejected files whose decisions have changed; yields the counts of every shard, in order.

    The first one shows whether workers are worth it for the others.
    """
    task, start = _Task(plan, store), time.perf_counter()
    first = list(engine.map(task, shards[:1]))
    seconds = time.perf_counter() - start
    yield from first
    yield from engine.map(task, shards[1:], seconds * (len(shards) - 1))


@dataclass(frozen=True)
class _Task:
    """Writes one shard; picklable."""

    plan: Plan
    store: Store

    def __call__(self, shard: str) -> ShardCounts:
        decisions = decisions_of(self.store, shard)
        digest = self._digest(decisions)
        refined, rejected = self.store.refined(shard), self.store.rejected(shard)
        kept = int(decisions["keep"].sum())
        dropped = decisions.height - kept
        if (tokens := _tokens(refined, digest)) is not None and (others := _tokens(rejected, digest)) is not None:
            return ShardCounts(kept, dropped, tokens, others)
        raw = read_frame(self.store.raw(shard))
        if not raw["id"].equals(decisions["id"]):
            raise CorruptInputError(self.store.raw(shard), "its ids are not those of the decisions")
        raw = self._with_fields(raw).with_columns(tokens=pl.col("text").str.count_matches(TOKEN).cast(pl.Int64))
        frames = self._refined(raw, decisions, shard), self._rejected(raw, decisions, shard)
        counts = [int(raw.filter(mask)["tokens"].sum()) for mask in (decisions["keep"], ~decisions["keep"])]
        for path, frame, count in zip((refined, rejected), frames, counts, strict=True):
            save_frame(path, frame, {"refine.decisions": digest, "refine.tokens": str(count)})
        return ShardCounts(kept, dropped, *counts)

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
        written = (VERSION, rules, self.plan.columns, [measured.key for measured in self.plan.stages])
        return hashlib.blake2b(text.getvalue() + repr(written).encode(), digest_size=8).hexdigest()

    def _refined(self, raw: pl.DataFrame, decisions: pl.DataFrame, shard: str) -> pl.DataFrame:
        signals = signals_of(self.plan, self.store, shard, self.plan.columns).drop("id")
        return raw.select(*_first(raw), *ORIGIN).hstack(signals).filter(decisions["keep"])

    def _rejected(self, raw: pl.DataFrame, decisions: pl.DataFrame, shard: str) -> pl.DataFrame:
        read = sorted({c for rule in self.plan.rules if isinstance(rule, Drop) for c in rule.columns()})
        seen = signals_of(self.plan, self.store, shard, read).drop("id")
        frame = (
            raw.select(*_first(raw), *ORIGIN).hstack(decisions.select("reason", "duplicate_of", "jaccard")).hstack(seen)
        )
        values = {
            rule.reason: rule.columns() if isinstance(rule, Drop) else ["duplicate_of", "jaccard"]
            for rule in self.plan.rules
        }
        frame = frame.with_columns(
            rule=_by_reason({rule.reason: pl.lit(rule.where) for rule in self.plan.rules}),
            values=_by_reason({reason: pl.struct(names).struct.json_encode() for reason, names in values.items()}),
        )
        columns = (*_first(raw), "reason", "rule", "values", "duplicate_of", "jaccard", *ORIGIN)
        return frame.select(columns).filter(~decisions["keep"])


def _first(raw: pl.DataFrame) -> tuple[str, ...]:
    return (*CHAT, "tools") if "tools" in raw.columns else CHAT


def _by_reason(values: dict[str, pl.Expr]) -> pl.Expr:
    return pl.coalesce(
        pl.lit(None, pl.String), *(pl.when(pl.col("reason") == reason).then(value) for reason, value in values.items())
    )


def _tokens(path: Path, digest: str) -> int | None:
    """The tokens in a file that these decisions have written already, else None; raises `CorruptInputError`."""
    metadata = footer(path) if path.exists() else {}
    if metadata.get("refine.decisions") != digest:
        return None
    read_frame(path)  # verifies its checksums
    return int(metadata["refine.tokens"])
