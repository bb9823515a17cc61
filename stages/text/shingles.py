"""Words, MinHash signatures, band keys and sets of shingles of whole columns, through compiled loops."""

import functools
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.text.buffers import utf8_buffers
from stages.text.compiled import Kernels
from stages.text.words import ready, table

Keys = NDArray[np.uint64]
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


def split(texts: pl.Series) -> Iterator[Words]:
    """Words of a column of texts (no nulls) in parts of about `PART_BYTES` bytes, in order."""
    return map(words, parts(texts))


@dataclass(frozen=True)
class Part:
    """Some texts of a column: UTF-8 bytes, and where each text begins and the last one ends, int64 [n + 1]."""

    text: NDArray[np.uint8]
    offsets: NDArray[np.int64]


def parts(texts: pl.Series) -> Iterator[Part]:
    """A column of texts (no nulls) in parts of about `PART_BYTES` bytes, in order; a longer text is one part."""
    text, offsets = utf8_buffers(ready(texts))
    begin = 0
    while begin < len(texts):
        end = max(begin + 1, int(np.searchsorted(offsets, offsets[begin] + PART_BYTES)) - 1)
        yield Part(text, offsets[begin : end + 1])
        begin = end


def words(part: Part) -> Words:
    """Words of a part."""
    offsets = part.offsets
    made = Words(
        np.empty(offsets[-1] - offsets[0] + 1, np.uint64),
        np.empty(len(offsets), np.int64),
        np.empty((len(offsets) - 1, 2), np.uint64),
    )
    LOOPS.call("split", part.text, offsets, table(), made.hashes, made.ends, made.keys)
    return made


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


def shingle_sets(words: Words) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Sorted 64-bit hashes of each text's distinct shingles, one text after the other, and where each text's end.

    A text of fewer than `WIDTH` words, or without any, is one shingle.
    """
    most = np.maximum(np.diff(words.ends) - (WIDTH - 1), 1).sum()
    sets, ends = np.empty(most, np.uint64), np.empty(len(words.keys), np.int64)
    spare, starts = np.empty(words.longest(), np.uint64), np.empty(2 * words.longest() + 3, np.int64)
    LOOPS.call("distinct", words.hashes, words.ends, words.keys, WIDTH, spare, starts, sets, ends)
    return sets[: ends[-1] if len(ends) else 0], ends


@functools.cache
def permutations(count: int, seed: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Factors (odd) and terms of the permutations a * h + b mod 2**32: those of datasketch 2.0's "affine32".

    datasketch draws them from NumPy's `RandomState`, a Mersenne Twister. Python's own generator is the same, and needs
    no other library.
    """
    state = [seed]
    for i in range(1, 624):  # init_genrand of Matsumoto and Nishimura, which RandomState seeds with
        state.append((1812433253 * (state[-1] ^ state[-1] >> 30) + i) & 0xFFFFFFFF)
    twister = random.Random()  # noqa: S311  no secrets
    twister.setstate((3, (*state, 624), None))
    draws = np.array([twister.getrandbits(32) for _ in range(2 * count)], np.uint32)
    return draws[:count] << np.uint32(1) | np.uint32(1), draws[count:]


@dataclass(frozen=True)
class Sets:
    """Sets of shingles: row r's are `values[ends[r]:ends[r + 1]]`, sorted; empty if the row was not chosen."""

    values: NDArray[np.uint64]
    ends: NDArray[np.int64]
