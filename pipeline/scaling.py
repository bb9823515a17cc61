"""`refine scale`: budgets x seeds -> trainings -> the law of the network, and where its baselines stand."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich.text import Text

from pipeline import points
from pipeline.engine import Local
from pipeline.points_file import Corpora
from pipeline.store import save_json
from pipeline.terminal import console, safe, table
from pipeline.training import NAMES, Asked, prepare, say
from trainer import experiment
from trainer.experiment import Job
from trainer.prepared import Prepared
from trainer.presets import Preset
from trainer.scaling import Points

SEEDED = frozenset({"cvfp", "kneser_ney"})
"""What is done for every seed; of the others one seed shows where they stand."""


def scale(asked: Asked, budgets: list[int] | None, seeds: int, workers: int, predict: list[float]) -> None:
    """Train, fit, print; an interrupted one goes on with the same --out.

    Raises:
        TrainerError: a budget is larger than the pool, training met NaN, or the points carry no law.
    """
    folder, preset, data = prepare(asked)
    jobs = wanted(folder, preset, data, data.budgets(preset, budgets), seeds=seeds, device=asked.device)
    engine = Local((workers or len(os.sched_getaffinity(0))) if asked.device == "cpu" else 1)
    try:
        folders = experiment.run(folder / "trainings", jobs, engine.map, teller(len(jobs)))
    finally:
        engine.close()
    frame, resampled = experiment.points(folders)
    frame.write_csv(folder / "points.csv")
    corpora = laws(frame, resampled)
    found = points.as_dict(corpora, predict)
    save_json(folder / "law.json", found)
    if asked.as_json:
        sys.stdout.write(json.dumps({"folder": str(folder), "data": data.said, **found}, indent=2) + "\n")
        return
    network = NAMES["cvfp"]
    points.show({network: corpora[network]}, predict=predict, as_json=False)
    out = console()
    out.print(standing(frame))
    out.print(Text(safe(f"\n{folder}: points.csv, law.json (baselines' laws too), trainings/")))


def wanted(folder: Path, preset: Preset, data: Prepared, budgets: list[int], *, seeds: int, device: str) -> list[Job]:
    """The trainings and baselines of an experiment: all budgets of each kind, the network first."""
    return [
        Job(kind, count, seed, str(folder / "data"), data.digest, preset, device)
        for kind in experiment.KINDS
        for count in budgets
        for seed in range(seeds)
        if kind in SEEDED or seed == 0
    ]


def teller(total: int) -> Callable[[Job, dict[str, Any]], None]:
    """Says each training as it is done, and how long the rest will take by the tokens that are left."""
    begun, done = time.monotonic(), 0

    def tell(job: Job, record: dict[str, Any]) -> None:
        nonlocal done
        done += 1
        took = time.monotonic() - begun
        say(
            f"{done}/{total}  {NAMES[job.kind]}, {job.budget:,} tokens, seed {job.seed}: PPL {record['ppl']:,.2f}"
            f"  ({took:,.0f} s)"
        )

    return tell


def laws(frame: pl.DataFrame, resampled: NDArray[np.float64]) -> Corpora:
    """The points of each kind of model, by its name; with one seed a point is a training of its own."""
    found: Corpora = {}
    for kind in frame["kind"].unique(maintain_order=True):
        rows = np.flatnonzero((frame["kind"] == kind).to_numpy())
        part = frame[rows.tolist()]
        seed = part["seed"].to_numpy() if part["seed"].n_unique() > 1 else None
        found[NAMES[kind]] = Points(part["tokens"].to_numpy(), part["ppl"].to_numpy(), seed, resampled[rows])
    return found


def standing(frame: pl.DataFrame) -> Any:  # noqa: ANN401  a rich table
    """PPL of every model at every budget, the mean of ln PPL over seeds; and who is ahead."""
    mean = frame.group_by("kind", "tokens", maintain_order=True).agg(pl.col("nats").mean().exp().alias("ppl"))
    kinds = mean["kind"].unique(maintain_order=True).to_list()
    rows: list[tuple[object, ...]] = []
    for (budget,), part in mean.sort("tokens", maintain_order=True).group_by("tokens", maintain_order=True):
        ppl = dict(zip(part["kind"], part["ppl"], strict=True))
        best = NAMES[min(ppl, key=lambda kind: ppl[kind])]
        rows.append((f"{budget:,}", *(f"{ppl[kind]:,.2f}" for kind in kinds), best))
    head = ("tokens", *(NAMES[kind] for kind in kinds), "lowest")
    return table("\nPPL beside the baselines, on the same test set", head, rows, frozenset(range(len(kinds) + 1)))
