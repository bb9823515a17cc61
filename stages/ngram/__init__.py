"""Training of n-gram language models: interpolated modified Kneser-Ney, as kenlm's lmplz computes it.

Chen and Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling" (1998); Heafield and others,
"Scalable Modified Kneser-Ney Language Model Estimation" (2013). Arithmetic is in 32-bit floats and words are numbered
by first appearance, so that discounts and probabilities equal those of lmplz exactly.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from stages.files import scratch
from stages.ngram.counts import NONE, Column, slices
from stages.ngram.kneser_ney import Estimation

SPECIAL = ("<unk>", "<s>", "</s>")
"""Tokens that a model reserves."""


class NgramError(ValueError):
    """No model can be trained on these lines with these parameters."""


class NoLineError(NgramError):
    """There is no line to train on."""

    def __init__(self) -> None:
        super().__init__("there is no line to train a language model on: it needs at least one")


@dataclass(frozen=True)
class Model:
    """A trained model; on a corpus of very short sentences it has fewer orders than requested."""

    path: Path  # the ARPA file
    sizes: tuple[int, ...]  # number of n-grams of each order
    fallback: tuple[int, ...]  # orders with lmplz's fallback discounts, because counts of counts were degenerate
    tokens: int  # number of words and sentence ends in the training corpus


def train(
    lines: Iterable[pl.Series],
    out: Path,
    *,
    order: int = 5,
    prune: Sequence[int] = (0, 0, 1),
    partition: int = 1 << 23,
    types: int | None = None,
) -> Model:
    """Train a model and write it to `out` as ARPA: the same bytes for the same lines in the same order.

    Args:
        lines: batches of sentences (String): tokens, any text without spaces, joined by single spaces.
        out: the ARPA file. Temporary columns are in a folder beside it.
        order: number of words in the longest n-gram, at least 2.
        prune: n-grams that occur at most this often are omitted, as with lmplz's `--prune`: one value per order,
            starting with 0, none lower than the one before; the last one holds for all orders that follow.
        partition: number of tokens that are sorted at a time, with about 60 bytes of memory each.
        types: number of words that can occur, </s> included. The uniform distribution is over these words, and each
            unseen one has the probability of <unk>, so that all sum to one. By default it is over the words seen and
            <unk>, as with lmplz, which has no such option.

    Raises:
        NgramError: a line has a token of `SPECIAL`, or a parameter is out of range; `NoLineError`: there is no line.
    """
    limits = thresholds(order, prune)
    with scratch(out.parent, out.name) as folder:
        words, vocabulary, sentences = _number(lines, folder / "words")
        seen = len(vocabulary) - 2  # with </s>, without <unk> and <s>
        if types is not None and types < seen:
            raise NgramError(f"types is {types:,}, expected at least {seen:,}, the number of words seen, </s> included")
        sizes, fallback = Estimation(words, vocabulary, limits, folder, partition, types).run(out)
        return Model(out, sizes, fallback, len(words) - sentences)


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


def _number(lines: Iterable[pl.Series], path: Path) -> tuple[Column, pl.Series, int]:
    """The corpus as word ids, in a file, the words by id, and the number of sentences."""
    known = pl.DataFrame({"word": SPECIAL, "id": np.arange(len(SPECIAL), dtype=np.uint32)})
    sentences = 0
    with path.open("wb") as file:
        for batch in lines:
            framed = pl.select(word=pl.concat_str(pl.lit("<s> "), batch, pl.lit(" </s>"))).to_series()
            tokens = framed.str.split(" ").explode().to_frame("word").filter(pl.col("word") != "")
            fresh = tokens.unique(maintain_order=True).join(known, on="word", how="anti", maintain_order="left")
            ids = pl.Series("id", np.arange(len(known), len(known) + len(fresh), dtype=np.uint32))
            known = pl.concat([known, fresh.with_columns(ids)])
            numbered = tokens.join(known, on="word", how="left", maintain_order="left")["id"]
            sentences += len(batch)
            file.write(numbered.to_numpy().data)
    if not sentences:
        raise NoLineError
    words = np.memmap(path, np.uint32, "r")
    _check(words, sentences)
    return words, known["word"], sentences


def _check(words: Column, sentences: int) -> None:
    counts = np.zeros(len(SPECIAL), np.int64)
    for part in slices(len(words)):
        counts += np.bincount(words[part], minlength=len(SPECIAL))[: len(SPECIAL)]
    for token, count, expected in zip(SPECIAL, counts, (0, sentences, sentences), strict=True):
        if count != expected:
            raise NgramError(f"{count - expected} tokens are {token}, which a model reserves: replace them")
    if len(words) >= int(NONE):
        raise NgramError(f"{len(words):,} tokens, expected fewer than {int(NONE):,}: train on a part of the corpus")
