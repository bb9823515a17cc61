"""Pairs of near-duplicates with their exact Jaccard, from band keys and sets of shingles, and what hangs together."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.text.compiled import Kernels
from stages.text.shingles import Sets

LOOPS = Kernels(
    "stages.dedup.pairs_kernel",
    {
        "compare": "u8* i8* u4** i8 u8* i8* u8* u8* i8* f8 f8 i8* i8** f4*",
        "first_alike": "u8** i4* i8*",
        "unite": "i8** i8*",
        "places": "u8* i8* i8 u4** u1*",
        "walk": "i8* i8 u4** i8* u4* u4* u8* i8* f8 i8 u4* i8* f4* u1*",
    },
)
ROW = np.uint64(0xFFFFFFFF)
KEY = np.uint64(32)


@dataclass(frozen=True)
class Near:
    """Pairs of near-duplicates.

    Attributes:
        rows: int64 [pairs, 2], the smaller row first, in order.
        jaccard: float32 [pairs].
        crowded: bool [n], rows of a bucket so large that they were compared with its leaders only.
        compared: how many pairs were compared.
    """

    rows: NDArray[np.int64]
    jaccard: NDArray[np.float32]
    crowded: NDArray[np.bool_]
    compared: int


def first_alike(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """For each row of keys, [n, 2], the first row that equals it: a hash table, 8 to 16 bytes a row."""
    slots = np.full(1 << max(4, (2 * len(keys)).bit_length()), -1, np.int32)
    first = np.empty(len(keys), np.int64)
    LOOPS.call("first_alike", keys, slots, first)
    return first


def candidates(bands: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Whether each row, of band keys [n, bands], shares one with another row."""
    found, everybody = np.zeros(len(bands), np.bool_), np.arange(len(bands))
    for band in range(bands.shape[1]):
        order = in_order(bands[:, band], everybody)
        same = order[1:] >> KEY == order[:-1] >> KEY
        rows = (order & ROW).astype(np.int64)
        found[rows[1:][same]] = True
        found[rows[:-1][same]] = True
    return found


def near_pairs(  # noqa: PLR0917  what is compared, and how, each once
    bands: NDArray[np.uint32], ranked: NDArray[np.int64], sets: Sets, floor: float, near: float, limit: int
) -> Near:
    """Compare the rows that share a band key, each pair once, on all cores; the same pairs whatever their number.

    Args:
        bands: uint32 [n, at most 64 bands].
        ranked: int64 [n], all rows, those first that lead a crowded bucket first.
        sets: of every row that `candidates` finds.
        floor: least Jaccard of a pair, above 0.
        near: Jaccard to a leader from which on a row of a crowded bucket needs no leader of its own.
        limit: most rows that a row is compared with in a bucket. A larger bucket is crowded: its rows are compared with
            at most this many leaders, rows under `near` with each other.
    """
    crowded, leads = np.zeros(len(bands), np.uint64), np.zeros(len(bands), np.uint64)
    rows, jaccards, compared = [np.empty((0, 2), np.int64)], [np.empty(0, np.float32)], 0

    def compare(part: NDArray[np.uint64], band: int) -> tuple[NDArray[np.int64], NDArray[np.float32], int]:
        heads, state, found = np.empty(limit, np.int64), np.zeros(4, np.int64), list[Any]()
        while state[0] < len(part):
            pairs = np.empty((max(2 * limit, 1 << 12), 2), np.int64)
            values = np.empty(len(pairs), np.float32)
            given = (
                part,
                ranked,
                bands,
                band,
                sets.values,
                sets.ends,
                crowded,
                leads,
                heads,
                floor,
                near,
                state,
                pairs,
                values,
            )
            count = LOOPS.call("compare", *given)
            found.append((pairs[:count].copy(), values[:count].copy()))
        return np.concatenate([one for one, _ in found]), np.concatenate([one for _, one in found]), int(state[3])

    with ThreadPoolExecutor(cores()) as pool:
        for band in range(bands.shape[1]):
            for found, jaccard, count in pool.map(
                compare, _parts(in_order(bands[:, band], ranked)), itertools.repeat(band)
            ):
                rows.append(found)
                jaccards.append(jaccard)
                compared += count
    pairs, jaccard = np.concatenate(rows), np.concatenate(jaccards)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return Near(pairs[order], jaccard[order], crowded > 0, compared)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def components(pairs: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """For each of n rows the first row that it hangs together with through pairs, itself where there is none."""
    parents = np.arange(n)
    LOOPS.call("unite", pairs, parents)
    return parents


def in_order(keys: NDArray[np.uint32], rows: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Some rows by their key in a band: key << 32 | place among the rows, sorted."""
    order = keys[rows].astype(np.uint64) << KEY
    order |= np.arange(len(rows), dtype=np.uint64)
    order.sort()
    return order


def _parts(order: NDArray[np.uint64]) -> Iterator[NDArray[np.uint64]]:
    """Cut at the borders of buckets, into parts enough to share out."""
    begin = 0
    while begin < len(order):
        end = min(len(order), begin + max(1 << 14, len(order) // 64))
        if end < len(order):
            end = int(np.searchsorted(order, (order[end - 1] >> KEY << KEY) | ROW, side="right"))
        yield order[begin:end]
        begin = end
