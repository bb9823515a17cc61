"""What a comparison trains: budgets, seeds and baselines; what that costs; the trainings, with progress."""

from __future__ import annotations

import itertools
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.engine import Local
from pipeline.training import say
from trainer import experiment
from trainer.arms import Arms, ArmsError
from trainer.experiment import Job
from trainer.presets import Preset

SIZES, DECADES, SEEDS = 5, 1.5, 3
"""The least from which anything is concluded: budgets, log10 of the largest over the smallest, seeds."""
QUICK_SIZES, QUICK_SEEDS = 3, 1
PART = 2
"""A default budget is the preset's over this: two corpora with baselines are to take half an hour on two cores."""
BASELINES = ("random_block", "gru", "kneser_ney", "unigram")
CHEAP = ("kneser_ney", "unigram")
"""Baselines of counts: both arms have them, and no estimate of time is needed."""
EVERY = 20.0
"""Seconds between lines of progress."""


@dataclass(frozen=True)
class Design:
    """Which trainings there are.

    Attributes:
        budgets: training tokens, ascending.
        seeds: trainings of a budget.
        kinds: baselines, of one seed.
        quick: asked for with --quick, which never concludes.
    """

    budgets: tuple[int, ...]
    seeds: int
    kinds: tuple[str, ...] = BASELINES
    quick: bool = False

    @property
    def decades(self) -> float:
        """Log10 of the largest budget over the smallest."""
        return math.log10(self.budgets[-1] / self.budgets[0])

    def lacks(self) -> str:
        """Why nothing may be concluded from it, as a part of a sentence; empty where something may."""
        if self.quick:
            return "--quick trains too few budgets and seeds"
        short = []
        if len(self.budgets) < SIZES:
            short.append(f"{len(self.budgets)} budgets where {SIZES} are needed")
        if self.decades < DECADES - 1e-9:
            short.append(f"{self.decades:.2f} decades of tokens where {DECADES} are needed")
        if self.seeds < SEEDS:
            short.append(f"{self.seeds} seed{'s' * (self.seeds > 1)} where {SEEDS} are needed")
        return "there are " + " and ".join(short) if short else ""

    def jobs(self, arms: Arms, names: Sequence[str], device: str) -> dict[tuple[str, str], list[Job]]:
        """The trainings by kind and arm: networks of all seeds, counts of both arms, other baselines of the first."""
        found = {
            ("cvfp", name): [
                job for seed in range(self.seeds) for job in arms.jobs("cvfp", name, self.budgets, seed, device)
            ]
            for name in names
        }
        for kind in self.kinds:
            for name in names if kind in CHEAP else names[:1]:
                found[kind, name] = arms.jobs(kind, name, self.budgets, 0, device)
        return found


def design(arms: Arms, asked: list[int] | None, seeds: int | None, *, quick: bool) -> Design:
    """The trainings that were asked for, where all arms' pools hold them.

    Raises:
        ArmsError: a budget is larger than a pool, or too few of the default ones fit; the message proposes others.
    """
    largest, preset = arms.largest(), arms.preset
    if asked is not None:
        budgets = tuple(sorted(set(asked)))
        if budgets[-1] > largest:
            raise ArmsError(
                f"a budget of {budgets[-1]:,} tokens was asked for, and {_smallest(arms)}: {proposal(largest)}"
            )
        if len(budgets) < 2:  # noqa: PLR2004  a line needs two points
            raise ArmsError(f"--budgets names {len(budgets)}, and a law needs 2 or more, a conclusion {SIZES}")
    else:
        budgets = tuple(count for count in default(preset) if count <= largest)
        spanned = math.log10(budgets[-1] / budgets[0]) if budgets else 0.0
        if len(budgets) < SIZES or spanned < DECADES:
            raise ArmsError(
                f"the corpus is too small for the default budgets ({_listed(preset)}): "
                f"{_smallest(arms)}; {proposal(largest)}"
            )
    if quick:
        return Design(budgets[:QUICK_SIZES], min(seeds or QUICK_SEEDS, QUICK_SEEDS), CHEAP, quick=True)
    return Design(budgets, seeds or SEEDS)


def proposal(largest: int) -> str:
    """The largest budgets that a pool holds, as a user would say them: six of them, each twice the one before."""
    unit = 10 ** max(len(str(largest)) - 2, 0)  # two digits are enough for a budget
    top = largest // unit * unit
    counts = [max(top // 2**i, 2) for i in range(5, -1, -1)]
    if counts[0] < 100:  # noqa: PLR2004  a conversation or two
        return "take a larger corpus"
    return f"take a larger corpus, or --budgets {','.join(map(str, counts))}"


def _smallest(arms: Arms) -> str:
    name = min(arms.pools, key=arms.tokens)
    return f"the training pool of {name} has {arms.tokens(name):,} tokens"


def _listed(preset: Preset) -> str:
    return ", ".join(f"{count:,}" for count in default(preset))


def default(preset: Preset) -> tuple[int, ...]:
    """The budgets of a comparison where none are asked for."""
    return tuple(count // PART for count in preset.budgets)


@dataclass
class Cost:
    """What trainings cost on this machine, by the seconds that the smallest of each kind took.

    Attributes:
        seconds: of each kind: of the evaluated test set, of a training token in phase 1, of a step of phase 2.
        workers: trainings at a time.
    """

    seconds: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    workers: int = 1

    def learn(self, job: Job, spent: Mapping[str, float]) -> None:
        """Take the seconds of a finished training into account."""
        steps = max(job.preset.phase2.total(job.budget - 1), 1)
        stepping = spent.get("phase 2", 0.0) + spent.get("baseline", 0.0)
        self.seconds[job.kind] = (spent.get("test", 0.0), spent.get("phase 1", 0.0) / job.budget, stepping / steps)

    def of(self, jobs: Sequence[Job]) -> float:
        """Seconds on one core; baselines of counts take next to none."""
        total = 0.0
        for job in jobs:
            test, token, step = self.seconds.get(job.kind, (1.0, 0.0, 0.0))
            total += test + token * job.budget + step * job.preset.phase2.total(job.budget - 1)
        return total

    def minutes(self, jobs: Sequence[Job]) -> float:
        """Minutes on this machine: no less than the longest training takes."""
        longest = max((self.of([job]) for job in jobs), default=0.0)
        return max(self.of(jobs) / self.workers, longest) / 60


def carry_out(folder: Path, jobs: Sequence[Job], workers: int, device: str) -> Cost:
    """Do all trainings that are not done, after saying what they cost.

    Raises:
        NotFiniteError, CheckpointError, WorkerKilledError: a training failed.
    """
    every = list({job.name: job for job in jobs}.values())
    cost = Cost(workers=workers or len(os.sched_getaffinity(0)) if device == "cpu" else 1)
    engine = Local(cost.workers)
    try:
        left = [job for job in every if not (folder / job.name / "record.json").exists()]
        tokens = sum(job.budget for job in every)
        shared = f", {len(jobs) - len(every)} of {len(jobs)} shared between arms" if len(jobs) > len(every) else ""
        say(f"{len(every)} trainings on {tokens:,} tokens in all{shared}; {len(every) - len(left)} are done already")
        _probe(folder, every, engine, cost)
        left = [job for job in left if not (folder / job.name / "record.json").exists()]
        if left:
            say(f"about {cost.minutes(left):.0f} min for {len(left)} trainings, {cost.workers} at a time")
            with _progress(folder, left, cost):
                experiment.run(folder, left, engine.map, _told(len(left)))
    finally:
        engine.close()
    return cost


def _probe(folder: Path, jobs: Sequence[Job], engine: Local, cost: Cost) -> None:
    """Time the smallest training of each kind; these are trainings of the comparison, not thrown away."""
    first = {job.kind: job for job in sorted(jobs, key=lambda job: (-job.budget, -job.seed))}
    probes = [job for kind, job in first.items() if kind not in CHEAP]
    for job, where in zip(probes, experiment.run(folder, probes, engine.map, lambda _job, _record: None), strict=True):
        cost.learn(job, experiment.read(where)["seconds"])


def _told(total: int) -> Any:  # noqa: ANN401  what experiment.run calls
    counter = itertools.count(1)

    def tell(job: Job, record: dict[str, Any]) -> None:
        say(f"{next(counter)}/{total}  {job.kind}, {job.budget:,} tokens, seed {job.seed}: PPL {record['ppl']:,.2f}")

    return tell


@contextmanager
def _progress(folder: Path, jobs: Sequence[Job], cost: Cost) -> Iterator[None]:
    """Say every `EVERY` seconds how much is done and how long the rest takes, at the rate so far."""
    began, stopped = time.monotonic(), threading.Event()
    whole = max(cost.of(jobs), 1e-9)

    def watch() -> None:
        while not stopped.wait(EVERY):
            done = [job for job in jobs if (folder / job.name / "record.json").exists()]
            spent, part = (time.monotonic() - began) / 60, cost.of(done) / whole
            late = max(cost.minutes(jobs) - spent, cost.minutes([job for job in jobs if job not in done]) / 2)
            left = late if part < 0.1 else spent / part * (1 - part)  # noqa: PLR2004  too early for a rate
            say(f"{len(done)} of {len(jobs)} trainings done, {spent:.1f} min; about {left:.1f} min left")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
