"""Conversations sorted into bands: deciles of perplexity, bands of toxicity and length, sources, languages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import polars as pl

from pipeline.report.run.bins import Bins, binned, places
from pipeline.report.run.duplicates import Kind, duplicated
from pipeline.report.run.frame import FinishedRun
from pipeline.report.run.signals import thresholds
from pipeline.report.text import labels, short

UNKNOWN = "unknown"
TOXICITY = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Where bands of toxicity meet; 0.5 is the stage's own threshold, 0.9 the default rule's."""
PROMPT_WORDS = (5, 10, 20, 40, 80, 160)
WORDS = (10, 30, 100, 300, 1000, 3000)
MOST = 10
"""Sources or languages that have a row of their own; the others share one."""


@dataclass(frozen=True)
class Band:
    """A way to sort conversations: `key` names the column of `rows` that holds the index of each one's label."""

    key: str
    word: str
    """What it is by, as a heading says it."""
    title: str
    labels: tuple[str, ...] = ()
    """As an axis shows them, in order."""
    said: tuple[str, ...] = ()
    """As a sentence shows them."""


PPL = Band("ppl", "perplexity", "perplexity decile (1: most expected), and where it begins")
TOX = Band("tox", "toxicity", "toxicity (probability)")
PROMPT = Band("prompt", "first prompt", "first prompt (words)")
LENGTH = Band("length", "length", "length (words)")
SOURCE = Band("source", "source", "source")
LANGUAGE = Band("lang", "language", "language")


def deciles(values: pl.Series, band: Band) -> tuple[Band, pl.Series]:
    """Ten bands of about as many conversations each; fewer where many have the same value."""
    known = values.drop_nulls().to_numpy()
    edges = np.unique(np.quantile(known, np.arange(1, 10) / 10)).tolist() if known.size else []
    begins = ["", *(short(edge) for edge in edges)]  # all of "28.2 to 47.4" would not fit below a column
    numbered = tuple(f"{i + 1}|{begin}" for i, begin in enumerate(begins))
    return _banded(values, edges, replace(band, labels=numbered, said=_between(edges)))


def fixed(values: pl.Series, band: Band, edges: Sequence[float]) -> tuple[Band, pl.Series]:
    """Bands between fixed edges; a value on an edge belongs above it."""
    said = _between(edges)
    return _banded(values, edges, replace(band, labels=said, said=said))


def _between(edges: Sequence[float]) -> tuple[str, ...]:
    if not edges:
        return ("all",)
    inner = [f"{short(low)} to {short(high)}" for low, high in pairwise(edges)]
    return (f"< {short(edges[0])}", *inner, f"≥ {short(edges[-1])}")


def _banded(values: pl.Series, edges: Sequence[float], band: Band) -> tuple[Band, pl.Series]:
    """Each value's band; unknown ones have a band of their own, where there are any."""
    places = np.searchsorted(np.asarray(edges, np.float32), values.fill_null(0.0).to_numpy(), side="right")
    index = pl.Series(band.key, places, pl.Int16).set(values.is_null(), len(band.labels))
    more = (UNKNOWN,) if values.null_count() else ()
    return replace(band, labels=(*band.labels, *more), said=(*band.said, *more)), index


def named(values: pl.Series, band: Band) -> tuple[Band, pl.Series]:
    """The most frequent names, and one band for all others."""
    text = values.cast(pl.String).fill_null(UNKNOWN)
    counts = text.value_counts(name="n").sort(["n", text.name], descending=[True, False])
    names = counts[text.name].to_list()
    top = names[:MOST] if len(names) > MOST + 1 else names
    others = [f"{len(names) - len(top)} others"] if len(top) < len(names) else []
    index = text.replace_strict(top, list(range(len(top))), default=len(top), return_dtype=pl.Int16).alias(band.key)
    shown = labels([*top, *others])
    return replace(band, labels=shown, said=shown), index


@dataclass(frozen=True)
class BandedRun:
    """What figures are counted from."""

    run: FinishedRun
    rows: pl.DataFrame
    """`run.rows`, a column of indices for each band, `s0` ... (the bin of each signal), and, where pairs were found,
    `dup` and `dup_kept`: whether it has a duplicate in the raw, and among the refined."""
    bands: dict[str, Band]
    bins: dict[str, Bins]
    """Each signal's."""
    at_least: float | None
    """The Jaccard from which on two are duplicates; None where no stage looked for any."""


def banded(run: FinishedRun, kinds: list[Kind]) -> BandedRun:
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
    return BandedRun(run, _with(rows, columns), found, bins, kinds[0].at_least if kinds else None)


def _sorts(run: FinishedRun) -> Iterator[tuple[Band, pl.Series]]:
    """The bands that were measured."""
    rows = run.rows
    if run.has("ppl"):
        yield deciles(rows["ppl"], PPL)
    if run.has("toxicity"):
        yield fixed(rows["toxicity"], TOX, TOXICITY)
    yield named(rows["source"], SOURCE)
    if run.has("prompt_words"):
        yield fixed(rows["prompt_words"], PROMPT, PROMPT_WORDS)
    for words in [name for name in ("n_words", "dedup_words") if run.has(name)][:1]:
        yield fixed(rows[words], LENGTH, WORDS)
    if run.has("language"):
        yield named(rows["language"], LANGUAGE)


def _with(rows: pl.DataFrame, columns: list[pl.Series]) -> pl.DataFrame:
    """Rows with columns whose names no signal has: a prefix keeps a signal `ppl` and the band `ppl` apart."""
    return rows.hstack([column.alias(f"in_{column.name}") for column in columns])


def crossing(sorted_: BandedRun) -> tuple[Band, Band] | None:
    """The two bands that the main heatmap shows: perplexity and toxicity, or what comes nearest to them."""
    there = sorted_.bands
    across = [there[key] for key in ("ppl", "length", "lang") if key in there]
    down = [there[key] for key in ("tox", "source") if key in there]
    return (across[0], down[0]) if across else None
