"""Compiled loops over words: n-grams of evaluation items, and those of them that conversations have.

A text of fewer words than an n-gram is one short gram, all its words; it is found by its first words, its head.
"""
# ruff: noqa: ANN401, PLR0917 - numba infers the types, and compiled functions take numbers and arrays by position

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

U64 = np.uint64
ROLL, LENGTH = U64(0x589965CC75374CC3), U64(0x9E3779B97F4A7C15)
B33 = U64(33)


@njit(cache=True, nogil=True)
def _mix64(h: Any) -> Any:
    """The finalizer of MurmurHash3 (64 bits)."""
    h = (h ^ (h >> B33)) * U64(0xFF51AFD7ED558CCD)
    h = (h ^ (h >> B33)) * U64(0xC4CEB9FE1A85EC53)
    return h ^ (h >> B33)


@njit(cache=True, nogil=True)
def _gram(words: Any, begin: Any, length: Any) -> Any:
    """The hash of a run of words, which their number is part of."""
    rolled = U64(0)
    for i in range(begin, begin + length):
        rolled = rolled * ROLL + words[i]
    return _mix64(rolled ^ (U64(length) * LENGTH))


@njit(cache=True, nogil=True)
def grams(words: Any, ends: Any, n: Any, shortest: Any, found: Any, found_ends: Any, heads: Any, lengths: Any) -> None:
    """The grams of each text, in order; none of one with fewer than `shortest` words.

    Args:
        words: uint64, hashes of words.
        ends: int64 [texts + 1], where each text's words begin, and where the last one's end.
        n: words of an n-gram.
        shortest: words of the shortest text that is one gram, and of a head.
        found: uint64, filled; as long as `words`.
        found_ends: int64 [texts + 1], filled.
        heads: uint64 [texts], filled: the head of a text that is a short gram.
        lengths: int64 [texts], filled: its words, 0 where the text is none.
    """
    filled = 0
    found_ends[0] = 0
    for row in range(len(ends) - 1):
        begin, count = ends[row], ends[row + 1] - ends[row]
        heads[row], lengths[row] = U64(0), 0
        if count >= n:
            for i in range(begin, begin + count - n + 1):
                found[filled] = _gram(words, i, n)
                filled += 1
        elif count >= shortest:
            found[filled] = _gram(words, begin, count)
            heads[row], lengths[row] = _gram(words, begin, shortest), count
            filled += 1
        found_ends[row + 1] = filled


@njit(cache=True, nogil=True)
def _position(keys: Any, starts: Any, shift: Any, key: Any) -> Any:
    """Where a key stands among sorted ones, or -1; `starts` is where each value of the top bits begins."""
    bucket = np.int64(key >> shift)
    for at in range(starts[bucket], starts[bucket + 1]):
        if keys[at] >= key:
            return at if keys[at] == key else -1
    return -1


@njit(cache=True, nogil=True)
def _put(values: Any, count: Any, value: Any) -> Any:
    """Append, in an array twice as long where it is full."""
    if count == len(values):
        longer = np.empty(2 * count, values.dtype)
        longer[:count] = values
        values = longer
    values[count] = value
    return values


@njit(cache=True, nogil=True)
def _power(exponent: Any) -> Any:
    power = U64(1)
    for _ in range(exponent):
        power *= ROLL
    return power


@njit(cache=True, nogil=True)
def _shorts(
    words: Any, first: Any, shortest: Any, most: Any, bits: Any, keys: Any, starts: Any, shift: Any,
    found: Any, count: Any
) -> Any:  # fmt: skip
    """The short grams of these lengths (bits, below `most`) that begin at a word."""
    for length in range(shortest, most):
        if bits >> U64(length) & U64(1):
            at = _position(keys, starts, shift, _gram(words, first, length))
            if at >= 0:
                found = _put(found, count, at)
                count += 1
    return found, count


@njit(cache=True, nogil=True)
def _matches(
    words: Any, begin: Any, end: Any, n: Any, shortest: Any, keys: Any, starts: Any, shift: Any,
    heads: Any, lengths: Any, head_starts: Any, head_shift: Any, found: Any
) -> Any:  # fmt: skip
    """Numbers of the grams that a text has, with repeats; `found`, perhaps a longer one, and how many there are."""
    count, top, head_top = 0, _power(n), _power(shortest)
    rolled, head = U64(0), U64(0)
    for i in range(begin, end):
        rolled, head = rolled * ROLL + words[i], head * ROLL + words[i]
        if i - begin >= n:
            rolled -= words[i - n] * top
        if i - begin >= shortest:
            head -= words[i - shortest] * head_top
        if i - begin >= n - 1:
            at = _position(keys, starts, shift, _mix64(rolled ^ (U64(n) * LENGTH)))
            if at >= 0:
                found = _put(found, count, at)
                count += 1
        if i - begin >= shortest - 1 and len(heads):
            at = _position(heads, head_starts, head_shift, _mix64(head ^ (U64(shortest) * LENGTH)))
            if at >= 0:
                first = i - shortest + 1
                most = min(n, end - first + 1)
                found, count = _shorts(words, first, shortest, most, lengths[at], keys, starts, shift, found, count)
    return found, count


@njit(cache=True, nogil=True)
def _worst(found: Any, count: Any, posts: Any, parts: Any, sizes: Any) -> Any:
    """Of the parts that the grams stand in the one with the largest share found, then the most, then the first."""
    total = 0
    for i in range(count):
        total += posts[found[i] + 1] - posts[found[i]]
    hits, filled = np.empty(total, np.int64), 0
    for i in range(count):
        for at in range(posts[found[i]], posts[found[i] + 1]):
            hits[filled] = parts[at]
            filled += 1
    hits.sort()
    best, share, most, begin = -1, 0.0, 0, 0
    while begin < total:
        end = begin
        while end < total and hits[end] == hits[begin]:
            end += 1
        here = (end - begin) / sizes[hits[begin]]
        if here > share or (here == share and end - begin > most):
            best, share, most = hits[begin], here, end - begin
        begin = end
    return best, share


@njit(cache=True, nogil=True)
def overlap(
    words: Any, ends: Any, n: Any, shortest: Any, keys: Any, starts: Any, shift: Any, heads: Any, lengths: Any,
    head_starts: Any, head_shift: Any, posts: Any, parts: Any, sizes: Any, counts: Any, shares: Any, worst: Any
) -> None:  # fmt: skip
    """What each text shares with evaluation items.

    Args:
        words: uint64, hashes of words.
        ends: int64 [texts + 1].
        n: words of an n-gram.
        shortest: words of a head.
        keys: uint64, sorted grams of all parts of items.
        starts: int64, where each value of the keys' top bits begins in them.
        shift: uint64, bits of a key that are not top bits.
        heads: uint64, sorted heads of short grams, with `head_starts` and `head_shift` like those of the keys.
        lengths: uint64, for each head a bit for each length that a short gram with this head has.
        head_starts: int64.
        head_shift: uint64.
        posts: int64, where each gram's parts begin in `parts`, and where the last one's end.
        parts: int64, the parts that have the gram.
        sizes: int64, grams of each part.
        counts: uint32 [texts], filled: different grams that the text has.
        shares: float32 [texts], filled: the largest share of a part's grams that it has.
        worst: int64 [texts], filled: that part, -1 where there is none.
    """
    found = np.empty(64, np.int64)
    for row in range(len(ends) - 1):
        found, count = _matches(
            words, ends[row], ends[row + 1], n, shortest, keys, starts, shift, heads, lengths, head_starts, head_shift,
            found,
        )  # fmt: skip
        found[:count].sort()
        kept = 0
        for i in range(count):
            if i == 0 or found[i] != found[kept - 1]:
                found[kept] = found[i]
                kept += 1
        counts[row] = kept
        worst[row], shares[row] = _worst(found, kept, posts, parts, sizes)
