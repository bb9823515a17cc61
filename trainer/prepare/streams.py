"""Token streams: concatenated conversations, their order by seed, nested budgets, bytes of the targets."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from trainer import TrainerError
from trainer.prepare import template
from trainer.prepare.template import REPLY, TEXT
from trainer.prepare.vocabulary import Vocabulary
from trainer.presets import Text

Rows = NDArray[np.int64]
Keys = NDArray[np.uint64]
STEP = 1 << 22
"""Tokens moved at a time."""
MAX_TOGETHER = 8
"""Maximum number of near-duplicates that stay together in an order."""
ARRAYS = ("ids", "starts", "bytes", "widths", "classes")


class StreamError(TrainerError):
    """A stream is too short for a request, or damaged."""


@dataclass(frozen=True, eq=False)
class Pieces:
    """P consecutive parts of a stream's conversations, the units that budgets are made of.

    `rows` [P] are their conversations, `numbers` [P] count from 0 within a conversation, `starts` [P] are the positions
    before their first tokens (in the joined layout those of the first tokens), and `sizes` [P] their tokens.
    """

    rows: Rows
    numbers: Rows
    starts: Rows
    sizes: Rows

    def take(self, which: Rows) -> Pieces:
        """Some of the pieces."""
        return Pieces(*(array[which] for array in (self.rows, self.numbers, self.starts, self.sizes)))

    def order(self, keys: Keys, seed: int) -> Rows:
        """The pieces in the order of a seed, int64 [P]: by a hash of the conversation's key, the number and the seed.

        Pieces of one number whose conversations have equal keys are neighbours.
        """
        return permutation(seed, len(self.rows), keys[self.rows] ^ _mix(self.numbers.astype(np.uint64)))


@dataclass(frozen=True, eq=False)
class Stream:
    """Conversations as one row of ids [N]; input t is `ids[t]`, target t is `ids[t + 1]`.

    The separated layout is `EOT conv1 EOT conv2 ... EOT convK EOT`; `starts` [K] are the EOTs before the conversations,
    whose targets are their own tokens and the EOT after them. The joined layout has no EOT, and the very first token is
    no target. `bytes` [K] are the UTF-8 bytes of each conversation's targets, `widths` [V] those of each id. `classes`
    [N], uint8, tell which ids are not scored, text, or of a reply (`trainer.prepare.template`); in the plain template
    all are text.
    """

    ids: NDArray[np.int32]
    starts: Rows
    bytes: Rows
    widths: NDArray[np.int32]
    classes: NDArray[np.uint8]
    end: int
    separated: bool

    def __len__(self) -> int:
        """K, the number of conversations."""
        return len(self.starts)

    @property
    def tokens(self) -> int:
        """N, which is the largest possible budget."""
        return len(self.ids)

    def lengths(self) -> Rows:
        """Tokens of each conversation without the end-of-text token, int64 [K]."""
        if self.separated:
            return np.diff(self.starts, append=self.tokens - 1 if self.whole() else self.tokens) - 1
        return np.diff(self.starts, append=self.tokens)

    def whole(self) -> bool:
        """Whether the last conversation is complete; always True for the joined layout, which does not tell."""
        return not self.separated or (self.tokens > 0 and int(self.ids[-1]) == self.end)

    def bounds(self) -> Rows:
        """Bounds of each conversation's targets, int64 [K + 1]: targets `bounds[k]` to `bounds[k + 1]` belong to k."""
        starts = self.starts if self.separated else np.maximum(self.starts - 1, 0)
        return np.append(starts, max(self.tokens - 1, 0))

    @property
    def replies(self) -> int:
        """Number of targets that are of a reply."""
        return int((self.classes[1:] == REPLY).sum())

    def by_class(self, values: NDArray[Any]) -> NDArray[Any]:
        """Sums of a value of each target [N - 1] by class and conversation, [2, K]: of other text, and of replies."""
        bounds, sums = self.bounds(), []
        for one in (TEXT, REPLY):
            total = np.concatenate([[0], np.cumsum(np.where(self.classes[1:] == one, values, 0))])
            sums.append(np.diff(total[bounds]))
        return np.stack(sums)

    def target_counts(self) -> Rows:
        """Scored targets by class and conversation, int64 [2, K]."""
        counts: Rows = self.by_class(np.ones(max(self.tokens - 1, 0), np.int64))
        return counts

    def target_bytes(self) -> NDArray[np.int32]:
        """UTF-8 bytes of each target, int32 [N - 1]."""
        widths: NDArray[np.int32] = self.widths[self.ids[1:]]
        return widths

    def prefix(self, tokens: int) -> Stream:
        """The first `tokens` ids, or a StreamError; the last conversation may be cut."""
        if tokens > self.tokens:
            raise StreamError(
                f"the budget is {tokens:,} tokens and the training pool has {self.tokens:,}: "
                "choose a smaller budget, or take a larger corpus"
            )
        if tokens < 2:  # noqa: PLR2004  an input and a target
            raise StreamError(f"the budget is {tokens} tokens, expected at least 2: an input and a target")
        last = tokens - 1 if self.separated else tokens  # no conversation starts at the last end-of-text token
        return self._cut(tokens, int(np.searchsorted(self.starts, last)))

    def conversations(self, count: int) -> Stream:
        """The first `count` conversations, complete; a StreamError if there are fewer."""
        if not 0 < count <= len(self):
            raise StreamError(
                f"{count:,} conversations were requested and the stream has {len(self):,}: choose 1 to {len(self):,}"
            )
        end = int(self.starts[count]) + int(self.separated) if count < len(self) else self.tokens
        return self._cut(end, count)

    def _cut(self, tokens: int, count: int) -> Stream:
        cut = replace(self, ids=self.ids[:tokens], classes=self.classes[:tokens], starts=self.starts[:count])
        counted = self.bytes[:count].copy()
        if count:
            counted[-1] = self.widths[cut.ids[cut.bounds()[-2] + 1 :]].sum()
        return replace(cut, bytes=counted)

    def take(self, rows: Rows) -> Stream:
        """The conversations `rows`, in this order; a StreamError if the last one of the stream is cut."""
        self._check_whole()
        rows = np.asarray(rows, np.int64)
        return self.gather(self.starts[rows], self.lengths()[rows] + int(self.separated))

    def pieces(self, size: int | None = None, rows: Rows | None = None) -> Pieces:
        """The conversations `rows` (by default all), each cut into as few near-equal pieces as `size` tokens allow.

        Without a size, each conversation is one piece. Only the separated layout can be cut. A StreamError if the last
        conversation of the stream is cut.
        """
        self._check_whole()
        rows = np.arange(len(self)) if rows is None else np.asarray(rows, np.int64)
        lengths = self.lengths()[rows]
        if size is None:
            return Pieces(rows, np.zeros(len(rows), np.int64), self.starts[rows], lengths)
        if not self.separated:
            raise StreamError("conversations without an end-of-text token between them cannot be cut into pieces")
        counts = np.maximum(-(-lengths // size), 1)
        owner = np.repeat(np.arange(len(rows)), counts)
        number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        cuts = [(number + i) * lengths[owner] // counts[owner] for i in (0, 1)]
        return Pieces(rows[owner], number, self.starts[rows][owner] + cuts[0], cuts[1] - cuts[0])

    def draw(self, tokens: int, seed: int, keys: Keys | None = None, pieces: Pieces | None = None) -> Stream:
        """The first `tokens` ids of some pieces (by default all conversations), in the order of a seed.

        In the result each piece is a conversation. Pieces that two streams share are in the same order in both if the
        `keys` [K] of their conversations are equal, which pairs the arms of a comparison. Takes time proportional to
        the budget and the number of pieces.
        """
        pieces = self.pieces() if pieces is None else pieces
        order = pieces.order(np.arange(len(self), dtype=np.uint64) if keys is None else keys, seed)
        sizes = pieces.sizes[order] + int(self.separated)
        count = int(np.searchsorted(np.cumsum(sizes), tokens)) + 1
        return self.gather(pieces.starts[order[:count]], sizes[:count]).prefix(tokens)

    def _check_whole(self) -> None:
        if not self.whole():
            raise StreamError("the last conversation of this stream is cut: take conversations before cutting a budget")

    def gather(self, starts: Rows, sizes: Rows) -> Stream:
        """Spans of ids as conversations; in the separated layout their first id becomes the end-of-text token."""
        ends = np.cumsum(sizes)
        ids = np.empty((int(ends[-1]) if len(ends) else 0) + int(self.separated), np.int32)
        classes = np.empty(len(ids), np.uint8)
        for here in _steps(ends):
            begin, size = ends[here] - sizes[here], sizes[here]
            shift = np.repeat(starts[here] - begin, size)
            at = np.arange(begin[0], begin[0] + len(shift))
            there = slice(begin[0], begin[0] + len(at))
            ids[there], classes[there] = self.ids[at + shift], self.classes[at + shift]
        if self.separated:
            borders = np.append(ends - sizes, len(ids) - 1)
            ids[borders], classes[borders] = self.end, self.classes[0]  # all end-of-text tokens are of one class
        return _of(ids, ends - sizes, self.widths, classes, self.end, separated=self.separated)

    def save(self, folder: Path) -> None:
        """Write the stream as a folder, replacing an existing one."""
        aside = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for name in ARRAYS:
            np.save(aside / f"{name}.npy", getattr(self, name))
        (aside / "stream.json").write_text(json.dumps({"end": self.end, "separated": self.separated}), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)


def load(folder: Path) -> Stream:
    """Load a saved stream, memory-mapped; a StreamError if it is missing or damaged."""
    try:
        layout = json.loads((folder / "stream.json").read_bytes())
        arrays = {name: np.load(folder / f"{name}.npy", "r", allow_pickle=False) for name in ARRAYS}
        return Stream(**arrays, end=int(layout["end"]), separated=bool(layout["separated"]))
    except (OSError, EOFError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StreamError(f"{folder} holds no complete token stream ({error}): make it again") from error


def encode(conversations: pl.DataFrame, vocabulary: Vocabulary, text: Text) -> Stream:
    """The stream of a corpus in its order, in 9 bytes of memory per token; an empty conversation is a row too.

    The columns of `conversations` are "first" and "text", and for the template "chat" also "turns".
    """
    if text.chat:
        ids, classes, starts = template.lay_out(conversations["text"], conversations["turns"], vocabulary)
        return _of(ids, starts, vocabulary.widths, classes, vocabulary.end, separated=True)
    parts, lengths = [], [np.empty(0, np.int64)]
    for ids, sizes in vocabulary.encode(conversations[text.column], text.truncate):
        opened = np.insert(ids, np.cumsum(sizes) - sizes, np.int32(vocabulary.end)) if text.separated else ids
        parts.append(opened)
        lengths.append(sizes + int(text.separated))
    parts.append(np.full(int(text.separated), vocabulary.end, np.int32))
    sizes = np.concatenate(lengths)
    starts = np.cumsum(sizes) - sizes
    ids = np.concatenate(parts)
    classes = np.full(len(ids), TEXT, np.uint8)
    return _of(ids, starts, vocabulary.widths, classes, vocabulary.end, separated=text.separated)


def decode(stream: Stream, vocabulary: Vocabulary) -> pl.DataFrame:
    """Texts and messages of a stream's conversations, the columns text and turns of `encode`: its inverse.

    Exact, because a vocabulary changes no text. Memory: the texts. A loop over conversations, for the tokenizer.
    """
    begins = stream.starts + int(stream.separated)
    messages, contents = [], list[list[int]]()
    for begin, length in zip(begins.tolist(), stream.lengths().tolist(), strict=True):
        found = template.messages(stream.ids[begin : begin + length], vocabulary)
        messages.append([role for role, _ in found])
        contents += [ids.tolist() for _, ids in found]
    texts = iter(vocabulary.tokenizer.decode_batch(contents, skip_special_tokens=False))
    rows = [[(role, next(texts)) for role in roles] for roles in messages]
    turns = [[{"role": role, "length": len(text)} for role, text in row] for row in rows]
    joined = ["\n".join(text for _, text in row) for row in rows]
    return pl.DataFrame({"text": joined, "turns": turns}, schema={"text": pl.String, "turns": template.TURNS})


def digest(head: bytes, streams: Iterable[Stream], table: NDArray[np.float32] | None = None) -> str:
    """16 hex digits of some bytes, the ids, starts and classes of streams, and a table of embeddings."""
    state = hashlib.blake2b(head, digest_size=8)
    for array in (array for stream in streams for array in (stream.ids, stream.starts, stream.classes)):
        state.update(np.ascontiguousarray(array).tobytes())
    state.update(b"" if table is None else np.ascontiguousarray(table).tobytes())
    return state.hexdigest()


def together(keys: Keys, groups: Rows) -> Keys:
    """Keys that make near-duplicates neighbours in every order, uint64 [K].

    A budget then has the corpus's own share of copies; if they were apart, a small budget would hold none. The members
    of a group (`groups` [K]) take its least key; of a large group, each `MAX_TOGETHER` do, so that no group
    fills a budget. Conversations with the same key, such as a text before and after an edit, count as one.
    """
    order = np.lexsort((keys, groups))
    sorted_keys, sorted_groups = keys[order], groups[order]
    first = np.append(True, sorted_groups[1:] != sorted_groups[:-1])
    fresh = first | np.append(True, sorted_keys[1:] != sorted_keys[:-1])
    nth = np.cumsum(fresh) - 1
    nth -= np.maximum.accumulate(np.where(first, nth, 0))
    leads = fresh & (nth % MAX_TOGETHER == 0)
    made = np.empty_like(keys)
    made[order] = sorted_keys[np.maximum.accumulate(np.where(leads, np.arange(len(keys)), 0))]
    return made


def permutation(seed: int, count: int, keys: Keys | None = None) -> Rows:
    """A permutation of `count` rows, int64 [count], by a hash of seed and key (by default the row number)."""
    keys = np.arange(count, dtype=np.uint64) if keys is None else keys
    order: Rows = np.argsort(seeded_hashes(keys, seed), kind="stable")
    return order


def seeded_hashes(keys: Keys, seed: int) -> Keys:
    """A hash of each key and a seed, by SplitMix64's finalizer (Steele, Lea, Flood 2014).

    Unlike the generators of a library, it never changes between versions.
    """
    salt = _mix(np.array([seed], np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    return _mix(_mix(keys + salt) ^ salt)


def _mix(z: Keys) -> Keys:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _of(
    ids: NDArray[np.int32],
    starts: Rows,
    widths: NDArray[np.int32],
    classes: NDArray[np.uint8],
    end: int,
    *,
    separated: bool,
) -> Stream:
    """A stream with its `bytes` counted."""
    stream = Stream(ids, starts, np.empty(0, np.int64), widths, classes, end, separated)
    counted = np.zeros(len(starts) + 1, np.int64)
    bounds = stream.bounds()
    for here in _steps(bounds[1:]):
        low, high = int(bounds[here.start]), int(bounds[here.stop])
        total = np.concatenate([[0], np.cumsum(widths[ids[low + 1 : high + 1]], dtype=np.int64)])
        counted[here.start : here.stop] = np.diff(total[bounds[here.start : here.stop + 1] - low])
    return replace(stream, bytes=counted[: len(starts)])


def _steps(ends: Rows) -> Iterator[slice]:
    """Groups of rows of about `STEP` tokens; a longer row is its own group."""
    begin = 0
    while begin < len(ends):
        done = int(ends[begin - 1]) if begin else 0
        stop = max(begin + 1, int(np.searchsorted(ends, done + STEP, side="right")))
        yield slice(begin, stop)
        begin = stop
