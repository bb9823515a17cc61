"""Training runs, several at a time: their estimated cost before they start, and progress while they run."""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline.engine.local import Local
from pipeline.terminal import repeating, say
from trainer.experiment.jobs import Job, run
from trainer.experiment.kinds import KINDS
from trainer.experiment.records import METRICS, read

LINE_INTERVAL = 20.0
"""Seconds between lines of progress."""
MIN_SHARE = 0.1
"""Share of the work from which the time left is extrapolated from the time spent, not from the estimated cost."""


@dataclass
class Cost:
    """Estimated cost of training runs on this machine, measured on the smallest run of each kind.

    Attributes:
        seconds: by kind: of evaluating the test set, per training token of phase 1, per step of phase 2.
        workers: training runs at a time.
    """

    seconds: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    workers: int = 1

    def learn(self, job: Job, spent: Mapping[str, float]) -> None:
        """Estimate a kind's cost from the seconds that a finished run spent in each part."""
        steps = max(job.trained.phase2.total(job.budget - 1), 1)
        phases = spent.get("phase 1", 0.0) / job.budget, spent.get("phase 2", 0.0) / steps
        self.seconds[job.kind] = spent.get("test", 0.0), *phases

    def of(self, jobs: Sequence[Job]) -> float:
        """Seconds of some runs on one core; a kind that was not measured counts one second per run."""
        return sum(sum(self._parts(job)) for job in jobs)

    def spent(self, job: Job, folder: Path) -> float:
        """Seconds' worth of a run that is done, judged by the last line of its metrics."""
        if (folder / "record.json").exists():
            return self.of([job])
        try:
            line: dict[str, int] = json.loads((folder / METRICS).read_text(encoding="utf-8").splitlines()[-1])
        except (OSError, IndexError, ValueError):
            return 0.0
        _, phase1, phase2 = self._parts(job)
        if line.get("phase") == 1:
            return phase1 * min(line.get("pass", 1) / max(job.preset.phase1.passes, 1), 1.0)
        return phase1 + phase2 * min(line.get("step", 0) / max(job.trained.phase2.total(job.budget - 1), 1), 1.0)

    def _parts(self, job: Job) -> tuple[float, float, float]:
        """Seconds of the test set, phase 1 and phase 2."""
        test, token, step = self.seconds.get(job.kind, (1.0, 0.0, 0.0))
        return test, token * job.budget, step * job.trained.phase2.total(job.budget - 1)

    def minutes(self, jobs: Sequence[Job]) -> float:
        """Minutes on this machine: at least those of the longest run."""
        longest = max((self.of([job]) for job in jobs), default=0.0)
        return max(self.of(jobs) / self.workers, longest) / 60


def carry_out(
    folder: Path, jobs: Sequence[Job], workers: int, device: str, names: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Do all training runs that are not done yet, and report their cost, progress and results on stderr.

    A job that occurs twice is done once; `names` has what each job trains on, as a reader knows it. On the processor
    several runs are done at a time, by default one per core; on another device one.

    Raises:
        NotFiniteError, CheckpointError, WorkerKilledError: a run failed.
    """
    every = list({job.name: job for job in jobs}.values())
    cost = Cost(workers=workers or len(os.sched_getaffinity(0)) if device == "cpu" else 1)
    engine = Local(cost.workers)
    try:
        left = _unfinished(folder, every)
        tokens = sum(job.budget for job in every)
        shared = f", {len(jobs) - len(every)} of {len(jobs)} shared between arms" if len(jobs) > len(every) else ""
        done = f"{len(every) - len(left)} are done already"
        say(f"{len(every)} training runs on {tokens:,} tokens in total{shared}; {done}")
        _probe(folder, every, engine, cost)
        if left := _unfinished(folder, left):
            say(f"about {cost.minutes(left):.0f} min for {len(left)} training runs, {cost.workers} at a time")
            began = time.monotonic()
            with repeating(LINE_INTERVAL, lambda: progress(folder, left, cost, time.monotonic() - began)[1]):
                run(folder, left, engine.map, _say_results(names))
    except Exception:
        engine.close()
        raise
    engine.close()  # not after an interruption, since closing waits for the runs in progress


def _unfinished(folder: Path, jobs: Sequence[Job]) -> list[Job]:
    return [job for job in jobs if not (folder / job.name / "record.json").exists()]


def _probe(folder: Path, jobs: Sequence[Job], engine: Local, cost: Cost) -> None:
    """Time the smallest run of each kind, with all workers busy; these are runs of the experiment."""
    ascending = sorted((job for job in jobs if not KINDS[job.kind].cheap), key=lambda job: (job.budget, job.seed))
    first = {job.kind: job for job in reversed(ascending)}
    others = [job for job in ascending if job is not first[job.kind]]
    probes = [*first.values(), *others[: max(cost.workers - len(first), 0)]]
    if _unfinished(folder, probes):
        say(f"timing the smallest training runs of the experiment first: {len(probes)} of {len(jobs)}")
    for job, place in zip(probes, run(folder, probes, engine.map, lambda _job, _record: None), strict=True):
        cost.learn(job, read(place)["seconds"])


def _say_results(names: Mapping[str, str]) -> Callable[[Job, dict[str, Any]], None]:
    def tell(job: Job, record: dict[str, Any]) -> None:
        corpus = f"{names[job.name]}, " if job.name in names else ""
        what = f"{KINDS[job.kind].label}, {corpus}{job.budget:,} tokens, seed {job.seed}"
        collapsed = "; its contexts have COLLAPSED into one or two" if record.get("collapsed") else ""
        say(f"{what}: PPL {record['ppl']:,.2f}{collapsed}")

    return tell


def progress(folder: Path, jobs: Sequence[Job], cost: Cost, seconds: float) -> tuple[float, str]:
    """The share of the estimated work that is done, and a line with it and the time left.

    The jobs are those that were not done when the clock started, `seconds` ago.
    """
    left, spent = _unfinished(folder, jobs), seconds / 60
    share = sum(cost.spent(job, folder / job.name) for job in jobs) / max(cost.of(jobs), 1e-9)
    early = max(cost.minutes(jobs) - spent, cost.minutes(left) / 2)
    rest = early if share < MIN_SHARE else spent / share * (1 - share)
    done = len(jobs) - len(left)
    line = f"{done} of {len(jobs)} training runs done, {spent:.1f} min; about {rest:.1f} min left"
    return share, f"{share:.0%} of the work: {line}"


def arm_names(jobs: Mapping[tuple[str, str], Sequence[Job]]) -> dict[str, str]:
    """The arms that train each job, by the job's name: "a", "a and b", or "a and 2 others"."""
    arms: dict[str, list[str]] = {}
    for (_, arm), each in jobs.items():
        for job in each:
            arms.setdefault(job.name, []).append(arm)
    return {
        name: " and ".join(of_job) if len(of_job) < 3 else f"{of_job[0]} and {len(of_job) - 1} others"  # noqa: PLR2004
        for name, of_job in arms.items()
    }
