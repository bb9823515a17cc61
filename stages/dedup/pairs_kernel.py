"""Compiled loops over rows: comparing those that share a band key, finding equal keys, union-find."""
# ruff: noqa: ANN401, PLR0917 - numba infers the types, and compiled functions take numbers and arrays by position

from __future__ import annotations

from typing import Any

import numpy as np

U32, U64 = np.uint32, np.uint64
B32 = U64(32)


def jaccard(a: Any, b: Any, floor: Any) -> Any:
    """Jaccard of two sorted sets, or 0 as soon as it cannot reach `floor`."""
    i, j, shared = 0, 0, 0
    least = floor / (1.0 + floor) * (len(a) + len(b)) - 0.5
    while i < len(a) and j < len(b):
        if shared + min(len(a) - i, len(b) - j) < least:
            return 0.0
        for _ in range(16):
            if i == len(a) or j == len(b):
                break
            x, y = a[i], b[j]
            shared += x == y
            i += x <= y
            j += y <= x
    return shared / (len(a) + len(b) - shared)


def _met(bands: Any, crowded: Any, leads: Any, i: Any, j: Any, band: Any) -> Any:
    """Whether rows i < j were compared in an earlier band: in any bucket that they share, unless it was crowded."""
    for earlier in range(band):
        if bands[i, earlier] == bands[j, earlier]:
            bit = U64(1) << U64(earlier)
            if not crowded[i] & bit or leads[i] & bit:
                return True
    return False


def compare(
    order: Any,
    ranked: Any,
    bands: Any,
    band: Any,
    sets: Any,
    ends: Any,
    crowded: Any,
    leads: Any,
    heads: Any,
    floor: Any,
    near: Any,
    state: Any,
    pairs: Any,
    jaccards: Any,
) -> Any:
    """Compare the rows of each bucket of `order` (band key << 32 | rank, sorted): rows and Jaccard of pairs at `floor`.

    In a bucket of more rows than `heads` has room for each is compared with at most as many leaders before it: the
    first row, and then each that is under `near` with all leaders so far.

    Args:
        order: uint64.
        ranked: int64 [n], the row of each rank.
        bands: uint32 [n, bands].
        band: the one that `order` is of.
        sets: uint64, sorted sets of shingles, one after the other.
        ends: int64 [n + 1].
        crowded: uint64 [n], bits of the bands whose bucket of the row is too large; filled.
        leads: uint64 [n], bits of the bands in which the row leads such a bucket; filled.
        heads: int64, room for leaders, kept from call to call.
        floor: least Jaccard of a pair.
        near: Jaccard to a leader from which on a row leads nobody.
        state: int64 [4], zeros at first: where the bucket begins, the row in it that is next, its leaders, pairs
            compared. Kept from call to call.
        pairs: int64 [more than leaders, 2], filled.
        jaccards: float32, filled.

    Returns:
        Pairs found. There may be more, for another call, as long as `state[0]` is not the length of `order`.
    """
    limit, bit, found = len(heads), U64(1) << U64(band), 0
    begin, at, led, compared = state[0], state[1], state[2], state[3]
    while begin < len(order):
        end = begin + 1
        while end < len(order) and order[end] >> B32 == order[begin] >> B32:
            end += 1
        crowd = end - begin > limit
        while at < end and found + limit <= len(pairs):
            j = ranked[order[at] & U64(0xFFFFFFFF)]
            alone = True
            for other in range(led if crowd else at - begin):
                i = heads[other] if crowd else ranked[order[begin + other] & U64(0xFFFFFFFF)]
                met = _met(bands, crowded, leads, i, j, band)
                if met and not crowd:
                    continue
                compared += 1
                alike = jaccard(sets[ends[i] : ends[i + 1]], sets[ends[j] : ends[j + 1]], floor)
                alone = alone and alike < near
                if met or alike < floor:
                    continue
                pairs[found, 0], pairs[found, 1], jaccards[found] = min(i, j), max(i, j), alike
                found += 1
            if crowd:
                crowded[j] |= bit
                if alone and led < limit:
                    heads[led] = j
                    led += 1
                    leads[j] |= bit
            at += 1
        if at < end:
            break
        begin, led = end, 0
    state[0], state[1], state[2], state[3] = begin, at, led, compared
    return found


def first_alike(keys: Any, slots: Any, first: Any) -> Any:
    """For each row the first row of the same key, through an open hash table (`slots`: -1, a power of two of them)."""
    mask = U64(len(slots) - 1)
    for row in range(len(keys)):
        slot = keys[row, 0] & mask
        while slots[slot] >= 0 and (keys[slots[slot], 0] != keys[row, 0] or keys[slots[slot], 1] != keys[row, 1]):
            slot = (slot + U64(1)) & mask
        if slots[slot] < 0:
            slots[slot] = row
        first[row] = slots[slot]
    return len(keys)


def unite(pairs: Any, parents: Any) -> Any:
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
    return len(parents)


def places(order: Any, rows: Any, band: Any, bands: Any, shared: Any) -> Any:
    """Replace the keys of a band by where their bucket begins among the rows that share one, counted from 1; else 0.

    Args:
        order: uint64, band key << 32 | place in `rows`, sorted.
        rows: int64.
        band: the band.
        bands: uint32 [n, bands], changed in this band for `rows`.
        shared: uint8 [n], set to 1 for rows that share the key.

    Returns:
        Rows that share a key of this band, plus 1.
    """
    begin, place = 0, 1
    while begin < len(order):
        end = begin + 1
        while end < len(order) and order[end] >> B32 == order[begin] >> B32:
            end += 1
        alone = end == begin + 1
        for at in range(begin, end):
            row = rows[order[at] & U64(0xFFFFFFFF)]
            bands[row, band] = U32(0 if alone else place)
            if not alone:
                shared[row] = 1
        place += 0 if alone else end - begin
        begin = end
    return place


def walk(  # noqa: C901  cut in two, it would pass all its arrays on for each row
    order: Any,
    given: Any,
    bands: Any,
    bases: Any,
    slots: Any,
    filled: Any,
    sets: Any,
    ends: Any,
    threshold: Any,
    most: Any,
    stamps: Any,
    kept_of: Any,
    jaccards: Any,
    crowded: Any,
) -> Any:
    """Take rows best first; keep each that reaches the threshold with no kept one that it shares a band key with.

    Buckets hold kept rows only, so that a row meets few, however many duplicates there are.

    Args:
        order: int64, rows that share a band key, the best first.
        given: how many of them are kept whatever they are like.
        bands: uint32 [n, bands], as `places` leaves them.
        bases: int64 [bands], where the places of a band begin in `slots`.
        slots: uint32, zeros; kept rows by bucket.
        filled: uint32, zeros; at a bucket's beginning, how many it holds.
        sets: uint64, sorted sets of shingles, one after the other.
        ends: int64 [n + 1].
        threshold: Jaccard.
        most: kept rows of a bucket that a row is compared with, the best of them.
        stamps: uint32 [n], zeros; the turn in which a kept row was last met.
        kept_of: int64 [n], each row's own number; for a row that is not kept, filled with the nearest kept one.
        jaccards: float32 [n], filled with the Jaccard to that.
        crowded: uint8 [n], set to 1 for rows whose bucket held more than `most`.

    Returns:
        Pairs compared.
    """
    compared = 0
    for turn in range(len(order)):
        j, nearest, nearness = order[turn], np.int64(-1), 0.0
        for band in range(bands.shape[1] if turn >= given else 0):
            if bands[j, band] == 0:
                continue
            start = bases[band] + np.int64(bands[j, band])
            held = np.int64(filled[start])
            if held > most:
                crowded[j] = 1
            for slot in range(start, start + min(held, most)):
                i = np.int64(slots[slot])
                if stamps[i] == turn + 1:
                    continue
                stamps[i] = turn + 1
                compared += 1
                floor = max(threshold, nearness)
                alike = jaccard(sets[ends[i] : ends[i + 1]], sets[ends[j] : ends[j + 1]], floor)
                if alike >= threshold and (alike > nearness or (alike == nearness and i < nearest)):
                    nearest, nearness = i, alike
        if nearest >= 0:
            kept_of[j], jaccards[j] = nearest, nearness
            continue
        for band in range(bands.shape[1]):
            if bands[j, band] > 0:
                start = bases[band] + np.int64(bands[j, band])
                slots[start + np.int64(filled[start])] = j
                filled[start] += 1
    return compared
