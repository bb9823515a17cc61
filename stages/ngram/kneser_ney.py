"""Interpolated modified Kneser-Ney smoothing, order by order, as lmplz computes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.ngram.counts import LOOPS, Column, Columns, Ngrams, longer, slices, unigrams
from stages.ngram.ngram_kernel import BOS

Floats = np.ndarray[Any, np.dtype[np.float32]]
Flags = np.ndarray[Any, np.dtype[np.uint8]]

LOWEST = -99.0
"""The log10 of probability 0."""


@dataclass(frozen=True)
class Section:
    """The n-grams of one order in a model, in suffix order; words by id."""

    order: int
    ends: Column  # a position of the corpus where each n-gram ends; of words, their ids
    keys: npt.NDArray[np.uint64]  # kenlm's hash of each n-gram; of words, their ids
    probs: Floats  # log10
    backoffs: Floats | None  # log10; None at the highest order
    is_context: Flags  # whether the n-gram is the beginning of a longer one of the model
    is_suffix: Flags  # whether it is the end of a longer one

    def __len__(self) -> int:
        return len(self.probs)


@dataclass(frozen=True)
class _Order:
    """An order with known probabilities and unknown backoffs."""

    grams: Ngrams
    slot: Column  # rank -> index among the kept n-grams, or NONE
    ends: Column  # of the kept n-grams
    keys: npt.NDArray[np.uint64]
    probs: Floats
    holds_last: bool  # its last n-gram is a suffix of the last one of the highest order


@dataclass(frozen=True)
class Estimation:
    """The estimation of one model."""

    words: Column  # ids of the corpus: <s> w w ... </s> <s> ..., numbered by first appearance after the special words
    vocabulary: int  # number of ids
    prune: tuple[int, ...]  # per order, the count up to which an n-gram is omitted; the first one is 0
    columns: Columns
    types: int | None  # number of words that can occur, </s> included; by default those seen and <unk>, as in lmplz

    def run(self) -> tuple[list[Section], tuple[int, ...]]:
        """The sections of the model, and the orders with fallback discounts.

        The highest orders are omitted if the corpus has no such n-gram, or pruning leaves none: the probabilities are
        the same, and query libraries refuse an empty order.
        """
        grams: Ngrams | None = unigrams(self.words, self.vocabulary)
        below: _Order | None = None
        sections: list[Section] = []
        fallback: list[int] = []
        while grams is not None:
            above, counts = self._count(grams)
            holds_last = below is None or (below.holds_last and int(grams.parent[-1]) == len(below.grams) - 1)
            discounts = closed_form(_counts_of_counts(counts, grams.count if holds_last and above else counts))
            if below is None:
                below = self._unigrams(grams, counts, discounts, holds_last=holds_last)
            else:
                section, below = self._interpolate(grams, counts, discounts, below, holds_last=holds_last)
                sections.append(section)
            fallback += [grams.order] * discounts.fallback
            grams = above if len(below.ends) else None
        if below is not None and len(below.ends):
            none = np.zeros(len(below.ends), np.uint8)
            sections.append(
                Section(below.grams.order, below.ends, below.keys, _log_probs(below.probs), None, none, none)
            )
        return sections, tuple(fallback)

    def _count(self, grams: Ngrams) -> tuple[Ngrams | None, Column]:
        """The next order, or None, and the adjusted counts of this one; of the highest, the numbers of occurrences."""
        if grams.order == len(self.prune):
            return None, grams.count
        last = grams.order + 1 == len(self.prune)
        above, counts = longer(grams, self.words, self.columns, last=last)
        return (above, counts) if len(above) else (None, grams.count)

    def _unigrams(self, grams: Ngrams, counts: Column, discounts: Discounts, *, holds_last: bool) -> _Order:
        ids = np.arange(len(counts), dtype=np.uint32)
        probs = _words(counts, discounts, self.types or len(counts) - 1)  # <unk> is a word here, <s> is not
        return _Order(grams, ids, ids, ids.astype(np.uint64), probs, holds_last)

    def _interpolate(
        self, grams: Ngrams, counts: Column, discounts: Discounts, below: _Order, *, holds_last: bool
    ) -> tuple[Section, _Order]:
        """The section of the order below, whose backoffs are now known, and this order's probabilities."""
        limit, order, size, kept = self.prune[grams.order - 1], grams.order, len(grams), len(below.ends)
        new, taken = self.columns.new, np.array((0.0, *discounts.values), np.float32)
        totals, left = new("totals", np.float64, kept), new("left", np.float64, kept)
        flags = new(f"contexts{order}", np.uint8, kept), new(f"suffixes{order}", np.uint8, kept)
        LOOPS.call(
            *("contexts", grams.parent, grams.count, counts, limit, taken, below.slot, grams.context, totals, left),
            *flags,
        )
        sums, backoffs = new("sums", np.float32, kept), new(f"backoffs{order}", np.float32, kept)
        for part in slices(kept):
            sums[part] = totals[part]
            backoffs[part] = 1  # a sentence end and <unk> have no continuation
            np.divide(left[part].astype(np.float32), sums[part], out=backoffs[part], where=sums[part] > 0)
        slot, ends = new(f"slot{order}", np.uint32, size), new(f"ends{order}", np.uint32, size)
        probs, keys = new(f"probs{order}", np.float32, size), new(f"keys{order}", np.uint64, size)
        kept = LOOPS.call(
            *("interpolate", self.words, order, grams.parent, grams.at, grams.count, counts, limit, taken),
            *(below.slot, grams.context, sums, backoffs, below.probs, below.keys, slot, ends, probs, keys),
        )
        section = Section(below.grams.order, below.ends, below.keys, _log_probs(below.probs), _log10(backoffs), *flags)
        return section, _Order(grams, slot, ends[:kept], keys[:kept], probs[:kept], holds_last)


def _counts_of_counts(counts: Column, of_last: Column) -> npt.NDArray[np.int64]:
    """`n[j]`, the number of n-grams with adjusted count j, from 0 to 5 or more; the last one counts as in `of_last`.

    lmplz counts the occurrences of the last n-gram in suffix order (kenlm, lm/builder/adjust_counts.cc, end of Run). On
    a small corpus this single n-gram changes the discounts.
    """
    n = np.zeros(6, np.int64)
    LOOPS.call("tally", counts, n)
    n[min(int(counts[-1]), 5)] -= 1
    n[min(int(of_last[-1]), 5)] += 1
    return n


def _words(counts: Column, discounts: Discounts, types: int) -> Floats:
    """Probabilities of words, interpolated with the uniform distribution; <unk> has no other share, and <s> has 1."""
    taken = discounts.of(counts)
    denominator = np.float32(counts.sum(dtype=np.int64))
    weight = np.float32(taken.sum(dtype=np.float64)) / denominator
    uniform = np.float32(1) / np.float32(types)
    probs = (counts.astype(np.float32) - taken) / denominator + weight * uniform
    probs[BOS] = 1
    return probs.astype(np.float32)


FALLBACK = (0.5, 1.0, 1.5)
"""Discounts of lmplz's `--discount_fallback`, for degenerate counts of counts (lm/builder/lmplz_main.cc)."""


@dataclass(frozen=True)
class Discounts:
    """The discounts of adjusted counts of 1, 2, and 3 or more."""

    values: tuple[float, float, float]  # D1, D2, D3+, each representable as a 32-bit float
    fallback: bool  # whether the closed form failed, and `values` is FALLBACK

    def of(self, counts: npt.NDArray[np.integer]) -> Floats:
        """The discount of each count; 0 for a count of 0."""
        taken: Floats = np.array((0.0, *self.values), np.float32)[np.minimum(counts, 3)]
        return taken


def closed_form(n: npt.NDArray[np.int64]) -> Discounts:
    """Discounts from counts of counts: `n[j]` n-grams have the adjusted count j, for j from 1 to 4.

    The fallback is used in the cases in which lmplz needs it: if n1, n2 or n3 is 0, or a discount is outside [0, j].
    """
    if not all(n[1:4]):
        return Discounts(FALLBACK, fallback=True)
    one = np.float32(1)
    y = np.float32(n[1]) / np.float32(n[1] + 2.0 * n[2])
    values = [np.float32(j) - (np.float32(j) + one) * y * np.float32(n[j + 1]) / np.float32(n[j]) for j in (1, 2, 3)]
    if any(not 0 <= value <= j for j, value in enumerate(values, 1)):
        return Discounts(FALLBACK, fallback=True)
    return Discounts((float(values[0]), float(values[1]), float(values[2])), fallback=False)


def _log10(values: Floats) -> Floats:
    """The values, replaced by their log10, and `LOWEST` for 0."""
    with np.errstate(divide="ignore"):
        for part in slices(len(values)):
            values[part] = np.maximum(np.log10(values[part].astype(np.float64)), LOWEST)
    return values


def _log_probs(values: Floats) -> Floats:
    """The same, and at most 0."""
    return np.minimum(_log10(values), 0, out=values)
