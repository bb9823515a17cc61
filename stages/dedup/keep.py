"""Which texts of a column to keep: the best first, each that is no near-duplicate of one already kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.dedup.pairs import LOOPS, first_alike, in_order
from stages.files import zeros
from stages.text.shingles import Part, band_keys, parts, shingle_sets, sign, words

Rows = NDArray[np.int64]
Given = TypeVar("Given")
Made = TypeVar("Made")
Number = TypeVar("Number", bound=np.generic)
PERMUTATIONS, SEED = 128, 1


@dataclass(frozen=True)
class KeepOptions:
    """How duplicates are found.

    Attributes:
        threshold: Jaccard from which on two texts are duplicates, above 0.
        bands: of the signature.
        rows: permutations a band.
        workers: threads.
        most: kept texts that a text is compared with in one bucket, the best of them; more are said to be a crowd.
    """

    threshold: float
    bands: int
    rows: int
    workers: int
    most: int = 10_000

    def ahead(self) -> int:
        """Parts in memory at once; of one worker's, one."""
        return 1 if self.workers == 1 else 4 * self.workers


@dataclass(frozen=True)
class Kept:
    """What was kept, and for what.

    Attributes:
        of: int64 [n], for each text the kept one that it is a duplicate of, its own number where it is kept.
        jaccard: float32 [n], to that one; 0 for what is kept.
        first: int64 [n], the first exact copy of each text, its own number where it is that.
        compared: pairs whose Jaccard was computed.
        crowded: texts that shared a band key with more than `most` kept ones, so that a duplicate may have been missed.
    """

    of: Rows
    jaccard: NDArray[np.float32]
    first: Rows
    compared: int
    crowded: int

    def mask(self) -> NDArray[np.bool_]:
        """Whether each text is kept."""
        kept: NDArray[np.bool_] = self.of == np.arange(len(self.of))
        return kept


Best = Callable[[NDArray[np.uint32]], NDArray[np.int64]]
"""From the words of each text its rank, int64 [n], the least for the best; equal ones go by row."""
GIVEN = -(1 << 62)
"""Rank of a text that is kept whatever it is like: what others are compared with."""


def keep_best(texts: Iterable[pl.Series], asked: KeepOptions, best: Best, scratch: Path) -> Kept:
    """Decide for each text.

    No two texts that share a band key are kept at a Jaccard of `threshold` or more, but for given ones and crowds; for
    each that is not kept the nearest kept one is named.

    Memory: at most 200 bytes a text, besides those that are worked on. In `scratch` lie four bytes a band and text, 8
    for each band key that a text shares, and 8 a word of texts that share one. Time grows linearly with the corpus.

    Args:
        texts: the column in parts, no nulls; gone through twice.
        asked: how.
        best: which of two duplicates is kept.
        scratch: an empty folder.
    """
    with ThreadPoolExecutor(asked.workers) as pool:
        keys, lengths = _signed(texts, asked, scratch / "bands", pool)
        first = first_alike(keys)
        del keys
        rank = best(lengths)
        chosen = _best_copies(first, rank)
        bands = _mapped(scratch / "bands", np.uint32).reshape(-1, asked.bands)
        shared, bases = _places(bands, first, pool)
        ends = _sets(texts, shared.view(np.bool_), scratch / "sets", asked, pool)
    order = np.flatnonzero(shared)
    order = order[np.lexsort((chosen[order], rank[chosen[order]]))]
    stands, jaccard = np.arange(len(first)), np.zeros(len(first), np.float32)
    slots, filled = (zeros(scratch / name, np.uint32, int(bases[-1]) + 1) for name in ("slots", "filled"))
    stamps, sets = np.zeros(len(first), np.uint32), _mapped(scratch / "sets", np.uint64)
    given = np.count_nonzero(rank[chosen[order]] == GIVEN)
    crowded = np.zeros(len(first), np.uint8)
    how = (asked.threshold, asked.most)
    loop = (order, given, bands, bases[:-1], slots, filled, sets, ends, *how, stamps, stands, jaccard, crowded)
    compared = LOOPS.call("walk", *loop)
    of = chosen[stands[first]]  # of a group of copies, the first was walked, and stands for the best
    jaccard = jaccard[first]
    jaccard[stands[first] == first] = 1
    of[rank == GIVEN] = np.flatnonzero(rank == GIVEN)
    jaccard[of == np.arange(len(of))] = 0
    return Kept(of, jaccard, first, compared, int(crowded.sum()))


def spread(
    work: Callable[[Given], Made], given: Iterable[Given], pool: ThreadPoolExecutor, ahead: int
) -> Iterator[Made]:
    """Like `map`, in threads, in order, with at most `ahead` things taken before their answer is."""
    if ahead < 2:  # noqa: PLR2004  one thread is none
        yield from map(work, given)
        return
    waiting: deque[Future[Made]] = deque()
    for one in given:
        waiting.append(pool.submit(work, one))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _signed(
    texts: Iterable[pl.Series], asked: KeepOptions, path: Path, pool: ThreadPoolExecutor
) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """Keys, uint64 [n, 2], and words of each text; band keys go to a file, uint32 [n, bands]."""

    def signed(part: Part) -> tuple[NDArray[np.uint64], NDArray[np.uint32], NDArray[np.uint32]]:
        found = words(part)
        bands = band_keys(sign(found, PERMUTATIONS, SEED), asked.bands, asked.rows)
        return found.keys, np.diff(found.ends).astype(np.uint32), bands

    keys, lengths = [np.empty((0, 2), np.uint64)], [np.empty(0, np.uint32)]
    with path.open("wb") as file:
        every = (part for some in texts for part in parts(some))
        for key, length, bands in spread(signed, every, pool, asked.ahead()):
            keys.append(key)
            lengths.append(length)
            file.write(bands.data)
    return np.concatenate(keys), np.concatenate(lengths)


def _best_copies(first: Rows, rank: Rows) -> Rows:
    """For the first row of each group of exact copies its best row; other rows stand for themselves."""
    chosen = np.arange(len(first))
    copies = np.flatnonzero(np.bincount(first, minlength=len(first))[first] > 1)
    copies = copies[np.lexsort((rank[copies], first[copies]))]
    groups, at = np.unique(first[copies], return_index=True)
    chosen[groups] = copies[at]
    return chosen


def _places(bands: NDArray[np.uint32], first: Rows, pool: ThreadPoolExecutor) -> tuple[NDArray[np.uint8], Rows]:
    """Band keys become places of buckets; rows that share one, uint8 [n]; where each band's places begin."""
    shared, rows = np.zeros(len(bands), np.uint8), np.flatnonzero(first == np.arange(len(first)))

    def places(band: int) -> int:
        return LOOPS.call("places", in_order(bands[:, band], rows), rows, band, bands, shared)

    counts = list(pool.map(places, range(bands.shape[1])))
    return shared, np.cumsum([0, *(count - 1 for count in counts)], dtype=np.int64)


def _sets(
    texts: Iterable[pl.Series], wanted: NDArray[np.bool_], path: Path, asked: KeepOptions, pool: ThreadPoolExecutor
) -> Rows:
    """Write the sets of shingles of the wanted texts to a file; where each text's set begins there, int64 [n + 1]."""

    def sets(part: Part) -> tuple[NDArray[np.uint64], Rows]:
        values, ends = shingle_sets(words(part))
        return values, np.diff(ends, prepend=0)

    sizes = [np.empty(0, np.int64)]
    with path.open("wb") as file:
        every = (part for some in _chosen(texts, wanted) for part in parts(some))
        for values, counts in spread(sets, every, pool, asked.ahead()):
            file.write(values.data)
            sizes.append(counts)
    ends = np.zeros(len(wanted) + 1, np.int64)
    ends[1:][wanted] = np.concatenate(sizes)
    return ends.cumsum(out=ends)


def _chosen(texts: Iterable[pl.Series], wanted: NDArray[np.bool_]) -> Iterator[pl.Series]:
    begin = 0
    for some in texts:
        here = wanted[begin : begin + len(some)]
        begin += len(some)
        if here.any():
            yield some.gather(np.flatnonzero(here))


def _mapped(path: Path, dtype: type[Number]) -> NDArray[Number]:
    """A scratch file as an array; the system takes its memory back when it needs it."""
    return np.memmap(path, dtype, "r+") if path.stat().st_size else np.empty(0, dtype)
