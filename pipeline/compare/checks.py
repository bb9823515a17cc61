"""Checks of a comparison: what must hold before anything is concluded from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.compare.corpora import Pair
from pipeline.compare.design import Design
from pipeline.report.parts import Check
from trainer.experiment.jobs import Job
from trainer.experiment.kinds import CVFP
from trainer.experiment.records import read, scores
from trainer.prepare.arms import Arms


def comparison_checks(
    pair: Pair, arms: Arms, design: Design, jobs: Mapping[tuple[str, str], Sequence[Job]], folder: Path
) -> list[Check]:
    """What must hold for the numbers to be what they say."""
    records = _records(jobs, folder)
    return [
        leakage(arms),
        *corpora_checks(pair),
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
        if kind == CVFP.name
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
    leaks = arms.leaks
    if leaks is None:
        return Check("train/test leakage 0", passed=False, found="the texts were not searched")
    found = f"{leaks.leaks:,} of {leaks.tested:,} test conversations have a near-duplicate among the "
    found += f"{leaks.trained:,} that are trained on or choose the weights (word 5-gram Jaccard {leaks.jaccard:g})"
    return Check("train/test leakage 0", leaks.leaks == 0, found)


def corpora_checks(pair: Pair) -> list[Check]:
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
