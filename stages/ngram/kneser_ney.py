"""Interpolated modified Kneser-Ney of counted n-grams, order by order, as lmplz computes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from stages.ngram import arpa
from stages.ngram.counts import BOS, NONE, Column, Ngrams, column, longer, slices, unigrams

Floats = np.ndarray[Any, np.dtype[np.float32]]
Index = np.ndarray[Any, np.dtype[np.intp]]

_WRITTEN = 1 << 20  # n-grams turned into text at a time


@dataclass(frozen=True)
class Corpus:
    """Sentences as word ids, and the words by id.

    Attributes:
        words: <s> w w ... </s> <s> ..., numbered by first appearance after the three special words.
        vocabulary: String; <unk>, <s>, </s>, then the words.
    """

    words: Column
    vocabulary: pl.Series


@dataclass(frozen=True)
class Estimate:
    """What was written: n-grams kept of each order, and the orders whose discounts are the fallback."""

    sizes: tuple[int, ...]
    fallback: tuple[int, ...]


@dataclass(frozen=True)
class _Order:
    """An order whose probabilities are known and whose backoffs are not yet."""

    grams: Ngrams
    kept: Index  # n-grams that are not pruned
    slot: Column  # n-gram -> its index in `kept`, or NONE
    probs: Floats  # of the kept
    holds_last: bool  # its last n-gram ends the last of the highest order


@dataclass(frozen=True)
class Estimation:
    """One training.

    Attributes:
        corpus: what to train on.
        prune: for each order, the count up to which an n-gram is left out; the first one is 0.
        folder: an empty one, for columns and sections.
        partition: positions sorted at a time.
        types: words that can occur, </s> among them, seen or not; by default those seen and <unk>, as lmplz has it.
    """

    corpus: Corpus
    prune: tuple[int, ...]
    folder: Path
    partition: int
    types: int | None = None

    def run(self, out: Path) -> Estimate:
        """Count, discount, interpolate and write one order after the other.

        Orders for which the corpus has no n-gram, or of which pruning leaves none, are left out at the end: what
        remains gives the same probabilities, and query libraries refuse an order with nothing in it.
        """
        grams: Ngrams | None = unigrams(self.corpus.words, len(self.corpus.vocabulary))
        below: _Order | None = None
        sizes: list[int] = []
        fallback: list[int] = []
        while grams is not None:
            above, counts = self._count(grams)
            holds_last = below is None or (below.holds_last and int(grams.parent[-1]) == len(below.grams) - 1)
            discounts = closed_form(_counts_of_counts(counts, grams.count if holds_last and above else counts))
            below = self._interpolate(grams, counts, discounts, below, holds_last=holds_last)
            sizes += [len(below.kept)] * bool(len(below.kept))
            fallback += [grams.order] * discounts.fallback
            grams = above if len(below.kept) else None
        if below is not None:
            self._write(below, None)
        arpa.join([self._section(order) for order in range(1, len(sizes) + 1)], sizes, out)
        return Estimate(tuple(sizes), tuple(fallback))

    def _count(self, grams: Ngrams) -> tuple[Ngrams | None, Column]:
        """The next order, if there is one, and this order's adjusted counts.

        An adjusted count is the number of distinct words to the left; for the highest order, and for what begins with
        <s>, it is the number of occurrences.
        """
        if grams.order == len(self.prune):
            return None, grams.count
        above, counts = longer(grams, self.corpus.words, self.folder, self.partition)
        if not len(above):
            return None, grams.count
        for part in slices(len(grams) if grams.order > 1 else 0):
            begins = self.corpus.words[grams.at[part] - np.uint32(grams.order - 1)] == BOS
            counts[part] = np.where(begins, grams.count[part], counts[part])
        return above, counts

    def _interpolate(
        self, grams: Ngrams, counts: Column, discounts: Discounts, below: _Order | None, *, holds_last: bool
    ) -> _Order:
        """Probabilities of this order; the order below gets its backoffs and is written."""
        if below is None:
            everything = np.arange(len(counts))
            probs = _words(counts, discounts, self.types or len(counts) - 1)  # <unk> is a word here, <s> is not
            return _Order(grams, everything, everything.astype(np.uint32), probs, holds_last)
        limit = self.prune[grams.order - 1]
        kept = np.flatnonzero(grams.count > limit)
        slot = column(self.folder, f"slot{grams.order}", len(grams))
        slot[:] = NONE
        slot[kept] = np.arange(len(kept), dtype=np.uint32)
        denominators, backoffs = _contexts(grams, counts, discounts, limit, below)
        self._write(below, backoffs)
        probs = np.empty(len(kept), np.float32)
        for part in slices(len(kept)):
            some = kept[part]
            context = _context(below, grams.at[some])
            own = (counts[some].astype(np.float32) - discounts.of(counts[some])) / denominators[context]
            probs[part] = own + backoffs[context] * below.probs[below.slot[grams.parent[some]]]
        return _Order(grams, kept, slot, probs, holds_last)

    def _write(self, order: _Order, backoffs: Floats | None) -> None:
        """The ARPA section of an order; without backoffs it is the highest."""
        for part in slices(len(order.kept), _WRITTEN):
            grams = self._text(order.grams, order.kept[part])
            weights = None if backoffs is None else arpa.log10(backoffs[part])
            arpa.write_lines(self._section(order.grams.order), arpa.log10(order.probs[part]), grams, weights)

    def _text(self, grams: Ngrams, some: Index) -> pl.Series:
        words = self.corpus.vocabulary
        if grams.order == 1:
            return words.gather(some)
        ends = grams.at[some].astype(np.int64)
        columns = [words.gather(self.corpus.words[ends - back]) for back in reversed(range(grams.order))]
        return pl.select(pl.concat_str(columns, separator=" ")).to_series()

    def _section(self, order: int) -> Path:
        return self.folder / f"{order}-grams"


def _counts_of_counts(counts: Column, of_last: Column) -> npt.NDArray[np.int64]:
    """`n[j]`, how many n-grams have adjusted count j, for j from 0 to 5 or more; the last one counts as in `of_last`.

    lmplz counts the last n-gram in suffix order by its occurrences (kenlm, lm/builder/adjust_counts.cc, end of Run). It
    is one of all, but on a small corpus it moves the discounts.
    """
    n = np.zeros(6, np.int64)
    for part in slices(len(counts)):
        n += np.bincount(np.minimum(counts[part], 5), minlength=6)
    n[min(int(counts[-1]), 5)] -= 1
    n[min(int(of_last[-1]), 5)] += 1
    return n


def _words(counts: Column, discounts: Discounts, types: int) -> Floats:
    """Probabilities of words: interpolated with a uniform share, which is all that <unk> has; <s> has probability 1."""
    taken = discounts.of(counts)
    denominator = np.float32(counts.sum(dtype=np.int64))
    weight = np.float32(taken.sum(dtype=np.float64)) / denominator
    uniform = np.float32(1) / np.float32(types)
    probs = (counts.astype(np.float32) - taken) / denominator + weight * uniform
    probs[BOS] = 1
    return probs.astype(np.float32)


def _context(below: _Order, at: Column) -> Column:
    """The kept n-gram that ends one word earlier, or NONE."""
    context: Column = below.slot[below.grams.ending[at - np.uint32(1)]]
    return context


def _contexts(grams: Ngrams, counts: Column, discounts: Discounts, limit: int, below: _Order) -> tuple[Floats, Floats]:
    """For each kept n-gram of the order below: what follows it, counted, and the share of it that backing off gets.

    What pruning takes goes to backing off whole (kenlm, lm/builder/initial_probabilities.cc).
    """
    denominators, left = np.zeros(len(below.kept)), np.zeros(len(below.kept))
    for part in slices(len(grams)):
        context = _context(below, grams.at[part])
        known = context != NONE
        context, some = context[known], counts[part][known]
        np.add.at(denominators, context, some)
        np.add.at(left, context, np.where(grams.count[part][known] > limit, discounts.of(some), some))
    single = denominators.astype(np.float32)
    backoffs = np.ones(len(below.kept), np.float32)  # a sentence end, and <unk>, is nobody's context
    np.divide(left.astype(np.float32), single, out=backoffs, where=single > 0)
    return single, backoffs


FALLBACK = (0.5, 1.0, 1.5)
"""What lmplz takes with `--discount_fallback` where counts of counts are degenerate (lm/builder/lmplz_main.cc)."""


@dataclass(frozen=True)
class Discounts:
    """What is taken from an adjusted count of 1, 2, and 3 or more.

    Attributes:
        values: D1, D2, D3+, as 32-bit floats hold them.
        fallback: the closed form did not hold for these counts, so `values` is FALLBACK.
    """

    values: tuple[float, float, float]
    fallback: bool

    def of(self, counts: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
        """The discount of each count; a count of 0 has none."""
        taken: npt.NDArray[np.float32] = np.array((0.0, *self.values), np.float32)[np.minimum(counts, 3)]
        return taken


def closed_form(n: npt.NDArray[np.int64]) -> Discounts:
    """Discounts from counts of counts: `n[j]` n-grams have the adjusted count j, for j from 1 to 4.

    lmplz refuses where an n1, n2 or n3 is 0 or a discount leaves [0, j], unless it is given a fallback; so here.
    """
    if not all(n[1:4]):
        return Discounts(FALLBACK, fallback=True)
    one = np.float32(1)
    y = np.float32(n[1]) / np.float32(n[1] + 2.0 * n[2])
    values = [np.float32(j) - (np.float32(j) + one) * y * np.float32(n[j + 1]) / np.float32(n[j]) for j in (1, 2, 3)]
    if any(not 0 <= value <= j for j, value in enumerate(values, 1)):
        return Discounts(FALLBACK, fallback=True)
    return Discounts((float(values[0]), float(values[1]), float(values[2])), fallback=False)
