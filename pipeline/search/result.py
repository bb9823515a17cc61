"""The outcome of a search: every plan that was tried, the one that was picked, and what a test of it found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import polars as pl

from pipeline.compare.command import failures
from pipeline.compare.result import Comparison
from pipeline.plan import Plan
from pipeline.search.findings import Confirmation, Goal, Trial
from pipeline.search.parts import Parts


@dataclass(frozen=True, eq=False, repr=False)
class Search:
    """A finished search; made by `refine.search`.

    Attributes:
        source: the corpus, as it was named.
        target: the parts of the target.
        goal: what the picked plan is best at: "token" or "corpus".
        trials: every plan that was tried, in the order of trying; those that were too small have a note.
        left: number of the plans that were not tried.
        stopped: why no more were tried.
        budget: training tokens of the trials.
        picked: the trial with the best result.
        confirmed: what the test part of the target says of it.
        before: earlier confirmations of other plans on the same part.
        comparison: that of raw with the corpus that the plan selects.
        plan: the plan.
        cut: what its selection ranks by, of the last conversation that it takes; None if there is no such value.
        folder: of the search: plan.toml, the plan with the evidence in comments; search.json; run/, the run.
        page: index.html of the report; report.json lies beside it.
        command: that makes this search again.
        notes: sentences for the reader.
    """

    source: str
    target: Parts
    goal: Goal
    trials: Sequence[Trial]
    left: int
    stopped: str
    budget: int
    picked: Trial
    confirmed: Confirmation
    before: Sequence[Confirmation]
    comparison: Comparison
    plan: Plan
    cut: float | None
    folder: Path
    page: Path
    command: str
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> list[str]:
        """The checks that failed and forbid a conclusion from the test."""
        return failures(self.comparison.checks)

    @property
    def file(self) -> Path:
        """The plan as TOML, which `refine run --plan` takes."""
        return self.folder / "plan.toml"

    @property
    def frame(self) -> pl.DataFrame:
        """One row per trial: name, kind, conversations, tokens, and relative differences of PPL with their ends."""
        return pl.DataFrame([one.numbers for one in self.trials], infer_schema_length=None)

    def __repr__(self) -> str:
        return f"{self.frame}\n{self.file}\n{self.page}"

    def _repr_html_(self) -> str:
        """The table of trials, as a notebook shows it."""
        return f"<p>{escape(str(self.file))}</p>{self.frame._repr_html_()}"
