"""Compiled loops over words: anchors of windows (winnowing), windows that share one, and what repeated windows cover.

A window is a run of `width` words. Its anchor is the least hash of the runs of `width // 2` words inside it: equal
windows have equal anchors, and neighbouring windows mostly share theirs, so that a text has about one anchor in
`width / 4` words. Source: Schleimer, Wilkerson, Aiken 2003, "Winnowing".
"""
# ruff: noqa: ANN401, PLR0917 - numba infers the types, and compiled functions take numbers and arrays by position

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

U64 = np.uint64
ROLL = U64(0x589965CC75374CC3)
B33 = U64(33)


@njit(cache=True, nogil=True)
def _mix64(h: Any) -> Any:
    """The finalizer of MurmurHash3 (64 bits)."""
    h = (h ^ (h >> B33)) * U64(0xFF51AFD7ED558CCD)
    h = (h ^ (h >> B33)) * U64(0xC4CEB9FE1A85EC53)
    return h ^ (h >> B33)


@njit(cache=True, nogil=True)
def _runs(words: Any, begin: Any, end: Any, width: Any, hashes: Any) -> Any:
    """Hashes of each run of `width` words; how many there are."""
    top, rolled = U64(1), U64(0)
    for _ in range(width):
        top *= ROLL
    for i in range(begin, end):
        rolled = rolled * ROLL + words[i]
        if i - begin >= width:
            rolled -= words[i - width] * top
        if i - begin >= width - 1:
            hashes[i - begin - width + 1] = _mix64(rolled)
    return max(0, end - begin - width + 1)


@njit(cache=True, nogil=True)
def _least(hashes: Any, count: Any, width: Any, least: Any) -> Any:
    """The least of each run of `width` hashes; how many there are. It is sought again only when it falls out."""
    at = -1
    for i in range(count):
        if at <= i - width:
            at = i - width + 1
            for k in range(at + 1, i + 1):
                if hashes[k] <= hashes[at]:
                    at = k
        elif hashes[i] <= hashes[at]:
            at = i
        if i >= width - 1:
            least[i - width + 1] = hashes[at]
    return max(0, count - width + 1)


@njit(cache=True, nogil=True)
def _anchors(words: Any, begin: Any, end: Any, width: Any, hashes: Any, least: Any) -> Any:
    """The anchor of each window of a text; how many there are."""
    short = width // 2
    return _least(hashes, _runs(words, begin, end, short, hashes), width - short + 1, least)


@njit(cache=True, nogil=True)
def _distinct(values: Any, begin: Any, end: Any) -> Any:
    """Sort a part in place and drop repeats; where it ends then."""
    values[begin:end].sort()
    kept = begin
    for i in range(begin, end):
        if i == begin or values[i] != values[kept - 1]:
            values[kept] = values[i]
            kept += 1
    return kept


@njit(cache=True, nogil=True)
def _position(keys: Any, starts: Any, shift: Any, key: Any) -> Any:
    """Where a key stands among sorted ones, or -1; `starts` is where each value of the top bits begins."""
    bucket = np.int64(key >> shift)
    for at in range(starts[bucket], starts[bucket + 1]):
        if keys[at] >= key:
            return at if keys[at] == key else -1
    return -1


@njit(cache=True, nogil=True)
def _longest(ends: Any) -> Any:
    longest = 1
    for row in range(len(ends) - 1):
        longest = max(longest, ends[row + 1] - ends[row])
    return longest


@njit(cache=True, nogil=True)
def anchors(words: Any, ends: Any, width: Any, found: Any, found_ends: Any) -> None:
    """The different anchors of each text's windows, sorted, one text after the other.

    Args:
        words: uint64, hashes of words.
        ends: int64 [n + 1], where each text's words begin, and where the last one's end.
        width: words of a window.
        found: uint64, filled; as long as `words`.
        found_ends: int64 [n + 1], filled.
    """
    hashes, least = np.empty(_longest(ends), U64), np.empty(_longest(ends), U64)
    filled = 0
    found_ends[0] = 0
    for row in range(len(ends) - 1):
        count, begin = _anchors(words, ends[row], ends[row + 1], width, hashes, least), filled
        for i in range(count):
            if i == 0 or least[i] != least[i - 1]:
                found[filled] = least[i]
                filled += 1
        filled = _distinct(found, begin, filled)
        found_ends[row + 1] = filled


@njit(cache=True, nogil=True)
def _marked(least: Any, count: Any, keys: Any, starts: Any, shift: Any, marks: Any) -> Any:
    """Whether each window's anchor is among the keys; how many are."""
    marked, inside = 0, False
    for i in range(count):
        if i == 0 or least[i] != least[i - 1]:
            inside = _position(keys, starts, shift, least[i]) >= 0
        marks[i] = inside
        marked += inside
    return marked


@njit(cache=True, nogil=True)
def windows(words: Any, ends: Any, width: Any, keys: Any, starts: Any, shift: Any, found: Any, found_ends: Any) -> None:
    """The different windows of each text whose anchor is among the keys, sorted, one text after the other.

    Args:
        words: uint64, hashes of words.
        ends: int64 [n + 1].
        width: words of a window.
        keys: uint64, sorted anchors.
        starts: int64, where each value of the keys' top bits begins in them.
        shift: uint64, bits of a key that are not top bits.
        found: uint64, filled; as long as `words`.
        found_ends: int64 [n + 1], filled.
    """
    longest, filled = _longest(ends), 0
    hashes, least, marks = np.empty(longest, U64), np.empty(longest, U64), np.empty(longest, np.bool_)
    found_ends[0] = 0
    for row in range(len(ends) - 1):
        count, begin = _anchors(words, ends[row], ends[row + 1], width, hashes, least), filled
        if _marked(least, count, keys, starts, shift, marks):
            _runs(words, ends[row], ends[row + 1], width, hashes)
            for i in range(count):
                if marks[i]:
                    found[filled] = hashes[i]
                    filled += 1
            filled = _distinct(found, begin, filled)
        found_ends[row + 1] = filled


@njit(cache=True, nogil=True)
def cover(
    words: Any, ends: Any, width: Any, keys: Any, starts: Any, shift: Any, counts: Any, firsts: Any, rows: Any, out: Any
) -> None:
    """What windows that more than one text has cover of each text.

    Args:
        words: uint64, hashes of words.
        ends: int64 [n + 1].
        width: words of a window.
        keys: uint64, sorted hashes of the windows that more than one text has.
        starts: int64, where each value of the keys' top bits begins in them.
        shift: uint64, bits of a key that are not top bits.
        counts: uint32, texts that have each.
        firsts: uint32, the first text that has each.
        rows: int64 [n], the texts' numbers.
        out: int64 [n, 5], filled: words covered; words covered by windows that an earlier text has; words of the
            longest stretch covered; most texts that have one window (at least 1); the first text that has the beginning
            of the longest stretch that earlier texts have, or -1.
    """
    hashes = np.empty(_longest(ends), U64)
    for row in range(len(ends) - 1):
        count = _runs(words, ends[row], ends[row + 1], width, hashes)
        out[row, 0] = out[row, 1] = out[row, 2] = 0
        out[row, 3], out[row, 4] = 1, -1
        end, begun, earlier_end, earlier_begun, earlier_longest, source = 0, 0, 0, 0, 0, np.int64(-1)
        for i in range(count):
            at = _position(keys, starts, shift, hashes[i])
            if at < 0:
                continue
            if i + width - 1 != end:
                begun = i
            out[row, 0] += i + width - max(i, end)
            end = i + width
            out[row, 2] = max(out[row, 2], end - begun)
            out[row, 3] = max(out[row, 3], np.int64(counts[at]))
            if np.int64(firsts[at]) < rows[row]:
                if i + width - 1 != earlier_end:
                    earlier_begun, source = i, np.int64(firsts[at])
                out[row, 1] += i + width - max(i, earlier_end)
                earlier_end = i + width
                if earlier_end - earlier_begun > earlier_longest:
                    earlier_longest = earlier_end - earlier_begun
                    out[row, 4] = source


@njit(cache=True, nogil=True)
def among(values: Any, ends: Any, keys: Any, starts: Any, shift: Any, marks: Any) -> None:
    """Whether each row has a value (row r's: `values[ends[r]:ends[r + 1]]`) that is among sorted keys, into `marks`."""
    for row in range(len(marks)):
        marks[row] = False
        for i in range(ends[row], ends[row + 1]):
            if _position(keys, starts, shift, values[i]) >= 0:
                marks[row] = True
                break
