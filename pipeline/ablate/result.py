"""The outcome of an ablation: contrasts of two arms that differ by one rule."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import polars as pl

from pipeline.compare.corpora import Pair
from pipeline.compare.design import Experiment
from pipeline.compare.scored import Scored
from pipeline.report.parts import Check
from trainer.scaling import Difference


@dataclass(frozen=True, eq=False)
class Contrast:
    """Two arms that differ by one rule: the first is without it, the second with it."""

    reason: str
    how: str
    """Whether "alone" (the rule by itself against raw) or "on top" (all rules against all others)."""
    first: str
    second: str
    dropped: int
    """Conversations that only the first arm has."""
    added: int = 0
    """Conversations that only the second arm has: duplicates of what the rule drops, which stand in for it."""
    dropped_words: int = 0
    """Words of the conversations that only the first arm has."""

    @property
    def key(self) -> tuple[str, str]:
        """Reason and how."""
        return self.reason, self.how


@dataclass(frozen=True, eq=False)
class Ablation:
    """The rules of a run, each alone and each on top of all others; made by `ablate`.

    Attributes:
        pair: raw and refined of the run.
        contrasts: of each rule, those in which it drops something; `skipped` has a sentence on each other one.
        experiment: the training runs; None without training.
        scored: both arms of each contrast on each test set, by `Contrast.key`; empty without training.
        checks: those of the experiment and of the run.
        sentence: the verdict.
        command: that makes this ablation again.
        page: index.html of the report; report.json lies beside it.
    """

    pair: Pair
    contrasts: Sequence[Contrast]
    skipped: Sequence[str]
    experiment: Experiment | None
    scored: Mapping[tuple[str, str], Sequence[Scored]]
    checks: Sequence[Check]
    sentence: str
    command: str
    page: Path

    @property
    def failed(self) -> list[Check]:
        """The checks that failed."""
        return [check for check in self.checks if check.passed is False]

    def test_sets(self) -> Sequence[Scored]:
        """The first contrast on each test set; the test sets are the same for all. Empty without training."""
        return next(iter(self.scored.values()), ())

    def by_power_law(self, contrast: Contrast) -> Iterator[tuple[Scored, Difference]]:
        """Both arms of a contrast on each test set, and the difference of the power laws there."""
        for one in self.scored.get(contrast.key, ()):
            if "power" in one.differences:
                yield one, one.differences["power"]

    @property
    def contrast_frame(self) -> pl.DataFrame:
        """One row per contrast: reason, how, first, second, dropped, added (conversations), dropped_words."""
        return pl.DataFrame([vars(one) for one in self.contrasts])

    @property
    def differences(self) -> pl.DataFrame:
        """One row per contrast, test set and law: its numbers with the ends of 95 % intervals. Empty without training.

        Columns: reason, how, test_set, and those of `CorpusLaws.difference_frame`.
        """
        frames = [
            one.laws.difference_frame().select(
                *(pl.lit(text).alias(name) for name, text in zip(("reason", "how"), key, strict=True)),
                pl.lit(one.test.name).alias("test_set"),
                pl.all(),
            )
            for key, scored in self.scored.items()
            for one in scored
        ]
        return pl.concat(frames, how="vertical_relaxed") if frames else pl.DataFrame()

    def _repr_html_(self) -> str:
        """The verdict and the differences, or the contrasts without training, as a notebook shows them."""
        frame = self.differences if self.scored else self.contrast_frame
        return f"<p>{escape(self.sentence)}</p>{frame._repr_html_()}"
