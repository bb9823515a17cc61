"""Exact and near-duplicates of whole conversations, and copies of the first prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import polars as pl

from stages.dedup.bands import Matching
from stages.dedup.merge import merge
from stages.dedup.signatures import sign_texts
from stages.files import read_json
from stages.stage import Axis, GlobalStage, StageParameterError, require
from stages.text.messages import function_keys, whole_texts
from stages.text.shingles import text_keys


@dataclass(frozen=True)
class Dedup(GlobalStage):
    r"""Exact and near-duplicates: MinHash over the set of word 5-grams, then the exact Jaccard of each candidate pair.

    Words are the `\w+` of Python's `re` on lower-cased text; in scripts written without spaces (Han, kana, Thai, Lao,
    Khmer, Myanmar) each character is a word. Two texts are exact copies if they have the same words in the same order;
    texts without any word, if they are equal after stripping white space, so that empty texts are copies of each other.
    A text of fewer than five words is one shingle: only its exact copies are its duplicates. Names and arguments of
    tool calls are part of the text, and conversations that call different functions are never duplicates.

    Exact copies are grouped first, and only the first of each group is compared. Signatures are those of datasketch 2.0
    (same seed and scheme, its `hashfunc` set to `stages.text.shingles.shingle_hash`); `floor`, `permutations` and
    `recall` give the bands that datasketch's optimizer gives. By default these are 25 bands of 5 rows: a pair at a
    Jaccard of 0.6, 0.7, 0.75, 0.8 is compared with probability 0.868, 0.990, 0.9989, 0.99995.

    Signals:
        dedup_words: number of words of the text.
        text_key, text_check, prompt_key, prompt_check: 128-bit hashes of the words of the text, of the prompt.
        band_keys: keys of the bands of the text's signature.
        dedup_copy_of: id of the first conversation that is an exact copy of this one; its own id if there is no other.
        exact_copies: number of exact copies of the conversation, itself included.
        prompt_copy_of: id of the first conversation with the same first prompt, compared like whole texts; its own id
            if it has no prompt (a plain document, no user message, or an empty one).
        prompt_copies: number of conversations with this first prompt, itself included; 1 if it has no prompt.
        cluster: id of the first conversation of its cluster, a connected component of pairs at or above a Jaccard of
            `cluster`: for reading, and for splitting train from test; `KeepBest` decides by pairs.
        cluster_size: number of conversations in the cluster, exact copies included.
        nearest_jaccard: Jaccard to the most similar other conversation; null if none reaches `floor`.
        dedup_crowded: the conversation shares a band key with more than `bucket` others and was compared with the
            leaders among those only, so that near-duplicates of it may have been missed.

    A pair at or above `floor` is written, unless one of several turns is another, such as a question about something
    else. It is another if the Jaccard of its words is below `turn_jaccard` and the words that only one of the two has
    are more than 2 % of the longer conversation. So the question counts in a short text, whose 5-grams it hardly
    changes, and scattered edits of a long one do not. Clusters and `nearest_jaccard` are of all pairs.

    The merge writes `dedup.parquet` (pairs) and `dedup.json`: counts, the S-curve of the bands, the largest clusters
    with an example of each, and notes.

    Memory of the merge: 4 bytes per text or prompt that several conversations have. All else is sorted and searched in
    temporary files: 114 bytes per conversation, 104 per conversation whose text or prompt another one has, 140 per
    candidate (a conversation that shares a band key), 8 per word of candidates, 100 per pair, 56 per turn of those in
    pairs. The system holds in memory what fits of them. Above 43 million conversations many band keys match by chance:
    those that share one are signed again, with keys of 64 bits, in files of 132 bytes each.

    Time grows linearly with the corpus: a row is compared with at most `bucket` rows per band. In a larger bucket the
    longest texts lead, so that `KeepBest` finds the pairs it needs if it keeps the longest; in another order it keeps
    more than one text of such a crowd. Of 4,000 texts that differ in two words of 300 (each pair is near), it kept 1 in
    order of length and 206 in random order. `refine dedup` knows its order before it compares, and keeps 1 in any
    order.

    Attributes:
        floor: smallest Jaccard of a pair that is written.
        cluster: smallest Jaccard of a pair that forms a cluster.
        permutations: length of a signature.
        recall: weight of missed pairs against pairs compared in vain, in the choice of bands.
        seed: seed of the permutations.
        bucket: maximum number of rows that a row is compared with in one bucket.
        max_cluster: largest share of all conversations that a cluster of 1,000 or more may have; above it the run
            stops.
        turn_jaccard: smallest Jaccard of the words of two turns that say the same; 0 to compare whole texts only.
    """

    floor: float = 0.5
    cluster: float = 0.75
    permutations: int = 128
    recall: float = 0.5
    seed: int = 1
    bucket: int = 1024
    max_cluster: float = 0.05
    turn_jaccard: float = 0.75

    summary: ClassVar[str] = "exact and near-duplicates: MinHash, then the exact Jaccard of every candidate pair"
    version: ClassVar[int] = 4
    reads: ClassVar[tuple[str, ...]] = ("text", "prompt", "details")
    writes: ClassVar[pl.Schema] = pl.Schema(
        {
            "dedup_words": pl.UInt32(),
            **dict.fromkeys(("text_key", "text_check", "prompt_key", "prompt_check"), pl.UInt64()),
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
    pairs: ClassVar[Mapping[str, str]] = MappingProxyType({"dedup": "dedup_copy_of"})
    copies: ClassVar[Mapping[str, str]] = MappingProxyType({"prompt": "prompt_copy_of"})

    def __post_init__(self) -> None:
        self.matching.check("dedup")
        require("dedup: cluster", self.cluster, self.floor <= self.cluster <= 1, "a Jaccard from floor to 1")
        require("dedup: max_cluster", self.max_cluster, 0 <= self.max_cluster <= 1, "a share from 0 to 1")
        require("dedup: turn_jaccard", self.turn_jaccard, 0 <= self.turn_jaccard <= 1, "a Jaccard from 0 to 1")
        if (bands := self.matching.bands()[0]) > 64:  # noqa: PLR2004
            raise StageParameterError(
                f"dedup: permutations and recall give {bands} bands, expected 64 or fewer: lower them"
            )

    @property
    def matching(self) -> Matching:
        return Matching(self.floor, self.permutations, self.recall, self.seed, self.bucket)

    def remarks(self, folder: Path) -> tuple[str, ...]:
        """Notes of the merge, such as buckets too large to compare all their rows."""
        return tuple(read_json(folder / "dedup.json")["notes"])

    def measure(self, batch: pl.DataFrame) -> pl.DataFrame:
        text, prompt = sign_texts([whole_texts(batch)], self.matching), text_keys(batch["prompt"])
        bands = text.bands ^ function_keys(batch)[:, None]  # those that call other functions share no band
        columns = {
            "dedup_words": text.words,
            "text_key": text.keys[:, 0],
            "text_check": text.keys[:, 1],
            "prompt_key": prompt[:, 0],
            "prompt_check": prompt[:, 1],
            "band_keys": pl.Series(bands, dtype=pl.Array(pl.UInt32, bands.shape[1])),
        }
        return pl.DataFrame(columns).cast(self.writes)

    def merge(self, raw: Sequence[Path], measured: Sequence[Path], folder: Path) -> None:
        how = partial(merge, cluster=self.cluster, max_cluster=self.max_cluster, turn_jaccard=self.turn_jaccard)
        how(raw, measured, folder, self.matching)
