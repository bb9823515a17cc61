"""`refine scale --points`: the scaling laws of points that a user measured somewhere else."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.text import Text

from pipeline.experiments.points_csv import Corpora, read
from pipeline.terminal import console, safe, table
from trainer.scaling import Difference, HeldOut, Kind, Law, Points, Prediction, ScalingError, difference, fit, held_out
from trainer.scaling.law import passes_through


def points(file: Path, *, predict: list[float], as_json: bool) -> None:
    """Fit both laws to the points of a CSV file, corpus by corpus, and print them.

    Args:
        file: Columns `tokens` and `ppl`, and `corpus` and `seed` where there are any; other columns are ignored.
        predict: Token budgets to predict PPL at.
        as_json: Print one JSON object in place of tables.

    Raises:
        ScalingError: The file, a cell of it, or a budget is not what a law can be fitted to.
    """
    corpora = read(file)
    try:
        show(corpora, predict=predict, as_json=as_json)
    except ScalingError as error:
        raise ScalingError(f"{file}: {error}") from None


def show(corpora: Corpora, *, predict: list[float], as_json: bool) -> None:
    """Fit both laws to each corpus, compare the others with the first, and print.

    Raises:
        ScalingError: The points, or a budget to predict at, are not what a law can be fitted to.
    """
    told = _LawReport(corpora, predict)
    if as_json:
        sys.stdout.write(json.dumps(_plain(told.as_dict()), indent=2) + "\n")
        return
    out = console()
    for shown in told.tables():
        out.print(shown)
    for said in told.sentences():
        out.print(Text(safe(said)))


def as_dict(corpora: Corpora, predict: list[float]) -> dict[str, Any]:
    """What `show` prints as JSON: laws, held_out, differences, notes."""
    found: dict[str, Any] = _plain(_LawReport(corpora, predict).as_dict())
    return found


def _open_ended(law: Law, made: list[Prediction]) -> Iterator[str]:
    """Why predictions have no interval, where the law itself has some."""
    where = [f"{one.tokens:,.0f}" for one in made if one.low is None]
    if where and law.residual_sd is None:
        yield "predictions have no interval: no point is left over to tell how far points lie off the law"
    elif where:
        yield f"at {', '.join(where)} tokens no interval is shown: it spans a factor of a million or more"


class _LawReport:
    """Everything that is said about the corpora."""

    def __init__(self, corpora: Corpora, predict: list[float]) -> None:
        self.laws: list[tuple[str | None, Law, list[Prediction]]] = []
        self.held_out: list[tuple[str | None, HeldOut]] = []
        self.differences: list[tuple[str | None, str | None, Difference]] = []
        self.notes: list[str] = []
        for name, given in corpora.items():
            self._one(name, given, predict)
        first, *others = corpora.items()
        for name, given in others:
            for kind in self._both(first[0], name):
                found = difference(first[1], given, kind, names=(first[0] or "a", name or "b"))
                self.differences.append((first[0], name, found))
                self._note(f"{name} against {first[0]}, {kind} law", found.notes)

    def _one(self, name: str | None, given: Points, predict: list[float]) -> None:
        said = name or "points"
        try:
            laws = [fit(given, "power")]
        except ScalingError as error:
            raise ScalingError(f"{said}: {error}" if name else str(error)) from None
        try:
            laws.append(fit(given, "saturating"))
            self.held_out.append((name, held_out(given)))
        except ScalingError as error:
            self.notes.append(f"{said}: {error}")
        for law in laws:
            made = law.predict(predict) if predict else []
            self.laws.append((name, law, made))
            if made and not law.why_no_interval:
                self._note(f"{said}, {law.kind} law", tuple(_open_ended(law, made)))
            self._note(f"{said}, {law.kind} law", law.notes)
            self._note(f"{said}, {law.kind} law", (law.why_no_interval or f"intervals are {law.basis}",))

    def _both(self, a: str | None, b: str | None) -> list[Kind]:
        kinds = {name: {law.kind for of, law, _ in self.laws if of == name} for name in (a, b)}
        return [kind for kind in ("power", "saturating") if kind in kinds[a] & kinds[b]]

    def _note(self, of: str, said: tuple[str, ...]) -> None:
        self.notes += [f"{of}: {one}" for one in said]

    def as_dict(self) -> dict[str, Any]:
        """For a script."""
        return {
            "laws": [{"corpus": name, **_law(law, made)} for name, law, made in self.laws],
            "held_out": [{"corpus": name, **vars(found)} for name, found in self.held_out],
            "differences": [{"a": a, "b": b, **_difference(found)} for a, b, found in self.differences],
            "notes": self.notes,
        }

    def tables(self) -> Iterator[object]:
        """For a person."""
        head: tuple[str, ...] = (
            "corpus",
            "law",
            "alpha",
            "95 % interval",
            "A",
            "floor",
            "interval",
            "R2",
            "per doubling",
            "interval",
        )
        rows: list[tuple[object, ...]] = [(name or "", *_cells(law)) for name, law, _ in self.laws]
        yield table("Laws: PPL = floor + A tokens^alpha", head, rows, frozenset(range(2, len(head))))
        yield table("\nPoints", *_fits(self.laws))
        made = [(name, law, one) for name, law, predictions in self.laws for one in predictions]
        if made:
            rows = [(name or "", law.kind, f"{one.tokens:,.0f}", *_predicted(one)) for name, law, one in made]
            head = ("corpus", "law", "tokens", "PPL", "95 % interval", "")
            yield table("\nPredictions for a new training", head, rows, frozenset({2, 3, 4}))
        if self.differences:
            rows = [(f"{b} against {a}", found.kind, *_against(found)) for a, b, found in self.differences]
            head = (
                "",
                "law",
                "delta alpha",
                "interval",
                "at tokens",
                "PPL ratio",
                "interval",
                "tokens worth",
                "interval",
            )
            yield table("\nDifferences", head, rows, frozenset(range(2, len(head))))

    def sentences(self) -> Iterator[str]:
        """What a person must have beside the numbers."""
        for name, found in self.held_out:
            same = math.isclose(found.power, found.saturating, rel_tol=1e-6)
            better = "both predict the same" if same else f"the {found.preferred} law predicts better"
            clear = {None: "", True: "", False: " (the difference is within the noise of the seeds)"}[found.clear]
            yield (
                f"\n{name or 'points'}: fitted without {found.budget:,.0f} tokens, where PPL is "
                f"{_short(found.measured)}, "
                f"the power law gives {_short(found.power)} ({found.power_error:+.1%}), "
                f"the saturating law {_short(found.saturating)} ({found.saturating_error:+.1%}): "
                f"{better}{'' if same else clear}"
            )
        yield ""
        yield from self.notes


def _law(law: Law, made: list[Prediction]) -> dict[str, Any]:
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
        "A": _exp(law.ln_A),
        **{name: getattr(law, name) for name in names + more},
        "points": [dict(zip(keys, row, strict=True)) for row in columns],
        "predictions": [vars(one) for one in made],
    }


def _difference(found: Difference) -> dict[str, Any]:
    told = {one.name: getattr(found, one.name) for one in fields(found) if one.name not in {"a", "b", "kind"}}
    return {"law": found.kind, **told}


def _plain(value: Any) -> Any:  # noqa: ANN401  anything that becomes JSON
    """The value as JSON holds it: numbers that are not finite are null."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def _cells(law: Law) -> tuple[str, ...]:
    trivial = passes_through(law.points, law.spread.theta)
    r2 = "-" if law.r2 is None else f"{law.r2:.4f}{' (trivial)' if trivial else ''}"
    floor = _short(law.floor) if law.kind == "saturating" else "-"
    return (
        law.kind,
        f"{law.alpha:.4f}",
        _pair(law.alpha_interval, "{:.4f}".format),
        _short(_exp(law.ln_A)),
        floor,
        _pair(law.floor_interval, _short),
        r2,
        f"{law.per_doubling:.2%}",
        _pair(law.per_doubling_interval, "{:.2%}".format),
    )


def _fits(laws: list[tuple[str | None, Law, list[Prediction]]]) -> tuple[tuple[str, ...], list[Any], frozenset[int]]:
    """Every point with what its laws give there."""
    head = ("corpus", "tokens", "seed", "PPL", "power law", "off", "saturating law", "off")
    rows: list[Any] = []
    for name, law, _ in laws:
        fitted = [
            (_short(ppl), f"{round(off, 6) + 0.0:+.1%}")
            for ppl, off in zip(law.fitted, law.relative_error, strict=True)
        ]
        if law.kind == "saturating":
            rows[-law.n :] = [row[:-2] + two for row, two in zip(rows[-law.n :], fitted, strict=True)]
            continue
        seeds = [""] * law.n if law.points.seed is None else [str(seed) for seed in law.points.seed]
        for tokens, ppl, seed, two in zip(law.points.tokens, law.points.ppl, seeds, fitted, strict=True):
            rows.append((name or "", f"{tokens:,.0f}", seed, _short(ppl), *two, "-", "-"))
    return head, rows, frozenset(range(1, len(head)))


def _predicted(one: Prediction) -> tuple[str, ...]:
    return _short(one.value), _pair((one.low, one.high), _short), "extrapolates" if one.extrapolates else ""


def _against(found: Difference) -> tuple[str, ...]:
    ratio = None if found.ln_ratio_interval is None else tuple(map(_exp, found.ln_ratio_interval))
    worth = (
        "-" if found.efficiency is None else f"{found.efficiency:.3f}{' extrapolates' if found.extrapolates else ''}"
    )
    return (
        f"{found.delta_alpha:+.4f}",
        _pair(found.delta_alpha_interval, "{:+.4f}".format),
        f"{found.budget:,.0f}",
        f"{_exp(found.ln_ratio):.4f}",
        _pair(ratio, "{:.4f}".format),
        worth,
        _pair(found.efficiency_interval, "{:.3f}".format),
    )


def _pair(ends: tuple[float | None, ...] | None, shown: Callable[[float], str]) -> str:
    if ends is None or ends[0] is None or ends[1] is None:
        return "-"
    return f"{shown(ends[0])} to {shown(ends[1])}"


def _short(value: float) -> str:
    """A positive number with thousands separators while it is short enough to read."""
    if value and not 1e-3 <= value < 1e9:  # noqa: PLR2004
        return f"{value:.3g}"
    return f"{value:,.0f}" if value >= 1e4 else f"{value:,.2f}"  # noqa: PLR2004


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf  # noqa: PLR2004  what a float holds
