"""Word and repetition signals of a column of texts, by compiled loops over its Arrow buffers."""

import functools

import numpy as np
import polars as pl

from stages.heuristics import words_kernel as kernel
from stages.heuristics.words_kernel import Bytes, Hashes, Longs
from stages.text.characters import properties
from stages.text.characters_kernel import HASH_SEED, add
from stages.text.compiled import Kernels
from stages.text.shingles import utf8_buffers

LOOPS = Kernels(
    "stages.heuristics.words_kernel",
    {
        "text_statistics": "u1* i8* u1* u8* u8** i8** f8**",
        "token_counts": "u1* i8* u1* i8*",
        "turn_overlap": "u1* i8* i8* u1* u1* u8** i8** f8**",
    },
)
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
"""Gopher's stop words (https://arxiv.org/abs/2112.11446, A.1.1)."""

TEXT_SIGNALS = pl.Schema(
    {
        **dict.fromkeys(("n_chars", "n_words"), pl.Int64()),
        **dict.fromkeys(("mean_word_len", "alpha_words"), pl.Float64()),
        **dict.fromkeys(("stop_words", "longest_token"), pl.Int64()),
        **{f"top_{n}gram": pl.Float64() for n in (2, 3, 4)},
        **{f"dup_{n}gram": pl.Float64() for n in (5, 6, 7, 8, 9, 10)},
    }
)


@functools.cache
def _stop_hashes() -> Hashes:
    with np.errstate(over="ignore"):
        return np.array([functools.reduce(add, word.encode(), HASH_SEED) for word in STOP_WORDS], np.uint64)


def scratch(offsets: Longs, numbers: int) -> tuple[Hashes, Longs]:
    """Space for the words of the longest text: a word and what separates it from the next take two bytes."""
    size = kernel.slots(int(np.diff(offsets).max(initial=0)) // 2 + 2)
    return np.empty((3, size), np.uint64), np.zeros((numbers, size), np.int64)


def word_signals(texts: pl.Series) -> pl.DataFrame:
    """The signals `TEXT_SIGNALS` of each text (no nulls).

    A word is a run of letters, marks, digits and `_`, which may contain single ' . - between them. A Han, kana, Thai,
    Lao, Khmer or Myanmar letter is a word by itself. Ratios are null if there is no word.
    """
    data, offsets = utf8_buffers(texts)
    statistics = np.empty((len(offsets) - 1, kernel.WIDTH))
    LOOPS.call("text_statistics", data, offsets, properties(), _stop_hashes(), *scratch(offsets, 6), statistics)
    names = ["n_chars", "n_words", "word_chars", "tokens", "alphabetic", *list(TEXT_SIGNALS)[4:]]
    frame = pl.DataFrame(statistics, schema=names, orient="row")
    has_words = pl.when(pl.col("n_words") > 0)
    return frame.with_columns(
        has_words.then(pl.col("word_chars") / pl.col("n_words")).alias("mean_word_len"),
        pl.when(pl.col("tokens") > 0).then(pl.col("alphabetic") / pl.col("tokens")).alias("alpha_words"),
        *[has_words.then(pl.col(name)).alias(name) for name in TEXT_SIGNALS if "gram" in name],
    ).select(pl.col(name).cast(kind) for name, kind in TEXT_SIGNALS.items())


def token_counts(texts: pl.Series) -> pl.Series:
    """Number of white-space separated tokens of each text (no nulls)."""
    counts = np.empty(len(texts), np.int64)
    LOOPS.call("token_counts", *utf8_buffers(texts), properties(), counts)
    return pl.Series(counts)


def overlap_statistics(contents: pl.Series, first: Longs, roles: Bytes) -> pl.DataFrame:
    """How much the assistant repeats itself and the user; see `words_kernel.turn_overlap`."""
    data, offsets = utf8_buffers(contents)
    found = np.empty((len(first) - 1, 5))
    space = scratch(offsets[first], 6)
    LOOPS.call("turn_overlap", data, offsets, first, roles, properties(), *space, found)
    return pl.DataFrame(found, schema=["grams", "repeated", "later", "from_user", "inside"], orient="row")
