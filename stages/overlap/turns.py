"""Answers and openings of answers that several conversations contain."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.files import save_frame, save_json
from stages.stage import Axis, GlobalStage, require
from stages.text.messages import by_row, spoken
from stages.text.repeats import Repeats, Shard
from stages.text.shards import Shards
from stages.text.shingles import split

MAX_LISTED = 10
"""Maximum number of answers, and of openings, in `turns.json`."""
MAX_CHARACTERS = 200
"""Maximum number of characters of an answer in `turns.json`."""


@dataclass(frozen=True)
class Turns(GlobalStage):
    r"""Answers that several conversations contain, and answers that begin alike, word for word.

    An answer is an assistant message of at least `words` words, so "ok" and "you are welcome" do not count. Words are
    those of `dedup` (lower-cased `\w+`), so case, punctuation and white space make no difference. An answer counts once
    per conversation. The opening is the first `opening` words of the first assistant message. Reasoning in tags is no
    part of an answer.

    Signals, null if a conversation has no answer, or no opening, of that length:
        answer_keys: sorted 64-bit keys of its distinct answers.
        opening_key: 64-bit key of its opening.
        repeated_answers: number of its distinct answers that another conversation also contains.
        repeated_answer_share: share (0 to 1) of its distinct answers that another conversation also contains.
        earlier_answer_share: share of its distinct answers that an earlier conversation contains. A rule on it keeps
            the first conversation with an answer; a rule on `repeated_answer_share` drops all of them.
        answer_copies: number of conversations, itself included, that contain its most repeated answer.
        opening_copies: number of conversations, itself included, that have its opening.

    The merge also writes `turns.json`: the most repeated answers and openings, the number of conversations with each,
    and the first of them. Its memory is 24 bytes per repeated answer, beside one shard; files have 8 per answer. Two
    different answers collide with a chance of 2**-64: 0.0003 for any two of 100 million.

    Attributes:
        words: minimum number of words of an answer.
        opening: number of words of an opening.
    """

    words: int = 10
    opening: int = 10

    identity: ClassVar[str] = "stages.turns:Turns"
    version: ClassVar[int] = 2
    summary: ClassVar[str] = "answers and openings that several conversations contain, word for word"
    reads: ClassVar[tuple[str, ...]] = ("messages",)
    writes: ClassVar[pl.Schema] = pl.Schema({"answer_keys": pl.List(pl.UInt64()), "opening_key": pl.UInt64()})
    merges: ClassVar[pl.Schema] = pl.Schema(
        {
            "repeated_answers": pl.UInt32(),
            **dict.fromkeys(("repeated_answer_share", "earlier_answer_share"), pl.Float32()),
            **dict.fromkeys(("answer_copies", "opening_copies"), pl.UInt32()),
        }
    )
    axes: ClassVar[Mapping[str, Axis]] = {
        "answer_copies": Axis("conversations with its answer", log=True, rank=290),
        "repeated_answer_share": Axis("share of answers given elsewhere", rank=300),
    }

    def __post_init__(self) -> None:
        require("turns: words", self.words, self.words > 0, "at least 1")
        require("turns: opening", self.opening, self.opening > 0, "at least 1")

    def measure(self, batch: pl.DataFrame) -> pl.DataFrame:
        replies = self._keys(batch)
        answers = replies.filter(pl.col("words") >= self.words).group_by("row")
        keys = answers.agg(answer_keys=pl.col("key").unique().sort())
        openings = replies.group_by("row").agg(pl.col("opening_key").first())
        return by_row(batch.height, keys, openings).select(self.writes.names())

    def merge(self, raw: Sequence[Path], measured: Sequence[Path], folder: Path) -> None:
        shards = Shards.of(raw, measured)
        answers, openings = _repeats(shards, "answer_keys"), _repeats(shards, "opening_key")
        for at, path in enumerate(measured):
            save_frame(folder / "merged" / path.name, _columns(shards, at, answers, openings))
        listed = {
            "answers": self._most_repeated(shards, answers, "key"),
            "openings": self._most_repeated(shards, openings, "opening_key"),
        }
        save_json(folder / "turns.json", listed, indent=1, end="")

    def _keys(self, batch: pl.DataFrame) -> pl.DataFrame:
        """Assistant messages in order: row, content, words, key, opening_key (null if too short)."""
        replies = spoken(batch).filter(pl.col("role") == "assistant").select("row", "content")
        frames = [pl.DataFrame(schema={"words": pl.Int64, "key": pl.UInt64, "opening_key": pl.UInt64})]
        for part in split(replies["content"]):
            openings = _openings(part.hashes, part.ends, self.opening)
            frames.append(pl.DataFrame({"words": np.diff(part.ends), "key": part.keys[:, 0], "opening_key": openings}))
        opening = pl.when(pl.col("words") >= self.opening).then("opening_key")
        return replies.hstack(pl.concat(frames).with_columns(opening_key=opening))

    def _most_repeated(self, shards: Shards, repeats: Repeats, key: str) -> list[dict[str, Any]]:
        """Entries of `turns.json`: number of conversations, id of the first, beginning of its answer with that key."""
        chosen = np.lexsort((repeats.firsts, -repeats.counts))[:MAX_LISTED]
        firsts = shards.take(repeats.firsts[chosen], "id", "messages") if len(chosen) else pl.DataFrame()
        entries = []
        for at, first in zip(chosen, firsts.iter_slices(1), strict=True):
            begins = self._keys(first).filter(pl.col(key) == int(repeats.keys[at]))["content"][0][:MAX_CHARACTERS]
            entries.append({"conversations": int(repeats.counts[at]), "first": first["id"][0], "begins": begins})
        return entries


def _openings(words: NDArray[np.uint64], ends: NDArray[np.int64], length: int) -> NDArray[np.uint64]:
    """A 64-bit key of the first words of each text; meaningless if it has fewer."""
    folded, last = np.full(len(ends) - 1, 0xA0761D6478BD642F, np.uint64), len(words) - 1
    for i in range(length):
        folded = (folded ^ words[np.minimum(ends[:-1] + i, last)]) * np.uint64(0xE7037ED1A0B428DB)
        folded ^= folded >> np.uint64(32)
    return folded


def _repeats(shards: Shards, signal: str) -> Repeats:
    def each() -> Iterator[Shard]:
        for at, start in enumerate(shards.starts[:-1]):
            pairs = shards.pairs(at, signal)
            yield start + pairs["row"].to_numpy(), pairs["key"].to_numpy()

    return Repeats(each, shards.folder)


def _columns(shards: Shards, at: int, answers: Repeats, openings: Repeats) -> pl.DataFrame:
    ids, given, opened = shards.ids(at), shards.pairs(at, "answer_keys"), shards.pairs(at, "opening_key")
    copies, firsts = answers.of(given["key"].to_numpy())
    earlier = (firsts >= 0) & (firsts < shards.starts[at] + given["row"].to_numpy())
    repeated = pl.col("copies") > 1
    signals = (
        given.with_columns(copies=copies, earlier=earlier)
        .group_by("row")
        .agg(
            repeated_answers=repeated.sum(),
            repeated_answer_share=repeated.mean(),
            earlier_answer_share=pl.col("earlier").mean(),
            answer_copies=pl.col("copies").max(),
        )
    )
    alike = opened.select("row", opening_copies=openings.of(opened["key"].to_numpy())[0])
    frame = by_row(len(ids), signals, alike)
    return frame.select(ids, *Turns.merges).cast(Turns.merges)
