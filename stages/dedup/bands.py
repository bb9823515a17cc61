"""How a MinHash signature is cut into bands, and what that finds: the S-curve of locality-sensitive hashing."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from stages.stage import StageParameterError

if TYPE_CHECKING:
    from stages.text.shingles import Words

Jaccard = TypeVar("Jaccard", float, NDArray[np.float64])


def chance(jaccard: Jaccard, bands: int, rows: int) -> Jaccard:
    """Chance that a pair of this Jaccard shares a band and is compared: 1 - (1 - s**rows)**bands.

    Source: Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, 3.4.
    """
    return 1 - (1 - jaccard**rows) ** bands


@functools.cache
def plan(threshold: float, permutations: int, recall: float) -> tuple[int, int]:
    """Bands and rows a band with the least weighted error, as datasketch's `MinHashLSH` chooses them.

    The error is the area under the S-curve below the threshold (weight 1 - recall) plus the area above it (weight
    recall). Of equal plans the one of fewer bands.

    Args:
        threshold: Jaccard from which on pairs are wanted.
        permutations: length of a signature; bands * rows is at most that.
        recall: weight of pairs missed above the threshold against pairs compared in vain below it.
    """
    # exact: the S-curve is a polynomial of degree bands * rows
    nodes, weights = np.polynomial.legendre.leggauss(permutations // 2 + 1)
    below, above = threshold * (nodes + 1) / 2, threshold + (1 - threshold) * (nodes + 1) / 2
    best, least = (1, 1), np.inf
    for bands in range(1, permutations + 1):
        for rows in range(1, permutations // bands + 1):
            vain = threshold / 2 * float(weights @ chance(below, bands, rows))
            missed = (1 - threshold) / 2 * float(weights @ (1 - chance(above, bands, rows)))
            error = (1 - recall) * vain + recall * missed
            if error < least:
                best, least = (bands, rows), error
    return best


@dataclass(frozen=True)
class Matching:
    """How near-duplicates are searched: the parameters that `dedup`, `against` and `refine dedup` share.

    Attributes:
        floor: smallest Jaccard that is searched for.
        permutations: length of a signature.
        recall: weight of missed pairs against pairs compared in vain, in the choice of bands.
        seed: seed of the permutations.
        bucket: maximum number of rows that a row is compared with in one bucket.
    """

    floor: float = 0.5
    permutations: int = 128
    recall: float = 0.5
    seed: int = 1
    bucket: int = 1024

    def check(self, stage: str) -> None:
        """Check the values; `stage` names the stage in the message.

        Raises:
            StageParameterError: a value is out of range.
        """
        for name, value, right, expected in (
            ("floor", self.floor, 0 < self.floor < 1, "a Jaccard above 0 and under 1"),
            ("permutations", self.permutations, 1 <= self.permutations <= 1024, "1 to 1024"),  # noqa: PLR2004
            ("recall", self.recall, 0 <= self.recall <= 1, "a weight from 0 to 1"),
            ("seed", self.seed, 0 <= self.seed < 1 << 32, "0 to 2**32 - 1"),
            ("bucket", self.bucket, self.bucket > 1, "2 or more"),
        ):
            if not right:
                raise StageParameterError(f"{stage}: {name} is {value}, expected {expected}")

    def bands(self) -> tuple[int, int]:
        """Bands, and rows of each band."""
        return plan(self.floor, self.permutations, self.recall)

    def keys(self, words: Words) -> NDArray[np.uint32]:
        """Band keys of texts, uint32 [n, bands]."""
        from stages.text.shingles import band_keys, sign  # compiled loops, which naming a stage must not load

        return band_keys(sign(words, self.permutations, self.seed), *self.bands())
