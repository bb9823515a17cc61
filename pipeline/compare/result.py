"""What a comparison found: the corpora, the training runs, the checks and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.compare.corpora import Pair
from pipeline.compare.design import Design
from pipeline.compare.scored import Scored
from pipeline.compare.verdict import Verdict
from pipeline.experiments.schedule import Cost
from pipeline.report.parts import Check
from pipeline.report.run.duplicates import Kind
from pipeline.report.run.frame import FinishedRun
from trainer.experiment.jobs import Job
from trainer.prepare.arms import Arms


@dataclass(frozen=True, eq=False)
class RunFindings:
    """The run that both are parts of, read before any training, and what its own checks found."""

    read: FinishedRun
    kinds: list[Kind]
    checks: list[Check]


@dataclass(frozen=True, eq=False)
class Trained:
    """Everything that was found out by training."""

    arms: Arms
    design: Design
    cost: Cost
    jobs: Mapping[tuple[str, str], Sequence[Job]]
    folder: Path
    scored: Sequence[Scored]
    checks: Sequence[Check]
    verdict: Verdict


@dataclass(frozen=True, eq=False)
class Compared:
    """A comparison: the corpora, and what training said of them where there was any."""

    pair: Pair
    trained: Trained | None
    checks: Sequence[Check]
    sentence: str
    command: str
    run: RunFindings | None
    notes: Sequence[str]
    """Sentences that a reader must have."""
