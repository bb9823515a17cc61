"""A run whose conversations are sorted: into bands, into bins of each signal, into those with duplicates or none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

from pipeline.report.run import bands
from pipeline.report.run.bands import Band
from pipeline.report.run.bins import Bins, binned, places
from pipeline.report.run.duplicates import Kind, duplicated
from pipeline.report.run.frame import Finished
from pipeline.report.run.signals import thresholds


@dataclass(frozen=True)
class Banded:
    """What figures are counted from."""

    run: Finished
    rows: pl.DataFrame
    """`run.rows`, a column of indices for each band, `s0` ... (the bin of each signal), and, where pairs were found,
    `dup` and `dup_kept`: whether it has a duplicate in the raw, and among the refined."""
    bands: dict[str, Band]
    bins: dict[str, Bins]
    """Each signal's."""
    at_least: float | None
    """The Jaccard from which on two are duplicates; None where no stage looked for any."""


def banded(run: Finished, kinds: list[Kind]) -> Banded:
    """Sort a run's conversations."""
    rows, found, columns = run.rows, {}, []
    for band, index in _sorts(run):
        found[band.key] = band
        columns.append(index)
    bins = {}
    for i, signal in enumerate(run.signals):
        marks = [threshold.at for threshold in thresholds(run.plan, signal.name)]
        bins[signal.name] = binned(rows[signal.name], signal, marks)
        columns.append(places(rows[signal.name], bins[signal.name].edges).alias(f"s{i}"))
    if kinds:
        columns.append(duplicated(kinds[0], rows["id"], pl.repeat(value=True, n=rows.height, eager=True)).alias("dup"))
        columns.append(duplicated(kinds[0], rows["id"], rows["keep"]).alias("dup_kept"))
    return Banded(run, _with(rows, columns), found, bins, kinds[0].at_least if kinds else None)


def _sorts(run: Finished) -> Iterator[tuple[Band, pl.Series]]:
    """The bands that were measured."""
    rows = run.rows
    if run.has("ppl"):
        yield bands.deciles(rows["ppl"], bands.PPL)
    if run.has("toxicity"):
        yield bands.fixed(rows["toxicity"], bands.TOX, bands.TOXICITY)
    yield bands.named(rows["source"], bands.SOURCE)
    if run.has("prompt_words"):
        yield bands.fixed(rows["prompt_words"], bands.PROMPT, bands.PROMPT_WORDS)
    for words in [name for name in ("n_words", "dedup_words") if run.has(name)][:1]:
        yield bands.fixed(rows[words], bands.LENGTH, bands.WORDS)
    if run.has("language"):
        yield bands.named(rows["language"], bands.LANGUAGE)


def _with(rows: pl.DataFrame, columns: list[pl.Series]) -> pl.DataFrame:
    """Rows with columns whose names no signal has: a prefix keeps a signal `ppl` and the band `ppl` apart."""
    return rows.hstack([column.alias(f"in_{column.name}") for column in columns])


def crossing(sorted_: Banded) -> tuple[Band, Band] | None:
    """The two bands that the main heatmap shows: perplexity and toxicity, or what comes nearest to them."""
    there = sorted_.bands
    across = [there[key] for key in ("ppl", "length", "lang") if key in there]
    down = [there[key] for key in ("tox", "source") if key in there]
    return (across[0], down[0]) if across else None
