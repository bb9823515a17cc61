"""`refine.report`: the report of a run from Python."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import terminal
from pipeline.api.run import Run
from pipeline.api.tables import Display, Summary
from pipeline.report import folder as folders
from pipeline.report.folder import REPORTS
from pipeline.report.parts import Check
from pipeline.report.run import sections
from pipeline.report.run.bands import in_bands
from pipeline.report.run.checks import Bounds, check
from pipeline.report.run.frame import kinds, read_run
from pipeline.store.bucket import check_local


@dataclass(frozen=True, repr=False)
class Report(Display):
    """The report of a run.

    Attributes:
        page: index.html; report.json lies beside it.
        headline: the page's first sentence.
        checks: what was checked, and whether it passed; None for a check that does not apply.
        numbers: every number of the page, as report.json holds them.
    """

    page: Path
    headline: str
    checks: tuple[Check, ...]
    numbers: dict[str, Any]

    @property
    def failed(self) -> list[Check]:
        """The checks that failed."""
        return [check for check in self.checks if check.passed is False]

    def summaries(self) -> Sequence[Summary]:
        """Return the headline, the checks and the file of the page."""
        names = {True: "pass", False: "FAIL", None: "n/a"}
        rows = [(names[check.passed], check.name, check.found) for check in self.checks]
        checks = Summary("\nChecks", ("", "check", "found"), rows, note=f"\n{self.page}")
        return [Summary("", (), (), note=self.headline), checks]


def report(
    run: Run | Path | str,
    *,
    out: Path | str | None = None,
    min_kept: float = 0.05,
    max_kept: float = 1.0,
    progress: bool = False,
) -> Report:
    """Write the report of a run as `refine report` does: a page with heatmaps, examples and checks.

    Args:
        run: a run, or its folder.
        out: the folder of the report; by default the run's name in reports/.
        min_kept: minimum share of conversations kept that passes the checks.
        max_kept: maximum share of conversations kept that passes the checks.
        progress: show notes on stderr.

    Raises:
        RefineError: the report cannot be written; the message says why and what to do.
    """
    folder = run.path if isinstance(run, Run) else Path(run)
    place = REPORTS / folder.resolve().name if out is None else Path(out)
    check_local(out)
    with terminal.progress(show=progress):
        bounds = Bounds(min_kept, max_kept)
        folders.check(place)
        if note := folders.replacement_note(place, f"refine report {folder}"):
            terminal.say(f"refine: {note}")
        finished = read_run(folder)
        duplicates = kinds(finished.plan, finished.store)
        page = sections.page(in_bands(finished, duplicates), check(finished, duplicates, bounds))
        numbers = folders.build(page, place)
    return Report(place / "index.html", page.headline, page.checks, numbers)
