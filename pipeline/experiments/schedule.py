"""Trainings, several at a time: what they cost is said before they start, and how far they are while they run."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline.engine import Local
from pipeline.terminal import say
from trainer.experiment.jobs import Job, run
from trainer.experiment.kinds import KINDS
from trainer.experiment.records import read

EVERY = 20.0
"""Seconds between lines of progress."""


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


def carry_out(
    folder: Path, jobs: Sequence[Job], workers: int, device: str, names: Mapping[str, str] = MappingProxyType({})
) -> Cost:
    """Do all trainings that are not done, after saying what they cost.

    Args:
        folder: where trainings lie.
        jobs: what is wanted; the same one twice is done once.
        workers: trainings at a time; 0 for one a core. On another device than a processor it is one.
        device: where.
        names: what each job is of, for a person, by the job's name.

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
                run(folder, left, engine.map, _told(names))
    except Exception:
        engine.close()
        raise
    engine.close()  # never where the user stops it, since closing waits for the trainings that run
    return cost


def _probe(folder: Path, jobs: Sequence[Job], engine: Local, cost: Cost) -> None:
    """Time the smallest training of each kind, as many at once as later; they are trainings of the experiment."""
    ascending = sorted((job for job in jobs if not KINDS[job.kind].cheap), key=lambda job: (job.budget, job.seed))
    first = {job.kind: job for job in reversed(ascending)}
    others = [job for job in ascending if job is not first[job.kind]]
    probes = [*first.values(), *others[: max(cost.workers - len(first), 0)]]
    if any(not (folder / job.name / "record.json").exists() for job in probes):
        say(f"timing the smallest trainings of the experiment first: {len(probes)} of {len(jobs)}")
    for job, where in zip(probes, run(folder, probes, engine.map, lambda _job, _record: None), strict=True):
        cost.learn(job, read(where)["seconds"])


def _told(names: Mapping[str, str]) -> Callable[[Job, dict[str, Any]], None]:
    """Says a training's result, without a number: they come in their order, and those that are done are more."""

    def tell(job: Job, record: dict[str, Any]) -> None:
        of = f"{names[job.name]}, " if job.name in names else ""
        what = f"{KINDS[job.kind].label}, {of}{job.budget:,} tokens, seed {job.seed}"
        collapsed = "; its contexts have COLLAPSED into one or two" if record.get("collapsed") else ""
        say(f"{what}: PPL {record['ppl']:,.2f}{collapsed}")

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


def named(jobs: Mapping[tuple[str, str], Sequence[Job]]) -> dict[str, str]:
    """The arm that each job is of, by the job's name: both, where two share it; of more, the first."""
    found: dict[str, list[str]] = {}
    for (_, arm), each in jobs.items():
        for job in each:
            found.setdefault(job.name, []).append(arm)
    return {
        name: " and ".join(arms) if len(arms) < 3 else f"{arms[0]} and {len(arms) - 1} others"  # noqa: PLR2004
        for name, arms in found.items()
    }
