"""What trainings of two arms say: points, laws and differences on each test set, baselines, and named checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.compare.corpora import Pair
from pipeline.compare.design import Design
from pipeline.report.run.checks import Check
from trainer.experiment.jobs import Job, read, scores
from trainer.prepare import arms as arming
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
        frame = arming.scored(folders, arms.common.test, test.mask)
        frames.append(frame.select(pl.lit(arm).alias("arm"), pl.lit(kind).alias("kind"), pl.exclude("kind")))
        if kind == "cvfp":
            points[arm] = arming.points(folders, arms.common, test.mask)
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


def checks(
    pair: Pair, arms: Arms, design: Design, jobs: Mapping[tuple[str, str], Sequence[Job]], folder: Path
) -> list[Check]:
    """What must hold for the numbers to be what they say."""
    records = _records(jobs, folder)
    return [
        leakage(arms),
        *corpora(pair),
        _steps(records, design),
        _reached(records),
        _same_test(jobs, folder),
        _paired(arms, design, pair.names),
    ]


def _records(
    jobs: Mapping[tuple[str, str], Sequence[Job]], folder: Path
) -> dict[tuple[str, int, int], Mapping[str, Any]]:
    """What the networks' trainings recorded, by arm, budget and seed."""
    return {
        (arm, job.budget, job.seed): read(folder / job.name)
        for (kind, arm), wanted in jobs.items()
        if kind == "cvfp"
        for job in wanted
    }


def last_best(jobs: Mapping[tuple[str, str], Sequence[Job]], folder: Path, *, falls: bool) -> str:
    """In how many trainings of each budget no earlier evaluation was better than the last, as a part of a sentence.

    Where the learning rate falls to 0, as in the preset house, the last one is the best as a rule, unless the training
    had learned its few tokens by heart before.

    Args:
        jobs: the trainings.
        folder: where they lie.
        falls: whether the rate is 0 by the last evaluation.
    """
    found: dict[int, dict[str, list[bool]]] = {}
    for (arm, budget, _), one in _records(jobs, folder).items():
        last = one["best_evaluation"] == one["evaluations"]
        found.setdefault(budget, {}).setdefault(arm, []).append(last)
    each = [
        f"{budget:,} tokens in "
        + " and ".join(f"{sum(last)} of {len(last)} trainings of {arm}" for arm, last in arms.items())
        for budget, arms in sorted(found.items())
    ]
    rate = ", by which the rate is 0," if falls else ""
    return f"validation was best at the last evaluation{rate} of {'; of '.join(each)}"


def leakage(arms: Arms) -> Check:
    """No near-duplicate of a test conversation is trained on, as counted in the sets themselves."""
    said = arms.common.said["leaks"]
    found = f"{said['leaks']:,} of {said['tested']:,} test conversations have a near-duplicate among the "
    found += f"{said['trained']:,} that are trained on or choose the weights (word 5-gram Jaccard {said['jaccard']:g})"
    return Check("train/test leakage 0", said["leaks"] == 0, found)


def corpora(pair: Pair) -> list[Check]:
    """What a refined corpus is to its raw one; nothing is asked of two others."""
    first, second = pair.names if pair.run is None else ("raw", "refined")
    members = pair.union.members
    alone = int((members[second] & ~members[first]).sum())
    found = f"{alone:,} of {int(members[second].sum()):,} conversations of {second} are not in {first}"
    name = f"{second} is a subset of {first}"
    return [Check(name, alone == 0 if pair.run is not None else None if alone else True, found)]


def _steps(records: Mapping[tuple[str, int, int], Mapping[str, Any]], design: Design) -> Check:
    found = {
        budget: {r["steps"] for (_, tokens, _), r in records.items() if tokens == budget} for budget in design.budgets
    }
    said = "; ".join(f"{budget:,} tokens: {', '.join(map(str, sorted(steps)))}" for budget, steps in found.items())
    return Check("both arms take the same optimiser steps", all(len(steps) == 1 for steps in found.values()), said)


def _reached(records: Mapping[tuple[str, int, int], Mapping[str, Any]]) -> Check:
    short = sum(r["tokens"] != budget for (_, budget, _), r in records.items())
    return Check("budgets reached", short == 0, f"{short:,} of {len(records):,} trainings saw other than their budget")


def _same_test(jobs: Mapping[tuple[str, str], Sequence[Job]], folder: Path) -> Check:
    targets = {scores(folder / job.name)[1].tobytes() for wanted in jobs.values() for job in wanted}
    many = len({job.name for wanted in jobs.values() for job in wanted})
    return Check(
        "all are scored on the same test conversations", len(targets) == 1, f"{many:,} trainings and baselines"
    )


def _paired(arms: Arms, design: Design, names: Sequence[str]) -> Check:
    """Whether conversations that both arms have come in the same order, looked at in each seed's whole order."""
    wrong = 0
    first, second = (np.flatnonzero(arms.pools[name]) for name in names)
    for seed in range(design.seeds):
        orders = [order(arms, rows, seed) for rows in (first, second)]
        shared = [one[np.isin(one, other)] for one, other in (orders, orders[::-1])]
        wrong += not np.array_equal(shared[0], shared[1])
    both = len(np.intersect1d(first, second))
    return Check(
        "arms are paired by seed",
        wrong == 0,
        f"{both:,} conversations of both training pools come in the same order in {design.seeds - wrong} of "
        f"{design.seeds} seeds",
    )


def order(arms: Arms, rows: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """The rows of an arm in the order of a seed, as a training draws them."""
    from trainer.prepare.streams import permutation

    return rows[permutation(seed, len(rows), arms.common.keys[rows])]
