"""Importance weights towards a target corpus."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.files import check_fitted, read_frame, save, seal
from stages.stage import Axis, FittedStage, Measure, StageParameterError, require
from stages.text.corpus import Corpus
from stages.text.shingles import Words, split

_FILE = "weights.npy"
_SMOOTHING = 1e-8  # added to each probability, as in the package data-selection 1.0.3
_PAIR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that the first word of a pair loses no bits


@dataclass(frozen=True)
class Target(FittedStage):
    """Log importance weight towards a target corpus (DSIR; Xie et al. 2023, arXiv:2302.03169).

    The words of a conversation and the pairs of adjacent words are hashed into buckets. The weight is the sum, over
    these, of ln p(bucket | target) - ln p(bucket | raw): positive if the conversation is more likely under the target's
    distribution. It equals that of the authors' package for the same features. Words are those of `dedup`.

    The sum grows with length: of two conversations of one kind the longer one has the more extreme weight. DSIR samples
    by the sum, from pieces of one length; for whole conversations the mean is the better order.

    Signals, null if there is no word, or no `target` is given:
        target_weight: log importance weight of the conversation, in nats.
        target_weight_mean: the same per word and pair, in nats.

    Attributes:
        target: the target corpus: a run folder of refine (its refined conversations), a file of records or of text, or
            a folder of them, with `messages`, `conversations`, `data` or `text`.
        buckets: number of buckets.
    """

    target: str = ""
    buckets: int = 10_000

    summary: ClassVar[str] = "log importance weights towards a target corpus, by hashed words and pairs (DSIR)"
    writes: ClassVar[pl.Schema] = pl.Schema(dict.fromkeys(("target_weight", "target_weight_mean"), pl.Float64()))
    axes: ClassVar[Mapping[str, Axis]] = {"target_weight_mean": Axis("nats per word towards the target", rank=360)}

    def __post_init__(self) -> None:
        require("target: buckets", self.buckets, self.buckets > 1, "at least 2")

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

    def fit(self, raw: Sequence[Path], folder: Path) -> None:
        """Count the features of both corpora; memory is one shard."""
        if not self.target:
            return
        wanted = count((batch["text"] for batch in self.corpus.batches()), self.buckets)
        if not wanted.sum():
            raise StageParameterError(f"target {self.target!r} holds no word")
        here = count((read_frame(path, self.reads)["text"] for path in raw), self.buckets)
        weights = log_ratio(wanted, here)
        save(folder / _FILE, lambda aside: _write(aside, weights))
        seal(folder, [_FILE])

    def open(self, folder: Path) -> Measure:
        if not self.target:
            return self.measure
        check_fitted(folder)
        weights = np.load(folder / _FILE, allow_pickle=False)
        return lambda batch: weigh(batch["text"], weights)

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
    """The signals of texts."""
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
