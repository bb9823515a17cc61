"""Near-duplicates of an earlier corpus, so that an increment can be refined by itself."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.dedup.bands import Matching
from stages.dedup.signatures import LOOPS, each_part, first_alike, in_order
from stages.files import check_fitted, mapped, read_frame, save_frame, scratch, seal
from stages.stage import Axis, FittedStage, Measure, StageParameterError
from stages.text.corpus import Corpus
from stages.text.shards import Rows, cores
from stages.text.shingles import Words, shingle_sets, split


@dataclass(frozen=True)
class Against(FittedStage):
    """The most similar conversation of an earlier corpus: an earlier release, another source, a test set.

    Candidates are found by MinHash and checked by the exact Jaccard of their sets of word 5-grams, as in `dedup`: by
    default a pair at a Jaccard of 0.6, 0.7, 0.75, 0.8 is compared with probability 0.868, 0.990, 0.9989, 0.99995.

    Signals, null if no `corpus` is given:
        against_jaccard: Jaccard to the most similar conversation of that corpus; null if none reaches `floor`.
        against_id: that conversation's id, else its prompt's id, else its file and row; of equally similar ones the
            first.
        against_crowded: the conversation shares a band key with more than `bucket` of them and was compared with the
            first of those only, so that a more similar one may have been missed.

    The rule `against_jaccard >= 0.75 AND against_id IS NOT NULL` drops what the earlier corpus already has, and shows
    the match.

    The index of the earlier corpus is in the stage's folder: about 250 bytes per conversation and 8 per word on disk;
    12 bytes per conversation and the ids are in memory. If the corpus changes, the stage is measured again.

    Attributes:
        corpus: the earlier corpus: a run folder of refine (its refined conversations), a file of records, or a folder
            of them, with `messages`, `conversations`, `data` or `text`.
        floor: smallest Jaccard that is searched for.
        permutations, recall, seed: as in `dedup`.
        bucket: maximum number of conversations of the earlier corpus, exact copies aside, that one is compared with in
            one band.
    """

    corpus: str = ""
    floor: float = 0.5
    permutations: int = 128
    recall: float = 0.5
    seed: int = 1
    bucket: int = 1024

    identity: ClassVar[str] = "stages.against:Against"
    summary: ClassVar[str] = (
        "near-duplicates of an earlier corpus: the most similar conversation there, by exact Jaccard"
    )
    writes: ClassVar[pl.Schema] = pl.Schema(
        {"against_jaccard": pl.Float32(), "against_id": pl.String(), "against_crowded": pl.Boolean()}
    )
    axes: ClassVar[Mapping[str, Axis]] = {"against_jaccard": Axis("Jaccard to the earlier corpus", rank=340)}

    def __post_init__(self) -> None:
        self.matching.check("against")

    @property
    def matching(self) -> Matching:
        return Matching(self.floor, self.permutations, self.recall, self.seed, self.bucket)

    def models(self) -> tuple[Path, ...]:
        return Corpus(self.corpus).files()

    def notes(self) -> tuple[str, ...]:
        missing = () if self.corpus else ("no `corpus` is given to compare with, so all its signals are null",)
        return (*missing, *Corpus(self.corpus).notes())

    @property
    def fits_corpus(self) -> bool:
        return False

    def fit(self, raw: Sequence[Path], folder: Path) -> None:
        """Index the earlier corpus; the raw shards are not read."""
        del raw
        if self.corpus:
            build(Corpus(self.corpus).batches(), self.matching, folder / "index")
            seal(folder, (f"index/{path.name}" for path in (folder / "index").iterdir()))

    def open(self, folder: Path) -> Measure:
        if not self.corpus:
            return self.measure
        check_fitted(folder)
        index = Index.open(folder / "index", self.matching)
        names = dict(zip(("jaccard", "id", "crowded"), self.writes, strict=True))
        return lambda batch: index.nearest(batch["text"]).rename(names)

    def measure(self, batch: pl.DataFrame) -> pl.DataFrame:
        return pl.DataFrame(schema=self.writes).clear(batch.height)


def build(batches: Iterable[pl.DataFrame], matching: Matching, folder: Path) -> None:
    """Write the index of texts (`text`, `name`) to a folder, which appears when it is complete.

    Memory: 24 bytes per text while exact copies are found, then 8, beside a batch; disk: 250 bytes per text with 25
    bands, and 8 per word.
    """
    names = [pl.Series("name", [], pl.String)]

    def texts() -> Iterator[pl.Series]:
        for batch in batches:
            names.append(batch["name"])
            yield batch["text"]

    def work(words: Words) -> tuple[NDArray[np.uint64], NDArray[np.uint32], NDArray[np.uint64], Rows]:
        sets, ends = shingle_sets(words)
        return words.keys, matching.keys(words), sets, np.diff(ends, prepend=0)

    shutil.rmtree(folder, ignore_errors=True)  # of another fit
    keys = [np.empty((0, 2), np.uint64)]
    with scratch(folder.parent, folder.name) as aside:
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
            bands = mapped(band_file, np.uint32).reshape(len(first), -1)
            with (aside / "order").open("wb") as file:
                for column in range(bands.shape[1]):
                    file.write(in_order(bands[firsts, column], firsts).data)
        aside.rename(folder)


@dataclass(frozen=True)
class Index:
    """An index that `build` wrote; only what a text is compared with is read from disk."""

    matching: Matching  # as it was built
    order: NDArray[np.uint64]  # [bands, m], band key << 32 | row, sorted; exact copies are one row
    sets: NDArray[np.uint64]  # sorted sets of shingles, up to `ends`
    ends: Rows  # [rows + 1]
    names: pl.Series  # of the rows

    @classmethod
    def open(cls, folder: Path, matching: Matching) -> Index:
        order = mapped(folder / "order", np.uint64).reshape(matching.bands()[0], -1)
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(mapped(folder / "sizes", np.int64))])
        names = read_frame(folder / "names.parquet", ["name"])["name"]
        return cls(matching, order, mapped(folder / "sets", np.uint64), ends, names)

    def nearest(self, texts: pl.Series) -> pl.DataFrame:
        """The most similar text of the index to each text: jaccard and id, null if none reaches the floor; crowded."""
        rows = len(texts)
        jaccards, nearest, crowded = np.zeros(rows, np.float32), np.full(rows, -1, np.int64), np.zeros(rows, np.uint8)
        done = 0
        for words in split(texts):
            here = slice(done, done + len(words.keys))
            keys, (sets, ends) = self.matching.keys(words), shingle_sets(words)
            sought = keys.astype(np.uint64) << np.uint64(32)
            starts = [np.searchsorted(self.order[band], sought[:, band]) for band in range(keys.shape[1])]
            index = (self.order, self.sets, self.ends, self.matching.floor, self.matching.bucket)
            out = (np.zeros(len(self.names), np.uint32), jaccards[here], nearest[here], crowded[here])
            LOOPS.call("nearest_loop", keys, np.stack(starts, axis=1), sets, ends, *index, *out)
            done = here.stop
        none = pl.Series(nearest < 0)
        ids = self.names.gather(pl.Series(nearest).set(none, None))
        return pl.DataFrame({"jaccard": pl.Series(jaccards).set(none, None), "id": ids, "crowded": crowded > 0})
