"""Compiled loops: the most similar text of an index, by band keys and the exact Jaccard of sets of shingles."""
# ruff: noqa: ANN401, PLR0917 - numba infers the types, and compiled functions take numbers and arrays by position

from __future__ import annotations

from typing import Any

import numpy as np

from stages.dedup.pairs_kernel import jaccard

U64 = np.uint64
B32, ROW = U64(32), U64(0xFFFFFFFF)


def _merge(rows: Any, count: Any, order: Any, at: Any, end: Any, spare: Any) -> Any:
    """Merge the rows of `order[at:end]` into sorted rows, without repeats; return how many there are."""
    i = filled = 0
    while i < count or at < end:
        if at == end or (i < count and rows[i] <= np.int64(order[at] & ROW)):
            at += at < end and rows[i] == np.int64(order[at] & ROW)
            spare[filled] = rows[i]
            i += 1
        else:
            spare[filled] = np.int64(order[at] & ROW)
            at += 1
        filled += 1
    for i in range(filled):
        rows[i] = spare[i]
    return filled


def _candidates(keys: Any, starts: Any, order: Any, limit: Any, scratch: Any) -> Any:
    """Write the distinct rows that share a key of a band; return how many, and whether a band has more than `limit`."""
    count, crowded = 0, False
    for band in range(len(keys)):
        end = starts[band]
        while end < order.shape[1] and order[band, end] >> B32 == U64(keys[band]):
            if end == starts[band] + limit:
                crowded = True
                break
            end += 1
        if end > starts[band]:
            count = _merge(scratch[0], count, order[band], starts[band], end, scratch[1])
    return count, crowded


def nearest(
    keys: Any, starts: Any, sets: Any, ends: Any, order: Any, old_sets: Any, old_ends: Any, floor: Any, limit: Any,
    scratch: Any, jaccards: Any, found: Any, crowded: Any
) -> Any:  # fmt: skip
    """The row of an index with the highest Jaccard to each text, of equal ones the first.

    Args:
        keys: uint32 [n, bands], band keys of the texts.
        starts: int64 [n, bands], the first place in each band's order with that key or a larger one.
        sets: uint64, the texts' sorted sets of shingles, one after the other.
        ends: int64 [n], where each set ends.
        order: uint64 [bands, m], key << 32 | row, sorted.
        old_sets: uint64, sorted sets of the index's rows.
        old_ends: int64 [rows + 1].
        floor: lowest Jaccard that counts.
        limit: maximum number of rows of a band that a text is compared with, the first ones.
        scratch: int64 [2, limit * bands], overwritten.
        jaccards: float32 [n], filled; 0 if no row is at or above the floor.
        found: int64 [n], filled; -1 if no row is.
        crowded: bool [n], filled: whether a band had more rows than `limit`.
    """
    begin = 0
    for text in range(len(keys)):
        count, crowded[text] = _candidates(keys[text], starts[text], order, limit, scratch)
        best, row = 0.0, -1
        for i in range(count):
            other = scratch[0, i]
            alike = jaccard(sets[begin : ends[text]], old_sets[old_ends[other] : old_ends[other + 1]], max(best, floor))
            if alike > best and alike >= floor:
                best, row = alike, other
        jaccards[text], found[text] = best, row
        begin = ends[text]
    return len(keys)
