"""Interpolated modified Kneser-Ney models that learn a text piece by piece and are scored at any point.

The n-grams of all texts are numbered once. A model is then a few arrays of counts, and a budget of 100,000 tokens is
learned and scored in hundredths of a second. Probabilities are those of `stages.ngram` (Chen and Goodman 1998), but for
the arithmetic, and for one n-gram that lmplz counts in another way.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stages.ngram.kneser_ney import FALLBACK, closed_form
from stages.text.compiled import Kernels
from trainer.prepare.streams import Pieces, Rows, Stream

ORDER = 5
LOOPS = Kernels(
    "trainer.counts.kneser_ney_kernel",
    {
        "learn": "i4** i8* i8* i8* i4* i4** i8**",
        "score": "i4** i8* i8* u1* i4* i4** f8** f8 f8**",
    },
)


@dataclass(frozen=True, eq=False)
class Grams:
    """The n-grams of some training pieces and of test conversations, numbered from 0 over all orders.

    A piece or conversation is a sentence: begin, tokens, end-of-text token. `ids` [orders, M] is the n-gram of each
    order that ends at a position, `size` the number of n-grams, and `tested` that of those in the test, which come
    first. `types` is the number of ids V. `first` [P] and `test_first` [K] are the positions of the first tokens of the
    pieces and of the test conversations; `events` [P] and `test_events` [K] are their tokens, the last one included.
    `classes` are those of the test's tokens, one conversation after the other (`trainer.prepare.template`).
    """

    ids: NDArray[np.int32]
    size: int
    tested: int
    types: int
    first: Rows
    events: Rows
    test_first: Rows
    test_events: Rows
    classes: NDArray[np.uint8]

    @classmethod
    def of(cls, pool: Stream, pieces: Pieces, test: Stream, order: int = ORDER) -> Grams:
        """Number the n-grams of the pieces of a training pool and of a test stream, in the separated layout."""
        whole = test.pieces()
        lengths = np.concatenate([pieces.sizes, whole.sizes])
        ends = np.cumsum(lengths + 2)
        begins = ends - lengths - 2
        types = len(pool.widths)
        words = np.empty(int(ends[-1]), np.int32)
        split = int(ends[len(pieces.sizes) - 1])
        _fill(words[:split], pool, pieces)
        _fill(words[split:], test, whole)
        words[begins] = types  # the beginning of a sentence is not an id
        depth = np.arange(len(words)) - np.repeat(begins, lengths + 2)
        ids, size, known = _number(words, depth, np.arange(len(words)) >= split, types + 1, order)
        first, count = begins + 1, len(pieces.sizes)
        return cls(
            *(ids, size, known, types),
            *(first[:count], lengths[:count] + 1, first[count:], lengths[count:] + 1),
            np.ascontiguousarray(test.classes[1:]),
        )


@dataclass(eq=False)
class KneserNey:
    """A model of the pieces that it has learned so far; the empty model gives every id the same probability.

    Its counts are those of `trainer.counts.kneser_ney_kernel`.
    """

    grams: Grams
    _counts: NDArray[np.int32] = field(init=False)
    contexts: NDArray[np.int32] = field(init=False)
    classes: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self._counts = np.zeros(self.grams.size, np.int32)
        self.contexts = np.zeros((self.grams.tested + 1, 4), np.int32)
        self.classes = np.zeros((len(self.grams.ids), 5), np.int64)

    def forget(self) -> None:
        """Make the model empty again."""
        for array in (self._counts, self.contexts, self.classes):
            array[:] = 0

    def learn(self, pieces: Rows, begin: int = 0, stop: int | None = None) -> None:
        """Learn some pieces in order; of their tokens, end-of-text tokens included, those from `begin` to `stop`."""
        ends = np.cumsum(self.grams.events[pieces])
        stop = int(ends[-1]) if stop is None else stop
        here = slice(int(np.searchsorted(ends, begin, "right")), int(np.searchsorted(ends, stop)) + 1)
        events = self.grams.events[pieces[here]]
        starts = ends[here] - events
        skipped = np.maximum(begin - starts, 0)
        events = np.minimum(stop - starts, events) - skipped
        first = self.grams.first[pieces[here]] + skipped
        LOOPS.call("learn", self.grams.ids, first, events, skipped, self._counts, self.contexts, self.classes)

    def nats(self) -> NDArray[np.float64]:
        """Sums of the nats of each test conversation, of other text and of replies, float64 [2, K]."""
        discounts = np.zeros((len(self.classes), 4))
        discounts[:, 1:] = [_discounts(row) for row in self.classes]
        grams, made = self.grams, np.zeros((3, len(self.grams.test_first)))
        state = self._counts, self.contexts, discounts, 1.0 / grams.types
        LOOPS.call("score", grams.ids, grams.test_first, grams.test_events, grams.classes, *state, made)
        return made[1:]


def _discounts(classes: NDArray[np.int64]) -> tuple[float, ...]:
    """The discounts of an order; none is 0, or a token that never follows a context could have the probability 0."""
    values = closed_form(np.append(classes, 0)).values
    return values if all(values) else FALLBACK


def _fill(words: NDArray[np.int32], stream: Stream, pieces: Pieces) -> None:
    """Write each piece after a free position, with the end-of-text token behind it."""
    made = stream.gather(pieces.starts, pieces.sizes + 1)
    keep = np.ones(len(words), np.bool_)
    keep[np.cumsum(pieces.sizes + 2) - 1] = False
    words[keep] = made.ids[:-1]
    words[~keep] = stream.end


def _number(
    words: NDArray[np.int32], depth: NDArray[np.int64], tested: NDArray[np.bool_], types: int, order: int
) -> tuple[NDArray[np.int32], int, int]:
    """The n-gram of each order that ends at each position, int32 [order, M], the number of all, and of tested n-grams.

    Those that end at a position of the test come first: scoring touches no others, so they stay in the processor's
    cache. Positions with too few words before them in their sentence have the number 0, and are never asked for.
    """
    ids = np.zeros((order, len(words)), np.int32)
    sizes, firsts = np.zeros(order, np.int64), np.zeros(order, np.int64)
    keys, where = words.astype(np.int64), np.arange(len(words))
    for n in range(order):
        if n:
            where = np.flatnonzero(depth >= n)
            keys = ids[n - 1, where].astype(np.int64) * types + words[where - n]
        distinct, numbers = np.unique(keys, return_inverse=True)
        inside = np.zeros(len(distinct), np.bool_)
        inside[numbers[tested[where]]] = True
        sizes[n], firsts[n] = len(distinct), inside.sum()
        ranks = np.where(inside, np.cumsum(inside), firsts[n] + np.cumsum(~inside)) - 1
        ids[n, where] = ranks[numbers]
    known = int(firsts.sum())
    for n in range(order):
        shifts = firsts[:n].sum(), known + (sizes - firsts)[:n].sum() - firsts[n]
        ids[n] += np.where(ids[n] < firsts[n], *shifts).astype(np.int32)
    return ids, int(sizes.sum()), known
