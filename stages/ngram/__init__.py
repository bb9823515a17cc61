"""Training of n-gram language models: interpolated modified Kneser-Ney, as kenlm's lmplz computes it.

Chen and Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling" (1998); Heafield and others,
"Scalable Modified Kneser-Ney Language Model Estimation" (2013). Arithmetic is in 32-bit floats and words are numbered
by first appearance, so that discounts and probabilities equal those of lmplz exactly.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from stages.files import scratch
from stages.ngram import arpa, binary
from stages.ngram.counts import Columns
from stages.ngram.kneser_ney import Estimation
from stages.ngram.sentences import NgramError, NoLineError, Sentences

__all__ = ["MAX_ORDER", "Model", "NgramError", "NoLineError", "Sentences", "estimate", "thresholds", "train"]

MAX_ORDER = 6
"""Maximum order of a model that the package kenlm reads."""


@dataclass(frozen=True)
class Model:
    """A trained model; on a corpus of very short sentences it has fewer orders than requested."""

    path: Path  # ARPA, or KenLM's binary format
    sizes: tuple[int, ...]  # number of n-grams of each order
    fallback: tuple[int, ...]  # orders with lmplz's fallback discounts, because counts of counts were degenerate
    tokens: int  # number of words and sentence ends in the training corpus


def train(
    lines: Iterable[pl.Series],
    out: Path,
    *,
    order: int = 5,
    prune: Sequence[int] = (0, 0, 1),
    types: int | None = None,
) -> Model:
    """Train a model and write it to `out`: the same bytes for the same lines in the same order.

    Args:
        lines: batches of sentences (String): tokens, any text without spaces, joined by single spaces.
        out: a file ending in .arpa, or in .bin for KenLM's binary format. Temporary columns are in a folder beside it.
        order: number of words in the longest n-gram, at least 2.
        prune: n-grams that occur at most this often are omitted, as with lmplz's `--prune`: one value per order,
            starting with 0, none lower than the one before; the last one holds for all orders that follow.
        types: number of words that can occur, </s> included. The uniform distribution is over these words, and each
            unseen one has the probability of <unk>, so that all sum to one. By default it is over the words seen and
            <unk>, as with lmplz, which has no such option.

    Raises:
        NgramError: a line has a token of `SPECIAL`, or a parameter is out of range; `NoLineError`: there is no line.
    """
    thresholds(order, prune)
    with scratch(out.parent, out.name) as folder:
        sentences = Sentences(folder / "words")
        for batch in lines:
            sentences.add(batch)
        return estimate(sentences, folder, out, order=order, prune=prune, types=types)


def estimate(
    sentences: Sentences, folder: Path, out: Path, *, order: int, prune: Sequence[int], types: int | None = None
) -> Model:
    """Train a model on sentences that are numbered already, with temporary columns in `folder`; see `train`.

    A column of more than `counts.IN_MEMORY` bytes is a file: up to 200 bytes per token, of which the system keeps in
    memory what fits.
    """
    limits, words, vocabulary = thresholds(order, prune), sentences.ids(), sentences.vocabulary()
    seen = len(vocabulary) - 2  # with </s>, without <unk> and <s>
    if types is not None and types < seen:
        raise NgramError(f"types is {types:,}, expected at least {seen:,}, the number of words seen, </s> included")
    sections, fallback = Estimation(words, len(vocabulary), limits, Columns(folder), types).run()
    if out.suffix == ".arpa":
        arpa.write(sections, words, vocabulary, out)
    else:
        binary.write(sections, vocabulary, sentences.hashes(), out)
    return Model(out, tuple(map(len, sections)), fallback, len(words) - sentences.count)


def thresholds(order: int, prune: Sequence[int]) -> tuple[int, ...]:
    """One pruning threshold per order; `NgramError` if lmplz would refuse them, or they would prune words."""
    rest = prune[-1] if prune else 0
    full = (*prune, *((rest,) * (order - len(prune))))
    if order < 2 or len(full) != order or full[0] or list(full) != sorted(full):  # noqa: PLR2004 - kenlm needs bigrams
        raise NgramError(
            f"order {order} with prune {tuple(prune)}: order must be at least 2, and prune at most one threshold "
            f"per order, the first 0 and none lower than the one before it, such as (0, 0, 1)"
        )
    return full
