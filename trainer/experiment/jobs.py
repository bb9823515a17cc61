"""Budgets x seeds -> trainings -> points of a law. A training that lies in its folder is not done again."""

from __future__ import annotations

import hashlib
import json
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from trainer import TrainerError
from trainer.experiment.records import reported, write
from trainer.prepare import prepared as preparing
from trainer.prepare.prepared import Prepared
from trainer.presets import Preset

T = TypeVar("T")
KINDS = ("cvfp", "random_block", "gru", "kneser_ney", "unigram")
"""The network, and its baselines: a random frozen context block, a GRU of the same size, counts."""
RESAMPLES = 1000
"""Bootstrap resamples of the test set."""
VERSION = 3
"""Raised when the same settings would train another network than before."""


class Each(Protocol):
    """Applies a task to names, here or in worker processes, and gives the results in order."""

    def __call__(self, task: Callable[[str], T], names: Sequence[str], /) -> Iterator[T]: ...


@dataclass(frozen=True)
class Job:
    """One training, or one baseline.

    Attributes:
        kind: one of `KINDS`.
        budget: training tokens.
        seed: of order, weights and noise.
        data: the folder of the prepared data.
        digest: of these data; of an arm, of all that this training sees, so that arms share what is the same for them.
        preset: how.
        device: where.
        threads: of the processor; results are the same for the same number.
        arm: the name of the rows that are trained on, in the folder of the data; all by default.
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

    @property
    def identity(self) -> str:
        """16 hex digits of all that decides the result."""
        settings = self.preset.settings()
        state = [VERSION, self.kind, self.budget, self.seed, self.digest, self.device, self.threads, settings]
        return hashlib.blake2b(json.dumps(state).encode(), digest_size=8).hexdigest()

    @property
    def name(self) -> str:
        """The training's folder."""
        return f"{self.kind}-{self.budget:010d}-{self.seed}-{self.identity}"


def run(folder: Path, jobs: Sequence[Job], each: Each, tell: Callable[[Job, dict[str, Any]], None]) -> list[Path]:
    """Do what is not done yet, the longest first, and return the folders of all jobs, in their order.

    Args:
        folder: where trainings lie.
        jobs: what is wanted.
        each: where they are carried out.
        tell: called with each job's record, those that were there already included.
    """
    todo = {job.name: job for job in jobs}
    done = {name for name in todo if (folder / name / "record.json").exists()}
    for name in done:
        tell(todo[name], read(folder / name))
    left = sorted(todo.keys() - done, key=lambda name: (-todo[name].budget, KINDS.index(todo[name].kind), name))
    for name, record in zip(left, each(partial(carry_out, folder, todo), left), strict=True):
        tell(todo[name], record)
    return [folder / job.name for job in jobs]


class DamagedError(TrainerError):
    """What a finished training left cannot be read; the message says where and what to do."""


def read(folder: Path) -> dict[str, Any]:
    """The record of a finished training.

    Raises:
        DamagedError: it cannot be read.
    """
    try:
        record: dict[str, Any] = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        for key in ("ppl", "nats", "bits_per_byte", "test_tokens", "tokens", "seed"):
            float(record[key])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(_damaged(folder, "record.json", error)) from None
    return record


def scores(folder: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Nats and targets of each test conversation of a finished training.

    Raises:
        DamagedError: they cannot be read.
    """
    try:
        with np.load(folder / "scores.npz", allow_pickle=False) as found:
            return found["nats"], found["targets"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DamagedError(_damaged(folder, "scores.npz", error)) from None


def _damaged(folder: Path, name: str, error: Exception) -> str:
    said = str(error) or type(error).__name__
    return f"{folder / name} cannot be read ({said}): remove {folder}, and that training is done again"


def carry_out(folder: Path, jobs: dict[str, Job], name: str) -> dict[str, Any]:
    """One training or baseline, from prepared data to its record; runs in a worker process."""
    import torch

    job = jobs[name]
    torch.set_num_threads(job.threads)
    data = preparing.load(Path(job.data), job.arm)
    where = folder / name
    return train(job, data, where) if job.kind in {"cvfp", "random_block"} else _baseline(job, data, where)


def train(
    job: Job, data: Prepared, where: Path, tell: Callable[[dict[str, Any]], None] = lambda _: None
) -> dict[str, Any]:
    """A network; phase 1 is skipped for a random block."""
    from trainer.experiment.training import Training

    given, preset = _given(job, data), job.preset
    if job.kind == "random_block":
        preset = replace(preset, phase1=replace(preset.phase1, passes=0))
    identity, said = job.identity, about(job, data)
    made = Training(preset, given, job.seed, where, identity=identity, device=job.device, tell=tell, said=said)
    return made.run()


def about(job: Job, data: Prepared) -> dict[str, Any]:
    """What a record says of the preset and the data of its training, so that it stands without them."""
    said = data.said
    return {
        "preset": job.preset.name,
        "settings": job.preset.settings(),
        "tokenizer": said["tokenizer"],
        "vocabulary": said["vocabulary"],
        "embeddings": said["embeddings"],
        "embeddings_tokens": said["embeddings_tokens"] if said["table"] else job.budget,
        "pool": said.get("pool"),
        "validation": said.get("validation"),
        "data": said["digest"],
    }


def _given(job: Job, data: Prepared) -> Any:  # noqa: ANN401  torch is imported where it is used
    from trainer.experiment.training import Data

    stream = data.budget(job.preset, job.budget, job.seed)
    return Data(stream, data.validation, data.test, data.embedded(job.preset, stream, job.seed))


def _baseline(job: Job, data: Prepared, where: Path) -> dict[str, Any]:
    from trainer.experiment import baselines

    given, size, began = _given(job, data), int(data.said["vocabulary"]), time.perf_counter()
    where.mkdir(parents=True, exist_ok=True)
    said: dict[str, Any] = {}
    if job.kind == "gru":
        nats, right, said = baselines.gru(given, job.preset, job.seed, job.device)
    else:
        model = baselines.kneser_ney if job.kind == "kneser_ney" else baselines.unigram
        nats = model(given.train, given.test, size)
        right = np.full(len(nats), np.nan)  # counts are asked for a target's chance, not for the likeliest id
    record = reported(nats, right, given.test) | said
    record |= {"kind": job.kind, "tokens": given.train.tokens, "seed": job.seed, "identity": job.identity}
    record |= {"seconds": {"baseline": time.perf_counter() - began}, **about(job, data)}
    record["accuracy"] = None if np.isnan(right).any() else record["accuracy"]
    write(where, record, [], nats, given.test)
    return record


def points(folders: Sequence[Path], clusters: NDArray[np.int64]) -> tuple[pl.DataFrame, NDArray[np.float64] | None]:
    """The points of finished trainings, and ln PPL of each on the same resamples of the test conversations.

    Args:
        folders: of the trainings.
        clusters: int64 [test conversations], the same number for near-duplicates.

    Returns:
        A row a training: kind, tokens, seed, ppl, nats, bits_per_byte, accuracy, test_tokens, folder. And
        float64 [n, `RESAMPLES`], as `resampled` says.
    """
    records = [read(folder) for folder in folders]
    columns = ("kind", "tokens", "seed", "ppl", "nats", "bits_per_byte", "accuracy", "test_tokens")
    frame = pl.DataFrame([{key: record.get(key) for key in columns} for record in records], infer_schema_length=None)
    return frame.with_columns(folder=pl.Series([folder.name for folder in folders])), resampled(folders, clusters)


def resampled(
    folders: Sequence[Path],
    clusters: NDArray[np.int64],
    seed: int = 0,
    rows: NDArray[np.bool_] | slice = slice(None),
) -> NDArray[np.float64] | None:
    """Ln PPL of each training on bootstrap resamples of the test conversations, or of some: [n, `RESAMPLES`].

    Whole clusters of near-duplicates are drawn with replacement, the same ones for every training: neither tokens of
    one conversation are independent, nor copies of it. None where fewer than two have a target: they say nothing of
    how much they vary.

    Args:
        folders: of the trainings.
        clusters: int64 [test conversations] from 0, the same number for near-duplicates.
        seed: of the draw.
        rows: which of the test conversations.
    """
    found, each = [scores(folder) for folder in folders], clusters[rows]
    nats = np.stack([np.bincount(each, one[rows], int(clusters.max(initial=-1)) + 1) for one, _ in found])
    targets = np.bincount(each, found[0][1][rows], nats.shape[1])
    nats, targets = nats[:, targets > 0], targets[targets > 0]
    if len(targets) < 2:  # noqa: PLR2004
        return None
    generator, count = np.random.default_rng(seed), len(targets)
    moved = np.empty((len(folders), RESAMPLES))
    for b in range(RESAMPLES):
        drawn = np.bincount(generator.integers(0, count, count), minlength=count)
        moved[:, b] = nats @ drawn / (targets @ drawn)
    return moved
