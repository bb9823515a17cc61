"""Jobs: one training run or baseline each, in a folder named by everything that determines its result."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from trainer.experiment.kinds import GRU, KINDS, KNESER_NEY, RANDOM_BLOCK, TRANSFORMER
from trainer.experiment.records import read, summarise, write
from trainer.prepare import prepared as preparing
from trainer.prepare.arms import Arms
from trainer.prepare.prepared import ExperimentData
from trainer.presets import Preset

T = TypeVar("T")
VERSION = 4
"""Version of the training code; increase it when the same settings would train another network."""


class Each(Protocol):
    """Applies a task to names, in this process or in workers, and yields each name with its result, in any order."""

    def __call__(self, task: Callable[[str], T], names: Sequence[str], /) -> Iterator[tuple[str, T]]: ...


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

    @cached_property
    def identity(self) -> str:
        """16 hex digits of everything that determines the result."""
        settings = self.preset.settings()
        state = [VERSION, self.kind, self.budget, self.seed, self.digest, self.device, self.threads, settings]
        return hashlib.blake2b(json.dumps(state).encode(), digest_size=8).hexdigest()

    @property
    def trained(self) -> Preset:
        """The preset as a model of this kind is trained: a random block skips phase 1."""
        first, second = self.preset.phase1, self.preset.phase2
        if self.kind == RANDOM_BLOCK.name:
            return replace(self.preset, phase1=replace(first, passes=0))
        kind = KINDS[self.kind]
        second = replace(
            second,
            epochs=max(round(kind.steps * second.epochs), 1),
            steps=round(kind.steps * second.steps),
            rate=second.rate * kind.rate,
            weight_decay=second.weight_decay / kind.rate,
        )
        return replace(self.preset, phase2=second)

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
    for name, record in each(partial(carry_out, folder, todo), left):
        tell(todo[name], record)
    return [folder / job.name for job in jobs]


def carry_out(folder: Path, jobs: dict[str, Job], name: str) -> dict[str, Any]:
    """Run one job, from prepared data to its record; this is the task of a worker process."""
    import torch

    job = jobs[name]
    torch.set_num_threads(job.threads)
    data = preparing.load(Path(job.data), job.arm)
    where = folder / name
    return (_count if KINDS[job.kind].cheap else train)(job, data, where)


def train(
    job: Job, data: ExperimentData, where: Path, tell: Callable[[dict[str, Any]], None] = lambda _: None
) -> dict[str, Any]:
    """Train a network."""
    from trainer.experiment.single_phase import GruRun, TransformerRun
    from trainer.experiment.training import Training

    of_kind = {TRANSFORMER.name: TransformerRun, GRU.name: GruRun}.get(job.kind, Training)
    given, more = _data(job, data), about(job, data)
    run = of_kind(job.trained, given, job.seed, where, identity=job.identity, device=job.device, tell=tell, about=more)
    return run.run()


def about(job: Job, data: ExperimentData) -> dict[str, Any]:
    """Fields of the record about the preset and the data of the job."""
    record = data.record
    return {
        "preset": job.preset.name,
        "settings": job.trained.settings(),
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


def _count(job: Job, data: ExperimentData, where: Path) -> dict[str, Any]:
    """Count n-grams."""
    from trainer.experiment import baselines

    given, size, began = _data(job, data), data.record.vocabulary, time.perf_counter()
    where.mkdir(parents=True, exist_ok=True)
    model = baselines.kneser_ney if job.kind == KNESER_NEY.name else baselines.unigram
    nats = model(given.train, given.test, size)
    # Count models give the probability of a target, not the most probable id.
    record: dict[str, Any] = {**summarise(nats, None, given.test)}
    record |= {"kind": job.kind, "tokens": given.train.tokens, "seed": job.seed, "identity": job.identity}
    record |= {"seconds": {"baseline": time.perf_counter() - began}, **about(job, data)}
    write(where, record, [], nats, given.test)
    return record
