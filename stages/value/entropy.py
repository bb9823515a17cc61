"""The cross-entropy difference of two n-gram models: one of a target corpus, one of the corpus itself.

Moore and Lewis, "Intelligent Selection of Language Model Training Data" (ACL 2010). As there, the corpus is sampled
down to the size of the target, so that neither model is better for its size alone. Both models are cross-fitted: a
hash of a text's letters gives its half (`stages.ppl`), and a text is scored by the models of the other halves of both
corpora. Both are distributions over the words of all the models, so that a word that one has not seen costs what its
model leaves for it, where the paper restricts the vocabulary to the target's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages import ngram
from stages.files import scratch
from stages.ngram import Sentences
from stages.ppl.score import UNIT, Scorer, load, score_lines
from stages.ppl.tokens import halves, tokenise
from stages.text.messages import by_row
from stages.text.shingles import text_keys
from stages.value import auc

CORPORA = ("target", "raw")
HALVES = (0, 1)
MAX_JUDGED = 1000
"""Maximum number of texts of each corpus that the held-out figures are of."""
PRUNE = (0, 0, 1)
"""Singletons of order 3 and above are omitted, as in `ppl`."""

Batches = Callable[[], Iterable[pl.Series]]
"""Texts of a corpus, batch by batch; each call begins again."""
Models = Sequence[Sequence[Scorer | None]]
"""Scorers by corpus and half; None if there is no text to train one on."""


def fit(target: Batches, raw: Batches, folder: Path, order: int) -> dict[str, Any]:
    """Train the models and write them to `<corpus><half>.bin`; gives their names, sizes and how well they separate.

    Memory: a batch, twice `MAX_JUDGED` texts, and what `ngram.estimate` needs.
    """
    sizes = [sum(int(batch.str.len_bytes().sum()) for batch in batches()) for batches in (target, raw)]
    share = min(1.0, sizes[0] / max(sizes[1], 1))
    with scratch(folder, "training") as aside:
        parts = [[Sentences(aside / f"{name}{half}") for half in HALVES] for name in CORPORA]
        for batches, sentences, kept in ((target, parts[0], 1.0), (raw, parts[1], share)):
            for batch in batches():
                _add(_drawn(batch, kept), sentences)
        words = pl.concat([each.vocabulary() for some in parts for each in some]).n_unique() - 2
        trained = [
            _train(sentences, aside, folder / f"{name}{half}.bin", order, words)
            for name, some in zip(CORPORA, parts, strict=True)
            for half, sentences in enumerate(some)
        ]
    files = [path.name for path in trained if path]
    found = [_judged(batches, open_models(folder, files)) for batches in (target, raw)]
    return {"files": files, "words": words, "share": share, **_separation(*found)}


def _drawn(texts: pl.Series, share: float) -> pl.Series:
    """A share of texts, by a hash of their words; copies are drawn or omitted together."""
    return texts if share >= 1 else texts.filter(pl.Series(text_keys(texts)[:, 0] < np.uint64(share * 2.0**64)))


def _add(texts: pl.Series, sentences: Sequence[Sentences]) -> None:
    lines, sides = tokenise(texts), halves(texts)
    of_line = sides[lines["at"].to_numpy()]
    for half in HALVES:
        sentences[half].add(lines["line"].filter(pl.Series(of_line == half)))


def _train(sentences: Sentences, aside: Path, out: Path, order: int, words: int) -> Path | None:
    try:
        return ngram.estimate(sentences, aside, out, order=order, prune=PRUNE[:order], types=words).path
    except ngram.NoLineError:
        return None


def open_models(folder: Path, files: Sequence[str]) -> Models:
    """Load the models of a fit, in the order that `differences` takes them."""
    return [
        [load(folder / name) if (name := f"{corpus}{1 - half}.bin") in files else None for half in HALVES]
        for corpus in CORPORA
    ]


def differences(texts: pl.Series, models: Models) -> pl.Series:
    """Cross-entropy under the corpus less that under the target, in nats per token and line end, float64 [n].

    Null for a text without a token, or if one of its models is missing. Moore and Lewis rank by its negative.
    """
    lines = tokenise(texts)
    lines = lines.with_columns(half=pl.Series(halves(texts)).gather(lines["at"]))
    sums = []
    for name, scorers in zip(CORPORA, models, strict=True):
        scored = score_lines(lines, scorers).group_by("at", maintain_order=True)
        sums.append(scored.agg(pl.col("score").sum().alias(name), pl.col("n").sum()).rename({"at": "row"}))
    both = by_row(len(texts), sums[0], sums[1].drop("n"))
    nats = (pl.col("target") - pl.col("raw")) * (np.log(10) / UNIT) / pl.col("n")
    return both.select(nats.alias("difference"))["difference"]


def _judged(batches: Batches, models: Models) -> NDArray[np.float64]:
    """The differences of the texts with the lowest keys."""
    chosen = pl.DataFrame(schema={"text": pl.String, "key": pl.UInt64})
    for batch in batches():
        some = pl.DataFrame({"text": batch, "key": text_keys(batch)[:, 0]})
        chosen = pl.concat([chosen, some]).unique("key", maintain_order=True).sort("key").head(MAX_JUDGED)
    return differences(chosen["text"], models).drop_nulls().to_numpy()


def _separation(target: NDArray[np.float64], raw: NDArray[np.float64]) -> dict[str, Any]:
    """Medians of both corpora, and the ROC-AUC of telling them apart; null if either has no text."""
    if not (len(target) and len(raw)):
        return {"auc": None, "median_target": None, "median_raw": None}
    labels = np.repeat([True, False], [len(target), len(raw)])
    medians = {"median_target": float(np.median(target)), "median_raw": float(np.median(raw))}
    return {"auc": auc(np.concatenate([target, raw]), labels), **medians}
