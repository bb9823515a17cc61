"""What an ablation found: contrasts of two arms that differ by one rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.compare.corpora import Pair
from pipeline.compare.design import Design
from pipeline.compare.scored import Scored
from pipeline.report.parts import Check
from trainer.prepare.arms import Arms


@dataclass(frozen=True, eq=False)
class Contrast:
    """Two arms of which one rule is the difference.

    Attributes:
        reason: the rule's.
        how: "alone" (the rule by itself against raw), or "on top" (all rules against all but this one).
        first: the arm without the rule.
        second: the arm with it.
        dropped: conversations that the second lacks of the first.
        added: conversations that it has beyond: duplicates that a rule's absence would have dropped in their place.
    """

    reason: str
    how: str
    first: str
    second: str
    dropped: int
    added: int = 0


@dataclass(frozen=True, eq=False)
class Ablated:
    """An ablation: its arms and contrasts, and each contrast's difference on each test set where there was training."""

    pair: Pair
    contrasts: Sequence[Contrast]
    skipped: Sequence[str]
    scored: Mapping[tuple[str, str], Sequence[Scored]]
    """By reason and how."""
    design: Design | None
    arms: Arms | None
    checks: Sequence[Check]
    """Of the trainings, and of the run."""
    sentence: str
    command: str

    def tests(self) -> Sequence[Scored]:
        """The first contrast on each test set, which are the same for all; empty where nothing was trained."""
        return next(iter(self.scored.values()), ())
