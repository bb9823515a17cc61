"""Spherical k-means over whole-number vectors: the same centres on every machine."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from stages.semantic.vectors import Vectors, whole_numbers
from stages.text.shards import Rows

ROUNDS = 10
"""Maximum number of times that centres are moved."""
PER_CENTRE = 64
"""Maximum number of vectors per centre that centres are computed from."""
BLOCK = 1 << 22
"""Maximum number of cosines that are in memory at once."""

Floats = NDArray[np.float32]


def unit_scales(vectors: Vectors) -> Floats:
    """One over the length of each vector, float32 [n]; 0 for one without length."""
    squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.int64)
    scales: Floats = np.divide(1, np.sqrt(squares), out=np.zeros(len(vectors)), where=squares > 0).astype(np.float32)
    return scales


def blocks(rows: int, width: int) -> Iterator[slice]:
    """Slices of `rows` rows, each as long as `BLOCK` allows at this width."""
    step = max(1, BLOCK // max(width, 1))
    return (slice(begin, min(begin + step, rows)) for begin in range(0, rows, step))


def centres(vectors: Vectors, order: Rows, count: int) -> Vectors:
    """Centres of at most `count` clusters of vectors [n, components], by Lloyd's algorithm (spherical k-means).

    `order` is a random order of the rows: the first are the first centres, and the next are what centres are computed
    from. A centre without a vector stays where it is.
    """
    sample = np.sort(order[: PER_CENTRE * count])
    sampled, found = np.asarray(vectors[sample]), np.asarray(vectors[order[:count]])
    before = np.empty(0, np.int64)
    for _ in range(ROUNDS):
        of, _ = nearest(sampled, found, 1)
        if np.array_equal(of[:, 0], before):
            break
        before = of[:, 0]
        found = _moved(sampled, before, found)
    return found


def _moved(vectors: Vectors, of: Rows, found: Vectors) -> Vectors:
    """Centres moved to the mean direction of the vectors of each."""
    order = np.argsort(of, kind="stable")
    members, begins = np.unique(of[order], return_index=True)
    scaled = np.rint(vectors[order] * (unit_scales(vectors[order]) * 65536)[:, None]).astype(np.int64)
    moved = found.copy()
    moved[members] = whole_numbers(np.add.reduceat(scaled, begins, axis=0).astype(np.float64))
    return moved


def nearest(vectors: Vectors, found: Vectors, count: int) -> tuple[Rows, Floats]:
    """The `count` nearest centres of each vector, nearest first, int64 [n, count], and their cosines, float32."""
    of = np.empty((len(vectors), count), np.int64)
    cosines = np.empty((len(vectors), count), np.float32)
    heads, scales = found.astype(np.float32).T, unit_scales(found)
    for here in blocks(len(vectors), len(found)):
        some = np.asarray(vectors[here])
        near = some.astype(np.float32) @ heads * scales
        chosen = near.argmax(1)[:, None] if count == 1 else best(near, count)
        of[here] = chosen
        cosines[here] = np.take_along_axis(near, chosen, 1) * unit_scales(some)[:, None]
    return of, cosines


def best(near: Floats, count: int) -> Rows:
    """The columns of the `count` largest numbers of each row, largest first, of equal ones the first."""
    least = np.partition(near, -count, axis=1)[:, -count]
    # numpy's partition breaks ties by chance, so equal numbers at the end are taken in order
    above, equal = near > least[:, None], near == least[:, None]
    room = count - above.sum(1, keepdims=True)
    chosen = above | (equal & (np.cumsum(equal, axis=1) <= room))
    columns = np.nonzero(chosen)[1].reshape(len(near), count)
    order = np.argsort(-np.take_along_axis(near, columns, 1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, 1)
