"""Interpolated modified Kneser-Ney smoothing, order by order, as lmplz computes it, written as ARPA."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from stages.files import save, zeros
from stages.ngram.counts import BOS, NONE, Column, Ngrams, longer, slices, unigrams

Floats = np.ndarray[Any, np.dtype[np.float32]]
Index = np.ndarray[Any, np.dtype[np.intp]]

LOWEST = -99.0
"""The log10 of probability 0."""
_TEXT_CHUNK = 1 << 20  # n-grams converted to text at a time


@dataclass(frozen=True)
class _Order:
    """An order with known probabilities and unknown backoffs."""

    grams: Ngrams
    kept: Index  # ranks of the n-grams that are not pruned
    slot: Column  # rank -> index in `kept`, or NONE
    probs: Floats  # of the kept n-grams
    holds_last: bool  # its last n-gram is a suffix of the last one of the highest order


@dataclass(frozen=True)
class Estimation:
    """The estimation of one model."""

    words: Column  # ids of the corpus: <s> w w ... </s> <s> ..., numbered by first appearance after the special words
    vocabulary: pl.Series  # String, by id: <unk>, <s>, </s>, then the words
    prune: tuple[int, ...]  # per order, the count up to which an n-gram is omitted; the first one is 0
    folder: Path  # an empty folder for columns and sections
    partition: int  # number of positions sorted at a time
    types: int | None  # number of words that can occur, </s> included; by default those seen and <unk>, as in lmplz

    def run(self, out: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Write the model; return the number of n-grams of each order, and the orders with fallback discounts.

        The highest orders are omitted if the corpus has no such n-gram, or pruning leaves none: the probabilities are
        the same, and query libraries refuse an empty order.
        """
        grams: Ngrams | None = unigrams(self.words, len(self.vocabulary))
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
        join_sections([self._section(order) for order in range(1, len(sizes) + 1)], sizes, out)
        return tuple(sizes), tuple(fallback)

    def _count(self, grams: Ngrams) -> tuple[Ngrams | None, Column]:
        """The next order, or None, and the adjusted counts of this one.

        An adjusted count is the number of distinct words to the left; for the highest order, and for n-grams that begin
        with <s>, it is the number of occurrences.
        """
        if grams.order == len(self.prune):
            return None, grams.count
        above, counts = longer(grams, self.words, self.folder, self.partition)
        if not len(above):
            return None, grams.count
        for part in slices(len(grams) if grams.order > 1 else 0):
            begins = self.words[grams.at[part] - np.uint32(grams.order - 1)] == BOS
            counts[part] = np.where(begins, grams.count[part], counts[part])
        return above, counts

    def _interpolate(
        self, grams: Ngrams, counts: Column, discounts: Discounts, below: _Order | None, *, holds_last: bool
    ) -> _Order:
        """Compute the probabilities of this order, and write the order below with its backoffs."""
        if below is None:
            ranks = np.arange(len(counts))
            probs = _words(counts, discounts, self.types or len(counts) - 1)  # <unk> is a word here, <s> is not
            return _Order(grams, ranks, ranks.astype(np.uint32), probs, holds_last)
        limit = self.prune[grams.order - 1]
        kept = np.flatnonzero(grams.count > limit)
        slot = zeros(self.folder / f"slot{grams.order}", np.uint32, len(grams))
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
        """Write the ARPA section of an order; the highest has no backoffs."""
        for part in slices(len(order.kept), _TEXT_CHUNK):
            grams = self._text(order.grams, order.kept[part])
            weights = None if backoffs is None else log10(backoffs[part])
            write_lines(self._section(order.grams.order), log10(order.probs[part]), grams, weights)

    def _text(self, grams: Ngrams, some: Index) -> pl.Series:
        if grams.order == 1:
            return self.vocabulary.gather(some)
        ends = grams.at[some].astype(np.int64)
        columns = [self.vocabulary.gather(self.words[ends - back]) for back in reversed(range(grams.order))]
        return pl.select(pl.concat_str(columns, separator=" ")).to_series()

    def _section(self, order: int) -> Path:
        return self.folder / f"{order}-grams"


def _counts_of_counts(counts: Column, of_last: Column) -> npt.NDArray[np.int64]:
    """`n[j]`, the number of n-grams with adjusted count j, from 0 to 5 or more; the last one counts as in `of_last`.

    lmplz counts the occurrences of the last n-gram in suffix order (kenlm, lm/builder/adjust_counts.cc, end of Run). On
    a small corpus this single n-gram changes the discounts.
    """
    n = np.zeros(6, np.int64)
    for part in slices(len(counts)):
        n += np.bincount(np.minimum(counts[part], 5), minlength=6)
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


def _context(below: _Order, at: Column) -> Column:
    """Index of the kept n-gram that ends one word earlier, or NONE."""
    context: Column = below.slot[below.grams.ending[at - np.uint32(1)]]
    return context


def _contexts(grams: Ngrams, counts: Column, discounts: Discounts, limit: int, below: _Order) -> tuple[Floats, Floats]:
    """For each kept n-gram of the order below, the sum of the counts of its continuations, and its backoff weight.

    The counts of pruned n-grams go to the backoff as a whole (kenlm, lm/builder/initial_probabilities.cc).
    """
    denominators, left = np.zeros(len(below.kept)), np.zeros(len(below.kept))
    for part in slices(len(grams)):
        context = _context(below, grams.at[part])
        known = context != NONE
        context, some = context[known], counts[part][known]
        np.add.at(denominators, context, some)
        np.add.at(left, context, np.where(grams.count[part][known] > limit, discounts.of(some), some))
    single = denominators.astype(np.float32)
    backoffs = np.ones(len(below.kept), np.float32)  # a sentence end and <unk> have no continuation
    np.divide(left.astype(np.float32), single, out=backoffs, where=single > 0)
    return single, backoffs


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


def log10(values: Floats) -> Floats:
    """log10, and `LOWEST` for 0."""
    with np.errstate(divide="ignore"):
        return np.maximum(np.log10(values.astype(np.float64)), LOWEST).astype(np.float32)


def write_lines(file: Path, probs: Floats, grams: pl.Series, backoffs: Floats | None) -> None:
    """Append n-grams to a section: log10 probability, words, log10 backoff (None at the highest order)."""
    lines = pl.DataFrame({"p": np.minimum(probs, 0), "gram": grams})
    if backoffs is not None:
        lines = lines.with_columns(b=backoffs)
    text = io.BytesIO()
    lines.write_csv(text, include_header=False, separator="\t", quote_style="never")
    with file.open("ab") as out:  # polars' own error on a full disk has no error number
        out.write(text.getbuffer())


def join_sections(sections: Sequence[Path], sizes: Sequence[int], out: Path) -> None:
    """Join the sections of all orders into one ARPA file."""

    def into(aside: Path) -> None:
        with aside.open("wb") as file:
            file.write(b"\\data\\\n" + b"".join(b"ngram %d=%d\n" % pair for pair in enumerate(sizes, 1)))
            for order, section in enumerate(sections, 1):
                file.write(b"\n\\%d-grams:\n" % order)
                if section.exists():
                    with section.open("rb") as lines:
                        shutil.copyfileobj(lines, file, 1 << 20)
            file.write(b"\n\\end\\\n")

    save(out, into)
