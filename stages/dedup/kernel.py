"""Compiled loops over rows: exact copies, pairs that share a band key, the nearest row of an index, the keep rule."""
# ruff: noqa: ANN401, PLR0917 - numba infers the types, and compiled functions take numbers and arrays by position

from typing import Any

import numpy as np

U32, U64 = np.uint32, np.uint64
B32, ROW = U64(32), U64(0xFFFFFFFF)


def _jaccard(sets: Any, first: Any, first_end: Any, others: Any, second: Any, second_end: Any, floor: Any) -> Any:
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
            x, y = sets[first], others[second]
            shared += x == y
            first += x <= y
            second += y <= x
    return shared / (a + b - shared)


def _nearest(
    numbers: Any, begin: Any, end: Any, turn: Any, stamps: Any, sets: Any, first: Any, last: Any, others: Any,
    ends: Any, floor: Any, best: Any, nearness: Any
) -> Any:  # fmt: skip
    """The nearest row of a bucket to a set, if it is nearer than `best`; of equally near ones the first.

    Rows that were met this turn, in another bucket, are skipped. Returns the row and its Jaccard, else `best` and
    `nearness`, and how many were compared.
    """
    compared = 0
    for at in range(begin, end):
        i = np.int64(U64(numbers[at]) & ROW)
        if stamps[i] == turn:
            continue
        stamps[i] = turn
        compared += 1
        jaccard = _jaccard(sets, first, last, others, ends[i], ends[i + 1], max(floor, nearness))
        if jaccard >= floor and (jaccard > nearness or (jaccard == nearness and i < best)):
            best, nearness = i, jaccard
    return best, nearness, compared


def _compared_earlier(bands: Any, crowded: Any, leads: Any, i: Any, j: Any, band: Any) -> Any:
    """Whether rows i < j were compared in an earlier band: in any bucket that they share, unless it was crowded."""
    for earlier in range(band):
        if bands[i, earlier] == bands[j, earlier]:
            bit = U64(1) << U64(earlier)
            if not crowded[i] & bit or leads[i] & bit:
                return True
    return False


def pairs_loop(
    order: Any, ranked: Any, bands: Any, band: Any, sets: Any, ends: Any, crowded: Any, leads: Any, heads: Any,
    floor: Any, near: Any, state: Any, pairs: Any, jaccards: Any
) -> Any:  # fmt: skip
    """Compare the rows of each bucket of `order`: rows and Jaccard of pairs at or above `floor`.

    In a bucket of more rows than `heads` has room for, each row is compared with the leaders before it: the first row,
    and then each that is under `near` with all leaders so far, as long as there is room.

    `order` has band key << 32 | rank, sorted, and `ranked` the row of each rank. `crowded` and `leads` get a bit per
    band in which a row's bucket is too large, and in which it leads such a bucket. `heads` and `state` are kept from
    call to call; `state` is where the bucket begins, the next row in it, its leaders, and the pairs compared, zeros at
    first. There is space for more `pairs` than leaders. Returns the number of pairs found; there are more, for another
    call, as long as `state[0]` is not the length of `order`.
    """
    limit, bit, found = len(heads), U64(1) << U64(band), 0
    begin, at, led, compared = state[0], state[1], state[2], state[3]
    while begin < len(order):
        end = begin + 1
        while end < len(order) and order[end] >> B32 == order[begin] >> B32:
            end += 1
        crowd = end - begin > limit
        while at < end and found + limit <= len(pairs):
            j = ranked[order[at] & ROW]
            alone = True
            for other in range(led if crowd else at - begin):
                i = heads[other] if crowd else ranked[order[begin + other] & ROW]
                met = _compared_earlier(bands, crowded, leads, i, j, band)
                if met and not crowd:
                    continue
                compared += 1
                jaccard = _jaccard(sets, ends[i], ends[i + 1], sets, ends[j], ends[j + 1], floor)
                alone = alone and jaccard < near
                if met or jaccard < floor:
                    continue
                pairs[found, 0], pairs[found, 1], jaccards[found] = min(i, j), max(i, j), jaccard
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


def _is_another(values: Any, ends: Any, first: Any, second: Any, least: Any, slack: Any) -> Any:
    """Whether two turns, -1 for an empty one, differ in more than `slack` words, and their Jaccard is below `least`."""
    a = ends[first] if first >= 0 else 0
    b = ends[second] if second >= 0 else 0
    a_end = ends[first + 1] if first >= 0 else 0
    b_end = ends[second + 1] if second >= 0 else 0
    sizes, longer, shared = a_end - a + b_end - b, max(a_end - a, b_end - b), 0
    while a < a_end and b < b_end:
        x, y = values[a], values[b]
        shared += x == y
        a += x <= y
        b += y <= x
    return longer - shared > slack and shared < least * (sizes - shared)


def turns_loop(
    pairs: Any, firsts: Any, keys: Any, values: Any, ends: Any, words: Any, least: Any, slack: Any, same: Any
) -> Any:
    """For each pair of rows whether no turn is another, 0 or 1; see `stages.dedup.turns`. Returns how many are 1.

    Row r has the turns `firsts[r]` to `firsts[r + 1]`, and `words[r]` words. Turn t has the key `keys[t]` and the
    sorted set of words `values[ends[t]:ends[t + 1]]`.
    """
    alike = 0
    for k in range(len(pairs)):
        i, j = pairs[k, 0], pairs[k, 1]
        a, b, a_end, b_end = firsts[i], firsts[j], firsts[i + 1], firsts[j + 1]
        one = True
        several = a_end - a > 1 or b_end - b > 1
        while a < a_end and b < b_end and keys[a] == keys[b]:
            a += 1
            b += 1
        while a < a_end and b < b_end and keys[a_end - 1] == keys[b_end - 1]:
            a_end -= 1
            b_end -= 1
        while several and one and (a < a_end or b < b_end):
            first, second = a if a < a_end else -1, b if b < b_end else -1
            one = not _is_another(values, ends, first, second, least, slack * max(words[i], words[j]))
            a += 1
            b += 1
        same[k] = one
        alike += one
    return alike


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


def keep_best_loop(
    order: Any, given: Any, bands: Any, bases: Any, slots: Any, filled: Any, sets: Any, ends: Any, threshold: Any,
    most: Any, stamps: Any, kept_of: Any, jaccards: Any, crowded: Any
) -> Any:  # fmt: skip
    """Take rows best first; keep each that reaches the threshold with no kept row that it shares a band key with.

    Buckets hold kept rows only, so that a row is compared with few, however many duplicates there are: with the best
    `most` of each bucket; `crowded` is set to 1 for rows whose bucket held more. `order` has the rows that share a band
    key, the best first, of which the first `given` are always kept; `bands` are as `_places` of `keep.py` leaves them.

    Zeros at first: `slots`, the kept rows by bucket, of which those of a band begin at its `bases`; `filled`, at a
    bucket's beginning the number that it holds; `stamps`, the turn in which a kept row was last met. `kept_of` is each
    row's own number, replaced by the nearest kept row if it is not kept. Returns the number of pairs compared.
    """
    total = 0
    for turn in range(len(order)):
        j, nearest, nearness = order[turn], np.int64(-1), 0.0
        for band in range(bands.shape[1] if turn >= given else 0):
            if bands[j, band] == 0:
                continue
            start = bases[band] + np.int64(bands[j, band])
            held = np.int64(filled[start])
            if held > most:
                crowded[j] = 1
            nearest, nearness, compared = _nearest(
                slots, start, start + min(held, most), turn + 1, stamps, sets, ends[j], ends[j + 1], sets, ends,
                threshold, nearest, nearness
            )  # fmt: skip
            total += compared
        if nearest >= 0:
            kept_of[j], jaccards[j] = nearest, nearness
            continue
        for band in range(bands.shape[1]):
            if bands[j, band] > 0:
                start = bases[band] + np.int64(bands[j, band])
                slots[start + np.int64(filled[start])] = j
                filled[start] += 1
    return total


def nearest_loop(
    keys: Any, starts: Any, sets: Any, ends: Any, order: Any, old_sets: Any, old_ends: Any, floor: Any, limit: Any,
    stamps: Any, jaccards: Any, nearest: Any, crowded: Any
) -> Any:  # fmt: skip
    """The row of an index with the highest Jaccard to each text; of equally similar rows the first.

    A text is compared with the first `limit` rows of a bucket; `crowded` is set to 1 if it has more. `starts`, [n,
    bands], is the first place in each band's `order` (key << 32 | row, sorted) with the text's key or a larger one.
    `ends`, [n], is where each text's set ends, `old_ends`, [rows + 1], where each row's set begins. `stamps`, zeros at
    first, is the last text that a row was compared with, from 1. If no row reaches the floor, the Jaccard is 0 and
    `nearest` -1. Returns the number of pairs compared.
    """
    total, begin = 0, 0
    for text in range(len(keys)):
        best, nearness = np.int64(-1), 0.0
        for band in range(keys.shape[1]):
            start, numbers = starts[text, band], order[band]
            end = start
            while end < len(numbers) and end < start + limit and numbers[end] >> B32 == U64(keys[text, band]):
                end += 1
            if end == start + limit and end < len(numbers) and numbers[end] >> B32 == U64(keys[text, band]):
                crowded[text] = 1
            best, nearness, compared = _nearest(
                numbers, start, end, text + 1, stamps, sets, begin, ends[text], old_sets, old_ends, floor, best,
                nearness
            )  # fmt: skip
            total += compared
        jaccards[text], nearest[text] = nearness, best
        begin = ends[text]
    return total
