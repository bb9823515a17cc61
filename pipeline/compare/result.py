"""The outcome of a comparison: the corpora, the training runs, the checks and the verdict."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import polars as pl

from pipeline.compare.corpora import Pair
from pipeline.compare.design import Experiment
from pipeline.compare.mixes import statistics
from pipeline.compare.scored import Scored
from pipeline.compare.screen import Screened
from pipeline.compare.verdict import WORTH_KNOWING, NetworkFinding, Verdict
from pipeline.report.parts import Check
from pipeline.report.run.frame import FinishedRun, Kind


@dataclass(frozen=True, eq=False)
class RunFindings:
    """The run that both corpora are parts of, its kinds of duplicates, and its own checks."""

    read: FinishedRun
    kinds: list[Kind]
    checks: list[Check]


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Two corpora compared; made by `compare`.

    Attributes:
        pair: the corpora.
        verdict: the conclusion, or why there is none.
        checks: those of the experiment and of the run.
        experiment: the training runs; None without training.
        scored: both arms on each test set; empty without training.
        run: that both corpora are parts of; None for other corpora.
        notes: sentences for the reader.
        command: that makes this comparison again.
        page: index.html of the report; report.json lies beside it.
        screened: n-gram models of both corpora; without an experiment, the verdict is theirs.
        primary: both arms on the test set that the verdict is about; None without models.
        beside: both arms on all messages there, if the verdict is about replies; else None.
        worth_knowing: the smallest relative difference of perplexity that matters.
        networks: what each network finds there; the verdict is that of the first.
        agreement: whether they agree, as a sentence; empty for one network, or if nothing can be concluded.
    """

    pair: Pair
    verdict: Verdict
    checks: Sequence[Check]
    experiment: Experiment | None
    scored: Sequence[Scored]
    run: RunFindings | None
    notes: Sequence[str]
    command: str
    page: Path
    screened: Screened | None = None
    primary: Scored | None = None
    beside: Scored | None = None
    worth_knowing: float = WORTH_KNOWING
    networks: Sequence[NetworkFinding] = ()
    agreement: str = ""

    @property
    def failed(self) -> list[Check]:
        """The checks that failed."""
        return [check for check in self.checks if check.passed is False]

    @property
    def corpora(self) -> pl.DataFrame:
        """One row per corpus: its size in conversations, words and bytes, its copies, and its digest."""
        return pl.DataFrame([{"corpus": name, **one} for name, one in statistics(self.pair).items()])

    @property
    def differences(self) -> pl.DataFrame:
        """One row per test set and law: the second corpus against the first, with the ends of its intervals.

        Columns: test_set, corpus, against, law, budget (tokens), delta_alpha, delta_ln_A, ln_ratio (of PPL at the
        budget), efficiency (tokens of the first corpus that one of the second is worth), each with _low and _high (null
        if unknown), and extrapolates. Empty without training.
        """
        return self._by_test_set(lambda one: one.laws.difference_frame())

    @property
    def laws(self) -> pl.DataFrame:
        """One row per test set, corpus and law: alpha, ln_A and floor with their intervals. Empty without training."""
        return self._by_test_set(lambda one: one.laws.law_frame())

    @property
    def training_runs(self) -> pl.DataFrame:
        """One row per test set and training run or n-gram model: arm, kind, tokens, seed, nats, ppl, bits_per_byte."""
        return self._by_test_set(lambda one: one.rows)

    def _by_test_set(self, frame: Callable[[Scored], pl.DataFrame]) -> pl.DataFrame:
        frames = [frame(one).select(pl.lit(one.test.name).alias("test_set"), pl.all()) for one in self.scored]
        return pl.concat(frames, how="vertical_relaxed") if frames else pl.DataFrame()

    @property
    def _frame(self) -> pl.DataFrame:
        return self.differences if self.scored else self.corpora

    def __repr__(self) -> str:
        return f"{self.verdict.sentence}\n{self._frame}\n{self.page}"

    def _repr_html_(self) -> str:
        """The verdict and the differences, or the corpora without training, as a notebook shows them."""
        return f"<p>{escape(self.verdict.sentence)}</p>{self._frame._repr_html_()}"
