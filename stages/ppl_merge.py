"""Where each conversation's perplexity stands in its corpus."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from stages.shards import save

HEAD, TAIL = 30, 60
"""Percentiles that part head, middle and tail, as in CCNet (cc_net/perplexity.py:258)."""

FEWEST = 100
"""Conversations scored, below which no spread can be told and `ppl_z` is null."""

SIGNALS = pl.Schema({"ppl_percentile": pl.Float64(), "ppl_bucket": pl.String(), "ppl_z": pl.Float64()})

_GROUP, _GROUPS = 200, 20  # conversations compared with each other, at least; groups, at most
_MAD = 1.4826  # times the median distance is the standard deviation, where values are normal
_NARROW = 0.2  # of ln ppl: in a corpus that is all alike, a fifth more perplexity is no outlier


def merge(measured: Sequence[Path], folder: Path) -> None:
    """Write `merged/` for the measured shards."""
    into = folder / "merged"
    into.mkdir(parents=True, exist_ok=True)
    columns = pl.concat([pl.read_parquet(path, columns=["ppl", "ppl_tokens"]) for path in measured])
    placed, start = place(columns), 0
    for path in measured:
        ids = pl.read_parquet(path, columns=["id"])
        save(into / path.name, ids.hstack(placed[start : start + ids.height]).write_parquet)
        start += ids.height


def place(measured: pl.DataFrame) -> pl.DataFrame:
    """The columns of SIGNALS from `ppl` and `ppl_tokens` of a whole corpus, same rows.

    `ppl_z` says how many standard deviations ln ppl lies above (or below) the median of conversations about as long:
    short ones vary more. Spread is told apart for each side, by the median distance to the median, so that neither
    outliers nor a share of near-copies with next to no perplexity move it.
    """
    ppl = pl.col("ppl")
    percentile = (ppl.rank("average") - 0.5) / ppl.count() * 100
    bucket = pl.when(percentile < HEAD).then(pl.lit("head")).when(percentile < TAIL).then(pl.lit("middle"))
    return measured.with_columns(
        ppl_percentile=percentile,
        ppl_bucket=pl.when(ppl.is_not_null()).then(bucket.otherwise(pl.lit("tail"))),
        ppl_z=_z(measured),
    ).select(SIGNALS.names())


def _z(measured: pl.DataFrame) -> pl.Series:
    scored = measured["ppl"].len() - measured["ppl"].null_count()
    if scored < FEWEST:
        return pl.repeat(None, measured.height, dtype=pl.Float64, eager=True)
    groups = max(1, min(_GROUPS, scored // _GROUP))
    length = pl.when(pl.col("ppl").is_not_null()).then(pl.col("ppl_tokens")).rank("min").cast(pl.Int64)
    far = pl.col("far")
    above, below = (far.filter(side).median().over("group") for side in (far > 0, far < 0))
    spread = pl.when(far > 0).then(above).otherwise(-below)
    return (
        measured.select(of=pl.col("ppl").log(), group=(length - 1) * groups // scored)
        .with_columns(far=pl.col("of") - pl.col("of").median().over("group"))
        .select(far / pl.max_horizontal(spread * _MAD, pl.lit(_NARROW)))
        .to_series()
    )
