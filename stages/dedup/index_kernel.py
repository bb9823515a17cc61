"""Compiled loops: the most similar text of an index, by band keys and the exact Jaccard of sets of shingles."""
# ruff: noqa: ANN401, PLR0917 - numba infers the types, and compiled functions take numbers and arrays by position

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

U64 = np.uint64
B32, ROW = U64(32), U64(0xFFFFFFFF)


@njit(cache=True, nogil=True)
def _shared(a: Any, begin: Any, end: Any, b: Any, at: Any, stop: Any, least: Any) -> Any:
    """How many values two sorted sets share, or 0 as soon as that cannot be `least`."""
    shared = 0
    while begin < end and at < stop:
        if shared + min(end - begin, stop - at) < least:
            return 0
        x, y = a[begin], b[at]
        shared += x == y
        begin += x <= y
        at += y <= x
    return shared


@njit(cache=True, nogil=True)
def _candidates(keys: Any, starts: Any, order: Any, limit: Any, rows: Any) -> Any:
    """Different rows that share a key of a band, sorted; how many, and whether a band has more than `limit`."""
    count, crowded = 0, False
    for band in range(len(keys)):
        at = starts[band]
        end = min(order.shape[1], at + limit)
        while at < end and order[band, at] >> B32 == U64(keys[band]):
            rows[count] = np.int64(order[band, at] & ROW)
            count += 1
            at += 1
        crowded = crowded or (
            at == starts[band] + limit and at < order.shape[1] and order[band, at] >> B32 == U64(keys[band])
        )
    rows[:count].sort()
    kept = 0
    for i in range(count):
        if i == 0 or rows[i] != rows[kept - 1]:
            rows[kept] = rows[i]
            kept += 1
    return kept, crowded


@njit(cache=True, nogil=True)
def nearest(
    keys: Any, starts: Any, sets: Any, ends: Any, order: Any, old_sets: Any, old_ends: Any, floor: Any, limit: Any,
    jaccards: Any, found: Any, crowded: Any
) -> None:  # fmt: skip
    """The row of an index with the highest Jaccard to each text, of equal ones the first.

    Args:
        keys: uint32 [n, bands], band keys of the texts.
        starts: int64 [n, bands], the first place in each band's order with that key or a larger one.
        sets: uint64, the texts' sorted sets of shingles, one after the other.
        ends: int64 [n], where each set ends.
        order: uint64 [bands, m], key << 32 | row, sorted.
        old_sets: uint64, sorted sets of the index's rows.
        old_ends: int64 [rows + 1].
        floor: least Jaccard that counts.
        limit: most rows of a band that a text is compared with, the first ones.
        jaccards: float32 [n], filled; 0 where none is at the floor.
        found: int64 [n], filled; -1 where none is.
        crowded: bool [n], filled: whether there were more rows than `limit`.
    """
    rows = np.empty(limit * keys.shape[1], np.int64)
    begin = 0
    for text in range(len(keys)):
        size = ends[text] - begin
        count, crowded[text] = _candidates(keys[text], starts[text], order, limit, rows)
        best, row = 0.0, -1
        for i in range(count):
            first, last = old_ends[rows[i]], old_ends[rows[i] + 1]
            least = max(best, floor)
            shared = _shared(
                sets, begin, ends[text], old_sets, first, last, least / (1.0 + least) * (size + last - first) - 0.5
            )
            jaccard = shared / (size + last - first - shared)
            if jaccard > best and jaccard >= floor:
                best, row = jaccard, rows[i]
        jaccards[text], found[text] = best, row
        begin = ends[text]
