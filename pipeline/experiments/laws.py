"""The scaling laws of one or more corpora: fitted, compared, and printed as `refine scale` prints them."""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl
from rich.text import Text

from pipeline.experiments.formats import (
    DIFFERENCE_HEAD,
    LAW_HEAD,
    difference_cells,
    exponent,
    finite,
    interval,
    law_cells,
    number,
    percent,
    share,
    with_interval,
)
from pipeline.experiments.points_csv import Corpora, read, row_numbers
from pipeline.terminal import console, safe, table
from trainer.scaling import (
    Difference,
    HeldOut,
    Kind,
    Law,
    Prediction,
    ScalingError,
    contradiction,
    difference,
    fit,
    held_out,
)

LAWS: tuple[Kind, ...] = ("power", "saturating")
Rows = list[tuple[object, ...]]
Key = tuple[str | None, Kind]
"""A corpus and a law; the corpus is None if the table of points names none."""


@dataclass(frozen=True, eq=False)
class CorpusLaws:
    """Both scaling laws of each corpus, and every other corpus against the first; made by `fit_laws`.

    A law that cannot be fitted is omitted, and so is a held-out test for which there are too few budgets; the notes say
    why, and what to beware of in the rest.
    """

    points: Corpora
    fits: Mapping[Key, Law] = field(default_factory=dict)
    held_out: Mapping[str | None, HeldOut] = field(default_factory=dict)
    differences: Mapping[Key, Difference] = field(default_factory=dict)
    predictions: Mapping[Key, Sequence[Prediction]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def first(self) -> str | None:
        """The corpus that the others are compared with."""
        return next(iter(self.points))

    def law_frame(self) -> pl.DataFrame:
        """One row per corpus and law: its parameters, with the ends of their 95 % intervals (null if unknown)."""
        rows = [
            {"corpus": corpus, "law": kind, **_ends(law, LAW_NUMBERS), "r2": law.r2, "points": law.n}
            for (corpus, kind), law in self.fits.items()
        ]
        return pl.DataFrame(rows, infer_schema_length=None)

    def difference_frame(self) -> pl.DataFrame:
        """One row per other corpus and law: its difference from the first corpus, with the ends of 95 % intervals."""
        rows = [
            {"corpus": corpus, "against": self.first, "law": kind, "budget": found.budget}
            | _ends(found, DIFFERENCE_NUMBERS)
            | {"extrapolates": found.extrapolates}
            for (corpus, kind), found in self.differences.items()
        ]
        return pl.DataFrame(rows, infer_schema_length=None)

    def as_dict(self) -> dict[str, Any]:
        """Laws, held-out tests, differences and notes for a script; numbers that are not finite are null."""
        made: dict[str, Any] = finite(
            {
                "laws": [
                    {"corpus": key[0], **_law(law, self.predictions.get(key, ()))} for key, law in self.fits.items()
                ],
                "held_out": [{"corpus": corpus, **vars(found)} for corpus, found in self.held_out.items()],
                "differences": [
                    {"a": self.first, "b": corpus, "law": kind}
                    | {name: value for name, value in vars(found).items() if name not in {"a", "b", "kind"}}
                    for (corpus, kind), found in self.differences.items()
                ],
                "notes": [*self.notes, *self.bases()],
            }
        )
        return made

    def bases(self) -> Iterator[str]:
        """What the intervals of each law are based on, or why there is none."""
        for (corpus, kind), law in self.fits.items():
            label = f"{corpus or 'points'}, {kind} law"
            budgets = [f"{one.tokens:,.0f}" for one in self.predictions.get((corpus, kind), ()) if one.low is None]
            if budgets and not law.why_no_interval and law.residual_sd is None:
                yield f"{label}: predictions have no interval: no degree of freedom is left to estimate the scatter"
            elif budgets and not law.why_no_interval:
                yield f"{label}: no interval at {', '.join(budgets)} tokens: it spans a factor of a million or more"
            yield f"{label}: {law.why_no_interval or f'intervals are {law.basis}'}"


LAW_NUMBERS = ("alpha", "ln_A", "floor", "per_doubling")
DIFFERENCE_NUMBERS = ("delta_alpha", "delta_ln_A", "ln_ratio", "efficiency")
"""Names of the numbers of a law and of a difference that have an interval."""
LAW_FIELDS = (
    *("alpha", "ln_A", "floor", "r2", "alpha_interval", "ln_A_interval", "floor_interval", "per_doubling"),
    *("per_doubling_interval", "why_no_interval", "basis", "level", "n", "seeds", "residual_sd", "tokens", "notes"),
)
"""What a script gets of a law, beside its points and predictions."""


def _ends(record: Law | Difference, names: Sequence[str]) -> dict[str, float | None]:
    ends: dict[str, float | None] = {}
    for name in names:
        low, high = getattr(record, f"{name}_interval") or (None, None)
        ends |= {name: getattr(record, name), f"{name}_low": low, f"{name}_high": high}
    return ends


def fit_laws(points: Corpora, budgets: Sequence[float] = ()) -> CorpusLaws:
    """Fit both laws to each corpus, predict PPL at some budgets, and compare every other corpus with the first.

    Raises:
        ScalingError: a corpus has too few budgets for a power law, two corpora cannot be compared, or a budget to
            predict at is not a finite number of tokens above 0.
    """
    fits: dict[Key, Law] = {}
    tests: dict[str | None, HeldOut] = {}
    differences: dict[Key, Difference] = {}
    notes: list[str] = []
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
    predictions = {key: law.predict(list(budgets)) if budgets else [] for key, law in fits.items()}
    notes += [f"{name or 'points'}, {kind} law: {note}" for (name, kind), law in fits.items() for note in law.notes]
    first, *others = points
    for name in others:
        for kind in LAWS:
            if (first, kind) in fits and (name, kind) in fits:
                found = difference(points[first], points[name], kind, names=(first or "a", name or "b"))
                differences[name, kind] = found
                notes += [f"{name} against {first}, {kind} law: {note}" for note in found.notes]
    return CorpusLaws(points, fits, tests, differences, predictions, tuple(dict.fromkeys(notes)))


def fit_points(file: Path, budgets: Sequence[float] = ()) -> CorpusLaws:
    """Fit both laws to the points of a CSV file, corpus by corpus, and predict PPL at some budgets.

    The columns are `tokens` and `ppl`, and optionally `corpus` and `seed`; a cell that does not serve is a
    `ScalingError`.
    """
    points = read(file)
    slips = tuple(_slips(file, points))
    try:
        laws = fit_laws(points, budgets)
    except ScalingError as error:
        raise ScalingError("; ".join((f"{file}: {error}", *slips))) from None
    return replace(laws, notes=(*slips, *laws.notes))


def _slips(file: Path, points: Corpora) -> Iterator[str]:
    """A sentence on the point of each corpus that its other points contradict, with the law without it."""
    for (corpus, given), rows in zip(points.items(), row_numbers(file).values(), strict=True):
        if found := contradiction(given):
            tokens, ppl, law = given.tokens[found.index], given.ppl[found.index], found.others
            yield (
                f"row {rows[found.index]} ({f'{corpus}, ' if corpus else ''}{tokens:,.0f} tokens, PPL {number(ppl)}) "
                f"contradicts the other points, whose power law gives PPL {number(found.expected)} there: check it; "
                f"without it alpha is {with_interval(law.alpha, law.alpha_interval, exponent)} and A "
                f"{number(math.exp(min(law.ln_A, 700.0)))}"
            )


def show(laws: CorpusLaws, *, as_json: bool = False) -> None:
    """Print laws as tables and sentences, or as JSON."""
    if as_json:
        sys.stdout.write(json.dumps(laws.as_dict(), indent=2) + "\n")
        return
    out = console()
    for made in _tables(laws):
        out.print(made)
    for sentence in _sentences(laws):
        out.print(Text(safe(sentence)))


def _tables(laws: CorpusLaws) -> Iterator[object]:
    """The tables that have rows; the columns before the first number are aligned to the left."""
    fits: Rows = [
        (corpus or "", *law_cells(law), with_interval(law.per_doubling, law.per_doubling_interval, share))
        for (corpus, _), law in laws.fits.items()
    ]
    predictions: Rows = [
        (corpus or "", kind, f"{one.tokens:,.0f}", number(one.value), interval((one.low, one.high), number), mark)
        for (corpus, kind), made in laws.predictions.items()
        for one in made
        for mark in ["extrapolates" if one.extrapolates else ""]
    ]
    differences: Rows = [
        (f"{corpus} against {laws.first}", *difference_cells(found), f"{found.budget:,.0f}")
        for (corpus, _), found in laws.differences.items()
    ]
    predictions_head = ("corpus", "law", "tokens", "PPL", "95 % interval", "")
    points_head = ("corpus", "tokens", "seed", "PPL", "power law", "off", "saturating law", "off")
    tables: list[tuple[str, int, tuple[str, ...], Rows]] = [
        ("Laws: PPL = floor + A tokens^alpha, with 95 % intervals", 2, ("corpus", *LAW_HEAD, "per doubling"), fits),
        ("\nPoints", 1, points_head, _points_rows(laws)),
        ("\nPredictions for a new training run", 2, predictions_head, predictions),
        ("\nDifferences, with 95 % intervals", 2, ("", *DIFFERENCE_HEAD, "at tokens"), differences),
    ]
    for title, left, head, rows in tables:
        if rows:
            yield table(title, head, rows, frozenset(range(left, len(head))))


def _points_rows(laws: CorpusLaws) -> Rows:
    """All points, each with the PPL that both laws give and its error."""
    rows: Rows = []
    for corpus, points in laws.points.items():
        fits = [laws.fits.get((corpus, kind)) for kind in LAWS]
        for i, (tokens, ppl) in enumerate(zip(points.tokens, points.ppl, strict=True)):
            seed = "" if points.seed is None else str(points.seed[i])
            cells = [
                ("-", "-") if law is None else (number(law.fitted[i]), percent(law.relative_error[i])) for law in fits
            ]
            rows.append((corpus or "", f"{tokens:,.0f}", seed, number(ppl), *cells[0], *cells[1]))
    return rows


def _sentences(laws: CorpusLaws) -> Iterator[str]:
    for corpus, found in laws.held_out.items():
        same = math.isclose(found.power, found.saturating, rel_tol=1e-6)
        better = "both predict the same" if same else f"the {found.preferred} law predicts better"
        noise = "" if same or found.clear is not False else " (the difference is within the noise of the seeds)"
        yield (
            f"\n{corpus or 'points'}: fitted without {found.budget:,.0f} tokens, where PPL is "
            f"{number(found.measured)}, the power law gives {number(found.power)} ({percent(found.power_error)}), "
            f"the saturating law {number(found.saturating)} ({percent(found.saturating_error)}): {better}{noise}"
        )
    yield from ("", *laws.notes, *laws.bases())


def _law(law: Law, predictions: Sequence[Prediction]) -> dict[str, Any]:
    seeds = [None] * law.n if law.points.seed is None else law.points.seed.tolist()
    columns = zip(law.points.tokens, law.points.ppl, seeds, law.fitted, law.relative_error, strict=True)
    keys = ("tokens", "ppl", "seed", "fitted", "relative_error")
    return {
        "law": law.kind,
        "A": math.exp(law.ln_A) if law.ln_A < 700 else math.inf,  # noqa: PLR2004  the largest exponent of a float
        **{name: getattr(law, name) for name in LAW_FIELDS},
        "points": [dict(zip(keys, row, strict=True)) for row in columns],
        "predictions": [vars(one) for one in predictions],
    }
