"""Words, shingles and signatures of the compiled loops are those of Python's `re` and of datasketch."""

from __future__ import annotations

import re
import sys

import datasketch.lsh
import numpy as np
import polars as pl
import pytest
from datasketch import MinHash
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.dedup import bands
from stages.text import shingles
from stages.text.shingles import table
from stages.text.shingles_kernel import ALONE, SPACE
from tests.stages.dedup_reference import same, words
from tests.stages.dedup_reference import shingles as slow_shingles

ODD = [
    "Σ",
    "ΑΣ",
    "ΟΔΟΣ ",
    "İ",
    "i\u0307",
    "ǅ",
    "ẞ",
    "\u017f",
    "K",
    "_",
    "٣",
    "²",
    "़",
    "中",
    "の",
    "ไ",
    "ー",
    "\0",
    "\ufffd",
    "\U0001f600",
]
TEXTS = st.lists(
    st.sampled_from([*ODD, " ", "\n", "a", "B", "word", "don't", "é", "é"]) | st.characters(codec="utf-8"), max_size=40
)


def split(texts: list[str]) -> shingles.Words:
    """All words at once."""
    return next(shingles.split(pl.Series(texts, dtype=pl.String)))


def test_each_character_is_what_python_says_it_is() -> None:
    """For every code point: word character, white space and lower case are those of `re` and `str.lower`."""
    lowered_before = 0x130, 0x3A3
    codes = np.setdiff1d(np.arange(sys.maxunicode + 1), [*range(0xD800, 0xE000), *lowered_before])
    word = re.compile(r"\w")
    lower, entries = [chr(code).lower() for code in codes.tolist()], table()[codes]
    is_word, is_space = np.array([[word.fullmatch(one) is not None, one.isspace()] for one in lower]).T
    assert codes[(entries > SPACE) != is_word].tolist() == []
    assert codes[(entries == SPACE) != is_space].tolist() == []
    own = np.array([ord(one) for one in lower])
    assert codes[(entries > SPACE) & (entries & ~ALONE != own)].tolist() == []


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXTS.map("".join), min_size=1, max_size=8))
def test_words_are_those_of_re(texts: list[str]) -> None:
    """As many words as `re` finds; equal keys exactly where the words are equal, or the stripped texts without any."""
    found = split(texts)
    assert np.diff(found.ends).tolist() == [len(words(text)) for text in texts]
    keys = [tuple(key) for key in found.keys.tolist()]
    for i, first in enumerate(texts):
        for j, second in enumerate(texts):
            assert (keys[i] == keys[j]) == (same(first) == same(second))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c", "ΑΣ", "中文", "İ", "x_1", "."]), max_size=200).map(" ".join))
def test_sets_are_those_of_re(text: str) -> None:
    """As many distinct shingles as a Python set of word 5-grams has, sorted."""
    values, ends = shingles.shingle_sets(split([text]))
    assert ends.tolist() == [len(values)] == [len(slow_shingles(text))]
    assert (np.diff(values) > 0).all()


def test_long_texts_are_split_across_parts() -> None:
    """A column of several parts' size gives the same as its texts one by one, 1 MB texts and empty ones among them."""
    texts = pl.Series(["", "a b " * 300_000, "中" * 700_000, "x" * 5_000_000, "", "a b", "\0\ufffd", "  "])
    whole = np.concatenate([part.keys for part in shingles.split(texts)])
    single = np.concatenate([split([text]).keys for text in texts])
    assert len(list(shingles.split(texts))) > 1
    assert (whole == single).all()


@pytest.mark.parametrize(("count", "seed"), [(128, 1), (64, 42)])
def test_signatures_are_datasketch_ones(count: int, seed: int) -> None:
    """Equal arrays: same seed and scheme, datasketch's `hashfunc` set to our shingle hash."""
    texts = [
        "The quick brown fox jumps over the lazy dog again and again",
        "three small words",
        "Ünï 中文 text with İ and Σ",
    ]
    ours = shingles.sign(split(texts), count, seed)
    for text, signature in zip(texts, ours, strict=True):
        theirs = MinHash(count, seed, hashfunc=shingles.shingle_hash)
        for shingle in slow_shingles(text):
            theirs.update(" ".join(shingle).encode())
        assert theirs.hashvalues.tolist() == signature.tolist()


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.75, 0.9])
@pytest.mark.parametrize("recall", [0.5, 0.8, 0.95])
def test_band_plan_is_datasketch_one(threshold: float, recall: float) -> None:
    """The plan with the least weighted error is the one that datasketch's optimizer finds by quadrature."""
    theirs = datasketch.lsh._optimal_param(threshold, 128, 1 - recall, recall)  # noqa: SLF001
    assert bands.plan(threshold, 128, recall) == theirs
