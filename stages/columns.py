"""Columns of numbers in temporary files, as long as a corpus: mapped, and worked on in chunks, they take no memory.

The system holds in memory what fits of them. `folder` is where the files are; None for that of the system.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from stages.files import mapped

Number = TypeVar("Number", bound=np.generic)

CHUNK = 1 << 16
"""Number of values of a column that are in memory at once."""


def chunks(size: int) -> Iterator[slice]:
    """Places that make up a column of this size, in order."""
    return (slice(begin, min(begin + CHUNK, size)) for begin in range(0, size, CHUNK))


def write(parts: Iterable[NDArray[Any]], kind: type[Number], folder: Path | None) -> NDArray[Number]:
    """Arrays, one after the other, as a column, which can be changed."""
    with tempfile.TemporaryFile(dir=folder) as file:
        for part in parts:
            file.write(np.ascontiguousarray(part, kind).data)
        return np.asarray(mapped(file, kind))  # a plain array, which is quicker to index


def full(size: int, value: Any, kind: type[Number], folder: Path | None) -> NDArray[Number]:  # noqa: ANN401  a number
    """A column of equal values."""
    return write((np.full(here.stop - here.start, value, kind) for here in chunks(size)), kind, folder)


def sort(values: NDArray[Number], folder: Path | None) -> NDArray[Number]:
    """The same values, sorted."""
    ordered = write((values[here] for here in chunks(len(values))), values.dtype.type, folder)
    ordered.sort()
    return ordered


def unique(values: NDArray[Number], folder: Path | None) -> NDArray[Number]:
    """The different values, sorted."""
    ordered = sort(values, folder)
    every = (np.arange(here.start, here.stop) for here in chunks(len(ordered)))
    new = (at[(ordered[at] != ordered[at - 1]) | (at == 0)] for at in every)
    return write((ordered[at] for at in new), ordered.dtype.type, folder)


def ranks(values: NDArray[Any], folder: Path | None) -> NDArray[np.uint64]:
    """For each value, the number of smaller ones."""
    ordered = sort(values, folder)
    return write((np.searchsorted(ordered, values[here]) for here in chunks(len(values))), np.uint64, folder)


def holds(ordered: NDArray[Number], values: NDArray[Number]) -> NDArray[np.bool_]:
    """Whether each value is among values in order."""
    if not len(ordered):
        return np.zeros(len(values), np.bool_)
    return np.asarray(ordered[np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)] == values)
