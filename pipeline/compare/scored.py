"""Both arms on each test set: the scores of all training runs, the laws and their differences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.compare.corpora import Pair
from pipeline.compare.design import Experiment
from pipeline.experiments.laws import CorpusLaws, fit_laws
from pipeline.experiments.points_csv import Corpora
from trainer.experiment.kinds import CVFP
from trainer.experiment.points import arm_points, arm_scores
from trainer.experiment.screen import Choice, Null, Placebos
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


TARGET = "target"
"""Name of the test set of what the user trains for; those of the corpora end in "-test"."""
Scope = Literal["replies", "everything"]
"""What is scored: the replies of the assistant, or all messages."""


@dataclass(frozen=True, eq=False)
class TestSet:
    """Test conversations that both arms are scored on; arrays are of all K test conversations of the union.

    `which` [K] are its conversations, `targets` [2, K] the scored tokens of other text and of replies, and `clusters`
    [K] count from 0 and are equal for near-duplicates. `of_target` is whether they are what the user trains for.
    """

    __test__ = False

    name: str
    about: str
    which: NDArray[np.bool_]
    targets: NDArray[np.int64]
    clusters: NDArray[np.int64]
    scope: Scope = "everything"
    of_target: bool = False

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The targets that are scored, bool [2, K]."""
        return np.stack([self.which & (self.scope == "everything"), self.which])

    @property
    def of_conversation(self) -> NDArray[np.int64]:
        """Scored tokens of each test conversation of the union, int64 [K]."""
        sizes: NDArray[np.int64] = np.where(self.mask, self.targets, 0).sum(axis=0)
        return sizes

    @property
    def conversations(self) -> int:
        """Number of conversations with a scored token."""
        return len(self.sizes)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Scored tokens of each of its conversations that has some."""
        sizes = self.of_conversation
        return sizes[sizes > 0]

    @property
    def tokens(self) -> int:
        """Scored tokens in total."""
        return int(self.sizes.sum())

    @property
    def effective(self) -> float:
        """Effective sample size (Kish) in clusters of near-duplicates, weighted by tokens."""
        return splitting.effective(self.sizes, self._clusters)

    @property
    def small(self) -> str:
        """A sentence about its effective sample size if that is low, else an empty string."""
        return splitting.small(self.name, self.sizes, clusters=self._clusters)

    @property
    def distinct(self) -> int:
        """Number of clusters of near-duplicates; a conversation without one is a cluster of its own."""
        return len(np.unique(self._clusters))

    @property
    def _clusters(self) -> NDArray[np.int64]:
        return self.clusters[self.of_conversation > 0]


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
        """The interval of the ln of the PPL ratio by the power laws, over orders and test conversations."""
        return self.differences[POWER].ln_ratio_interval if self.differences else None

    @property
    def of_rules(self) -> bool:
        """Whether rules chose the corpora, so that the mean of placebo rules is taken off in `choice`."""
        return any(one.of_rules for one in self.placebos.values())

    @property
    def choice(self) -> Choice:
        """The ln of the PPL ratio beyond random rules; without laws, NaN without an interval."""
        if not self.differences:
            return Choice(math.nan, None)
        power = self.differences[POWER]
        return Choice.of(power.ln_ratio, power.ln_ratio_interval, self.placebos, power.level)


def primary_test(pair: Pair, tests: Sequence[TestSet], arms: Arms) -> TestSet:
    """The test set that the verdict is about: the target, the cleaner one if one corpus contains the other, or all.

    Replies are scored if they are enough for a conclusion, else everything.
    """
    found = _primary_conversations(pair, tests, arms)
    of_replies = replace(found, scope="replies")
    return of_replies if of_replies.effective >= splitting.MIN_CONVERSATIONS else found


def test_sets_in_scope(pair: Pair, arms: Arms) -> tuple[TestSet, list[TestSet]]:
    """The test set that the verdict is about, and those of both arms, on which the same is scored, if it is there."""
    tests = test_sets(pair, arms)
    primary = primary_test(pair, tests, arms)
    scoped = [primary if one.name == primary.name else replace(one, scope=primary.scope) for one in tests]
    return primary, [one for one in scoped if one.conversations]


def _primary_conversations(pair: Pair, tests: Sequence[TestSet], arms: Arms) -> TestSet:
    first, second = pair.names
    members = pair.union.members
    small = second if pair.subset else first if not (members[first] & ~members[second]).any() else None
    known = [test for test in tests if test.of_target] or [test for test in tests if test.name == f"{small}-test"]
    if known:
        return known[0]
    which = arms.tests[first] | arms.tests[second]
    return TestSet("all test conversations", "of both corpora", which, tests[0].targets, tests[0].clusters)


def test_sets(pair: Pair, arms: Arms) -> list[TestSet]:
    """The first arm's test conversations, the second's, and those of the target; everything is scored.

    If the second corpus is a subset of the first, its test set is the part of the first's that it contains.
    """
    first, second = pair.names
    about = {first: f"test conversations of {first}", second: f"test conversations of {second}"}
    if pair.subset and np.array_equal(pair.union.members[first], pair.union.members[second]):
        about[second] = f"the same conversations as {first}-test"
    elif pair.subset:
        about[second] = f"the part of {first}-test that is in {second}: a cleaner test set alone looks easier"
    masks = {f"{name}-test": (about[name], arms.tests[name]) for name in pair.names}
    if pair.target is not None and arms.target is not None:
        masks[TARGET] = f"conversations of {pair.target.corpus.name}, with no near-duplicate in a corpus", arms.target
    targets = arms.common.test.target_counts()
    sets = []
    for name, (what, which) in masks.items():
        longest = int(targets[:, which].sum(axis=0).max(initial=0))
        text = f"{what}; the longest has {longest:,} tokens"
        sets.append(TestSet(name, text, which, targets, arms.common.clusters, of_target=name == TARGET))
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
