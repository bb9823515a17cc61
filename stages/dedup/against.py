"""Near-duplicates of an earlier corpus, so that an increment can be refined by itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import polars as pl

from stages.dedup.bands import Matching
from stages.files import check_fitted, seal
from stages.readers import stamps
from stages.stage import Axis, FittedStage, Measure, Stage
from stages.text.corpus import Corpus


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
        corpus: the earlier corpus: a run folder of refine (its refined conversations), a Parquet or JSONL file, or a
            folder of such files, with `messages`, `conversations`, `data` or `text`.
        floor: smallest Jaccard that is searched for.
        permutations: length of a signature.
        recall: weight of missed pairs against pairs compared in vain, in the choice of bands.
        seed: seed of the permutations.
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
        """Check the parameters.

        Raises:
            StageParameterError: a value is out of range.
        """
        self.matching.check("against")

    @property
    def matching(self) -> Matching:
        """The parameters of the search in the earlier corpus."""
        return Matching(self.floor, self.permutations, self.recall, self.seed, self.bucket)

    def models(self) -> tuple[Path, ...]:
        """The files of the earlier corpus."""
        return Corpus(self.corpus).files()

    def digest(self) -> str:
        """As for every stage, but files that have not changed are not read again: a run asks once per shard."""
        return _digest(self, stamps(self.models()))

    def notes(self) -> tuple[str, ...]:
        """A note if there is nothing to compare with."""
        return () if self.corpus else ("no `corpus` is given to compare with, so all its signals are null",)

    def fit(self, raw: Sequence[Path], folder: Path) -> None:
        """Index the earlier corpus; the raw shards are not read.

        Raises:
            StageParameterError: it cannot be read, or holds no conversation.
        """
        del raw
        if self.corpus:
            from stages.dedup.index import build

            build(Corpus(self.corpus).batches(), self.matching, folder / "index")
            seal(folder, (f"index/{path.name}" for path in (folder / "index").iterdir()))

    def open(self, folder: Path) -> Measure:
        """Map the index, once a process.

        Raises:
            CorruptInputError: a file of the index is missing or was changed.
        """
        if not self.corpus:
            return self.measure
        check_fitted(folder)
        from stages.dedup.index import Index

        index = Index.open(folder / "index", self.matching)
        names = dict(zip(("jaccard", "id", "crowded"), self.writes, strict=True))
        return lambda batch: index.nearest(batch["text"]).rename(names)

    def measure(self, batch: pl.DataFrame) -> pl.DataFrame:
        """All null, as there is no earlier corpus."""
        return pl.DataFrame(schema=self.writes).clear(batch.height)


@lru_cache(maxsize=8)
def _digest(stage: Against, files: tuple[tuple[str, int, int], ...]) -> str:
    del files
    return Stage.digest(stage)
