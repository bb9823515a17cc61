"""What trainings of two arms say: points, laws and differences on each test set, baselines, and named checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.compare.corpora import Pair
from trainer.experiment.jobs import Job
from trainer.experiment.kinds import CVFP
from trainer.experiment.points import arm_points, arm_scores
from trainer.prepare import split as splitting
from trainer.prepare.arms import Arms
from trainer.scaling import Difference, HeldOut, Kind, Law, Points, ScalingError, difference, fit, held_out

KINDS: tuple[Kind, ...] = ("power", "saturating")


@dataclass(frozen=True, eq=False)
class TestSet:
    """Test conversations that both arms are scored on.

    Attributes:
        name: of one arm and "-test".
        says: which conversations these are.
        mask: bool [test conversations of the union].
        targets: int64 [test conversations of the union], tokens that are scored of each.
        clusters: int64 [test conversations of the union] from 0, the same number for near-duplicates.
    """

    __test__ = False

    name: str
    says: str
    mask: NDArray[np.bool_]
    targets: NDArray[np.int64]
    clusters: NDArray[np.int64]

    @property
    def conversations(self) -> int:
        """How many."""
        return int(self.mask.sum())

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Tokens that are scored of each conversation in it."""
        return self.targets[self.mask]

    @property
    def tokens(self) -> int:
        """Tokens that are scored in it."""
        return int(self.sizes.sum())

    @property
    def effective(self) -> float:
        """How many conversations of one length, none like another, would say as much."""
        return splitting.effective(self.sizes, self.clusters[self.mask])

    @property
    def small(self) -> str:
        """What it is worth, as a sentence, where that is little."""
        return splitting.small(self.name, self.sizes, clusters=self.clusters[self.mask])

    @property
    def distinct(self) -> int:
        """How many clusters of near-duplicates they are; one that is like no other is a cluster too."""
        return len(np.unique(self.clusters[self.mask]))


@dataclass(frozen=True, eq=False)
class Scored:
    """Both arms on one test set.

    Attributes:
        test: which.
        rows: a row a training: arm, kind, tokens, seed, nats, ppl, bits_per_byte.
        points: of each arm's law.
        laws: by arm and kind; a kind that cannot be fitted is not there.
        held_out: by arm; missing where there are too few budgets.
        differences: by kind: the second arm against the first.
        notes: why something is not there.
    """

    test: TestSet
    rows: pl.DataFrame
    points: Mapping[str, Points]
    laws: Mapping[tuple[str, Kind], Law]
    held_out: Mapping[str, HeldOut]
    differences: Mapping[Kind, Difference]
    notes: tuple[str, ...]


def test_sets(pair: Pair, arms: Arms) -> list[TestSet]:
    """The first arm's test conversations, and the second's.

    Of a corpus and a part of it: all test conversations, and the part of them that the rules keep.
    """
    first, second = pair.names
    says = {first: f"test conversations of {first}", second: f"test conversations of {second}"}
    if pair.subset and np.array_equal(pair.union.members[first], pair.union.members[second]):
        says[second] = f"the same conversations as {first}-test"
    elif pair.subset:
        says[second] = f"the part of {first}-test that is in {second}: a cleaner test set alone looks easier"
    targets = np.diff(arms.common.test.bounds())
    longest = {name: int(targets[arms.tests[name]].max(initial=0)) for name in pair.names}
    found = [
        TestSet(
            f"{name}-test",
            f"{says[name]}; the longest has {longest[name]:,} tokens",
            arms.tests[name],
            targets,
            arms.common.clusters,
        )
        for name in pair.names
    ]
    return [one for one in found if one.conversations]


def scored(test: TestSet, arms: Arms, jobs: Mapping[tuple[str, str], Sequence[Job]], folder: Path) -> Scored:
    """Laws and differences of finished trainings on one test set; the first arm is what others are compared with."""
    frames, points = [], {}
    for (kind, arm), wanted in jobs.items():
        folders = [folder / job.name for job in wanted]
        frame = arm_scores(folders, arms.common.test, test.mask)
        frames.append(frame.select(pl.lit(arm).alias("arm"), pl.lit(kind).alias("kind"), pl.exclude("kind")))
        if kind == CVFP.name:
            points[arm] = arm_points(folders, arms.common, test.mask)
    fits, foretold, differences, notes = laws(points)
    notes = (*filter(None, [test.small]), *notes)
    return Scored(test, pl.concat(frames), points, fits, foretold, differences, notes)


def laws(
    points: Mapping[str, Points],
) -> tuple[dict[tuple[str, Kind], Law], dict[str, HeldOut], dict[Kind, Difference], tuple[str, ...]]:
    """Both laws of each arm, which of them foretells the largest budget, and the second arm against the first."""
    fits: dict[tuple[str, Kind], Law] = {}
    foretold: dict[str, HeldOut] = {}
    differences: dict[Kind, Difference] = {}
    notes: list[str] = []
    for kind in KINDS:
        try:
            fits |= {(arm, kind): fit(one, kind) for arm, one in points.items()}
            (first, of_first), (second, of_second) = list(points.items())[:2]
            differences[kind] = difference(of_first, of_second, kind, names=(first, second))
        except ScalingError as error:
            notes.append(f"{kind} law: {error}")
    for arm, one in points.items():
        try:
            foretold[arm] = held_out(one)
        except ScalingError as error:
            notes.append(f"{arm}: {error}")
    notes += [f"{arm}, {kind} law: {note}" for (arm, kind), law in fits.items() for note in law.notes]
    notes += [f"{kind} law: {note}" for kind, found in differences.items() for note in found.notes]
    return fits, foretold, differences, tuple(dict.fromkeys(notes))
