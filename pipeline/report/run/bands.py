"""Conversations sorted into bands: deciles of perplexity, ranges of toxicity and length, sources, languages."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.plant.audit import UNTOUCHED, planted_kinds
from pipeline.plant.kinds import KINDS
from pipeline.report.charts import AxisKind
from pipeline.report.run.frame import CLUSTER, WORDS, FinishedRun, Kind, Signal, have_duplicates, thresholds
from pipeline.report.text import labels, short
from pipeline.rules import measure_of

UNKNOWN = "unknown"
MAX_NAMES = 10
"""Maximum number of sources or languages with a band each; the others share one."""
MAX_CLUSTERS = 64
"""Maximum number of clusters of meaning with a band each, the largest; the others share one."""
BINS = 24
"""Approximate number of bins of a distribution; whole numbers of at most this range have a bin each."""


@dataclass(frozen=True)
class Band:
    """A way to sort conversations. The column `in_<key>` of a `BandedRun` holds the index of each one's label."""

    key: str
    word: str
    """What it sorts by, for headings."""
    title: str
    signals: tuple[str, ...] = ()
    """Columns that it can sort by; the first that was measured is used."""
    edges: tuple[float, ...] = ()
    """Edges of its ranges, if it sorts by a number."""
    labels: tuple[str, ...] = ()
    """Labels for an axis, in order."""
    words: tuple[str, ...] = ()
    """The same labels for a sentence."""


@dataclass(frozen=True)
class Bins:
    """Edges of bins, and their axis; "whole" has a bin around each whole number."""

    edges: tuple[float, ...]
    axis: AxisKind = "linear"


BANDS = (
    Band("ppl", "perplexity", "perplexity decile (D1: most expected), and where it ends", ("ppl",)),
    # 0.5 is the threshold of the stage, 0.9 that of the default rule
    Band("tox", "toxicity", "abusive language (probability)", ("toxicity",), (0.1, 0.25, 0.5, 0.75, 0.9)),
    Band("source", "source", "source", ("source",)),
    Band("prompt", "first prompt", "first prompt (words)", ("prompt_words",), (5, 10, 20, 40, 80, 160)),
    Band("length", "length", "length (words)", WORDS, (10, 30, 100, 300, 1000, 3000)),
    Band("lang", "language", "language", ("language",)),
)


def deciles(values: pl.Series, band: Band) -> tuple[Band, pl.Series]:
    """Ten bands of about equal numbers of conversations; fewer if many have the same value."""
    known = values.drop_nulls().to_numpy()
    edges = np.unique(np.quantile(known, np.arange(1, 10) / 10)).tolist() if known.size else []
    band, index = split_at_edges(values, replace(band, edges=tuple(edges)))
    ends = [*(f"<{short(edge)}" for edge in edges), *(f"≥{short(edge)}" for edge in edges[-1:])] or ["all"]
    numbered = [f"D{i}|{end}" for i, end in enumerate(ends, 1)]  # "28.2 to 47.4" would not fit
    return replace(band, labels=(*numbered, *band.words[len(numbered) :])), index


def split_at_edges(values: pl.Series, band: Band) -> tuple[Band, pl.Series]:
    """Bands between edges, and one for unknown values, if any; a value on an edge is in the band above it."""
    edges, ranges = band.edges, ["all"]
    if edges:
        inner = [f"{short(low)} to {short(high)}" for low, high in pairwise(edges)]
        ranges = [f"< {short(edges[0])}", *inner, f"≥ {short(edges[-1])}"]
    places = np.searchsorted(np.asarray(edges, np.float32), values.fill_null(0.0).to_numpy(), side="right")
    index = pl.Series(band.key, places, pl.Int16).set(values.is_null(), len(ranges))
    names = (*ranges, UNKNOWN) if values.null_count() else tuple(ranges)
    return replace(band, labels=names, words=names), index


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


def split_by_cluster(values: pl.Series) -> tuple[Band, pl.Series]:
    """One band per cluster, numbered as the stage `semantic` does, and one each for the others and for no cluster."""
    count = min(int(values.max() or 0) + 1, MAX_CLUSTERS)  # type: ignore[arg-type]
    index = values.clip(upper_bound=count).fill_null(count + 1).cast(pl.Int16).alias("cluster")
    names = (*map(str, range(count)), "others", UNKNOWN)
    return Band("cluster", "cluster", "cluster of meaning", (CLUSTER,), labels=names, words=names), index


def make_bins(values: pl.Series, signal: Signal, marks: Sequence[float]) -> Bins:
    """The bins of a signal, which include thresholds (`marks`) that are near; none if no value is known."""
    known = values.drop_nulls().to_numpy().astype(np.float64)
    if not known.size:
        return Bins(())
    low, high = float(known.min()), float(known.max())
    whole = bool(np.all(known == np.round(known)))
    if whole and high - low <= BINS:
        return Bins(tuple((np.arange(low, high + 2) - 0.5).tolist()), "whole")
    if low >= 0 and high <= 1 and not signal.log:
        return Bins(tuple(np.linspace(0, 1, 21).tolist()))
    if signal.log and low >= 0:
        return Bins(tuple(_logarithmic(known, whole=whole)), "log")
    low, high = (float(q) for q in np.quantile(known, [0.001, 0.999]))
    span = (high - low) or 1.0
    near = [mark for mark in marks if low - span < mark < high + span]
    return Bins(tuple(np.linspace(min([low, *near]), max([high, *near]) + span / 1e3, BINS + 1).tolist()))


def _logarithmic(known: NDArray[np.float64], *, whole: bool) -> list[float]:
    """Edges in equal steps of the logarithm; zero has its own bin among whole numbers, else it is in the first."""
    above = known[known > 0]
    if not above.size:
        return [0.0, 1.0]
    low, high = float(above.min()), float(above.max()) * 1.0001
    if not whole:
        return [float(edge) for edge in np.geomspace(low, max(high, low * 1.01), BINS + 1)]
    steps = np.unique(np.round(np.geomspace(low, high + 1, BINS + 1)))
    edges: list[float] = steps.tolist() if steps.size > 1 else [low, low + 1]
    return edges if known.min() > 0 else [0.0, *([] if edges[0] == 1 else [1.0]), *edges]


def places(values: pl.Series, at: Sequence[float]) -> pl.Series:
    """Index of the bin of each value; the outer bins include values beyond them; null if unknown."""
    index = np.searchsorted(np.asarray(at, np.float32), values.fill_null(0.0).to_numpy(), side="right") - 1
    return pl.Series(np.clip(index, 0, len(at) - 2), dtype=pl.Int16).set(values.is_null(), None)


@dataclass(frozen=True)
class BandedRun(FinishedRun):
    """A run whose conversations are sorted into bands and bins; figures are counted from it.

    `rows` has further columns: `in_<key>` (index of the label in each band), `in_s0` ... (bin of each signal), and, if
    pairs were measured, `in_dup` and `in_dup_kept` (whether it has a duplicate in raw, and in refined). `bands` are by
    key, `bins` by signal.
    """

    bands: dict[str, Band]
    bins: dict[str, Bins]
    at_least: float | None
    """Minimum Jaccard, or cosine, of two duplicates; None if no stage measured pairs."""
    measure: str
    """Which of the two it is."""


def in_bands(run: FinishedRun, kinds: list[Kind]) -> BandedRun:
    """Sort a run's conversations."""
    rows, bands, bins, columns = run.rows, {}, {}, []
    for band in BANDS:
        measured = [name for name in band.signals if name in rows.columns]
        if measured:
            sort = deciles if band.key == "ppl" else split_at_edges if band.edges else split_by_name
            bands[band.key], index = sort(rows[measured[0]], band)
            columns.append(index)
    kinds_of = planted_kinds(run.store).gather(run.numbers)
    if (kinds_of != UNTOUCHED).any():
        names = (*KINDS, UNTOUCHED)
        bands["planted"] = Band("planted", "planted damage", "planted", labels=names, words=names)
        columns.append(kinds_of.to_physical().cast(pl.Int16).alias("planted"))
    if CLUSTER in rows.columns:
        bands["cluster"], index = split_by_cluster(rows[CLUSTER])
        columns.append(index)
    for i, signal in enumerate(run.signals):
        marks = [threshold.at for threshold in thresholds(run.plan, signal.name)]
        bins[signal.name] = make_bins(rows[signal.name], signal, marks)
        columns.append(places(rows[signal.name], bins[signal.name].edges).alias(f"s{i}"))
    if kinds:
        for name, among in (("dup", run.keep.is_not_null()), ("dup_kept", run.keep)):
            columns.append(have_duplicates(kinds[0], among).gather(run.numbers).alias(name))
    rows = rows.hstack([column.alias(f"in_{column.name}") for column in columns])  # no signal has such a name
    at_least = kinds[0].at_least if kinds else None
    measure = measure_of(kinds[0].name if kinds else "")
    own = {each.name: getattr(run, each.name) for each in fields(run)}
    return BandedRun(**own | {"rows": rows}, bands=bands, bins=bins, at_least=at_least, measure=measure)


def crossing(run: BandedRun) -> tuple[Band, Band] | None:
    """The two bands of the main heatmap: perplexity and toxicity, or substitutes; None if no signal serves."""
    across = [run.bands[key] for key in ("ppl", "length", "lang") if key in run.bands]
    down = [run.bands[key] for key in ("tox", "source") if key in run.bands]
    return (across[0], down[0]) if across else None
