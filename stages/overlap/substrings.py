"""Passages that several conversations contain, word for word."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl

from stages.overlap.windows import Merge, hash_sets, texts_without_system
from stages.stage import Axis, GlobalStage, require
from stages.text.messages import by_row
from stages.text.shards import Shards


@dataclass(frozen=True)
class Substrings(GlobalStage):
    r"""Spans of at least `span` words that another conversation also contains, word for word; whole copies included.

    Source: Lee et al. 2022, "Deduplicating Training Data Makes Language Models Better", with spans of 50 tokens. Words
    are those of `dedup` (lower-cased `\w+`), so case, punctuation and line breaks make no difference. A span may extend
    over several messages. System messages are ignored, because a corpus repeats them on purpose.

    Signals:
        span_words: words of the conversation.
        span_anchors: sorted anchors of its windows (winnowing), by which the merge finds repeated windows.
        dup_span_share: share (0 to 1) of its words in repeated spans; null if it has no word.
        dup_span_earlier: share of its words in spans that an earlier conversation contains. A rule on it keeps the
            first conversation with a span; a rule on `dup_span_share` drops all of them.
        dup_span_words: words of its longest stretch in which every `span` words occur together in another conversation
            (usually the same one throughout); 0 if there is none.
        dup_span_copies: number of conversations, itself included, that contain its most repeated `span` words; 1 if no
            other conversation contains any.
        dup_span_of: id of the first conversation that contains the beginning of its longest stretch with an earlier
            copy; null if there is none.

    Exact up to collisions of 64-bit hashes; nothing is sampled. The anchor of a window of `span` words is the least
    hash of its runs of `span // 2` words (Schleimer et al. 2003): about one distinct anchor per 13 words at 50. Equal
    windows have equal anchors, so only windows whose anchor two conversations have are compared, by a hash of all their
    words. The chance that any two of a billion different windows collide is 0.03.

    Memory of the merge: 10 bytes per repeated anchor, 40 bytes per conversation, 2 bytes per repeated window, a shard
    per core, and at most 700 MB to sort up to 4 billion words. Temporary disk space: 12 bytes per word whose window has
    a repeated anchor, and 16 bytes per repeated window.

    Attributes:
        span: minimum number of words of a span.
    """

    span: int = 50

    identity: ClassVar[str] = "stages.substrings:Substrings"
    summary: ClassVar[str] = "passages of at least 50 words that other conversations also contain, word for word"
    reads: ClassVar[tuple[str, ...]] = ("text", "messages")
    writes: ClassVar[pl.Schema] = pl.Schema({"span_words": pl.UInt32(), "span_anchors": pl.List(pl.UInt64())})
    merges: ClassVar[pl.Schema] = pl.Schema(
        {
            **dict.fromkeys(("dup_span_share", "dup_span_earlier"), pl.Float32()),
            **dict.fromkeys(("dup_span_words", "dup_span_copies"), pl.UInt32()),
            "dup_span_of": pl.String(),
        }
    )
    axes: ClassVar[Mapping[str, Axis]] = {"dup_span_share": Axis("share of words that occur elsewhere", rank=310)}

    def __post_init__(self) -> None:
        require("substrings: span", self.span, self.span > 1, "at least 2 words")  # a span has two halves

    def measure(self, batch: pl.DataFrame) -> pl.DataFrame:
        words, keys, sizes = hash_sets("anchors", texts_without_system(batch), self.span)
        owners = pl.DataFrame({"row": np.repeat(np.arange(batch.height, dtype=np.uint32), sizes), "span_anchors": keys})
        lists = by_row(batch.height, owners.group_by("row").agg("span_anchors"))
        anchors = lists.select(pl.col("span_anchors").fill_null([]))
        return anchors.with_columns(span_words=words).select(self.writes.names()).cast(dict(self.writes))  # type: ignore[arg-type]

    def merge(self, raw: Sequence[Path], measured: Sequence[Path], folder: Path) -> None:
        Merge(Shards.of(raw, measured), self.span).write(folder)
