"""Pairs of near-duplicates with their exact Jaccard, and the clusters that they form."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.dedup.bands import Matching
from stages.dedup.kernel import ROW
from stages.dedup.signatures import LOOPS, Mask, choose, first_alike, in_order, shared_keys, sign_texts, write_sets
from stages.text.shards import Rows, cores
from stages.text.shingles import Sets

PART_TEXTS = 2_000
"""Number of texts of a column in memory that are worked on at once."""


@dataclass(frozen=True)
class Near:
    """Pairs of near-duplicates among the first exact copies."""

    first: Rows  # [n], the first exact copy of each row
    rows: Rows  # [pairs, 2], the smaller row first, in order
    jaccard: NDArray[np.float32]  # [pairs]
    crowded: Mask  # [n], rows of a bucket so large that they were compared with its leaders only
    compared: int  # number of pairs whose Jaccard was computed

    def clusters(self, jaccard: float) -> Rows:
        """For each row the first row of its cluster: connected components of copies and of pairs at or above this."""
        parents = np.arange(len(self.first))
        LOOPS.call("unite", self.rows[self.jaccard >= np.float32(jaccard)], parents)
        return parents[self.first]


def clusters(texts: pl.Series, matching: Matching, jaccard: float) -> Rows:
    """The near-duplicate cluster of each text (no nulls), int64 [n]: the signal `cluster` of `dedup` as row numbers.

    `jaccard` is the smallest Jaccard of a pair that forms a cluster.
    """
    parts = [texts[at : at + PART_TEXTS] for at in range(0, len(texts), PART_TEXTS)]
    signed = sign_texts(parts, matching, cores())
    first = first_alike(signed.keys)
    near = near_pairs(first, signed.words, signed.bands, partial(choose, parts), matching, near=jaccard)
    return near.clusters(jaccard)


def near_pairs(
    first: Rows,
    words: NDArray[np.uint32],
    bands: NDArray[np.uint32],
    texts: Callable[[Mask], Iterable[pl.Series]],
    matching: Matching,
    *,
    near: float,
    folder: Path | None = None,
) -> Near:
    """Compare the texts that share a band key, each pair once, on all cores; the same pairs whatever their number.

    Only first exact copies (`first`, [n]) are compared. `words`, [n], are those of each text, `bands`, [n, at most 64],
    its band keys; `texts` gives the chosen rows, in order, in parts. The rows of a bucket of more than
    `matching.bucket` rows, a crowded one, are compared with at most this many leaders: the longest rows that are under
    `near` with each other. The sets of shingles are in a temporary file in `folder`, 8 bytes per word.
    """
    firsts = np.flatnonzero(first == np.arange(len(first)))
    ranked = firsts[np.argsort(-words[firsts].astype(np.int64), kind="stable")]
    crowded, leads = np.zeros(len(first), np.uint64), np.zeros(len(first), np.uint64)
    rows, jaccards, compared = [np.empty((0, 2), np.int64)], [np.empty(0, np.float32)], 0
    size = max(2 * matching.bucket, 1 << 12)

    def compare(part: NDArray[np.uint64], band: int, sets: Sets) -> tuple[Rows, NDArray[np.float32], int]:
        heads, state = np.empty(matching.bucket, np.int64), np.zeros(4, np.int64)
        how = (bands, band, sets.values, sets.ends, crowded, leads, heads, matching.floor, near, state)
        pairs, values = [np.empty((0, 2), np.int64)], [np.empty(0, np.float32)]
        while state[0] < len(part):
            space = np.empty((size, 2), np.int64), np.empty(size, np.float32)
            count = LOOPS.call("pairs_loop", part, ranked, *how, *space)
            pairs.append(space[0][:count].copy())
            values.append(space[1][:count].copy())
        return np.concatenate(pairs), np.concatenate(values), int(state[3])

    with tempfile.TemporaryFile(dir=folder) as file, ThreadPoolExecutor(cores()) as pool:
        chosen = _candidates(bands, firsts)
        sets = write_sets(texts(chosen), chosen, file, cores())
        for band in range(bands.shape[1]):
            order = in_order(bands[ranked, band], np.arange(len(ranked)))
            for found, jaccard, count in pool.map(compare, _parts(order), repeat(band), repeat(sets)):
                rows.append(found)
                jaccards.append(jaccard)
                compared += count
    pairs, jaccard = np.concatenate(rows), np.concatenate(jaccards)
    ascending = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return Near(first, pairs[ascending], jaccard[ascending], crowded > 0, compared)


def _candidates(bands: NDArray[np.uint32], rows: Rows) -> Mask:
    """Which of all rows share a band key with another one of `rows`."""
    candidates = np.zeros(len(bands), np.bool_)
    for band in range(bands.shape[1]):
        candidates[shared_keys(bands[rows, band], rows)[1]] = True
    return candidates


def _parts(order: NDArray[np.uint64]) -> Iterator[NDArray[np.uint64]]:
    """Cut at the borders of buckets, into enough parts to share out among threads."""
    begin = 0
    while begin < len(order):
        end = min(len(order), begin + max(1 << 14, len(order) // 64))
        if end < len(order):
            end = int(np.searchsorted(order, order[end - 1] | ROW, side="right"))
        yield order[begin:end]
        begin = end
