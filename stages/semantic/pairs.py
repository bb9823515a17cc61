"""Pairs of vectors whose cosine reaches a floor: an inverted file of cells, within which each cosine is computed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.semantic.cells import Floats, best, blocks, centres, nearest, unit_scales
from stages.semantic.vectors import Vectors
from stages.text.shards import Rows

EXACT = 8192
"""Number of vectors up to which every pair is compared."""
PROBES = 8
"""Number of cells in which the neighbours of a vector are searched."""
SLACK = 1e-5
"""Rounding of a cosine in the search; the cosines of what it finds are computed again, from whole numbers."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of rows whose cosine reaches the floor."""

    rows: Rows  # [pairs, 2], the smaller row first, in order
    cosine: Floats  # [pairs]
    crowded: NDArray[np.bool_]  # [n], whether a row has more neighbours than are kept
    cells: int


def find(vectors: Vectors, order: Rows, floor: float, most: int) -> Pairs:
    """All pairs of vectors [n, components] at or above a cosine, of each vector the `most` nearest others.

    Up to `EXACT` vectors, every pair is compared. Of more, a vector is compared with those in its `PROBES` nearest
    cells of an inverted file (Jegou et al. 2011, without their quantisation). `order` is a random order of the rows.
    Memory: a cell and `cells.BLOCK` cosines, 12 bytes per neighbour, 8 bytes per vector and probe.
    """
    total = len(vectors)
    if total <= EXACT:
        of, count = np.zeros((total, 1), np.int64), 1
    else:
        count = int(np.sqrt(PROBES * total))
        of, _ = nearest(vectors, centres(vectors, order, count), PROBES)
    found = [
        _search(vectors, members, rows[part], floor, most)
        for members, rows in _cells(of, count)
        for part in blocks(len(rows), len(members))
    ]
    edges = pl.concat([_EDGES, *found]).sort(["row", "cosine", "other"], descending=[False, True, False])
    crowded = np.bincount(edges["row"].to_numpy(), minlength=total) > most
    place = pl.int_range(pl.len()).over("row")
    edges = edges.filter(place < most)
    low, high = pl.min_horizontal("row", "other").alias("low"), pl.max_horizontal("row", "other").alias("high")
    rows = edges.select(low, high).unique().sort("low", "high").to_numpy().astype(np.int64)  # both ends may name a pair
    cosine = _cosines(vectors, rows)
    above = cosine >= floor
    return Pairs(rows[above], cosine[above].astype(np.float32), crowded, count)


def _cosines(vectors: Vectors, rows: Rows) -> NDArray[np.float64]:
    """The cosines of pairs [pairs, 2], from whole numbers."""
    found = [np.empty(0)]
    for part in blocks(len(rows), vectors.shape[1]):
        one, other = (np.asarray(vectors[rows[part, side]]) for side in (0, 1))
        dot, *squares = (
            np.einsum("ij,ij->i", *both, dtype=np.int64) for both in ((one, other), (one, one), (other, other))
        )
        found.append(dot / np.sqrt((squares[0] * squares[1]).astype(np.float64)))
    return np.concatenate(found)


_EDGES = pl.DataFrame(schema={"row": pl.UInt32, "other": pl.UInt32, "cosine": pl.Float32})


def _cells(of: Rows, count: int) -> Iterator[tuple[Rows, Rows]]:
    """For each cell, the rows that are in it, and all rows that search in it."""
    probes = of.shape[1]
    order = np.argsort(of.ravel(), kind="stable")
    ends = np.searchsorted(of.ravel()[order], np.arange(count + 1))
    for cell in range(count):
        entries = order[ends[cell] : ends[cell + 1]]
        if len(members := entries[entries % probes == 0] // probes):
            yield members, entries // probes


def _search(vectors: Vectors, members: Rows, rows: Rows, floor: float, most: int) -> pl.DataFrame:
    """The nearest members of a cell for some rows, at most one more than `most` each."""
    here, some = np.asarray(vectors[members]), np.asarray(vectors[rows])
    cosines = some.astype(np.float32) @ here.astype(np.float32).T
    cosines *= unit_scales(here)
    cosines *= unit_scales(some)[:, None]
    own = np.minimum(np.searchsorted(members, rows), len(members) - 1)
    cosines[np.arange(len(rows)), own] = np.where(members[own] == rows, -2, cosines[np.arange(len(rows)), own])
    near = cosines >= np.float32(floor - SLACK)
    many = np.flatnonzero(near.sum(1) > most + 1)
    if len(many):
        near[many] = False
        near[many[:, None], best(cosines[many], most + 1)] = True
    one, other = np.nonzero(near)
    columns = {"row": rows[one], "other": members[other], "cosine": cosines[one, other]}
    return pl.DataFrame(columns, schema_overrides=_EDGES.schema)
