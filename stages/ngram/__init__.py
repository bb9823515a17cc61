"""Training of n-gram language models: interpolated modified Kneser-Ney, as kenlm's lmplz computes it.

Chen and Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling" (1998); Heafield and others,
"Scalable Modified Kneser-Ney Language Model Estimation" (2013). Arithmetic is in 32-bit floats and words are numbered
by first appearance, so that discounts and probabilities are lmplz's own, not only close to them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from stages.files import save, scratch
from stages.ngram.counts import NONE, Column, slices
from stages.ngram.kneser_ney import Corpus, Estimation
from stages.ngram.lmplz import train as train_lmplz

_NO_LINE = "there is no line to train a language model on: it needs at least one"

SPECIAL = ("<unk>", "<s>", "</s>")


class NgramError(ValueError):
    """No model can be trained on these lines with these parameters; the message says why and what to do."""


class NoLineError(NgramError):
    """There is no line to train on."""


@dataclass(frozen=True)
class Model:
    """A model that was trained.

    Attributes:
        path: the ARPA file.
        engine: "columns" (this package) or "lmplz".
        sizes: n-grams kept of each order; as many as the model has orders, which on a corpus of very short sentences
            can be fewer than asked for.
        fallback: orders whose discounts are lmplz's fallback, because counts of counts were degenerate.
        tokens: words and sentence ends trained on.
    """

    path: Path
    engine: str
    sizes: tuple[int, ...]
    fallback: tuple[int, ...]
    tokens: int


def train(
    lines: Iterable[pl.Series],
    out: Path,
    *,
    order: int = 5,
    prune: Sequence[int] = (0, 0, 1),
    partition: int = 1 << 23,
    types: int | None = None,
    lmplz: Path | None = None,
) -> Model:
    """Train a model and write it to `out` as ARPA: the same bytes for the same lines in the same order.

    Args:
        lines: batches of sentences (String); a sentence is its tokens with single spaces between them, whatever a token
            is: words, or ids of a tokenizer written as numbers.
        out: the ARPA file; written aside and renamed. Columns lie in a folder beside it while it is made.
        order: words in the longest n-gram, at least 2.
        prune: as lmplz's `--prune`: n-grams that occur this often or less are left out, one value for each order, the
            last one for all that follow, none lower than the one before, the first one 0.
        partition: tokens that are sorted at a time, about 60 bytes each.
        types: where the words that can occur are known, their number, </s> included: the uniform share is over these,
            and each that was not seen has the probability of <unk>, so that all of them sum to one. By default it is
            over the words seen and <unk>, as with lmplz, which has no such option.
        lmplz: an executable that is used instead: the same n-grams, log10 values that differ by less than 1e-6.

    Raises:
        NoLineError: there is no line.
        NgramError: a line holds <s>, </s> or <unk> as a token, a parameter is out of range, or `types` is given to
            lmplz or fewer than the words seen.
        LmplzError: `lmplz` was given and failed.
    """
    limits = thresholds(order, prune)
    if types is not None and lmplz:
        raise NgramError("lmplz cannot be told how many words there are: leave `types` or `lmplz` away")
    with scratch(out.parent, out.name) as folder:
        if lmplz:
            aside = folder / "arpa"
            sizes, fallback, tokens = train_lmplz(lmplz, lines, aside, limits)
            if not tokens:
                raise NoLineError(_NO_LINE)
            save(out, aside.replace)
            return Model(out, "lmplz", sizes, fallback, tokens)
        corpus, sentences = _number(lines, folder / "words")
        seen = len(corpus.vocabulary) - 2  # with </s>, without <unk> and <s>
        if types is not None and types < seen:
            raise NgramError(f"types is {types:,}, and {seen:,} words occur, </s> included")
        found = Estimation(corpus, limits, folder, partition, types).run(out)
        return Model(out, "columns", found.sizes, found.fallback, len(corpus.words) - sentences)


def thresholds(order: int, prune: Sequence[int]) -> tuple[int, ...]:
    """One pruning threshold for each order.

    Raises:
        NgramError: lmplz would refuse them, or they prune words.
    """
    rest = prune[-1] if prune else 0
    full = (*prune, *((rest,) * (order - len(prune))))
    if order < 2 or len(full) != order or full[0] or list(full) != sorted(full):  # noqa: PLR2004 - kenlm needs bigrams
        raise NgramError(
            f"order {order} with prune {tuple(prune)}: order must be at least 2, and prune at most one threshold for "
            f"each order, the first 0 and none lower than the one before it, such as (0, 0, 1)"
        )
    return full


def _number(lines: Iterable[pl.Series], path: Path) -> tuple[Corpus, int]:
    """The corpus as word ids, in a file, and its number of sentences."""
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
        raise NoLineError(_NO_LINE)
    words = np.memmap(path, np.uint32, "r")
    _check(words, sentences)
    return Corpus(words, known["word"]), sentences


def _check(words: Column, sentences: int) -> None:
    found = np.zeros(len(SPECIAL), np.int64)
    for part in slices(len(words)):
        found += np.bincount(words[part], minlength=len(SPECIAL))[: len(SPECIAL)]
    for token, times, expected in zip(SPECIAL, found, (0, sentences, sentences), strict=True):
        if times != expected:
            raise NgramError(
                f"{times - expected} tokens are {token}, which a model keeps for itself: spell them otherwise"
            )
    if len(words) >= int(NONE):
        raise NgramError(
            f"{len(words):,} tokens: a model takes fewer than {int(NONE):,}; train on a part of the corpus"
        )
