"""The three parts of a target: examples to fit signals on, and conversations for the choice and for its test."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline import sources
from pipeline.experiments import corpus as corpora
from pipeline.ingest import Limits, ingest
from pipeline.sources.rows import SourceError
from pipeline.store import Store
from stages.files import read_frame, save_frame
from trainer.prepare.streams import seeded_hashes

SHARES = {"fit": 0.5, "development": 0.25, "test": 0.25}
"""Share of the clusters of near-duplicates that each part gets, on average."""
MIN_CLUSTERS = 20
"""Minimum number of clusters of a part: a bootstrap over fewer gives no interval."""
SALT = 0x7A46
"""Makes the parts independent of every order of training."""


@dataclass(frozen=True)
class Parts:
    """The files of the parts of a target, and their numbers of conversations."""

    source: str
    digest: str
    folder: Path
    sizes: Mapping[str, int]

    def file(self, part: str) -> Path:
        """The file of a part: `prompt` and `messages` of each conversation."""
        return self.folder / f"{part}.parquet"


def divide(target: str, folder: Path) -> Parts:
    """Divide a target by clusters of near-duplicates and write a file per part.

    A hash of a cluster's keys decides, so that a conversation stays on its side if others are added.

    Raises:
        SourceError: the target cannot be read, or is too small for three parts.
    """
    source = sources.find(target)
    with tempfile.TemporaryDirectory(prefix="refine-target-") as scratch:
        store = Store(Path(scratch) / "run")
        ingest(source, store, Limits())
        frames = [read_frame(store.raw(shard), ["prompt", "messages", "text"]) for shard in store.shards()]
    frame = pl.concat(frames).filter(pl.col("text").str.contains(r"\S"))
    found = sides(corpora.keys(frame["text"]), corpora.groups(frame["text"]))
    sizes = {}
    for number, part in enumerate(SHARES):
        mine = found[0] == number
        if len(np.unique(found[1][mine])) < MIN_CLUSTERS:
            raise SourceError(
                f"the {part} part of the target {target} has {len(np.unique(found[1][mine]))} conversations without "
                f"near-duplicates, and {MIN_CLUSTERS} are needed in each of {', '.join(SHARES)}: name a larger target"
            )
        sizes[part] = int(mine.sum())
        save_frame(folder / f"{part}.parquet", frame.filter(pl.Series(mine)).drop("text"))
    return Parts(source.name, source.digest(), folder, sizes)


def sides(keys: NDArray[np.uint64], groups: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The part of each conversation, from 0, and its cluster, int64 [K] each, from the hashes of texts and clusters."""
    _, cluster = np.unique(groups, return_inverse=True)
    least = np.full(int(cluster.max(initial=-1)) + 1, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(least, cluster, keys)
    place = seeded_hashes(least, SALT).astype(np.float64) / 2.0**64
    ends = np.cumsum(list(SHARES.values()))
    part = np.searchsorted(ends[:-1], place, side="right")
    return part[cluster], cluster
