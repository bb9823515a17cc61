"""An index of texts on disk: band keys, sets of shingles and names; and the most similar of them to other texts."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.dedup.bands import Matching
from stages.dedup.signatures import LOOPS, cores, each_part, first_alike, in_order, map_file
from stages.files import read_frame, save_frame, scratch
from stages.stage import StageParameterError
from stages.text.shingles import Words, shingle_sets, split


def build(batches: Iterable[pl.DataFrame], matching: Matching, folder: Path) -> None:
    """Write the index of texts (`text`, `name`) to a folder, which appears when it is complete.

    Memory: 24 bytes per text while exact copies are found, then 8, beside a batch; disk: 250 bytes per text with 25
    bands, and 8 per word.

    Raises:
        StageParameterError: there is no text.
    """
    shutil.rmtree(folder, ignore_errors=True)  # of another fit
    with scratch(folder.parent, folder.name) as aside:
        _build(batches, matching, aside)
        aside.rename(folder)


def _build(batches: Iterable[pl.DataFrame], matching: Matching, aside: Path) -> None:
    names = [pl.Series("name", [], pl.String)]

    def texts() -> Iterator[pl.Series]:
        for batch in batches:
            names.append(batch["name"])
            yield batch["text"]

    def work(words: Words) -> tuple[NDArray[np.uint64], NDArray[np.uint32], NDArray[np.uint64], NDArray[np.int64]]:
        sets, ends = shingle_sets(words)
        return words.keys, matching.keys(words), sets, np.diff(ends, prepend=0)

    keys = [np.empty((0, 2), np.uint64)]
    with (
        tempfile.TemporaryFile(dir=aside) as band_file,
        (aside / "sets").open("wb") as set_file,
        (aside / "sizes").open("wb") as size_file,
    ):
        for key, band, sets, sizes in each_part(work, texts(), cores()):
            keys.append(key)
            for file, values in ((band_file, band), (set_file, sets), (size_file, sizes)):
                file.write(values.data)
        if len(keys) == 1:
            raise StageParameterError("the earlier corpus holds no conversation")
        save_frame(aside / "names.parquet", pl.concat(names).to_frame("name"))
        first = first_alike(np.concatenate(keys))
        firsts = np.flatnonzero(first == np.arange(len(first)))
        bands = map_file(band_file, np.uint32).reshape(len(first), -1)
        with (aside / "order").open("wb") as file:
            for column in range(bands.shape[1]):
                file.write(in_order(bands[firsts, column], firsts).data)


def _read(path: Path, kind: Any) -> NDArray[Any]:  # noqa: ANN401  a type of numbers
    return np.memmap(path, kind, "r") if path.stat().st_size else np.empty(0, kind)


@dataclass(frozen=True)
class Index:
    """An index that `build` wrote.

    Attributes:
        matching: as it was built.
        order: uint64 [bands, m], band key << 32 | row, sorted; exact copies are one row.
        sets: uint64, sorted sets of shingles, up to `ends`.
        ends: int64 [rows + 1].
        names: of the rows.
    """

    matching: Matching
    order: NDArray[np.uint64]
    sets: NDArray[np.uint64]
    ends: NDArray[np.int64]
    names: pl.Series

    @classmethod
    def open(cls, folder: Path, matching: Matching) -> Index:
        """Map an index; only what a text is compared with is read."""
        order = _read(folder / "order", np.uint64).reshape(matching.bands()[0], -1)
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(_read(folder / "sizes", np.int64))])
        names = read_frame(folder / "names.parquet", ["name"])["name"]
        return cls(matching, order, _read(folder / "sets", np.uint64), ends, names)

    def nearest(self, texts: pl.Series) -> pl.DataFrame:
        """The most similar text of the index to each text: jaccard and id, null if none reaches the floor; crowded."""
        rows = len(texts)
        jaccards, nearest, crowded = np.zeros(rows, np.float32), np.full(rows, -1, np.int64), np.zeros(rows, np.uint8)
        done = 0
        for words in split(texts):
            here = slice(done, done + len(words.keys))
            self._nearest(words, jaccards[here], nearest[here], crowded[here])
            done = here.stop
        none = pl.Series(nearest < 0)
        ids = self.names.gather(pl.Series(nearest).set(none, None))
        return pl.DataFrame({"jaccard": pl.Series(jaccards).set(none, None), "id": ids, "crowded": crowded > 0})

    def _nearest(self, words: Words, *out: NDArray[Any]) -> None:
        keys, (sets, ends) = self.matching.keys(words), shingle_sets(words)
        sought = keys.astype(np.uint64) << np.uint64(32)
        starts = np.stack([np.searchsorted(self.order[band], sought[:, band]) for band in range(keys.shape[1])], axis=1)
        how = (self.matching.floor, self.matching.bucket, np.zeros(len(self.names), np.uint32))
        LOOPS.call("nearest_loop", keys, starts, sets, ends, self.order, self.sets, self.ends, *how, *out)
