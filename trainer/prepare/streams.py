"""Token streams: conversations one after the other, their order by seed, nested budgets, bytes of what is scored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from trainer import TrainerError
from trainer.prepare.vocabulary import Vocabulary
from trainer.presets import Text

Rows = NDArray[np.int64]
Keys = NDArray[np.uint64]
STEP = 1 << 22
"""Tokens that are moved at once."""
ARRAYS = ("ids", "starts", "bytes", "widths")


class StreamError(TrainerError):
    """A stream does not hold what was asked of it; the message says what it holds."""


@dataclass(frozen=True, eq=False)
class Stream:
    """Conversations as one row of ids; input t is `ids[t]`, target t is `ids[t + 1]`.

    Separated: `EOT conv1 EOT conv2 ... EOT convK EOT`. The token that opens a conversation is the end target of the one
    before; a conversation's targets are its own tokens and the end. Joined: the tokens alone, so that the first token
    of all is no target.

    Attributes:
        ids: int32 [N].
        starts: int64 [K], where each conversation begins: at the end-of-text token that opens it, if separated.
        bytes: int64 [K], UTF-8 bytes of the text of each conversation's targets; they add up to those of `ids[1:]`.
        widths: int32 [V], bytes that each id stands for; 0 for the end-of-text token.
        end: id of the end-of-text token.
        separated: the layout.
    """

    ids: NDArray[np.int32]
    starts: Rows
    bytes: Rows
    widths: NDArray[np.int32]
    end: int
    separated: bool

    def __len__(self) -> int:
        """Conversations."""
        return len(self.starts)

    @property
    def tokens(self) -> int:
        """N, the largest budget that this stream serves."""
        return len(self.ids)

    def lengths(self) -> Rows:
        """Tokens of each conversation without the end-of-text token, int64 [K]."""
        if self.separated:
            return np.diff(self.starts, append=self.tokens - 1 if self.whole() else self.tokens) - 1
        return np.diff(self.starts, append=self.tokens)

    def whole(self) -> bool:
        """Whether the last conversation is not cut; of joined ones that is not known, and does not matter."""
        return not self.separated or (self.tokens > 0 and int(self.ids[-1]) == self.end)

    def bounds(self) -> Rows:
        """Where each conversation's targets begin, int64 [K + 1]: those of k are `bounds[k]` to `bounds[k + 1]`."""
        starts = self.starts if self.separated else np.maximum(self.starts - 1, 0)
        return np.append(starts, max(self.tokens - 1, 0))

    def target_bytes(self) -> NDArray[np.int32]:
        """Bytes of each target, int32 [N - 1]: bits per byte are nats / ln 2 over the sum of these."""
        widths: NDArray[np.int32] = self.widths[self.ids[1:]]
        return widths

    def prefix(self, tokens: int) -> Stream:
        """Exactly the first `tokens` ids, the last conversation cut where they end.

        Raises:
            StreamError: the stream is shorter, or nothing can be predicted in so few.
        """
        if tokens > self.tokens:
            raise StreamError(
                f"a budget of {tokens:,} tokens was asked for, and there are {self.tokens:,} to train on, the largest "
                "budget there is: ask for less, or take a larger corpus"
            )
        if tokens < 2:  # noqa: PLR2004  an input and a target
            raise StreamError(f"a budget of {tokens} tokens was asked for, expected 2 or more: an input and a target")
        last = tokens - 1 if self.separated else tokens  # a closing end-of-text token opens nothing
        return self._cut(tokens, int(np.searchsorted(self.starts, last)))

    def conversations(self, count: int) -> Stream:
        """The first `count` conversations, all of each.

        Raises:
            StreamError: there are fewer.
        """
        if not 0 < count <= len(self):
            raise StreamError(
                f"{count:,} conversations were asked for, and the stream has {len(self):,}: ask for 1 to {len(self):,}"
            )
        end = int(self.starts[count]) + int(self.separated) if count < len(self) else self.tokens
        return self._cut(end, count)

    def _cut(self, tokens: int, count: int) -> Stream:
        cut = replace(self, ids=self.ids[:tokens], starts=self.starts[:count])
        counted = self.bytes[:count].copy()
        if count:
            counted[-1] = self.widths[cut.ids[cut.bounds()[-2] + 1 :]].sum()
        return replace(cut, bytes=counted)

    def take(self, rows: Rows) -> Stream:
        """Some conversations, in the order of `rows`.

        Raises:
            StreamError: the last one is cut, so that it has no end.
        """
        if not self.whole():
            raise StreamError("the last conversation of this stream is cut: choose conversations before the budget")
        rows = np.asarray(rows, np.int64)
        sizes = self.lengths()[rows] + int(self.separated)
        ends = np.cumsum(sizes)
        ids = np.empty((int(ends[-1]) if len(rows) else 0) + int(self.separated), np.int32)
        for here in _steps(ends):
            begin, size = ends[here] - sizes[here], sizes[here]
            shift = np.repeat(self.starts[rows[here]] - begin, size)
            at = np.arange(begin[0], begin[0] + len(shift))
            ids[begin[0] : begin[0] + len(at)] = self.ids[at + shift]
        if self.separated:
            ids[-1] = self.end
        return _of(ids, ends - sizes, self.widths, self.end, separated=self.separated)

    def order(self, seed: int, keys: Keys | None = None) -> Stream:
        """All conversations, permuted by a seed.

        Args:
            seed: another one gives another order.
            keys: uint64 [K], what names each conversation. Two streams that share conversations then have these in the
                same order, whatever else is between, so that arms of a comparison are paired.
        """
        return self.take(permutation(seed, len(self), keys))

    def draw(self, tokens: int, seed: int, keys: Keys | None = None) -> Stream:
        """`order(seed, keys).prefix(tokens)`, at the cost of the budget, not of the stream.

        Raises:
            StreamError: the stream is shorter.
        """
        rows = permutation(seed, len(self), keys)
        ends = np.cumsum(self.lengths()[rows] + int(self.separated))
        if tokens < self.tokens:
            rows = rows[: int(np.searchsorted(ends, tokens)) + 1]
        return self.take(rows).prefix(tokens)

    def save(self, folder: Path) -> None:
        """Write a folder of arrays that `load` maps; one that exists is replaced, and is whole."""
        aside = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for name in ARRAYS:
            np.save(aside / f"{name}.npy", getattr(self, name))
        (aside / "stream.json").write_text(json.dumps({"end": self.end, "separated": self.separated}), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)


def load(folder: Path) -> Stream:
    """A saved stream; its ids are mapped, not read.

    Raises:
        StreamError: there is none, or it is broken.
    """
    try:
        said = json.loads((folder / "stream.json").read_bytes())
        arrays = {name: np.load(folder / f"{name}.npy", "r", allow_pickle=False) for name in ARRAYS}
        return Stream(**arrays, end=int(said["end"]), separated=bool(said["separated"]))
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise StreamError(f"{folder} holds no whole token stream ({error}): make it again") from error


def encode(conversations: pl.DataFrame, vocabulary: Vocabulary, text: Text) -> Stream:
    """The stream of a corpus, in its order; row k is conversation k, an empty one too.

    Memory: 4 bytes a token, twice that while chunks are put together.

    Args:
        conversations: with the column `text.column` ("first" or "text"), no nulls.
        vocabulary: how texts become ids.
        text: which text, and how they stand together.
    """
    parts, lengths = [], [np.empty(0, np.int64)]
    for ids, sizes in vocabulary.encode(conversations[text.column], text.truncate):
        opened = np.insert(ids, np.cumsum(sizes) - sizes, np.int32(vocabulary.end)) if text.separated else ids
        parts.append(opened)
        lengths.append(sizes + int(text.separated))
    parts.append(np.full(int(text.separated), vocabulary.end, np.int32))
    sizes = np.concatenate(lengths)
    starts = np.cumsum(sizes) - sizes
    return _of(np.concatenate(parts), starts, vocabulary.widths, vocabulary.end, separated=text.separated)


def permutation(seed: int, count: int, keys: Keys | None = None) -> Rows:
    """A permutation of `count` rows by the hash of seed and key (the row's number by default), int64 [count]."""
    order: Rows = np.argsort(mixed(np.arange(count, dtype=np.uint64) if keys is None else keys, seed), kind="stable")
    return order


def mixed(keys: Keys, seed: int) -> Keys:
    """A hash of each key that depends on a seed: SplitMix64's finalizer (Steele, Lea, Flood 2014), with seed and key.

    Unlike the generators of a library it stays the same from version to version.
    """
    salt = _mix(np.array([seed], np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    return _mix(_mix(keys + salt) ^ salt)


def _mix(z: Keys) -> Keys:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _of(ids: NDArray[np.int32], starts: Rows, widths: NDArray[np.int32], end: int, *, separated: bool) -> Stream:
    """A stream, its bytes counted."""
    stream = Stream(ids, starts, np.empty(0, np.int64), widths, end, separated)
    counted = np.zeros(len(starts) + 1, np.int64)
    bounds = stream.bounds()
    for here in _steps(bounds[1:]):
        low, high = int(bounds[here.start]), int(bounds[here.stop])
        total = np.concatenate([[0], np.cumsum(widths[ids[low + 1 : high + 1]], dtype=np.int64)])
        counted[here.start : here.stop] = np.diff(total[bounds[here.start : here.stop + 1] - low])
    return replace(stream, bytes=counted[: len(starts)])


def _steps(ends: Rows) -> Iterator[slice]:
    """Rows by groups of about `STEP` tokens; a longer row is one group."""
    begin = 0
    while begin < len(ends):
        done = int(ends[begin - 1]) if begin else 0
        stop = max(begin + 1, int(np.searchsorted(ends, done + STEP, side="right")))
        yield slice(begin, stop)
        begin = stop
