"""Checks of a comparison: what must hold before anything is concluded from it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.compare.corpora import Pair
from pipeline.compare.design import Experiment
from pipeline.report.parts import Check
from trainer.experiment.kinds import KINDS
from trainer.experiment.records import read, scores
from trainer.prepare.arms import Arms

MIN_PAIRED = 0.5
"""Minimum share of the smaller training pool whose place in the order is the same in both arms."""
Records = Mapping[tuple[str, str, int, int], Mapping[str, Any]]
"""Records of the networks' training runs by kind, arm, budget and seed."""


def comparison_checks(pair: Pair, experiment: Experiment) -> list[Check]:
    """All checks of a finished comparison."""
    records = _records(experiment)
    return [
        _leakage(experiment.arms),
        *corpora_checks(pair),
        _steps(records, experiment),
        _budgets_reached(records),
        _same_test(experiment),
        paired(experiment.arms, pair),
    ]


def screen_checks(pair: Pair, arms: Arms) -> list[Check]:
    """All checks of a finished screen."""
    return [_leakage(arms), *corpora_checks(pair), paired(arms, pair)]


def _records(experiment: Experiment) -> Records:
    return {
        (kind, arm, job.budget, job.seed): read(experiment.runs / job.name)
        for (kind, arm), jobs in experiment.jobs.items()
        if kind in experiment.design.networks
        for job in jobs
    }


def last_best(experiment: Experiment) -> str:
    """In how many runs of each budget of the first network the last evaluation was the best, as a clause.

    If the learning rate decays to 0, as in the preset house, the last evaluation is usually the best, unless the run
    had already memorised its few tokens.
    """
    counts: dict[int, dict[str, list[bool]]] = {}
    for (kind, arm, budget, _), record in _records(experiment).items():
        last = record["best_evaluation"] == record["evaluations"]
        if kind == experiment.design.networks[0]:
            counts.setdefault(budget, {}).setdefault(arm, []).append(last)
    each = [
        f"{budget:,} tokens in "
        + " and ".join(f"{sum(last)} of {len(last)} training runs of {arm}" for arm, last in arms.items())
        for budget, arms in sorted(counts.items())
    ]
    rate = ", when the learning rate is 0," if experiment.arms.preset.phase2.decay else ""
    return f"validation was best at the last evaluation{rate} of {'; of '.join(each)}"


def _leakage(arms: Arms) -> Check:
    leaks = arms.leaks
    if leaks is None:
        return Check("train/test leakage 0", passed=False, found="the texts were not searched")
    text = (
        f"{leaks.leaks:,} of {leaks.tested:,} test conversations have a near-duplicate among the "
        f"{leaks.trained:,} of the training pool and the validation set (word 5-gram Jaccard {leaks.jaccard:g})"
    )
    return Check("train/test leakage 0", leaks.leaks == 0, text)


def corpora_checks(pair: Pair) -> list[Check]:
    """Whether the refined corpus is a subset of the raw one, apart from edits; it does not apply to two other corpora.

    An edited conversation, such as a repaired or a redacted one, has the id of a raw one.
    """
    first, second = pair.names if pair.run is None else ("raw", "refined")
    members, ids = pair.union.members, pair.union.frame["id"]
    new = members[second] & ~members[first]
    edited = int(ids.filter(new).is_in(ids.filter(members[first]).implode()).sum()) if pair.run is not None else 0
    alone = int(new.sum()) - edited
    text = f"{alone:,} of {int(members[second].sum()):,} conversations of {second} are not in {first}"
    text += f", {edited:,} are edited" if edited else ""
    passed = alone == 0 if pair.run is not None else None if alone else True
    return [Check(f"{second} is a subset of {first}", passed, text)]


def _steps(records: Records, experiment: Experiment) -> Check:
    networks = experiment.design.networks
    steps: dict[tuple[str, int], set[int]] = {}
    for (kind, _, budget, _), record in records.items():
        steps.setdefault((kind, budget), set()).add(record["steps"])
    text = "; ".join(
        f"{f'{KINDS[kind].label}, ' * (len(networks) > 1)}{budget:,} tokens: {', '.join(map(str, sorted(counts)))}"
        for (kind, budget), counts in sorted(steps.items(), key=lambda one: (networks.index(one[0][0]), one[0][1]))
    )
    return Check("both arms take the same optimiser steps", all(len(counts) == 1 for counts in steps.values()), text)


def _budgets_reached(records: Records) -> Check:
    off = sum(record["tokens"] != budget for (*_, budget, _), record in records.items())
    return Check("budgets reached", off == 0, f"{off:,} of {len(records):,} training runs missed their budget")


def _same_test(experiment: Experiment) -> Check:
    targets = {scores(experiment.runs / job.name)[1].tobytes() for job in experiment.every()}
    text = f"{experiment.count():,} training runs, baselines included"
    return Check("all are scored on the same test conversations", len(targets) == 1, text)


def paired(arms: Arms, pair: Pair) -> Check:
    """Whether most conversations of the smaller training pool have the same place in the orders of both arms.

    Two parts of a run must be paired. Other corpora may be independent: their intervals are wider, and hold.
    """
    small, large = sorted(pair.names, key=lambda name: int(arms.pools[name].sum()))
    keys = arms.common.keys
    inside = np.isin(keys[arms.pools[small]], keys[arms.pools[large]])
    share = float(inside.mean())
    text = f"{int(inside.sum()):,} of {len(inside):,} conversations of {small} have their place in the order of {large}"
    if share >= MIN_PAIRED:
        return Check("arms are paired by seed", passed=True, found=text)
    advice = "intervals are wider than they could be; if one corpus is an edited version of the other, keep its ids"
    return Check("arms are paired by seed", None if pair.run is None else False, f"{text}: {advice}")
