"""Conversations that have duplicates, in bins: a conversation is in the same bin as all its duplicates, of any kind."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.rules import Pairs, column_of
from stages import columns
from stages.files import Frames, mapped
from stages.stage import COSINES, PAIRS

MAX_PARTNERS = 1 << 16
"""About the number of conversations in a bin, which takes 400 bytes of memory for each, and 100 per pair."""
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Bin:
    """Conversations, and all their duplicates."""

    partners: pl.DataFrame
    """The conversations: id, and the columns that rank them."""
    rows: pl.Series
    """Their numbers in the corpus, from 0, in order."""
    pairs: Mapping[str, Pairs]
    """Their duplicates by kind; `first` is aligned with `partners`."""


class Duplicates:
    """All conversations of a corpus that have a duplicate, in temporary files; only a bin of them is in memory.

    They are found by 64-bit hashes of the ids of first copies, the *nodes* of a graph. If two hashes collide, a
    conversation without a duplicate is taken for one with a duplicate, or two bins are one, which changes no decision.
    """

    def __init__(
        self,
        folder: Path | None,
        firsts: Mapping[str, str],
        near: Mapping[str, Iterable[pl.DataFrame]],
        copies: Iterable[pl.DataFrame],
    ) -> None:
        """Find the first copies that have another copy or a near-duplicate; conversations are then added.

        `folder` is for temporary files, None for that of the system. `firsts` has the signal with the first copy of
        each conversation by kind, `near` the pairs of each kind in parts, and `copies` frames with `id` and signals.
        """
        self._folder, self._firsts, self._near = folder, firsts, dict[str, pl.DataFrame]()
        self._rows, self._frames = self._file(), list[Frames]()
        with self._file() as hashes:
            for kind, parts in near.items():
                frames = Frames(folder, COSINES if column_of(kind) in COSINES else PAIRS)
                for some in parts:
                    frames.add(some)
                    hashes.write(pl.concat([some["id"], some["other"]]).hash().to_numpy().data)
                self._near[kind] = frames.whole
            for some in copies:
                for name in set(firsts.values()).intersection(some.columns):
                    several = some.filter(pl.col(name) != pl.col("id"))[name]
                    hashes.write(several.hash().to_numpy().data)
            self._nodes = mapped(hashes, np.uint64)
        self._nodes.sort()

    def add(self, signals: pl.DataFrame, begin: int, ranks: Sequence[str]) -> None:
        """Add those of a shard, whose first row has the number `begin`; the columns `ranks` rank them."""
        here = np.flatnonzero(self._find(signals) >= 0)
        chosen = signals.select(list(dict.fromkeys(("id", *ranks, *self._firsts.values()))))[here]
        if not self._frames:
            self._frames.append(Frames(self._folder, chosen.schema))
        self._frames[0].add(chosen)
        self._rows.write((begin + here).data)

    def __iter__(self) -> Iterator[Bin]:
        return self.bins()

    def bins(self, most: int = MAX_PARTNERS) -> Iterator[Bin]:
        """The bins, of about `most` conversations each; duplicates of each other are in one, however many."""
        if not self._frames:
            return
        partners, rows = self._frames[0].whole, pl.Series(mapped(self._rows, np.int64))
        count = 1 + max(0, partners.height - 1) // most
        if count == 1:
            yield self._bin(partners, rows, self._near)
            return
        bins = self._bins_of_nodes(partners, count)
        at = self._write(bins[self._find(some)] for some in partners.iter_slices(columns.CHUNK))
        of_pairs = {
            kind: self._write(bins[self._at(some["id"])] for some in near.iter_slices(columns.CHUNK))
            for kind, near in self._near.items()
        }
        for number in range(count):
            here = pl.Series(at == number)
            near = {kind: self._near[kind].filter(pl.Series(of == number)) for kind, of in of_pairs.items()}
            yield self._bin(partners.filter(here), rows.filter(here), near)

    def _bin(self, partners: pl.DataFrame, rows: pl.Series, near: Mapping[str, pl.DataFrame]) -> Bin:
        pairs = {kind: Pairs(partners[column], near[kind]) for kind, column in self._firsts.items()}
        return Bin(partners, rows, pairs)

    def _bins_of_nodes(self, partners: pl.DataFrame, count: int) -> Rows:
        """The number of each node's bin: those of a component, which pairs and copies connect, are in the same."""
        from stages.dedup.signatures import LOOPS  # reads compiled code, which one bin does not need

        parents = self._write(np.arange(here.start, here.stop) for here in columns.chunks(len(self._nodes)))
        LOOPS.call("unite", self._write(self._edges(partners)).reshape(-1, 2), parents)
        parents %= count
        return parents

    def _edges(self, partners: pl.DataFrame) -> Iterator[Rows]:
        """Pairs of nodes that must be in the same bin, [n, 2]."""
        for near in self._near.values():
            for some in near.iter_slices(columns.CHUNK):
                yield np.stack([self._at(some["id"]), self._at(some["other"])], 1)
        for some in partners.iter_slices(columns.CHUNK):
            nodes = self._find(some)
            for column in self._firsts.values():
                others = self._at(some[column])
                yield np.stack([nodes, np.where(others < 0, nodes, others)], 1)

    def _find(self, signals: pl.DataFrame) -> Rows:
        """A node of each conversation, -1 if it has no duplicate."""
        found = np.full(signals.height, -1)
        for column in self._firsts.values():
            found = np.where(found < 0, self._at(signals[column]), found)
        return found

    def _at(self, ids: pl.Series) -> Rows:
        """The node of each first copy, -1 if it has no duplicate."""
        hashes, nodes = ids.hash().to_numpy(), self._nodes
        if not len(nodes):
            return np.full(len(hashes), -1)
        at = np.searchsorted(nodes, hashes)
        return np.where(nodes[np.minimum(at, len(nodes) - 1)] == hashes, at, -1)

    def _file(self) -> IO[bytes]:
        return tempfile.TemporaryFile(dir=self._folder)

    def _write(self, parts: Iterable[Rows]) -> Rows:
        return columns.write(parts, np.int64, self._folder)
