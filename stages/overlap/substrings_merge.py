"""The merge of the substrings stage: which windows of words repeat over all shards, and what they cover."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.files import read_frame, save_frame, scratch
from stages.overlap.spans import COVER, READS, KeyTable, SharedWindows, column, flat, texts_without_system
from stages.text.repeats import AT_ONCE, Keys, Shard, find_repeats
from stages.text.shards import Ids, Shards

MAX_BITS = 8
"""Maximum number of top bits by which windows are split into files: 2 * 256 files are open at once."""

Result = TypeVar("Result")
Number = TypeVar("Number", np.uint64, np.uint32)


@dataclass(frozen=True)
class Merge:
    """A merge of measured shards.

    Attributes:
        shards: raw and measured shards.
        width: words of a window.
        at_once: maximum number of keys in memory.
    """

    shards: Shards
    width: int
    at_once: int = AT_ONCE

    def write(self, folder: Path) -> None:
        """Write the merged signals of each shard to `folder/merged`."""
        with scratch(folder, "windows") as aside:
            anchors = self._anchors()
            windows = self._windows(anchors, aside)
            found = np.empty((len(self.shards), len(COVER)), np.int64)
            for at, part in enumerate(_each(len(self.shards.raw), lambda at: self._cover(at, anchors, windows))):
                found[self.shards.starts[at] : self.shards.starts[at + 1]] = part
        names = Ids(self.shards, found[:, -1][found[:, -1] >= 0])
        (folder / "merged").mkdir(parents=True, exist_ok=True)
        for at, path in enumerate(self.shards.measured):
            here = found[self.shards.starts[at] : self.shards.starts[at + 1]]
            columns = _columns(here, self.shards.ids(at), column(path, "span_words"), names)
            save_frame(folder / "merged" / path.name, columns)

    def _anchors(self) -> KeyTable:
        """The anchors of more than one conversation."""
        lists = [column(path, "span_anchors").list.len().sum() for path in self.shards.measured]

        def each() -> Iterator[Keys]:
            return (flat(column(path, "span_anchors"))[0] for path in self.shards.measured)

        return KeyTable.of(find_repeats(each, int(sum(lists)), self.at_once)[0])

    def _rows_with(self, at: int, anchors: KeyTable) -> tuple[NDArray[np.int64], pl.Series]:
        """The rows of a shard that have one of the anchors, from 0, and their texts."""
        rows = np.flatnonzero(anchors.among(*flat(column(self.shards.measured[at], "span_anchors"))))
        if not len(rows):
            return rows, pl.Series([], dtype=pl.String)
        return rows, texts_without_system(read_frame(self.shards.raw[at], READS)[rows])

    def _candidates(self, at: int, anchors: KeyTable, bits: int) -> list[Shard]:
        """Rows and windows of a shard whose anchor is in the table, for each value of the windows' top bits."""
        rows, texts = self._rows_with(at, anchors)
        keys, sizes = anchors.windows(texts, self.width)
        numbers = np.repeat(rows + self.shards.starts[at], sizes)
        if not bits:
            return [(numbers, keys)]
        tops = (keys >> np.uint64(64 - bits)).astype(np.uint8)
        cuts = np.cumsum(np.bincount(tops, minlength=1 << bits))[:-1]
        return [(numbers[here], keys[here]) for here in np.split(np.argsort(tops, kind="stable"), cuts)]

    def _windows(self, anchors: KeyTable, aside: Path) -> SharedWindows:
        """The windows that several conversations have, sorted on disk by ranges of their hashes."""
        words = sum(int(column(path, "span_words").sum()) for path in self.shards.measured)
        bits = min(MAX_BITS, (max(0, words - 1) // max(1, self.at_once // 2)).bit_length())  # 36 bytes each to sort
        with ExitStack() as stack:
            files = [stack.enter_context((aside / f"{part}").open("wb")) for part in range(2 << bits)]
            for parts in _each(len(self.shards.raw), lambda at: self._candidates(at, anchors, bits)):
                for part, (rows, keys) in enumerate(parts):
                    files[2 * part].write(keys.data)
                    files[2 * part + 1].write(rows.astype(np.uint32).data)
        with ExitStack() as stack:
            out = [stack.enter_context((aside / name).open("wb")) for name in ("keys", "counts", "firsts")]
            for part in range(1 << bits):
                found = _groups(aside / f"{2 * part}", aside / f"{2 * part + 1}")
                for file, values in zip(out, found, strict=True):
                    file.write(values.data)
        return SharedWindows(
            KeyTable.of(_map(aside / "keys", np.uint64)),
            _map(aside / "counts", np.uint32),
            _map(aside / "firsts", np.uint32),
        )

    def _cover(self, at: int, anchors: KeyTable, windows: SharedWindows) -> NDArray[np.int64]:
        """The words of each row of a shard that the windows cover."""
        rows, texts = self._rows_with(at, anchors)
        start, end = self.shards.starts[at], self.shards.starts[at + 1]
        found = np.tile(np.array([0, 0, 0, 1, -1]), (end - start, 1))
        found[rows] = windows.cover(rows + start, texts, self.width)
        return found


def _each(count: int, work: Callable[[int], Result]) -> Iterator[Result]:
    """The results for each shard, in order, computed on all cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as pool:
        for begin in range(0, count, cores):
            yield from pool.map(work, range(begin, min(count, begin + cores)))


def _groups(keys_file: Path, rows_file: Path) -> tuple[NDArray[Any], ...]:
    """The windows that more than one row has, sorted; the number of rows with each; the first of them."""
    keys = np.fromfile(keys_file, np.uint64)
    order = np.argsort(keys)
    keys, rows = keys[order], np.fromfile(rows_file, np.uint32)[order]
    begins = np.flatnonzero(np.concatenate([np.ones(min(1, len(keys)), np.bool_), keys[1:] != keys[:-1]]))
    counts = np.diff(np.append(begins, len(keys)))
    firsts = np.minimum.reduceat(rows, begins) if len(rows) else rows
    return keys[begins][counts > 1], counts[counts > 1].astype(np.uint32), firsts[counts > 1]


def _map(path: Path, kind: type[Number]) -> NDArray[Number]:
    return np.memmap(path, kind, "r") if path.stat().st_size else np.empty(0, kind)


def _columns(found: NDArray[np.int64], ids: pl.Series, words: pl.Series, names: Ids) -> pl.DataFrame:
    of = np.maximum(words.to_numpy(), 1)
    there = np.flatnonzero(found[:, 4] >= 0)
    source = pl.repeat(None, len(ids), dtype=pl.String, eager=True).scatter(there, names.of(found[there, 4]))
    columns = {
        "dup_span_share": pl.Series(found[:, 0] / of).cast(pl.Float32).set(words == 0, None),
        "dup_span_earlier": pl.Series(found[:, 1] / of).cast(pl.Float32).set(words == 0, None),
        "dup_span_words": pl.Series(found[:, 2]).cast(pl.UInt32),
        "dup_span_copies": pl.Series(found[:, 3]).cast(pl.UInt32),
        "dup_span_of": source,
    }
    return pl.DataFrame({"id": ids, **columns})
