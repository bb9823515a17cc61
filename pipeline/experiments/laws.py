"""The scaling laws of one or more corpora: fitted, compared, and printed as `refine scale` prints them."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import polars as pl
from rich.text import Text

from pipeline.experiments.formats import (
    DIFFERENCE_HEAD,
    LAW_HEAD,
    PERCENT,
    difference_cells,
    finite,
    interval,
    law_cells,
    number,
    percent,
    with_interval,
)
from pipeline.experiments.points_csv import Corpora, read
from pipeline.terminal import console, safe, table
from trainer.scaling import Difference, HeldOut, Kind, Law, Points, Prediction, ScalingError, difference, fit, held_out

LAWS: tuple[Kind, ...] = ("power", "saturating")
Key = tuple[str | None, Kind]
"""A corpus and a law; the corpus is None if the table of points names none."""


@dataclass(frozen=True, eq=False)
class CorpusLaws:
    """Both scaling laws of each corpus, and every other corpus against the first.

    Attributes:
        points: by corpus.
        fits: by corpus and law; a law that cannot be fitted is omitted.
        held_out: by corpus; omitted if there are too few budgets.
        differences: by corpus and law: that corpus against the first one.
        notes: why something is omitted, and what to beware of in the rest.
    """

    points: Mapping[str | None, Points]
    fits: Mapping[Key, Law]
    held_out: Mapping[str | None, HeldOut]
    differences: Mapping[Key, Difference]
    notes: tuple[str, ...]

    @property
    def first(self) -> str | None:
        """The corpus that the others are compared with."""
        return next(iter(self.points))

    def law_frame(self) -> pl.DataFrame:
        """One row per corpus and law: its parameters, with the ends of their 95 % intervals (null if unknown)."""
        return pl.DataFrame(
            [
                {"corpus": corpus, "law": kind, **_ends(law, LAW_NUMBERS), "r2": law.r2, "points": law.n}
                for (corpus, kind), law in self.fits.items()
            ],
            infer_schema_length=None,
        )

    def difference_frame(self) -> pl.DataFrame:
        """One row per other corpus and law: its difference from the first corpus, with the ends of 95 % intervals."""
        return pl.DataFrame(
            [
                {"corpus": corpus, "against": self.first, "law": kind, "budget": found.budget}
                | _ends(found, DIFFERENCE_NUMBERS)
                | {"extrapolates": found.extrapolates}
                for (corpus, kind), found in self.differences.items()
            ],
            infer_schema_length=None,
        )

    def as_dict(self, predictions: Mapping[Key, Sequence[Prediction]] | None = None) -> dict[str, Any]:
        """Laws, held-out tests, differences and notes for a script, not all of them finite numbers."""
        made = predictions or {}
        return {
            "laws": [{"corpus": key[0], **_law(law, made.get(key, ()))} for key, law in self.fits.items()],
            "held_out": [{"corpus": corpus, **vars(found)} for corpus, found in self.held_out.items()],
            "differences": [
                {"a": self.first, "b": corpus, **_difference(found)} for (corpus, _), found in self.differences.items()
            ],
            "notes": list(self.notes),
        }


LAW_NUMBERS = ("alpha", "ln_A", "floor", "per_doubling")
DIFFERENCE_NUMBERS = ("delta_alpha", "delta_ln_A", "ln_ratio", "efficiency")
"""Names of the numbers of a law and of a difference that have an interval."""


def _ends(record: Law | Difference, names: Sequence[str]) -> dict[str, float | None]:
    ends: dict[str, float | None] = {}
    for name in names:
        low, high = getattr(record, f"{name}_interval") or (None, None)
        ends |= {name: getattr(record, name), f"{name}_low": low, f"{name}_high": high}
    return ends


def fit_laws(points: Corpora) -> CorpusLaws:
    """Fit both laws to each corpus, and compare every other corpus with the first.

    Raises:
        ScalingError: a corpus has too few budgets for a power law, or two corpora cannot be compared.
    """
    fits, tests, differences, notes = (
        dict[Key, Law](),
        dict[str | None, HeldOut](),
        dict[Key, Difference](),
        list[str](),
    )
    for name, given in points.items():
        try:
            fits[name, "power"] = fit(given, "power")
        except ScalingError as error:
            raise ScalingError(f"{name}: {error}" if name else str(error)) from None
        try:
            fits[name, "saturating"] = fit(given, "saturating")
            tests[name] = held_out(given)
        except ScalingError as error:
            notes.append(f"{name or 'points'}: {error}")
    notes += [f"{name or 'points'}, {kind} law: {note}" for (name, kind), law in fits.items() for note in law.notes]
    first, *others = points
    for name in others:
        for kind in LAWS:
            if (first, kind) in fits and (name, kind) in fits:
                found = difference(points[first], points[name], kind, names=(first or "a", name or "b"))
                differences[name, kind] = found
                notes += [f"{name} against {first}, {kind} law: {note}" for note in found.notes]
    return CorpusLaws(points, fits, tests, differences, tuple(dict.fromkeys(notes)))


@dataclass(frozen=True, eq=False)
class LawReport:
    """Laws with predictions: what `refine scale` prints.

    Attributes:
        laws: of each corpus.
        predictions: by corpus and law, one per requested budget.
        notes: those of the laws, and what the intervals are based on.
    """

    laws: CorpusLaws
    predictions: Mapping[Key, Sequence[Prediction]]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The report for a script; numbers that are not finite are null."""
        report: dict[str, Any] = finite(self.laws.as_dict(self.predictions) | {"notes": self.notes})
        return report

    def tables(self) -> Iterator[object]:
        """The report's numbers for a person."""
        head: tuple[str, ...] = ("corpus", *LAW_HEAD, "per doubling")
        rows: list[tuple[object, ...]] = [
            (corpus or "", *law_cells(law), with_interval(law.per_doubling, law.per_doubling_interval, _share))
            for (corpus, _), law in self.laws.fits.items()
        ]
        yield table("Laws: PPL = floor + A tokens^alpha, with 95 % intervals", head, rows, _numbers(head))
        yield table("\nPoints", *_fitted(self.laws))
        head = ("corpus", "law", "tokens", "PPL", "95 % interval", "")
        rows = [
            (corpus or "", kind, f"{one.tokens:,.0f}", *_predicted(one))
            for (corpus, kind), made in self.predictions.items()
            for one in made
        ]
        if rows:
            yield table("\nPredictions for a new training run", head, rows, frozenset({2, 3, 4}))
        head = ("", *DIFFERENCE_HEAD, "at tokens")
        rows = [
            (f"{corpus} against {self.laws.first}", *difference_cells(found), f"{found.budget:,.0f}")
            for (corpus, _), found in self.laws.differences.items()
        ]
        if rows:
            yield table("\nDifferences, with 95 % intervals", head, rows, _numbers(head))

    def sentences(self) -> Iterator[str]:
        """The held-out tests and the notes, one sentence each."""
        for corpus, found in self.laws.held_out.items():
            same = math.isclose(found.power, found.saturating, rel_tol=1e-6)
            better = "both predict the same" if same else f"the {found.preferred} law predicts better"
            noise = "" if same or found.clear is not False else " (the difference is within the noise of the seeds)"
            yield (
                f"\n{corpus or 'points'}: fitted without {found.budget:,.0f} tokens, where PPL is "
                f"{number(found.measured)}, the power law gives {number(found.power)} ({percent(found.power_error)}), "
                f"the saturating law {number(found.saturating)} ({percent(found.saturating_error)}): {better}{noise}"
            )
        yield ""
        yield from self.notes


def law_report(laws: CorpusLaws, budgets: Sequence[float] = ()) -> LawReport:
    """Predict PPL at some budgets, in tokens, and say what all intervals are based on.

    Raises:
        ScalingError: a budget is not a finite number above 0.
    """
    predictions = {key: law.predict(list(budgets)) if budgets else [] for key, law in laws.fits.items()}
    notes = list(laws.notes)
    for (corpus, kind), law in laws.fits.items():
        unbounded = [] if law.why_no_interval else _without_interval(law, predictions[corpus, kind])
        reasons = [*unbounded, law.why_no_interval or f"intervals are {law.basis}"]
        notes += [f"{corpus or 'points'}, {kind} law: {reason}" for reason in reasons]
    return LawReport(laws, predictions, tuple(notes))


def _without_interval(law: Law, predictions: Sequence[Prediction]) -> Iterator[str]:
    """Why predictions of a law that has intervals have none."""
    budgets = [f"{one.tokens:,.0f}" for one in predictions if one.low is None]
    if budgets and law.residual_sd is None:
        yield "predictions have no interval: no degree of freedom is left to estimate the scatter around the law"
    elif budgets:
        yield f"at {', '.join(budgets)} tokens the interval is omitted: it spans a factor of a million or more"


def fit_points(file: Path, budgets: Sequence[float] = ()) -> LawReport:
    """Fit both laws to the points of a CSV file, corpus by corpus.

    Args:
        file: a table with the columns `tokens` and `ppl`, and optionally `corpus` and `seed`.
        budgets: tokens to predict PPL at.

    Raises:
        ScalingError: the file, a cell of it or a budget does not serve.
    """
    points = read(file)
    try:
        return law_report(fit_laws(points), budgets)
    except ScalingError as error:
        raise ScalingError(f"{file}: {error}") from None


def show(report: LawReport, *, as_json: bool = False) -> None:
    """Print a report as tables and sentences, or as JSON."""
    if as_json:
        sys.stdout.write(json.dumps(report.as_dict(), indent=2) + "\n")
        return
    out = console()
    for made in report.tables():
        out.print(made)
    for sentence in report.sentences():
        out.print(Text(safe(sentence)))


def _law(law: Law, predictions: Sequence[Prediction]) -> dict[str, Any]:
    names = ("alpha", "ln_A", "floor", "r2", "alpha_interval", "ln_A_interval", "floor_interval", "per_doubling")
    more = (
        "per_doubling_interval",
        "why_no_interval",
        "basis",
        "level",
        "n",
        "seeds",
        "residual_sd",
        "tokens",
        "notes",
    )
    seeds = [None] * law.n if law.points.seed is None else law.points.seed.tolist()
    columns = zip(law.points.tokens, law.points.ppl, seeds, law.fitted, law.relative_error, strict=True)
    keys = ("tokens", "ppl", "seed", "fitted", "relative_error")
    return {
        "law": law.kind,
        "A": math.exp(law.ln_A) if law.ln_A < 700 else math.inf,  # noqa: PLR2004  the largest exponent of a float
        **{name: getattr(law, name) for name in names + more},
        "points": [dict(zip(keys, row, strict=True)) for row in columns],
        "predictions": [vars(one) for one in predictions],
    }


def _difference(found: Difference) -> dict[str, Any]:
    rest = {one.name: getattr(found, one.name) for one in fields(found) if one.name not in {"a", "b", "kind"}}
    return {"law": found.kind, **rest}


def _share(value: float) -> str:
    return f"{value:.2%}".replace("%", PERCENT)


def _numbers(head: Sequence[str]) -> frozenset[int]:
    """The columns of a table that hold numbers: all but the first two."""
    return frozenset(range(2, len(head)))


def _fitted(laws: CorpusLaws) -> tuple[tuple[str, ...], list[tuple[object, ...]], frozenset[int]]:
    """A table of all points, each with what both laws give there."""
    head = ("corpus", "tokens", "seed", "PPL", "power law", "off", "saturating law", "off")
    rows: list[tuple[object, ...]] = []
    for corpus, points in laws.points.items():
        fits = [laws.fits.get((corpus, kind)) for kind in LAWS]
        for i, (tokens, ppl) in enumerate(zip(points.tokens, points.ppl, strict=True)):
            seed = "" if points.seed is None else str(points.seed[i])
            cells = [
                ("-", "-") if law is None else (number(law.fitted[i]), percent(law.relative_error[i])) for law in fits
            ]
            rows.append((corpus or "", f"{tokens:,.0f}", seed, number(ppl), *cells[0], *cells[1]))
    return head, rows, frozenset(range(1, len(head)))


def _predicted(one: Prediction) -> tuple[str, ...]:
    ends = interval((one.low, one.high), number)
    return number(one.value), ends, "extrapolates" if one.extrapolates else ""
