"""Conversations sorted into bands: deciles of perplexity, ranges of toxicity and length, sources, languages."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import polars as pl

from pipeline.report.run.bins import Bins, make_bins, places
from pipeline.report.run.duplicates import Kind, have_duplicates
from pipeline.report.run.frame import FinishedRun
from pipeline.report.run.signals import thresholds
from pipeline.report.text import labels, short

UNKNOWN = "unknown"
TOXICITY = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Edges of the bands of toxicity; 0.5 is the threshold of the stage, 0.9 that of the default rule."""
PROMPT_WORDS = (5, 10, 20, 40, 80, 160)
"""Edges of the bands of the first prompt's length, in words."""
WORDS = (10, 30, 100, 300, 1000, 3000)
"""Edges of the bands of a conversation's length, in words."""
MAX_NAMES = 10
"""Maximum number of sources or languages with a band each; the others share one."""


@dataclass(frozen=True)
class Band:
    """A way to sort conversations. The column `in_<key>` of a `BandedRun` holds the index of each one's label."""

    key: str
    word: str
    """What it sorts by, for headings."""
    title: str
    labels: tuple[str, ...] = ()
    """Labels for an axis, in order."""
    words: tuple[str, ...] = ()
    """The same labels for a sentence."""


PPL = Band("ppl", "perplexity", "perplexity decile (1: most expected), and where it begins")
TOX = Band("tox", "toxicity", "toxicity (probability)")
PROMPT = Band("prompt", "first prompt", "first prompt (words)")
LENGTH = Band("length", "length", "length (words)")
SOURCE = Band("source", "source", "source")
LANGUAGE = Band("lang", "language", "language")


def deciles(values: pl.Series, band: Band) -> tuple[Band, pl.Series]:
    """Ten bands of about equal numbers of conversations; fewer if many have the same value."""
    known = values.drop_nulls().to_numpy()
    edges = np.unique(np.quantile(known, np.arange(1, 10) / 10)).tolist() if known.size else []
    begins = ["", *(short(edge) for edge in edges)]  # "28.2 to 47.4" would not fit below a column
    numbered = tuple(f"{i + 1}|{begin}" for i, begin in enumerate(begins))
    return _split(values, edges, replace(band, labels=numbered, words=_labels(edges)))


def split_at_edges(values: pl.Series, band: Band, edges: Sequence[float]) -> tuple[Band, pl.Series]:
    """Bands between fixed edges; a value on an edge is in the band above it."""
    ranges = _labels(edges)
    return _split(values, edges, replace(band, labels=ranges, words=ranges))


def _labels(edges: Sequence[float]) -> tuple[str, ...]:
    if not edges:
        return ("all",)
    inner = [f"{short(low)} to {short(high)}" for low, high in pairwise(edges)]
    return (f"< {short(edges[0])}", *inner, f"≥ {short(edges[-1])}")


def _split(values: pl.Series, edges: Sequence[float], band: Band) -> tuple[Band, pl.Series]:
    """The band of each value; unknown values, if there are any, have their own."""
    places = np.searchsorted(np.asarray(edges, np.float32), values.fill_null(0.0).to_numpy(), side="right")
    index = pl.Series(band.key, places, pl.Int16).set(values.is_null(), len(band.labels))
    more = (UNKNOWN,) if values.null_count() else ()
    return replace(band, labels=(*band.labels, *more), words=(*band.words, *more)), index


def split_by_name(values: pl.Series, band: Band) -> tuple[Band, pl.Series]:
    """One band per frequent name, and one for all others."""
    text = values.cast(pl.String).fill_null(UNKNOWN)
    counts = text.value_counts(name="n").sort(["n", text.name], descending=[True, False])
    names = counts[text.name].to_list()
    top = names[:MAX_NAMES] if len(names) > MAX_NAMES + 1 else names
    others = [f"{len(names) - len(top)} others"] if len(top) < len(names) else []
    index = text.replace_strict(top, list(range(len(top))), default=len(top), return_dtype=pl.Int16).alias(band.key)
    short_names = labels([*top, *others])
    return replace(band, labels=short_names, words=short_names), index


@dataclass(frozen=True)
class BandedRun(FinishedRun):
    """A run whose conversations are sorted into bands and bins; figures are counted from it.

    `rows` has further columns: `in_<key>` (index of the label in each band), `in_s0` ... (bin of each signal), and, if
    pairs were measured, `in_dup` and `in_dup_kept` (whether it has a duplicate in raw, and in refined).
    """

    bands: dict[str, Band]
    """By key."""
    bins: dict[str, Bins]
    """By signal."""
    at_least: float | None
    """Minimum Jaccard of two duplicates; None if no stage measured pairs."""


def banded(run: FinishedRun, kinds: list[Kind]) -> BandedRun:
    """Sort a run's conversations."""
    rows, bands, columns = run.rows, {}, []
    for band, index in _sorts(run):
        bands[band.key] = band
        columns.append(index)
    bins = {}
    for i, signal in enumerate(run.signals):
        marks = [threshold.at for threshold in thresholds(run.plan, signal.name)]
        bins[signal.name] = make_bins(rows[signal.name], signal, marks)
        columns.append(places(rows[signal.name], bins[signal.name].edges).alias(f"s{i}"))
    if kinds:
        columns.append(
            have_duplicates(kinds[0], rows["id"], pl.repeat(value=True, n=rows.height, eager=True)).alias("dup")
        )
        columns.append(have_duplicates(kinds[0], rows["id"], rows["keep"]).alias("dup_kept"))
    rows = rows.hstack([column.alias(f"in_{column.name}") for column in columns])  # no signal has such a name
    at_least = kinds[0].at_least if kinds else None
    return BandedRun(run.store, run.plan, run.manifest, run.signals, rows, bands, bins, at_least)


def _sorts(run: FinishedRun) -> Iterator[tuple[Band, pl.Series]]:
    rows = run.rows
    if run.has("ppl"):
        yield deciles(rows["ppl"], PPL)
    if run.has("toxicity"):
        yield split_at_edges(rows["toxicity"], TOX, TOXICITY)
    yield split_by_name(rows["source"], SOURCE)
    if run.has("prompt_words"):
        yield split_at_edges(rows["prompt_words"], PROMPT, PROMPT_WORDS)
    for words in [name for name in ("n_words", "dedup_words") if run.has(name)][:1]:
        yield split_at_edges(rows[words], LENGTH, WORDS)
    if run.has("language"):
        yield split_by_name(rows["language"], LANGUAGE)


def crossing(run: BandedRun) -> tuple[Band, Band] | None:
    """The two bands of the main heatmap: perplexity and toxicity, or substitutes; None if no signal serves."""
    across = [run.bands[key] for key in ("ppl", "length", "lang") if key in run.bands]
    down = [run.bands[key] for key in ("tox", "source") if key in run.bands]
    return (across[0], down[0]) if across else None
