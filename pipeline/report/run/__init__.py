"""The report of a run: a run in, a page with its pictures and numbers out."""

from pathlib import Path
from typing import Any

from pipeline.report import folder as folders
from pipeline.report.folder import REPORTS, build
from pipeline.report.parts import Page
from pipeline.report.run.bands import in_bands
from pipeline.report.run.checks import Bounds, check
from pipeline.report.run.frame import kinds, read_run
from pipeline.report.run.sections import page
from pipeline.terminal import say


def report(run: Path, out: Path | None, bounds: Bounds) -> tuple[Path, Page, dict[str, Any]]:
    """Write the report of a run and return its folder (by default reports/NAME), its page and its numbers.

    Raises:
        RunFolderError: the folder is not a run, or the run is not complete.
        ReportError: the folder of the report holds something else.
        CorruptInputError: a file of the run cannot be read.
    """
    place = out or REPORTS / run.resolve().name
    folders.check(place)
    if note := folders.replacement_note(place, f"refine report {run}"):
        say(f"refine: {note}")
    read = read_run(run)
    duplicates = kinds(read.plan, read.store)
    made = page(in_bands(read, duplicates), check(read, duplicates, bounds))
    return place, made, build(made, place)
