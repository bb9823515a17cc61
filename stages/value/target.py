"""Importance weights and cross-entropy differences towards a target corpus."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages import ngram
from stages.files import check_fitted, exists, read_frame, read_json, save, save_json, seal
from stages.stage import Axis, FittedStage, Measure, StageParameterError, require
from stages.text.corpus import Corpus
from stages.text.shingles import Words, split
from stages.value import entropy

_FILE, _SUMMARY = "weights.npy", "target.json"
_SMOOTHING = 1e-8  # added to each probability, as in the package data-selection 1.0.3
_PAIR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that the first word of a pair loses no bits


@dataclass(frozen=True)
class Target(FittedStage):
    """How close a conversation is to a target corpus: by importance weights, and by two language models.

    **Importance weight** (DSIR; Xie et al. 2023, arXiv:2302.03169). The words of a conversation and the pairs of
    adjacent words are hashed into buckets. The weight is the sum, over these, of ln p(bucket | target) - ln p(bucket |
    raw): positive if the conversation is more likely under the target's distribution. It equals that of the authors'
    package for the same features. Words are those of `dedup`.

    The sum grows with length: of two conversations of one kind the longer one has the more extreme weight. DSIR samples
    by the sum, from pieces of one length; for whole conversations the mean is the better order.

    **Cross-entropy difference** (Moore and Lewis, ACL 2010). A modified Kneser-Ney model of the target and one of as
    much of the corpus; the difference is that of the nats per token that a conversation costs under them, positive if
    the target's model predicts it better. It is cross-fitted as in `ppl`: no conversation is scored by a model that has
    seen it, in the corpus or in the target. It is a mean, so that it does not grow with length; that of a short text
    varies more.

    `target.json` in the stage's folder has the held-out ROC-AUC of the difference, target against corpus.

    Signals, null if there is no word, or no `target` is given:
        target_weight: log importance weight of the conversation, in nats.
        target_weight_mean: the same per word and pair, in nats.
        target_entropy_difference: cross-entropy under the corpus less that under the target, in nats per token; null
            also if `order` is 0. Moore and Lewis rank by its negative.

    Attributes:
        target: the target corpus: a run folder of refine (its refined conversations), a file of records or of text, or
            a folder of them, with `messages`, `conversations`, `data` or `text`.
        buckets: number of buckets.
        order: number of words in the longest n-gram of the models; with 0 none are trained.
    """

    target: str = ""
    buckets: int = 10_000
    order: int = 4

    summary: ClassVar[str] = "closeness to a target corpus: importance weights (DSIR), and two models' cross-entropies"
    version: ClassVar[int] = 2
    writes: ClassVar[pl.Schema] = pl.Schema(
        dict.fromkeys(("target_weight", "target_weight_mean", "target_entropy_difference"), pl.Float64())
    )
    axes: ClassVar[Mapping[str, Axis]] = {
        "target_weight_mean": Axis("nats per word towards the target", rank=360),
        "target_entropy_difference": Axis("cross-entropy difference, nats per token", rank=365),
    }

    def __post_init__(self) -> None:
        require("target: buckets", self.buckets, self.buckets > 1, "at least 2")
        require("target: order", self.order, self.order == 0 or 2 <= self.order <= ngram.MAX_ORDER, "0, or from 2 to 6")  # noqa: PLR2004

    @property
    def corpus(self) -> Corpus:
        return Corpus(self.target, "target corpus")

    @property
    def fits_corpus(self) -> bool:
        return False  # the user's corpus may be the larger one

    def models(self) -> tuple[Path, ...]:
        return self.corpus.files()

    def notes(self) -> tuple[str, ...]:
        missing = () if self.target else ("no `target` is given, so all its signals are null",)
        return (*missing, *self.corpus.notes())

    def remarks(self, folder: Path) -> tuple[str, ...]:
        """How well the models tell the target apart."""
        found = read_json(folder / _SUMMARY) if exists(folder / _SUMMARY) else {}
        if found.get("auc") is None:
            return ()
        return (f"held-out ROC-AUC {found['auc']:.3f} of the cross-entropy difference, target against corpus",)

    def fit(self, raw: Sequence[Path], folder: Path) -> None:
        """Count the features of both corpora and train the models; memory is a shard and that of `entropy.fit`."""
        if not self.target:
            return

        def target() -> Iterator[pl.Series]:
            return (batch["text"] for batch in self.corpus.batches())

        def here() -> Iterator[pl.Series]:
            return (read_frame(path, self.reads)["text"] for path in raw)

        wanted = count(target(), self.buckets)
        if not wanted.sum():
            raise StageParameterError(f"target {self.target!r} holds no word")
        weights = log_ratio(wanted, count(here(), self.buckets))
        save(folder / _FILE, lambda aside: _write(aside, weights))
        models = entropy.fit(target, here, folder, self.order) if self.order else {"files": []}
        save_json(folder / _SUMMARY, models, indent=1, end="")
        seal(folder, [_FILE, _SUMMARY, *models["files"]])

    def open(self, folder: Path) -> Measure:
        if not self.target:
            return self.measure
        check_fitted(folder)
        weights = np.load(folder / _FILE, allow_pickle=False)
        models = entropy.open_models(folder, read_json(folder / _SUMMARY)["files"])

        def measure(batch: pl.DataFrame) -> pl.DataFrame:
            difference = entropy.differences(batch["text"], models).alias("target_entropy_difference")
            return weigh(batch["text"], weights).with_columns(difference)

        return measure

    def measure(self, batch: pl.DataFrame) -> pl.DataFrame:
        return pl.DataFrame(schema=self.writes).clear(batch.height)


def features(texts: pl.Series, buckets: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Buckets of the words and pairs of texts, and the row of each, part by part."""
    begin = 0
    for words in split(texts):
        rows = np.repeat(np.arange(len(words.keys)), np.diff(words.ends))
        yield _buckets(words, rows, buckets), begin + np.concatenate([rows, rows[1:][rows[1:] == rows[:-1]]])
        begin += len(words.keys)


def _buckets(words: Words, rows: NDArray[np.int64], buckets: int) -> NDArray[np.int64]:
    single = words.hashes[: words.ends[-1]]
    pairs = (single[:-1] * _PAIR + single[1:])[rows[1:] == rows[:-1]]
    mixed = np.concatenate([single, pairs])
    mixed = (mixed ^ (mixed >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    return np.asarray((mixed >> np.uint64(32)) % np.uint64(buckets), np.int64)


def count(texts: Iterable[pl.Series], buckets: int) -> NDArray[np.int64]:
    """Number of words and pairs in each bucket, int64 [buckets]."""
    counts = np.zeros(buckets, np.int64)
    for batch in texts:
        for found, _ in features(batch, buckets):
            counts += np.bincount(found, minlength=buckets)
    return counts


def log_ratio(target: NDArray[np.int64], raw: NDArray[np.int64]) -> NDArray[np.float64]:
    """Log ratio of the probabilities of each bucket, in nats, from counts, float64 [buckets]."""
    p, q = target / max(1, target.sum()), raw / max(1, raw.sum())
    return np.asarray(np.log(p + _SMOOTHING) - np.log(q + _SMOOTHING))


def weigh(texts: pl.Series, weights: NDArray[np.float64]) -> pl.DataFrame:
    """`target_weight` and `target_weight_mean` of texts."""
    sums, sizes = np.zeros(len(texts)), np.zeros(len(texts))
    for found, rows in features(texts, len(weights)):
        sums += np.bincount(rows, weights[found], minlength=len(texts))
        sizes += np.bincount(rows, minlength=len(texts))
    frame = pl.DataFrame({"sum": sums, "size": sizes}).with_columns(
        pl.when(pl.col("size") > 0).then("sum").alias("sum")
    )
    return frame.select(target_weight="sum", target_weight_mean=pl.col("sum") / pl.col("size"))


def _write(path: Path, array: NDArray[np.float64]) -> None:
    with path.open("wb") as file:  # numpy would add an ending to a path
        np.save(file, array, allow_pickle=False)
