"""Where each conversation's perplexity stands in its corpus."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from stages.shards import save

HEAD, TAIL = 30, 60
"""Percentiles that part head, middle and tail, as in CCNet (cc_net/perplexity.py:258)."""

SIGNALS = pl.Schema({"ppl_percentile": pl.Float64(), "ppl_bucket": pl.String(), "ppl_z": pl.Float64()})


def merge(measured: Sequence[Path], folder: Path) -> None:
    """Write `merged/` for the measured shards."""
    into = folder / "merged"
    into.mkdir(parents=True, exist_ok=True)
    columns = pl.concat([pl.read_parquet(path, columns=["ppl", "ppl_tokens"]) for path in measured])
    placed = place(columns)
    start = 0
    for path in measured:
        ids = pl.read_parquet(path, columns=["id"])
        save(into / path.name, pl.concat([ids, placed[start : start + ids.height]], how="horizontal").write_parquet)
        start += ids.height


def place(measured: pl.DataFrame) -> pl.DataFrame:
    """The columns of SIGNALS from `ppl` and `ppl_tokens` of a whole corpus."""
    ppl = pl.col("ppl")
    percentile = (ppl.rank("average") - 0.5) / ppl.count() * 100
    bucket = pl.when(percentile < HEAD).then(pl.lit("head")).when(percentile < TAIL).then(pl.lit("middle"))
    return measured.select(
        ppl_percentile=percentile,
        ppl_bucket=pl.when(ppl.is_not_null()).then(bucket.otherwise(pl.lit("tail"))),
        ppl_z=pl.lit(None, pl.Float64),
    )
