"""Compiled loops over rows: comparing those that share a band key, finding equal keys, union-find."""
# ruff: noqa: ANN401, PLR0917 - numba infers the types, and compiled functions take numbers and arrays by position

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

U32, U64 = np.uint32, np.uint64
B32 = U64(32)


@njit(cache=True, nogil=True)
def _jaccard(sets: Any, first: Any, first_end: Any, second: Any, second_end: Any, floor: Any) -> Any:
    """Jaccard of two sorted sets, or 0 as soon as it cannot reach `floor`."""
    a, b = first_end - first, second_end - second
    least = floor / (1.0 + floor) * (a + b) - 0.5
    shared = 0
    while first < first_end and second < second_end:
        if shared + min(first_end - first, second_end - second) < least:
            return 0.0
        for _ in range(16):
            if first == first_end or second == second_end:
                break
            x, y = sets[first], sets[second]
            shared += x == y
            first += x <= y
            second += y <= x
    return shared / (a + b - shared)


@njit(cache=True, nogil=True)
def _met(bands: Any, crowded: Any, leads: Any, i: Any, j: Any, band: Any) -> Any:
    """Whether rows i < j were compared in an earlier band: in any bucket that they share, unless it was crowded."""
    for earlier in range(band):
        if bands[i, earlier] == bands[j, earlier]:
            bit = U64(1) << U64(earlier)
            if not crowded[i] & bit or leads[i] & bit:
                return True
    return False


@njit(cache=True, nogil=True)
def _longer(pairs: Any, jaccards: Any) -> Any:
    more, more_jaccards = np.empty((2 * len(pairs), 2), U32), np.empty(2 * len(pairs), np.float32)
    for k in range(len(pairs)):
        more[k, 0], more[k, 1], more_jaccards[k] = pairs[k, 0], pairs[k, 1], jaccards[k]
    return more, more_jaccards


@njit(cache=True, nogil=True)
def compare(
    order: Any, bands: Any, band: Any, sets: Any, ends: Any, crowded: Any, leads: Any, floor: Any, near: Any, limit: Any
) -> Any:
    """Compare the rows of each bucket of `order` (band key << 32 | row, sorted): rows and Jaccard of pairs at `floor`.

    In a bucket of more than `limit` rows each is compared with at most `limit` leaders before it: the first row, and
    then each that is under `near` with all leaders so far.
    """
    pairs, jaccards, found = np.empty((1024, 2), U32), np.empty(1024, np.float32), 0
    bit, compared = U64(1) << U64(band), 0
    begin = 0
    heads = np.empty(limit, np.int64)
    while begin < len(order):
        end = begin + 1
        while end < len(order) and order[end] >> B32 == order[begin] >> B32:
            end += 1
        crowd, led = end - begin > limit, 0
        for at in range(begin, end):
            j = np.int64(order[at] & U64(0xFFFFFFFF))
            alone = True
            for other in range(led if crowd else at - begin):
                i = heads[other] if crowd else np.int64(order[begin + other] & U64(0xFFFFFFFF))
                met = _met(bands, crowded, leads, i, j, band)
                if met and not crowd:
                    continue
                compared += 1
                jaccard = _jaccard(sets, ends[i], ends[i + 1], ends[j], ends[j + 1], floor)
                alone = alone and jaccard < near
                if met or jaccard < floor:
                    continue
                if found == len(pairs):
                    pairs, jaccards = _longer(pairs, jaccards)
                pairs[found, 0], pairs[found, 1], jaccards[found] = i, j, jaccard
                found += 1
            if crowd:
                crowded[j] |= bit
                if alone and led < limit:
                    heads[led] = j
                    led += 1
                    leads[j] |= bit
        begin = end
    return pairs[:found], jaccards[:found], compared


@njit(cache=True, nogil=True)
def first_alike(keys: Any, slots: Any, first: Any) -> None:
    """For each row the first row of the same key, through an open hash table (`slots`: -1, a power of two of them)."""
    mask = U64(len(slots) - 1)
    for row in range(len(keys)):
        slot = keys[row, 0] & mask
        while slots[slot] >= 0 and (keys[slots[slot], 0] != keys[row, 0] or keys[slots[slot], 1] != keys[row, 1]):
            slot = (slot + U64(1)) & mask
        if slots[slot] < 0:
            slots[slot] = row
        first[row] = slots[slot]


@njit(cache=True, nogil=True)
def unite(pairs: Any, parents: Any) -> None:
    """Union-find: afterwards the parent of each row is the first row of its component."""
    for k in range(len(pairs)):
        i, j = pairs[k, 0], pairs[k, 1]
        while parents[i] != i:
            parents[i] = parents[parents[i]]
            i = parents[i]
        while parents[j] != j:
            parents[j] = parents[parents[j]]
            j = parents[j]
        parents[max(i, j)] = min(i, j)
    for row in range(len(parents)):
        parents[row] = parents[parents[row]]
