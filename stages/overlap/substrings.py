"""Passages that conversations have in common, word for word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import polars as pl

from stages.stage import Axis, GlobalStage, StageParameterError


@dataclass(frozen=True)
class Substrings(GlobalStage):
    r"""Spans of at least `span` words that stand in another conversation too, word for word, whole copies included.

    Source: Lee et al. 2022, "Deduplicating Training Data Makes Language Models Better", whose spans are of 50 tokens.
    Words are those of `dedup` (lower-cased `\w+`), so that case, punctuation and line breaks make no difference; a span
    may run over several messages. System messages are left out: a corpus repeats them on purpose.

    Signals:
        span_words: words of the conversation.
        span_anchors: anchors of its windows (winnowing), sorted: what the merge finds repeated windows by.
        dup_span_share: share (0 to 1) of its words in such spans; null where there is no word.
        dup_span_earlier: share of its words in spans that an earlier conversation has: a rule on it leaves the first of
            those that share a span, where a rule on `dup_span_share` drops them all.
        dup_span_words: words of its longest stretch any `span` words of which stand together in another conversation,
            mostly one and the same; 0 where there is none.
        dup_span_copies: conversations that have the most repeated `span` words of it, itself included; 1 where no other
            has any.
        dup_span_of: id of the first conversation that has the beginning of its longest stretch found earlier; null
            where there is none.

    Exact but for collisions of 64-bit hashes: nothing is sampled. Of each window of `span` words the least hash of its
    runs of `span // 2` words is its anchor (Schleimer et al. 2003), about one in 13 words at 50; windows that are equal
    have equal anchors, so only windows under an anchor that two conversations have are looked at, by a hash of all
    their words. Any two of a billion different windows are taken for the same with a chance of 0.03.

    Memory of the merge: 10 bytes for each anchor that repeats, 40 bytes a conversation, 2 bytes for each window that
    repeats, a shard a core, and up to 4 billion words 700 MB at most to sort in; disk: 12 bytes for each word whose
    window is under a repeated anchor, and 16 for each window that repeats, for a while.

    Attributes:
        span: words of the shortest span that counts.
    """

    span: int = 50

    identity: ClassVar[str] = "stages.substrings:Substrings"
    summary: ClassVar[str] = "passages of 50 words or more that other conversations have too, word for word"
    reads: ClassVar[tuple[str, ...]] = ("text", "messages")
    writes: ClassVar[pl.Schema] = pl.Schema({"span_words": pl.UInt32(), "span_anchors": pl.List(pl.UInt64())})
    merges: ClassVar[pl.Schema] = pl.Schema(
        {
            "dup_span_share": pl.Float32(),
            "dup_span_earlier": pl.Float32(),
            "dup_span_words": pl.UInt32(),
            "dup_span_copies": pl.UInt32(),
            "dup_span_of": pl.String(),
        }
    )
    axes: ClassVar[Mapping[str, Axis]] = {"dup_span_share": Axis("share of words that occur elsewhere", rank=310)}

    def __post_init__(self) -> None:
        """Check the parameter.

        Raises:
            StageParameterError: a span of fewer than two words.
        """
        if self.span < 2:  # noqa: PLR2004  what has a half
            raise StageParameterError(f"substrings: span is {self.span}, expected 2 words or more")

    def measure(self, batch: pl.DataFrame) -> pl.DataFrame:
        """Words and anchors of each text."""
        from stages.overlap.spans import anchors, spoken

        words, keys, sizes = anchors(spoken(batch), self.span)
        rows = pl.arange(batch.height, dtype=pl.UInt32, eager=True)
        owners = pl.DataFrame({"row": rows}).select(pl.col("row").repeat_by(pl.Series(sizes)).explode().drop_nulls())
        lists = owners.with_columns(span_anchors=pl.Series(keys)).group_by("row").agg("span_anchors")
        every = pl.DataFrame({"row": rows, "span_words": words}).join(
            lists, on="row", how="left", maintain_order="left"
        )
        every = every.with_columns(pl.col("span_anchors").fill_null([]))
        return every.select(self.writes.names()).cast(dict(self.writes))  # type: ignore[arg-type]

    def merge(self, raw: Sequence[Path], measured: Sequence[Path], folder: Path) -> None:
        """What repeats over all shards; see the class."""
        from stages.overlap.substrings_merge import Merge
        from stages.text.shards import Shards

        Merge(Shards.of(raw, measured), self.span).write(folder)
