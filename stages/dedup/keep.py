"""Which texts of a column to keep: the best first, each that is no near-duplicate of one already kept."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.dedup.bands import Matching
from stages.dedup.signatures import LOOPS, Mask, choose, first_alike, shared_keys, sign_texts, write_sets
from stages.files import zeros
from stages.text.shards import Rows

Rank = Callable[[NDArray[np.uint32]], Rows]
"""From the number of words of each text its rank, int64 [n]: the smallest is the best; ties by row."""
GIVEN = -(1 << 62)
"""Rank of a text that is always kept: one of the earlier corpus that others are compared with."""


@dataclass(frozen=True)
class Selection:
    """Texts to keep, and the kept text that each other text duplicates.

    `crowded` texts share a band key with more than `bucket` kept ones, so that a duplicate may have been missed.
    """

    of: Rows  # [n], for each text the kept one that it is a duplicate of; its own number if it is kept
    jaccard: NDArray[np.float32]  # [n], to that one; 0 if the text is kept
    first: Rows  # [n], the first exact copy of each text
    compared: int  # number of pairs whose Jaccard was computed
    crowded: int  # number of texts

    def mask(self) -> Mask:
        kept: Mask = self.of == np.arange(len(self.of))
        return kept


def keep_best(  # noqa: PLR0917  what is compared, and how, each once
    texts: Iterable[pl.Series], threshold: float, matching: Matching, ranks: Rank, scratch: Path, workers: int = 1
) -> Selection:
    """Decide for each text whether it is kept.

    No two kept texts share a band key and have a Jaccard at or above the threshold, except given texts and crowds; for
    each text that is not kept, the nearest kept one is named, of equally near ones the first.

    Memory: at most 200 bytes per text, besides the texts being worked on. In `scratch` are 4 bytes per band and text, 8
    for each band key that a text shares, and 8 per word of texts that share one. Time grows linearly with the corpus.

    `texts` is a column in parts, without nulls, iterated twice; `threshold`, above 0, is the smallest Jaccard of
    duplicates; a text is compared with at most `matching.bucket` kept texts of a bucket, the best; `scratch` is empty.
    """
    with (scratch / "bands").open("w+b") as file:
        signed = sign_texts(texts, matching, workers, file)
    first, rank, bands = first_alike(signed.keys), ranks(signed.words), signed.bands
    del signed
    chosen = np.arange(len(first))  # the best copy, for the first one of a group of exact copies
    copies = np.flatnonzero(np.bincount(first, minlength=len(first))[first] > 1)
    copies = copies[np.lexsort((rank[copies], first[copies]))]
    groups, at = np.unique(first[copies], return_index=True)
    chosen[groups] = copies[at]
    shared, bases = _places(bands, first, workers)
    sets = write_sets(choose(texts, shared), scratch, workers)
    ends = np.zeros(len(first) + 1, np.int64)
    ends[1:][shared] = np.diff(sets.ends)
    ends.cumsum(out=ends)
    order = np.flatnonzero(shared)
    order = order[np.lexsort((chosen[order], rank[chosen[order]]))]
    given = np.count_nonzero(rank[chosen[order]] == GIVEN)
    slots, filled = (zeros(scratch / name, np.uint32, int(bases[-1]) + 1) for name in ("slots", "filled"))
    stamps, crowded = np.zeros(len(first), np.uint32), np.zeros(len(first), np.uint8)
    stands, jaccard = np.arange(len(first)), np.zeros(len(first), np.float32)
    buckets, how = (bands, bases[:-1], slots, filled, sets.values, ends), (threshold, matching.bucket)
    compared = LOOPS.call("keep_best_loop", order, given, *buckets, *how, stamps, stands, jaccard, crowded)
    of = chosen[stands[first]]  # of a group of copies, the first was walked, and stands for the best
    jaccard = jaccard[first]
    jaccard[stands[first] == first] = 1
    of[rank == GIVEN] = np.flatnonzero(rank == GIVEN)
    jaccard[of == np.arange(len(of))] = 0
    return Selection(of, jaccard, first, compared, int(crowded.sum()))


def _places(bands: NDArray[np.uint32], first: Rows, workers: int) -> tuple[Mask, Rows]:
    """Replace band keys by where their bucket begins among the rows that share a key, from 1; 0 if no other row does.

    Returns which rows share a key, and where each band's places begin.
    """
    shared, firsts = np.zeros(len(bands), np.bool_), np.flatnonzero(first == np.arange(len(first)))

    def replace(band: int) -> int:
        keys, rows = shared_keys(bands[firsts, band], firsts)
        bands[:, band] = 0
        bands[rows, band] = 1 + np.searchsorted(keys, keys)
        shared[rows] = True
        return len(rows)

    with ThreadPoolExecutor(workers) as pool:
        counts = list(pool.map(replace, range(bands.shape[1])))
    return shared, np.cumsum([0, *counts], dtype=np.int64)
