"""How a MinHash signature is cut into bands, and what that finds: the S-curve of locality-sensitive hashing."""

from __future__ import annotations

import functools
import random
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

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


@functools.cache
def permutations(count: int, seed: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Factors (odd) and terms of the permutations a * h + b mod 2**32: those of datasketch 2.0's "affine32".

    datasketch draws them from NumPy's `RandomState`, a Mersenne Twister; Python's own is the same one, and is there
    without loading another library.
    """
    state = [seed]
    for i in range(1, 624):  # init_genrand of Matsumoto and Nishimura, which RandomState seeds with
        state.append((1812433253 * (state[-1] ^ state[-1] >> 30) + i) & 0xFFFFFFFF)
    twister = random.Random()  # noqa: S311  no secrets
    twister.setstate((3, (*state, 624), None))
    draws = np.array([twister.getrandbits(32) for _ in range(2 * count)], np.uint32)
    return draws[:count] << np.uint32(1) | np.uint32(1), draws[count:]
