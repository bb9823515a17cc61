"""`refine report`: a run in, the folder of its report out."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
from rich.text import Text

from pipeline import VERSION
from pipeline.report import folder as folders
from pipeline.report.page import figures, html, png
from pipeline.report.parts import Page, Panel
from pipeline.report.run.banded import banded
from pipeline.report.run.checks import Bounds, Check, check
from pipeline.report.run.duplicates import kinds
from pipeline.report.run.frame import finished
from pipeline.report.run.sections import page
from pipeline.terminal import console, safe, table

REPORTS = Path("reports")
"""Where reports are written by default, in the folder that refine is started in."""


def report(run: Path, out: Path | None, bounds: Bounds, *, fail: bool, as_json: bool) -> None:
    """Write the report of a run, say what its checks found, and exit with 1 where one failed and `fail` asks for it.

    Raises:
        RunFolderError: it is no run that is complete.
        ReportError: the folder cannot be the report's.
        CorruptInputError: a file of the run cannot be read.
    """
    place = out or REPORTS / run.resolve().name
    folders.check(place)
    if note := folders.replaced(place, f"refine report {run}"):
        sys.stderr.write(f"refine: {safe(note)}\n")
    read = finished(run)
    found = kinds(read.plan, read.store)
    checks = check(read, found, bounds)
    made = page(banded(read, found), checks)
    numbers = build(made, place)
    if as_json:
        said = {"report": str(place / "index.html"), **numbers}
        sys.stdout.write(json.dumps(said, indent=2, ensure_ascii=True) + "\n")
    else:
        _say(made, checks, place)
    if fail and any(one.passed is False for one in checks):
        sys.exit(1)


def build(made: Page, place: Path) -> dict[str, Any]:
    """Write a page with its pictures and its numbers into a folder; the numbers are returned.

    Raises:
        ReportError: the folder is not a report's.
    """
    files = ["index.html", *(f"{figure.name}.png" for figure in figures(made))]
    numbers = {
        "refine_report": VERSION,
        **made.numbers,
        "title": made.title,
        "headline": made.headline,
        "checks": [asdict(one) for one in made.checks],
        "figures": {
            figure.name: {
                "title": figure.title,
                "panels": [{"title": panel.title, "rows": _exact(panel)} for panel in figure.panels],
            }
            for figure in figures(made)
        },
        "files": files,
    }

    def into(aside: Path) -> None:
        said = json.dumps(numbers, ensure_ascii=False, allow_nan=False) + "\n"
        (aside / "index.html").write_text(html(made), encoding="utf-8")
        for figure in figures(made):
            (aside / f"{figure.name}.png").write_bytes(png(figure))
        (aside / folders.MARK).write_text(said, encoding="utf-8")

    folders.write(place, into)
    return numbers


def _exact(panel: Panel) -> list[dict[str, Any]]:
    """The numbers of a panel, without the last digits, which depend on the order in which threads add up."""
    return panel.numbers.with_columns(pl.col(pl.Float32, pl.Float64).round_sig_figs(9)).to_dicts()


def _say(made: Page, checks: list[Check], place: Path) -> None:
    out = console()
    out.print(Text(safe(made.headline)))
    names = {True: "pass", False: "FAIL", None: "n/a"}
    rows: list[tuple[object, ...]] = [(names[one.passed], one.name, one.found) for one in checks]
    out.print(table("\nChecks", ("", "check", "found"), rows))
    out.print(Text(safe(f"\n{place / 'index.html'}")), soft_wrap=True)
