"""64-bit hashes of runs of words, sorted and looked up: loops, and functions that other kernels share."""
# ruff: noqa: ANN401 - numba infers the types

from typing import Any

import numpy as np

U64 = np.uint64
ROLL = U64(0x589965CC75374CC3)
"""Base of the polynomial that hashes a run of words."""
B33 = U64(33)


def mix64(h: Any) -> Any:
    """The finalizer of MurmurHash3 (64 bits)."""
    h = (h ^ (h >> B33)) * U64(0xFF51AFD7ED558CCD)
    h = (h ^ (h >> B33)) * U64(0xC4CEB9FE1A85EC53)
    return h ^ (h >> B33)


def runs(words: Any, count: Any, width: Any, hashes: Any) -> Any:
    """Write the hash of each run of `width` words; return the number of runs."""
    top, rolled = U64(1), U64(0)
    for _ in range(width):
        top *= ROLL
    for i in range(count):
        rolled = rolled * ROLL + words[i]
        if i >= width:
            rolled -= words[i - width] * top
        if i >= width - 1:
            hashes[i - width + 1] = mix64(rolled)
    return max(0, count - width + 1)


def sort_distinct(values: Any, count: Any, spare: Any, starts: Any) -> Any:
    """Sort hashes in place and drop repeats; return how many remain.

    By top bits, then by insertion, because hashes are uniform. `spare` (uint64) has space for `count` values, `starts`
    (int64) for `2 * count + 3`.
    """
    bits = 1
    while (1 << bits) < count:
        bits += 1
    shift = U64(64 - bits)
    for bucket in range((1 << bits) + 1):
        starts[bucket] = 0
    for i in range(count):
        starts[(values[i] >> shift) + U64(1)] += 1
    for bucket in range(1 << bits):
        starts[bucket + 1] += starts[bucket]
    for i in range(count):
        bucket = values[i] >> shift
        spare[starts[bucket]] = values[i]
        starts[bucket] += 1
    kept = 0
    for i in range(count):
        value, at = spare[i], kept
        while at > 0 and values[at - 1] > value:
            at -= 1
        if at > 0 and values[at - 1] == value:
            continue
        for k in range(kept, at, -1):
            values[k] = values[k - 1]
        values[at] = value
        kept += 1
    return kept


def text_runs(words: Any, ends: Any, width: Any, hashes: Any) -> Any:
    """Write the hash of the run of `width` words at each word of texts, 0 if its text ends before; `ends`, [n + 1]."""
    for row in range(len(ends) - 1):
        begin, end = ends[row], ends[row + 1]
        count = runs(words[begin:], end - begin, width, hashes[begin:])
        hashes[begin + count : end] = U64(0)
    return len(ends) - 1


def find(values: Any, keys: Any, starts: Any, shift: Any, found: Any) -> Any:
    """Write the `position` of each value."""
    for i in range(len(values)):
        found[i] = position(keys, starts, shift, values[i])
    return len(values)


def position(keys: Any, starts: Any, shift: Any, key: Any) -> Any:
    """The index of a key among sorted ones, or -1; `starts` and `shift` are those of `stages.text.repeats`."""
    bucket = np.int64(key >> shift)
    for at in range(starts[bucket], starts[bucket + 1]):
        if keys[at] >= key:
            return at if keys[at] == key else -1
    return -1
