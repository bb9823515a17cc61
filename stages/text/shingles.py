r"""Words, MinHash signatures, band keys and sets of shingles of whole columns, through compiled loops.

A word is the lower-cased `\w+` of Python's `re`, as a table that a compiled loop can read.
"""

import functools
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.text.compiled import Kernels
from stages.text.shingles_kernel import ALONE, SPACE

Keys = NDArray[np.uint64]
Part = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""UTF-8 bytes of some texts, and where each text begins and the last one ends, [n + 1]."""
LOOPS = Kernels(
    "stages.text.shingles_kernel",
    {
        "split": "u1* i8* u4* u8* i8* u8**",
        "sign": "u8* i8* u8** i8 u4* u4* u8* u4* u4**",
        "fold": "u4** i8 u4**",
        "distinct": "u8* i8* u8** i8 u8* i8* u8* i8*",
    },
)
WIDTH = 5
"""Words per shingle, as in datatrove, text-dedup and Data-Juicer."""
PART_BYTES = 1 << 22
"""Bytes of text worked on at once, so that their words stay in the processor's cache; a longer text is one part."""
LETTERS = 0x40000
"""First code point after all letters, digits and white space (Unicode 16)."""
SPACELESS = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Myanmar
    "\u1780-\u17ff"  # Khmer
    "\u3005-\u3007\u3021-\u3029\u3031-\u303c\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # kana and ideographic signs
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Han
    "\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
r"""Scripts written without spaces, as the inside of a regular expression's character class.

In them `\w+` matches a whole clause, and one changed character would change five of a text's few shingles. So each
character of these scripts is a word by itself.
"""
WORD = rf"[{SPACELESS}]|[^\W{SPACELESS}]+"
"""A word, as a regular expression."""


@dataclass(frozen=True)
class Words:
    """Hashes of the words of some texts, one text after the other.

    Two texts have the same key if and only if they have the same words, or if they have no words and are equal after
    stripping white space.
    """

    hashes: NDArray[np.uint64]
    ends: NDArray[np.int64]  # [n + 1], where each text's words begin in `hashes`, and where those of the last one end
    keys: Keys  # [n, 2]

    def longest(self) -> int:
        """Number of words of the longest text, at least 1."""
        return max(1, int(np.diff(self.ends).max(initial=0)))


def utf8_buffers(texts: pl.Series) -> Part:
    """The UTF-8 bytes of a column without nulls, as compiled loops read them."""
    array = texts.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    _, offsets, data = array.buffers()
    if not len(array):
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    begins = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    return np.frombuffer(data or b"", np.uint8), begins


def ready(texts: pl.Series) -> pl.Series:
    """Texts as `stages.text.shingles_kernel` takes them: those with "Σ" or "İ" in lower case.

    The lower case of "Σ" depends on its place in the word, and that of "İ" is two characters; all other characters are
    lower-cased by table.
    """
    odd = texts.str.contains_any(["Σ", "İ"]).fill_null(value=False)
    if odd.any():
        # a loop over a handful of texts: only Python's own rule for a final sigma agrees with Python's
        rows = odd.arg_true()
        texts = texts.scatter(rows, [text.lower() for text in texts.gather(rows)])
    return texts


@functools.cache
def table() -> NDArray[np.uint32]:
    """For each code point: 0 outside words, `SPACE`, or its lower case, with `ALONE` if it is a word by itself.

    Built from this Python's own `re` and `str.lower`, so that the Unicode version is the same.
    """
    codes = np.concatenate([np.arange(0xD800), np.arange(0xE000, LETTERS)])
    characters = codes.astype("<u4").tobytes().decode("utf-32-le")
    lower = characters.replace("Σ", "\u03c3").replace("İ", "i").lower()
    entries, letters = np.zeros(len(codes), np.uint32), np.frombuffer(lower.encode("utf-32-le"), "<u4")
    for run in re.finditer(r"\w+|\s+", characters):
        here = slice(*run.span())
        entries[here] = SPACE if run[0].isspace() else letters[here]
    for run in re.finditer(rf"[{SPACELESS}]+", characters):
        chosen = entries[run.start() : run.end()]
        chosen[chosen > SPACE] |= ALONE
    whole = np.zeros(sys.maxunicode + 1, np.uint32)
    whole[codes] = entries
    return whole


def split(texts: pl.Series) -> Iterator[Words]:
    """Words of a column of texts (no nulls) in parts of about `PART_BYTES` bytes, in order."""
    return map(words, parts(texts))


def parts(texts: pl.Series) -> Iterator[Part]:
    """A column of texts (no nulls) in parts of about `PART_BYTES` bytes, in order; a longer text is one part.

    Each part has buffers of its own, because polars copies the bytes of texts into them: small ones stay in the cache.
    """
    texts = ready(texts).rechunk()
    offsets, begin = np.append(0, texts.str.len_bytes().cast(pl.Int64).to_numpy().cumsum()), 0
    while begin < len(texts):
        end = max(begin + 1, int(np.searchsorted(offsets, offsets[begin] + PART_BYTES)) - 1)
        yield utf8_buffers(texts[begin:end])
        begin = end


def words(part: Part) -> Words:
    text, offsets = part
    words = Words(
        np.empty(offsets[-1] - offsets[0] + 1, np.uint64),
        np.empty(len(offsets), np.int64),
        np.empty((len(offsets) - 1, 2), np.uint64),
    )
    LOOPS.call("split", text, offsets, table(), words.hashes, words.ends, words.keys)
    return words


def text_keys(texts: pl.Series) -> Keys:
    """The key of each text, uint64 [n, 2]; see `Words`."""
    return np.concatenate([np.empty((0, 2), np.uint64), *(words.keys for words in split(texts))])


def sign(words: Words, count: int, seed: int) -> NDArray[np.uint32]:
    """MinHash signatures, uint32 [n, count], equal to those of datasketch 2.0 with `hashfunc=shingle_hash`."""
    factors, terms = permutations(count, seed)
    signatures = np.empty((len(words.keys), count), np.uint32)
    longest = words.longest()
    shingles, hashes = np.empty(longest, np.uint64), np.empty(longest, np.uint32)
    LOOPS.call("sign", words.hashes, words.ends, words.keys, WIDTH, factors, terms, shingles, hashes, signatures)
    return signatures


def band_keys(signatures: NDArray[np.uint32], bands: int, rows: int) -> NDArray[np.uint32]:
    """One key per band, uint32 [n, bands]; a chance collision costs one comparison and nothing else."""
    keys = np.empty((len(signatures), bands), np.uint32)
    LOOPS.call("fold", signatures, rows, keys)
    return keys


def shingle_hash(shingle: bytes) -> int:
    """32-bit hash of one shingle (its words in UTF-8, with any separators), for datasketch's `hashfunc`."""
    words = next(split(pl.Series([shingle.decode()])))
    sets, _ = shingle_sets(words)
    return int(sets[0] >> np.uint64(32))


def shingle_sets(words: Words, width: int = WIDTH) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Sorted 64-bit hashes of each text's distinct shingles, one text after the other, and where each text's end.

    A text of fewer than `width` words, or without any, is one shingle.
    """
    most = np.maximum(np.diff(words.ends) - (width - 1), 1).sum()
    sets, ends = np.empty(most, np.uint64), np.empty(len(words.keys), np.int64)
    spare, starts = np.empty(words.longest(), np.uint64), np.empty(2 * words.longest() + 3, np.int64)
    LOOPS.call("distinct", words.hashes, words.ends, words.keys, width, spare, starts, sets, ends)
    return sets[: ends[-1] if len(ends) else 0], ends


@functools.cache
def permutations(count: int, seed: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Factors (odd) and terms of the permutations a * h + b mod 2**32: those of datasketch 2.0's "affine32"."""
    draws = np.random.RandomState(seed).randint(1 << 32, size=2 * count, dtype=np.uint32)  # as datasketch draws them
    return draws[:count] << np.uint32(1) | np.uint32(1), draws[count:]


@dataclass(frozen=True)
class Sets:
    """Sets of shingles: row r's are `values[ends[r]:ends[r + 1]]`, sorted; empty if the row was not chosen."""

    values: NDArray[np.uint64]
    ends: NDArray[np.int64]
