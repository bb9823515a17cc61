"""From process start to kept ids through `stages.dedup`: measure, merge, keep the first of each pair.

    python tests/bench/dedup_kept.py CORPUS KEPT [THRESHOLD]    CORPUS/docs.parquet: id, text

As in a run, the texts are one shard, and signals are written to disk before the merge. The keep rule is that of a run:
in order, a row is dropped if it pairs with a kept row at or above the threshold (0.7).
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import polars as pl

from stages.dedup import Dedup


def kept(corpus: Path, threshold: float) -> list[str]:
    """Ids of the texts that are kept, in order."""
    raw, stage = corpus / "docs.parquet", Dedup(cluster=threshold)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        docs = pl.read_parquet(raw, columns=["id", "text"]).with_columns(prompt=pl.lit(""))
        measured = folder / "docs.parquet"
        docs.select("id").hstack(stage.measure(docs.select(stage.reads))).write_parquet(measured)
        stage.merge([raw], [measured], folder)
        firsts = pl.read_parquet(folder / "merged/docs.parquet").filter(pl.col("id") == pl.col("dedup_copy_of"))["id"]
        pairs = pl.read_parquet(folder / "dedup.parquet").filter(pl.col("jaccard") >= threshold)
    near = defaultdict(set)
    for first, second in pairs.select("id", "other").iter_rows():
        near[first].add(second)
        near[second].add(first)
    best: set[str] = set()
    for row in firsts:
        if best.isdisjoint(near.get(row, ())):
            best.add(row)
    return [row for row in firsts if row in best]


if __name__ == "__main__":
    chosen = kept(Path(sys.argv[1]), float(sys.argv[3]) if len(sys.argv) > 3 else 0.7)
    Path(sys.argv[2]).write_text("\n".join(chosen))
