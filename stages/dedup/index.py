"""An index of texts on disk: band keys, sets of shingles and names; and the most similar of them to other texts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.dedup.bands import Matching
from stages.dedup.pairs import first_alike
from stages.files import read_frame, save_frame, scratch
from stages.stage import StageParameterError
from stages.text.compiled import Kernels
from stages.text.shingles import Words, shingle_sets, split

LOOPS = Kernels("stages.dedup.index_kernel", {"nearest": "u4** i8** u8* i8* u8** u8* i8* f8 i8 i8** f4* i8* b1*"})
ROW = np.uint64(32)


def build(batches: Iterator[pl.DataFrame], matching: Matching, folder: Path) -> None:
    """Write the index of texts (`text`, `name`) to a folder, which appears when it is complete.

    Memory: 24 bytes a text while exact copies are found, then 8, beside a batch; disk: 250 bytes a text with 25 bands,
    and 8 a word.
    """
    shutil.rmtree(folder, ignore_errors=True)  # of another fit
    with scratch(folder.parent, folder.name) as aside:
        _build(batches, matching, aside)
        aside.rename(folder)


def _build(batches: Iterator[pl.DataFrame], matching: Matching, aside: Path) -> None:
    names = pl.concat([pl.Series("name", [], pl.String), *_written(batches, matching, aside)])
    if not len(names):
        raise StageParameterError("the earlier corpus holds no conversation")
    save_frame(aside / "names.parquet", names.to_frame("name"))
    firsts = np.flatnonzero(first_alike(_read(aside / "keys", np.uint64).reshape(-1, 2)) == np.arange(len(names)))
    with (aside / "order").open("wb") as file:
        for band in range(matching.bands()[0]):
            order = _read(aside / f"band{band}", np.uint32)[firsts].astype(np.uint64) << ROW | firsts.astype(np.uint64)
            order.sort()
            file.write(order.data)
    for kind in ("keys", *(f"band{band}" for band in range(matching.bands()[0]))):
        (aside / kind).unlink(missing_ok=True)


def _written(batches: Iterator[pl.DataFrame], matching: Matching, folder: Path) -> Iterator[pl.Series]:
    """Append what is known of each text to files; give the names."""
    with ExitStack() as stack:

        def append(kind: str, values: NDArray[Any]) -> None:
            if kind not in files:
                files[kind] = stack.enter_context((folder / kind).open("wb"))
            files[kind].write(np.ascontiguousarray(values).data)

        files: dict[str, IO[bytes]] = {}
        for batch in batches:
            for words in split(batch["text"]):
                sets, ends = shingle_sets(words)
                append("sets", sets)
                append("sizes", np.diff(ends, prepend=0))
                append("keys", words.keys)
                for band, keys in enumerate(matching.keys(words).T):
                    append(f"band{band}", keys)
            yield batch["name"]


def _read(path: Path, kind: Any) -> NDArray[Any]:  # noqa: ANN401  a type of numbers
    """A file of numbers, mapped."""
    there = path.exists() and path.stat().st_size  # of no texts nothing is written
    return np.memmap(path, kind, "r") if there else np.empty(0, kind)


@dataclass(frozen=True)
class Index:
    """An index that `build` wrote.

    Attributes:
        matching: as it was built.
        order: uint64 [bands, m], band key << 32 | row, sorted.
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
        """Map an index; what a text does not ask for is not read."""
        order = _read(folder / "order", np.uint64).reshape(matching.bands()[0], -1)
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(_read(folder / "sizes", np.int64))])
        names = read_frame(folder / "names.parquet", ["name"])["name"]
        return cls(matching, order, _read(folder / "sets", np.uint64), ends, names)

    def nearest(self, texts: pl.Series) -> pl.DataFrame:
        """against_jaccard, against_id, against_crowded of each text."""
        rows = len(texts)
        jaccards, found, crowded = np.zeros(rows, np.float32), np.full(rows, -1, np.int64), np.zeros(rows, np.bool_)
        done = 0
        for words in split(texts):
            here = slice(done, done + len(words.keys))
            self._nearest(words, jaccards[here], found[here], crowded[here])
            done = here.stop
        none = pl.Series(found < 0)
        ids = self.names.gather(pl.Series(found).set(none, None))
        return pl.DataFrame({"jaccard": pl.Series(jaccards).set(none, None), "id": ids, "crowded": crowded})

    def _nearest(self, words: Words, *out: NDArray[Any]) -> None:
        keys, (sets, ends) = self.matching.keys(words), shingle_sets(words)
        wanted = keys.astype(np.uint64) << ROW
        starts = np.stack([np.searchsorted(self.order[band], wanted[:, band]) for band in range(keys.shape[1])], axis=1)
        bucket = self.matching.bucket
        scratch = np.empty((2, bucket * keys.shape[1]), np.int64)
        given = (keys, starts, sets, ends, self.order, self.sets, self.ends, self.matching.floor, bucket)
        LOOPS.call("nearest", *given, scratch, *out)
