"""The rank of each conversation's perplexity in its corpus."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from stages.files import read_frame, save_frame

HEAD, TAIL = 30, 60
"""Percentiles between head, middle and tail, as in CCNet (cc_net/perplexity.py:258)."""

MIN_SCORED = 100
"""Minimum number of scored conversations to estimate a spread from. Smaller sources are pooled; if they have fewer
together, their `ppl_z` is null."""

SIGNALS = pl.Schema({"ppl_percentile": pl.Float64(), "ppl_bucket": pl.String(), "ppl_z": pl.Float64()})

_MIN_GROUP, _MAX_GROUPS = 200, 20  # conversations of similar length that are compared, and groups of them per source
_MAD = 1.4826  # ratio of the standard deviation to the median distance in a normal distribution
_MIN_SPREAD = 0.2  # of ln ppl: in a uniform corpus, a fifth more perplexity is no outlier


def merge(raw: Sequence[Path], measured: Sequence[Path], folder: Path) -> None:
    """Write the merged shards; `source` is read from the raw shards."""
    sources = pl.concat([read_frame(path, ["source"]) for path in raw], rechunk=True)
    signals = pl.concat([read_frame(path, ["ppl", "ppl_tokens"]) for path in measured])
    placed, start = place(signals.hstack(sources.cast(pl.Categorical))), 0
    for path in measured:
        ids = read_frame(path, ["id"])
        save_frame(folder / "merged" / path.name, ids.hstack(placed[start : start + ids.height]))
        start += ids.height


def place(measured: pl.DataFrame) -> pl.DataFrame:
    """The columns of `SIGNALS` from `ppl`, `ppl_tokens` and `source` of a whole corpus, same rows.

    `ppl_z` is the number of standard deviations that ln ppl lies above (or below) the median of conversations of the
    same source and similar length, because sources differ and short conversations vary more. The spread is estimated
    for each side by the median distance to the median, so that neither outliers nor near-copies affect it.
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
    scored = pl.col("ppl").count()
    pooled = pl.when(scored.over("source") >= MIN_SCORED).then(pl.col("source"))
    length = pl.when(pl.col("ppl").is_not_null()).then(pl.col("ppl_tokens")).rank("min").cast(pl.Int64)
    groups = (scored // _MIN_GROUP).clip(1, _MAX_GROUPS)
    alike, far = ["source", "group"], pl.col("far")
    above, below = (far.filter(side).median().over(alike) for side in (far > 0, far < 0))
    spread = pl.max_horizontal(pl.when(far > 0).then(above).otherwise(-below) * _MAD, pl.lit(_MIN_SPREAD))
    return (
        measured.with_columns(source=pooled)
        .with_columns(group=((length - 1) * groups // scored).over("source"), among=scored.over("source"))
        .with_columns(far=pl.col("ppl").log() - pl.col("ppl").log().median().over(alike))
        .select(pl.when(pl.col("among") >= MIN_SCORED).then(far / spread))
        .to_series()
    )
