"""Exact and near-duplicates of whole conversations, and copies of the first prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import numpy as np
import polars as pl

from stages.dedup.bands import Matching
from stages.files import read_json
from stages.stage import Axis, GlobalStage, StageParameterError


@dataclass(frozen=True)
class Dedup(GlobalStage):
    r"""Duplicates by MinHash over the set of word 5-grams, every candidate pair checked by its exact Jaccard.

    Words are the `\w+` of Python's `re` on lower-cased text; in scripts written without spaces (Han, kana, Thai, Lao,
    Khmer, Myanmar) each character is a word. Two texts are exact copies when they have the same words in the same
    order; texts without any word when they have the same characters but for white space around them, so that empty ones
    are copies of each other. A text of fewer than five words is one shingle: it is a duplicate of its exact copies
    only.

    Exact copies are collapsed first, into a star around the first one. Signatures are those of datasketch 2.0 (same
    seed and scheme, its `hashfunc` set to `stages.shingles.shingle_hash`); `floor`, `permutations` and `recall` give
    the bands as datasketch's optimizer does. By default 25 bands of 5 rows, which compare a pair of Jaccard 0.6, 0.7,
    0.75, 0.8 with a chance of 0.868, 0.990, 0.9989, 0.99995.

    Signals:
        dedup_words: words of the text.
        text_key, text_check, prompt_key, prompt_check: 128 bits that stand for the words of the text, of the prompt.
        band_keys: keys of the bands of the text's signature.
        dedup_copy_of: id of the first conversation that is an exact copy of this one; its own where it is alone.
        exact_copies: conversations that are exact copies of this one, itself included.
        prompt_copy_of: id of the first conversation with the same first prompt, compared like whole texts; its own
            where it has none (a plain document, no message of the user's, or an empty one).
        prompt_copies: conversations with this first prompt, itself included; 1 where it has none.
        cluster: id of the first conversation of those that hang together by pairs at a Jaccard of `cluster` or more:
            for reading, and for splitting train from test; `KeepBest` decides by pairs.
        cluster_size: conversations in the cluster, exact copies included.
        nearest_jaccard: Jaccard to the most similar other conversation; null where none reaches `floor`.
        dedup_crowded: it shares a band key with more than `bucket` others and was compared with the leaders among those
            only, so that near-duplicates of it may have been missed.

    Besides `dedup.parquet` and `prompt.parquet` (pairs; those of prompts are exact copies only, so it is empty) the
    merge writes `dedup.json`: counts, the S-curve of the plan, the largest clusters with an example of each, and notes.

    Memory of the merge: at most 200 bytes a conversation plus 100 bytes a pair. The shingles of candidates stand in a
    temporary file, about 8 bytes a word, removed at the end. Time grows linearly with the corpus: a row is compared
    with at most `bucket` rows a band. In a larger bucket the longest texts lead, so that `KeepBest` with the longest
    first finds the pairs it needs; with another order it keeps more than one of such a crowd. Measured on 4,000 texts
    that differ in two words of 300 (all pairs of one another): 1 kept with the longest first, 206 in random order.
    `refine dedup` knows its order before it compares, and keeps 1 in any.

    Attributes:
        floor: least Jaccard of a pair that is written down.
        cluster: Jaccard from which on pairs make a cluster.
        permutations: length of a signature.
        recall: weight of missed pairs against pairs compared in vain, in the choice of bands.
        seed: of the permutations.
        bucket: most rows that a row is compared with in one bucket.
        max_cluster: share of all conversations past which a cluster, of 1,000 or more, stops the run.
    """

    floor: float = 0.5
    cluster: float = 0.75
    permutations: int = 128
    recall: float = 0.5
    seed: int = 1
    bucket: int = 1024
    max_cluster: float = 0.05

    summary: ClassVar[str] = "exact and near-duplicates: MinHash, then the exact Jaccard of every candidate pair"
    version: ClassVar[int] = 2
    reads: ClassVar[tuple[str, ...]] = ("text", "prompt")
    writes: ClassVar[pl.Schema] = pl.Schema(
        {
            "dedup_words": pl.UInt32(),
            "text_key": pl.UInt64(),
            "text_check": pl.UInt64(),
            "prompt_key": pl.UInt64(),
            "prompt_check": pl.UInt64(),
            "band_keys": pl.List(pl.UInt32()),
        }
    )
    merges: ClassVar[pl.Schema] = pl.Schema(
        {
            "dedup_copy_of": pl.String(),
            "exact_copies": pl.UInt32(),
            "prompt_copy_of": pl.String(),
            "prompt_copies": pl.UInt32(),
            "cluster": pl.String(),
            "cluster_size": pl.UInt32(),
            "nearest_jaccard": pl.Float32(),
            "dedup_crowded": pl.Boolean(),
        }
    )
    axes: ClassVar[Mapping[str, Axis]] = {
        "nearest_jaccard": Axis("Jaccard to the nearest other", rank=30),
        "exact_copies": Axis("conversations with this text", log=True, rank=90),
        "cluster_size": Axis("conversations in its cluster", log=True, rank=190),
        "dedup_words": Axis("words", log=True, rank=330),
    }
    pairs: ClassVar[Mapping[str, str]] = MappingProxyType({"dedup": "dedup_copy_of", "prompt": "prompt_copy_of"})

    def __post_init__(self) -> None:
        """Check the parameters.

        Raises:
            StageParameterError: one cannot have its value.
        """
        self.matching.check("dedup")
        for name, value, least, expected in (
            ("cluster", self.cluster, self.floor, "a Jaccard from floor to 1"),
            ("max_cluster", self.max_cluster, 0, "a share from 0 to 1"),
        ):
            if not least <= value <= 1:
                raise StageParameterError(f"dedup: {name} is {value}, expected {expected}")
        if (bands := self.matching.bands()[0]) > 64:  # noqa: PLR2004
            raise StageParameterError(
                f"dedup: permutations and recall give {bands} bands, expected 64 or fewer: lower them"
            )

    @property
    def matching(self) -> Matching:
        """How near-duplicates are searched."""
        return Matching(self.floor, self.permutations, self.recall, self.seed, self.bucket)

    def remarks(self, folder: Path) -> tuple[str, ...]:
        """What the merge noted, such as buckets too large to compare all their rows."""
        return tuple(read_json(folder / "dedup.json")["notes"])

    def measure(self, batch: pl.DataFrame) -> pl.DataFrame:
        """Keys of each text and prompt, and band keys of each text."""
        from stages.text.shingles import split, text_keys

        bands = self.matching.bands()[0]
        words, keys, found = [np.empty(0, np.int64)], [np.empty((0, 2), np.uint64)], [np.empty((0, bands), np.uint32)]
        for part in split(batch["text"]):
            words.append(np.diff(part.ends))
            keys.append(part.keys)
            found.append(self.matching.keys(part))
        text, prompt = np.concatenate(keys), text_keys(batch["prompt"])
        columns = {
            "dedup_words": np.concatenate(words),
            "text_key": text[:, 0],
            "text_check": text[:, 1],
            "prompt_key": prompt[:, 0],
            "prompt_check": prompt[:, 1],
            "band_keys": pl.Series(np.concatenate(found), dtype=pl.Array(pl.UInt32, bands)),
        }
        return pl.DataFrame(columns).cast(dict(self.writes))  # type: ignore[arg-type]

    def merge(self, raw: Sequence[Path], measured: Sequence[Path], folder: Path) -> None:
        """Pairs over all shards, and what follows from them for each conversation; see the class.

        Raises:
            StageRefusedError: a cluster is larger than `max_cluster`.
        """
        from stages.dedup.merge import merge

        merge(raw, measured, folder, self.matching, cluster=self.cluster, max_cluster=self.max_cluster)
