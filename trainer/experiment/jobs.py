"""Jobs: one training run or baseline each, in a folder named by everything that determines its result."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from trainer.experiment.kinds import CVFP, GRU, KINDS, KNESER_NEY, RANDOM_BLOCK
from trainer.experiment.records import read, summarise, write
from trainer.prepare import prepared as preparing
from trainer.prepare.arms import Arms
from trainer.prepare.prepared import ExperimentData
from trainer.presets import Preset

T = TypeVar("T")
VERSION = 3
"""Version of the training code; increase it when the same settings would train another network."""


class Each(Protocol):
    """Applies a task to names, in this process or in workers, and yields the results in order."""

    def __call__(self, task: Callable[[str], T], names: Sequence[str], /) -> Iterator[T]: ...


@dataclass(frozen=True)
class Job:
    """One training run or baseline of a kind in `KINDS`, on the prepared data of a folder.

    `digest` is that of these data; for an arm it is that of everything this run sees, so arms with equal streams share
    a job. `arm` names the file with the arm's rows in the data folder; it is empty for all rows.
    """

    kind: str
    budget: int
    seed: int
    data: str
    digest: str
    preset: Preset
    device: str = "cpu"
    threads: int = 1
    arm: str = ""
    order: int | None = None

    @property
    def identity(self) -> str:
        """16 hex digits of everything that determines the result."""
        settings = self.preset.settings()
        state = [VERSION, self.kind, self.budget, self.seed, self.digest, self.device, self.threads, settings]
        return hashlib.blake2b(json.dumps(state).encode(), digest_size=8).hexdigest()

    @property
    def name(self) -> str:
        """Name of the job's folder."""
        return f"{self.kind}-{self.budget:010d}-{self.seed}-{self.identity}"


def arm_jobs(arms: Arms, kind: str, arm: str, pairs: Sequence[tuple[int, int]], device: str = "cpu") -> list[Job]:
    """A job per budget and seed, each in an order of its own; two arms share a job if their streams are equal.

    Raises:
        StreamError: the pool is too small.
    """
    first, jobs = Job(kind, 0, 0, str(arms.common.folder), "", arms.preset, device, arm=arms.file(arm)), []
    for budget, seed in pairs:
        order = order_seed(budget, seed)
        digest = arms.digest(arms.stream(arm, budget, order))
        jobs.append(replace(first, budget=budget, seed=seed, digest=digest, order=order))
    return jobs


def order_seed(budget: int, seed: int) -> int:
    """The seed of the order of a pair: independent between budgets, unlike nested prefixes of one order."""
    return 1000 * budget + seed


def run(folder: Path, jobs: Sequence[Job], each: Each, tell: Callable[[Job, dict[str, Any]], None]) -> list[Path]:
    """Run the unfinished jobs, the longest first, and return the folders of all jobs, in the order of `jobs`.

    `tell` is called with each job and its record, including jobs that were finished before.
    """
    todo = {job.name: job for job in jobs}
    done = {name for name in todo if (folder / name / "record.json").exists()}
    for name in done:
        tell(todo[name], read(folder / name))
    left = sorted(todo.keys() - done, key=lambda name: (-todo[name].budget, list(KINDS).index(todo[name].kind), name))
    for name, record in zip(left, each(partial(carry_out, folder, todo), left), strict=True):
        tell(todo[name], record)
    return [folder / job.name for job in jobs]


def carry_out(folder: Path, jobs: dict[str, Job], name: str) -> dict[str, Any]:
    """Run one job, from prepared data to its record; this is the task of a worker process."""
    import torch

    job = jobs[name]
    torch.set_num_threads(job.threads)
    data = preparing.load(Path(job.data), job.arm)
    where = folder / name
    return train(job, data, where) if job.kind in {CVFP.name, RANDOM_BLOCK.name} else _baseline(job, data, where)


def train(
    job: Job, data: ExperimentData, where: Path, tell: Callable[[dict[str, Any]], None] = lambda _: None
) -> dict[str, Any]:
    """Train a network; a random block skips phase 1."""
    from trainer.experiment.training import Training

    given, preset = _data(job, data), job.preset
    if job.kind == RANDOM_BLOCK.name:
        preset = replace(preset, phase1=replace(preset.phase1, passes=0))
    run = Training(
        preset, given, job.seed, where, identity=job.identity, device=job.device, tell=tell, about=about(job, data)
    )
    return run.run()


def about(job: Job, data: ExperimentData) -> dict[str, Any]:
    """Fields of the record about the preset and the data of the job."""
    record = data.record
    return {
        "preset": job.preset.name,
        "settings": job.preset.settings(),
        "tokenizer": record.tokenizer,
        "vocabulary": record.vocabulary,
        "embeddings": record.embeddings,
        "embeddings_tokens": record.embeddings_tokens if record.table else job.budget,
        "pool": asdict(record.pool),
        "validation": asdict(record.validation),
        "data": record.digest,
    }


def _data(job: Job, data: ExperimentData) -> Any:  # noqa: ANN401  torch is imported where it is used
    from trainer.experiment.training import Data

    stream = data.budget(job.preset, job.budget, job.seed if job.order is None else job.order)
    return Data(stream, data.validation, data.test, data.embeddings_for(job.preset, stream, job.seed))


def _baseline(job: Job, data: ExperimentData, where: Path) -> dict[str, Any]:
    from trainer.experiment import baselines

    given, size, began = _data(job, data), data.record.vocabulary, time.perf_counter()
    where.mkdir(parents=True, exist_ok=True)
    more: dict[str, Any] = {}
    if job.kind == GRU.name:
        nats, right, more = baselines.gru(given, job.preset, job.seed, job.device)
    else:
        model = baselines.kneser_ney if job.kind == KNESER_NEY.name else baselines.unigram
        nats = model(given.train, given.test, size)
        right = np.full(len(nats), np.nan)  # count models give the probability of a target, not the most probable id
    record = summarise(nats, right, given.test) | more
    record |= {"kind": job.kind, "tokens": given.train.tokens, "seed": job.seed, "identity": job.identity}
    record |= {"seconds": {"baseline": time.perf_counter() - began}, **about(job, data)}
    record["accuracy"] = None if np.isnan(right).any() else record["accuracy"]
    write(where, record, [], nats, given.test)
    return record
