"""Both arms on each test set: the scores of all training runs, the laws and their differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.compare.corpora import Pair
from pipeline.compare.design import Experiment
from pipeline.experiments.laws import CorpusLaws, fit_laws
from pipeline.experiments.points_csv import Corpora
from trainer.experiment.kinds import CVFP
from trainer.experiment.points import arm_points, arm_scores
from trainer.experiment.screen import Null, Placebos, widened
from trainer.prepare import split as splitting
from trainer.prepare.arms import Arms
from trainer.scaling import Difference, Kind, Points, ScalingError, paired_difference
from trainer.scaling.spread import Interval

POWER: Kind = "power"
STRICT = 0.975
"""Level of the intervals of two secondary endpoints: together they are wrong in 5 % of the cases (Bonferroni)."""
TRAINING_VARIANCE = 0.002**2
"""Variance that weights and noise of a network add to a difference of ln PPL.

With n-gram models of the same streams as control, differences of the preset house on the embedded default had a
standard deviation of 0.18 to 0.21 % from 25,000 tokens on.
"""


@dataclass(frozen=True, eq=False)
class TestSet:
    """Test conversations that both arms are scored on; arrays are of all test conversations of the union."""

    __test__ = False

    name: str
    about: str
    mask: NDArray[np.bool_]
    targets: NDArray[np.int64]
    """Scored tokens."""
    clusters: NDArray[np.int64]
    """From 0, the same number for near-duplicates."""

    @property
    def conversations(self) -> int:
        """Number of conversations."""
        return int(self.mask.sum())

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Scored tokens of each of its conversations."""
        return self.targets[self.mask]

    @property
    def tokens(self) -> int:
        """Scored tokens in total."""
        return int(self.sizes.sum())

    @property
    def effective(self) -> float:
        """Effective sample size (Kish) in clusters of near-duplicates, weighted by tokens."""
        return splitting.effective(self.sizes, self.clusters[self.mask])

    @property
    def small(self) -> str:
        """A sentence about its effective sample size if that is low, else an empty string."""
        return splitting.small(self.name, self.sizes, clusters=self.clusters[self.mask])

    @property
    def distinct(self) -> int:
        """Number of clusters of near-duplicates; a conversation without one is a cluster of its own."""
        return len(np.unique(self.clusters[self.mask]))


@dataclass(frozen=True, eq=False)
class Scored:
    """Both arms on one test set, with notes on what is missing or uncertain."""

    test: TestSet
    rows: pl.DataFrame
    """One row per training run: arm, kind, tokens, seed, nats, ppl, bits_per_byte."""
    laws: CorpusLaws
    """Of one model on each arm; the second arm against the first."""
    notes: tuple[str, ...] = ()
    strict: Difference | None = None
    """The difference of the power laws with intervals for one of two secondary endpoints, by default of 97.5 %."""
    placebos: Mapping[Null, Placebos] = field(default_factory=dict)
    """The difference by n-gram models beside those of placebo rules, by kind of placebo; empty if none were learned."""
    networks: tuple[str, ...] = (CVFP.name,)
    """The networks that were trained; the laws are of the first."""

    @property
    def points(self) -> Mapping[str, Points]:
        """The points of each arm's law."""
        return {name or "": points for name, points in self.laws.points.items()}

    @property
    def differences(self) -> Mapping[Kind, Difference]:
        """The second arm against the first, by law; empty if neither law could be fitted."""
        return {kind: difference for (_, kind), difference in self.laws.differences.items()}

    @property
    def level_interval(self) -> Interval | None:
        """The interval of the ln of the PPL ratio by the power laws, with the spread of placebo rules."""
        if not self.differences:
            return None
        power = self.differences[POWER]
        return widened(power.ln_ratio_interval, self.placebos, power.level)


def primary_test(pair: Pair, tests: Sequence[TestSet], arms: Arms) -> TestSet:
    """The test set that the verdict is about: the cleaner one if one corpus contains the other, else all of both."""
    first, second = pair.names
    members = pair.union.members
    small = second if pair.subset else first if not (members[first] & ~members[second]).any() else None
    known = [test for test in tests if test.name == f"{small}-test"]
    if known:
        return known[0]
    mask = arms.tests[first] | arms.tests[second]
    return TestSet("all test conversations", "of both corpora", mask, tests[0].targets, tests[0].clusters)


def test_sets(pair: Pair, arms: Arms) -> list[TestSet]:
    """The first arm's test conversations, and the second's.

    If the second corpus is a subset of the first, its test set is the part of the first's that it contains.
    """
    first, second = pair.names
    about = {first: f"test conversations of {first}", second: f"test conversations of {second}"}
    if pair.subset and np.array_equal(pair.union.members[first], pair.union.members[second]):
        about[second] = f"the same conversations as {first}-test"
    elif pair.subset:
        about[second] = f"the part of {first}-test that is in {second}: a cleaner test set alone looks easier"
    targets = np.diff(arms.common.test.bounds())
    sets = []
    for name in pair.names:
        mask = arms.tests[name]
        longest = int(targets[mask].max(initial=0))
        text = f"{about[name]}; the longest has {longest:,} tokens"
        sets.append(TestSet(f"{name}-test", text, mask, targets, arms.common.clusters))
    return [one for one in sets if one.conversations]


def scored(
    experiment: Experiment, test: TestSet, names: tuple[str, str], networks: tuple[str, ...] | None = None
) -> Scored:
    """Fit the laws of two arms of a finished experiment on one test set, and compare the second with the first.

    The laws are of the first of the `networks`, by default of those of the design.
    """
    networks = networks or experiment.design.networks
    frames, points, common = [], {}, experiment.arms.common
    for (kind, arm), jobs in experiment.jobs.items():
        if arm not in names:
            continue
        folders = [experiment.runs / job.name for job in jobs]
        frame = arm_scores(folders, common.test, test.mask)
        frames.append(frame.select(pl.lit(arm).alias("arm"), pl.lit(kind).alias("kind"), pl.exclude("kind")))
        if kind == networks[0]:
            points[arm] = arm_points(folders, common, test.mask)
    laws, strict = compared_laws({name: points[name] for name in names}), None
    if laws.differences:
        first, second = (points[name] for name in names)
        control = experiment.screen.control(names, test.mask, first.tokens.astype(np.int64))
        try:
            level = experiment.design.level
            power, strict = (
                paired_difference(first, second, control, TRAINING_VARIANCE, each) for each in (level, (1 + level) / 2)
            )
            laws = replace(laws, differences={(names[1], POWER): power})
        except ScalingError as error:
            laws = replace(laws, differences={}, notes=(*laws.notes, str(error)))
    notes = (*filter(None, [test.small]), *laws.notes)
    placebos = experiment.screen.placebo(names, test.mask)
    return Scored(test, pl.concat(frames), laws, notes, strict, placebos, networks)


def compared_laws(points: Mapping[str, Points]) -> CorpusLaws:
    """The laws of two arms; without laws, and with a note, if their points carry none."""
    corpora: Corpora = dict(points.items())
    try:
        return fit_laws(corpora)
    except ScalingError as error:
        return CorpusLaws(corpora, notes=(str(error),))
