"""Pairs of near-duplicates with their exact Jaccard, and the clusters that they form."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product, repeat
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.dedup.bands import Matching
from stages.dedup.groups import Groups
from stages.dedup.kernel import ROW
from stages.dedup.signatures import LOOPS, Mask, choose, first_alike, in_order, shared_keys, sign_texts, write_sets
from stages.files import in_file, mapped
from stages.text.shards import Rows, cores
from stages.text.shingles import Sets

AT_ONCE = 1 << 22
"""Maximum number of texts whose band keys are sorted at once: 130 MB."""
CHUNK = 1 << 16
"""Number of band keys that are looked at together."""
PART_TEXTS = 2_000
"""Number of texts of a column in memory that are worked on at once."""


Compared = tuple[Rows, NDArray[np.float32], int]
"""Pairs of candidates, their Jaccard, and the number of pairs compared."""


@dataclass(frozen=True)
class Near:
    """Pairs of near-duplicates among the first exact copies."""

    rows: Rows  # [pairs, 2], the smaller row first, in order
    jaccard: NDArray[np.float32]  # [pairs]
    crowded: Rows  # rows of a bucket so large that they were compared with its leaders only, in order
    compared: int  # number of pairs whose Jaccard was computed

    def clusters(self, copies: Groups, jaccard: float) -> Groups:
        """Connected components of exact copies and of pairs at or above this Jaccard."""
        edges = self.rows[self.jaccard >= np.float32(jaccard)]
        nodes, at = np.unique(np.concatenate([edges, np.stack([copies.first, copies.rows], 1)]), return_inverse=True)
        parents = np.arange(len(nodes))
        LOOPS.call("unite", at.reshape(-1, 2), parents)
        return Groups(nodes, nodes[parents])


def clusters(texts: pl.Series, matching: Matching, jaccard: float) -> Rows:
    """The near-duplicate cluster of each text (no nulls), int64 [n]: the signal `cluster` of `dedup` as row numbers.

    `jaccard` is the smallest Jaccard of a pair that forms a cluster.
    """
    parts = [texts[at : at + PART_TEXTS] for at in range(0, len(texts), PART_TEXTS)]
    signed = sign_texts(parts, matching, cores())
    copies = Groups.of(first_alike(signed.keys))
    near = near_pairs(copies, signed.words, signed.bands, partial(choose, parts), matching, near=jaccard)
    return near.clusters(copies, jaccard).between(0, len(texts))[0]


def near_pairs(
    copies: Groups,
    words: NDArray[np.uint32],
    bands: NDArray[np.uint32],
    texts: Callable[[Mask], Iterable[pl.Series]],
    matching: Matching,
    *,
    near: float,
    folder: Path | None = None,
    at_once: int = AT_ONCE,
) -> Near:
    """Compare the texts that share a band key, each pair once, on all cores; the same pairs whatever their number.

    Only first exact copies are compared. `words`, [n], are those of each text, `bands`, [n, at most 64], its band keys;
    `texts` gives the chosen rows, in order, in parts. The rows of a bucket of more than `matching.bucket` rows, a
    crowded one, are compared with at most this many leaders: the longest rows that are under `near` with each other.

    Memory: 2 bytes per text; 30 bytes per text, but of at most `at_once` texts; while they are found, 60 bytes per
    candidate, which is a text that shares a band key, and 60 per pair. Candidates, their band keys and sets of
    shingles, and pairs are in temporary files in `folder`: 4 bytes per band, 8 per word, 32 per candidate, 40 per pair.
    """
    chosen = _candidates(bands, copies, at_once)
    rows = in_file(np.flatnonzero(chosen), folder)  # candidates are numbered by their place among these
    ranked = in_file(np.argsort(-words[rows].astype(np.int64), kind="stable"), folder)
    crowded, leads = (in_file(np.zeros(len(rows), np.uint64), folder) for _ in range(2))
    compared, size = 0, max(2 * matching.bucket, 1 << 12)

    def compare(part: NDArray[np.uint64], band: int, keys: NDArray[np.uint32], sets: Sets) -> Compared:
        heads, state = np.empty(matching.bucket, np.int64), np.zeros(4, np.int64)
        how = (keys, band, sets.values, sets.ends, crowded, leads, heads, matching.floor, near, state)
        pairs, values = [np.empty((0, 2), np.int64)], [np.empty(0, np.float32)]
        while state[0] < len(part):
            space = np.empty((size, 2), np.int64), np.empty(size, np.float32)
            count = LOOPS.call("pairs_loop", part, ranked, *how, *space)
            pairs.append(space[0][:count].copy())
            values.append(space[1][:count].copy())
        return np.concatenate(pairs), np.concatenate(values), int(state[3])

    with (
        tempfile.TemporaryFile(dir=folder) as file,
        tempfile.TemporaryFile(dir=folder) as other,
        tempfile.TemporaryFile(dir=folder) as found,
        tempfile.TemporaryFile(dir=folder) as jaccards,
        ThreadPoolExecutor(cores()) as pool,
    ):
        sets = write_sets(texts(chosen), file, cores())
        for begin in range(0, len(rows), CHUNK):
            other.write(np.ascontiguousarray(bands[rows[begin : begin + CHUNK]]).data)
        keys = mapped(other, np.uint32).reshape(-1, bands.shape[1])
        for band in range(bands.shape[1]):
            order = in_order(keys[ranked, band], np.arange(len(ranked)))
            for some, jaccard, count in pool.map(compare, _parts(order), repeat(band), repeat(keys), repeat(sets)):
                found.write(rows[some].data)
                jaccards.write(jaccard.data)
                compared += count
        pairs, every = mapped(found, np.int64).reshape(-1, 2), mapped(jaccards, np.float32)
    ascending = np.lexsort((pairs[:, 1], pairs[:, 0]))
    pairs, every = in_file(pairs[ascending], folder), in_file(every[ascending], folder)
    return Near(pairs, every, rows[crowded > 0], compared)


def _candidates(bands: NDArray[np.uint32], copies: Groups, at_once: int) -> Mask:
    """Which first copies share a band key with another one; keys are sorted by their top bits in several passes."""
    firsts, candidates = np.ones(len(bands), np.bool_), np.zeros(len(bands), np.bool_)
    firsts[copies.rows[copies.rows > copies.first]] = False
    bits = (max(0, len(bands) - 1) // at_once).bit_length()
    for band, part in product(range(bands.shape[1]), range(1 << bits)):
        some, column = [np.empty(0, np.int64)], bands[:, band]
        for begin in range(0, len(bands), CHUNK):
            here = firsts[begin : begin + CHUNK]
            if bits:
                here = here & (column[begin : begin + CHUNK] >> np.uint32(32 - bits) == part)
            some.append(begin + np.flatnonzero(here))
        rows = np.concatenate(some)
        candidates[shared_keys(column[rows], rows)[1]] = True
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
