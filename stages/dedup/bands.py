"""Bands of MinHash signatures, and the S-curve of the pairs that they find (locality-sensitive hashing)."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from stages.stage import require
from stages.text.shingles import Words, band_keys, sign

Jaccard = TypeVar("Jaccard", float, NDArray[np.float64])


def chance(jaccard: Jaccard, bands: int, rows: int) -> Jaccard:
    """Probability that a pair of this Jaccard shares a band and is compared: 1 - (1 - s**rows)**bands.

    Source: Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, 3.4.
    """
    return 1 - (1 - jaccard**rows) ** bands


def _legendre(count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nodes and weights of Gauss-Legendre quadrature, by Newton's method; importing `numpy.polynomial` takes longer."""
    nodes = np.cos(np.pi * (np.arange(count) + 0.75) / (count + 0.5))
    for _ in range(6):
        before, value = np.ones(count), nodes
        for degree in range(2, count + 1):
            before, value = value, ((2 * degree - 1) * nodes * value - (degree - 1) * before) / degree
        slope = count * (before - nodes * value) / (1 - nodes**2)
        nodes -= value / slope
    return nodes, 2 / ((1 - nodes**2) * slope**2)


@functools.cache
def plan(threshold: float, permutations: int, recall: float) -> tuple[int, int]:
    """Bands and rows per band with the least weighted error, as datasketch's `MinHashLSH` chooses them.

    The error is the area under the S-curve below the threshold (weight 1 - recall) plus the area above the curve from
    the threshold on (weight recall). If two plans are equal, the one with fewer bands is returned.
    """
    # exact: the S-curve is a polynomial of degree bands * rows
    nodes, weights = _legendre(permutations // 2 + 1)
    below, above = threshold * (nodes + 1) / 2, threshold + (1 - threshold) * (nodes + 1) / 2
    best, least = (1, 1), np.inf
    for bands in range(1, permutations + 1):
        rows = np.arange(1, permutations // bands + 1)
        vain = threshold / 2 * (weights @ (1 - (1 - below[:, np.newaxis] ** rows) ** bands))
        missed = (1 - threshold) / 2 * (weights @ (1 - above[:, np.newaxis] ** rows) ** bands)
        errors = (1 - recall) * vain + recall * missed
        if errors.min() < least:
            best, least = (bands, int(rows[errors.argmin()])), errors.min()
    return best


@dataclass(frozen=True)
class Matching:
    """Parameters of the search for near-duplicates, which `dedup`, `against` and `refine dedup` share."""

    floor: float = 0.5  # smallest Jaccard that is searched for
    permutations: int = 128  # length of a signature, the maximum of bands * rows
    recall: float = 0.5  # weight of missed pairs against pairs compared in vain, in the choice of bands
    seed: int = 1  # of the permutations
    bucket: int = 1024  # maximum number of rows that a row is compared with in one bucket

    @classmethod
    def for_threshold(cls, jaccard: float, bucket: int = 1024) -> Matching:
        """Bands that find nearly all pairs at or above a threshold: their floor is 5/7 of it, 0.5 for 0.7."""
        return cls(floor=max(0.1, round(5 / 7 * jaccard, 3)), bucket=bucket)

    def check(self, stage: str) -> None:
        """Raise `StageParameterError` for a value out of range; `stage` names the stage in the message."""
        most = 1024
        require(f"{stage}: floor", self.floor, 0 < self.floor < 1, "a Jaccard above 0 and under 1")
        require(f"{stage}: permutations", self.permutations, 1 <= self.permutations <= most, f"1 to {most}")
        require(f"{stage}: recall", self.recall, 0 <= self.recall <= 1, "a weight from 0 to 1")
        require(f"{stage}: seed", self.seed, 0 <= self.seed < 1 << 32, "0 to 2**32 - 1")
        require(f"{stage}: bucket", self.bucket, self.bucket > 1, "2 or more")

    def bands(self) -> tuple[int, int]:
        """Number of bands, and rows per band."""
        return plan(self.floor, self.permutations, self.recall)

    def chance(self, jaccard: Jaccard) -> Jaccard:
        """Probability that a pair of this Jaccard is compared."""
        return chance(jaccard, *self.bands())

    def keys(self, words: Words) -> NDArray[np.uint32]:
        """Band keys of texts, uint32 [n, bands]."""
        return band_keys(sign(words, self.permutations, self.seed), *self.bands())

    def second_keys(self, words: Words) -> NDArray[np.uint32]:
        """Independent band keys of texts, uint32 [n, bands]; together with `keys` they are keys of 64 bits."""
        return band_keys(~sign(words, self.permutations, self.seed), *self.bands())
