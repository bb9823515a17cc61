"""Pairs of near-duplicates with their exact Jaccard, and the clusters that they form."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from threading import Lock

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages import columns
from stages.columns import chunks
from stages.dedup.bands import Matching
from stages.dedup.groups import Groups
from stages.dedup.kernel import B32, ROW
from stages.dedup.signatures import LOOPS, Mask, choose, each_part, first_alike, pack, sign_texts, write_sets
from stages.files import mapped
from stages.text.shards import Rows, cores

PART_TEXTS = 2_000
"""Number of texts of a column in memory that are worked on at once."""
CHANCE = 0.25
"""Expected number of band keys that a text shares by chance; above it, keys of 64 bits choose the candidates."""


@dataclass(frozen=True)
class Near:
    """Pairs of near-duplicates among the first exact copies."""

    rows: Rows  # [pairs, 2], the smaller row first, in order
    jaccard: NDArray[np.float32]  # [pairs]
    crowded: Rows  # rows of a bucket so large that they were compared with its leaders only, in order
    compared: int  # number of pairs whose Jaccard was computed

    def clusters(self, same: Groups, jaccard: float, folder: Path | None = None) -> Groups:
        """Connected components of exact copies, the groups `same`, and of pairs at or above this Jaccard; in files."""

        def edges() -> Iterator[Rows]:
            for here in chunks(len(self.rows)):
                yield self.rows[here][self.jaccard[here] >= np.float32(jaccard)]
            for here in chunks(len(same.rows)):
                yield np.stack([same.first[here], same.rows[here]], 1)

        ends = columns.write(edges(), np.int64, folder)
        nodes = columns.unique(ends, folder)
        at = columns.write((np.searchsorted(nodes, ends[here]) for here in chunks(len(ends))), np.int64, folder)
        every = [*chunks(len(nodes))]
        parents = columns.write((np.arange(here.start, here.stop) for here in every), np.int64, folder)
        LOOPS.call("unite", at.reshape(-1, 2), parents)
        return Groups.of_members(nodes, columns.write((nodes[parents[i]] for i in every), np.int64, folder), folder)


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
) -> Near:
    """Compare the texts that share a band key, each pair once, on all cores; the same pairs whatever their number.

    Only first exact copies are compared. `words`, [n], are those of each text, `bands`, [n, at most 64], its band keys;
    `texts` gives the chosen rows, in order, in parts. The rows of a bucket of more than `matching.bucket` rows, a
    crowded one, are compared with at most this many leaders: the longest rows that are under `near` with each other.

    All columns are in temporary files in `folder`: 10 bytes per text; per candidate, which is a text that shares a band
    key, 4 per band, 8 per word, and 48; and 52 per pair. If many keys match by chance
    (`CHANCE`), candidates are signed again first, in files of 4 bytes per band and 32 for each.
    """
    chosen = _candidates(bands, copies, folder)
    if bands.size > CHANCE * (1 << 32):
        _remove_chance(chosen, bands, texts, matching, folder)
    found = (here.start + np.flatnonzero(chosen[here]) for here in chunks(len(chosen)))
    rows = columns.write(found, np.int64, folder)  # candidates are numbered by their place among these
    ranked = _longest_first(words, rows, folder)
    crowded, leads, order = (columns.full(len(rows), 0, np.uint64, folder) for _ in range(3))
    keys = columns.write((bands[rows[here]] for here in chunks(len(rows))), np.uint32, folder)
    keys = keys.reshape(-1, bands.shape[1])
    sets, lock = write_sets(texts(chosen), folder, cores()), Lock()

    with (
        tempfile.TemporaryFile(dir=folder) as pair_file,
        tempfile.TemporaryFile(dir=folder) as jaccard_file,
        ThreadPoolExecutor(cores()) as pool,
    ):

        def compare(part: NDArray[np.uint64], band: int) -> int:
            heads, state = np.empty(matching.bucket, np.int64), np.zeros(4, np.int64)
            how = (keys, band, sets.values, sets.ends, crowded, leads, heads, matching.floor, near, state)
            size = max(2 * matching.bucket, 1 << 12)
            pairs, jaccards = np.empty((size, 2), np.int64), np.empty(size, np.float32)
            while state[0] < len(part):
                count = LOOPS.call("pairs_loop", part, ranked, *how, pairs, jaccards)
                some = pack(pairs[:count, 0], pairs[:count, 1])
                with lock:
                    pair_file.write(some.data)
                    jaccard_file.write(jaccards[:count].data)
            return int(state[3])

        compared = 0
        for band in range(bands.shape[1]):
            for here in chunks(len(order)):
                order[here] = pack(keys[ranked[here], band], np.arange(here.start, here.stop))
            order.sort()
            compared += sum(pool.map(compare, _parts(order), repeat(band)))
        pairs, jaccards = mapped(pair_file, np.uint64), mapped(jaccard_file, np.float32)
    many = columns.write((rows[here][crowded[here] > 0] for here in chunks(len(rows))), np.int64, folder)
    return Near(*_in_order(pairs, jaccards, rows, folder), many, compared)


def _candidates(bands: NDArray[np.uint32], copies: Groups, folder: Path | None) -> Mask:
    """Which first copies share a band key with another one."""
    firsts, candidates = (columns.full(len(bands), value, np.bool_, folder) for value in (True, False))
    for here in chunks(len(copies.rows)):
        rows = copies.rows[here]
        firsts[rows[rows > copies.first[here]]] = False
    order = columns.full(len(bands), 0, np.uint64, folder)
    for band in range(bands.shape[1]):
        size = 0
        for here in chunks(len(bands)):
            some = here.start + np.flatnonzero(firsts[here])
            order[size : size + len(some)] = pack(bands[some, band], some)
            size += len(some)
        order[:size].sort()
        for here in chunks(size):
            some = order[here.start : here.stop + 1][: size - here.start]
            same = some[1:] ^ some[:-1] <= ROW
            for shared in (some[1:][same], some[:-1][same]):
                candidates[(shared & ROW).astype(np.int64)] = True
    return candidates


def _remove_chance(
    chosen: Mask,
    bands: NDArray[np.uint32],
    texts: Callable[[Mask], Iterable[pl.Series]],
    matching: Matching,
    folder: Path | None,
) -> None:
    """Remove the candidates that share no band key of 64 bits with another one, only keys of 32 bits."""
    found = (here.start + np.flatnonzero(chosen[here]) for here in chunks(len(chosen)))
    rows = columns.write(found, np.int64, folder)
    halves = columns.write(each_part(matching.second_keys, texts(chosen), cores()), np.uint32, folder)
    halves, every = halves.reshape(-1, bands.shape[1]), [*chunks(len(rows))]
    chosen[rows] = False
    for band in range(bands.shape[1]):
        keys = columns.write((pack(bands[rows[i], band], halves[i, band]) for i in every), np.uint64, folder)
        order = columns.sort(keys, folder)
        later = (order[i.start : i.stop + 1] for i in every)
        shared = columns.write((some[1:][some[1:] == some[:-1]] for some in later), np.uint64, folder)
        for i in every:
            chosen[rows[i][columns.holds(shared, keys[i])]] = True


def _longest_first(words: NDArray[np.uint32], rows: Rows, folder: Path | None) -> Rows:
    """Numbers of the rows, the longest first; ties in order."""
    every, last = [*chunks(len(rows))], np.uint32(0xFFFFFFFF)
    numbers = (pack(last - words[rows[i]], np.arange(i.start, i.stop)) for i in every)
    order = columns.write(numbers, np.uint64, folder)
    order.sort()
    return columns.write((order[here] & ROW for here in every), np.int64, folder)


def _in_order(
    pairs: NDArray[np.uint64], jaccards: NDArray[np.float32], rows: Rows, folder: Path | None
) -> tuple[Rows, NDArray[np.float32]]:
    """Pairs of candidates as pairs of rows, [pairs, 2], in order, and their Jaccard."""
    order, every = columns.sort(pairs, folder), [*chunks(len(pairs))]
    values = columns.full(len(pairs), 0, np.float32, folder)
    for here in every:
        values[np.searchsorted(order, pairs[here])] = jaccards[here]
    sides = (np.stack([order[here] >> B32, order[here] & ROW], 1).astype(np.int64) for here in every)
    return columns.write((rows[some] for some in sides), np.int64, folder).reshape(-1, 2), values


def _parts(order: NDArray[np.uint64]) -> Iterator[NDArray[np.uint64]]:
    """Cut at the borders of buckets, into enough parts to share out among threads."""
    begin = 0
    while begin < len(order):
        end = min(len(order), begin + max(1 << 14, len(order) // 64))
        if end < len(order):
            end = int(np.searchsorted(order, order[end - 1] | ROW, side="right"))
        yield order[begin:end]
        begin = end
