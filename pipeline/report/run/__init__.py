"""`refine report`: a run in, the folder of its report out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.text import Text

from pipeline.report import folder as folders
from pipeline.report.folder import REPORTS, build
from pipeline.report.parts import Check, Page
from pipeline.report.run.bands import banded
from pipeline.report.run.checks import Bounds, check
from pipeline.report.run.duplicates import kinds
from pipeline.report.run.frame import finished
from pipeline.report.run.sections import page
from pipeline.terminal import console, safe, table


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


def _say(made: Page, checks: list[Check], place: Path) -> None:
    out = console()
    out.print(Text(safe(made.headline)))
    names = {True: "pass", False: "FAIL", None: "n/a"}
    rows: list[tuple[object, ...]] = [(names[one.passed], one.name, one.found) for one in checks]
    out.print(table("\nChecks", ("", "check", "found"), rows))
    out.print(Text(safe(f"\n{place / 'index.html'}")), soft_wrap=True)
