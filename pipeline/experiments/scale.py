"""`refine scale`: budgets x seeds -> trainings -> the law of the network, and where its baselines stand."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich.text import Text

from pipeline.experiments.laws import as_dict, show
from pipeline.experiments.points_csv import Corpora
from pipeline.experiments.schedule import carry_out
from pipeline.experiments.train import TrainOptions, prepared
from pipeline.store import save_json
from pipeline.terminal import console, safe, table
from trainer.experiment.jobs import Job
from trainer.experiment.kinds import CVFP, KINDS, KNESER_NEY
from trainer.experiment.points import points
from trainer.prepare.prepared import Prepared
from trainer.presets import Preset
from trainer.scaling import Points, ScalingError


def scale(asked: TrainOptions, budgets: list[int] | None, seeds: int, workers: int, predict: list[float]) -> None:
    """Train, fit, print; an interrupted one goes on with the same --out.

    Raises:
        TrainerError: a budget is larger than the pool, training met NaN, or the points carry no law.
    """
    if any(not (math.isfinite(count) and count > 0) for count in predict):
        raise ScalingError("--predict takes numbers of tokens above 0, such as 1000000")
    if budgets is not None and len(set(budgets)) < 2:  # noqa: PLR2004  a line needs two points
        raise ScalingError("--budgets names one size, and a law needs 2 or more, an interval 3: name more")
    with prepared(asked) as (folder, preset, data):
        _scale(asked, folder, preset, data, budgets, seeds, workers, predict)


def _scale(  # noqa: PLR0917  what `scale` is asked for, and what it found
    asked: TrainOptions,
    folder: Path,
    preset: Preset,
    data: Prepared,
    budgets: list[int] | None,
    seeds: int,
    workers: int,
    predict: list[float],
) -> None:
    counts = data.budgets(preset, budgets)
    if len(counts) < 2:  # noqa: PLR2004
        raise ScalingError(
            f"of the budgets of preset {preset.name} only {counts[0]:,} tokens fit the training pool of "
            f"{data.pool.tokens:,}, and a law needs 2 or more: name others with --budgets, or take a larger corpus"
        )
    jobs = wanted(folder, preset, data, counts, seeds=seeds, device=asked.device)
    carry_out(folder / "trainings", jobs, workers, asked.device)
    folders = [folder / "trainings" / job.name for job in jobs]
    frame, resampled = points(folders, data.clusters)
    named = (
        pl.col("kind").replace_strict({name: kind.label for name, kind in KINDS.items()}).alias("corpus")
    )  # as `refine scale --points` reads it
    frame.select(named, pl.exclude("kind")).write_csv(folder / "points.csv")
    corpora = laws(frame, resampled)
    found = as_dict(corpora, predict)
    save_json(folder / "law.json", found)
    if asked.as_json:
        sys.stdout.write(json.dumps({"folder": str(folder), "data": data.record.as_dict(), **found}, indent=2) + "\n")
        return
    network = CVFP.label
    show({network: corpora[network]}, predict=predict, as_json=False)
    out = console()
    out.print(standing(frame))
    out.print(Text(safe(ahead(frame))))
    out.print(Text(safe(f"\n{folder}: points.csv, law.json (baselines' laws too), trainings/")))


def wanted(folder: Path, preset: Preset, data: Prepared, budgets: list[int], *, seeds: int, device: str) -> list[Job]:
    """The trainings and baselines of an experiment: all budgets of each kind, the network first.

    The network has every seed, and so have counts where a seed draws another order; of the others one seed shows where
    they stand.
    """
    return [
        Job(kind, count, seed, str(folder / "data"), data.digest, preset, device)
        for kind in KINDS
        for count in budgets
        for seed in range(seeds)
        if seed == 0 or kind == CVFP.name or (kind == KNESER_NEY.name and preset.shuffled)
    ]


def laws(frame: pl.DataFrame, resampled: NDArray[np.float64] | None) -> Corpora:
    """The points of each kind of model, by its name; with one seed a point is a training of its own."""
    found: Corpora = {}
    for kind in frame["kind"].unique(maintain_order=True):
        rows = np.flatnonzero((frame["kind"] == kind).to_numpy())
        part = frame[rows.tolist()]
        seed = part["seed"].to_numpy() if part["seed"].n_unique() > 1 else None
        moved = None if resampled is None else resampled[rows]
        found[KINDS[kind].label] = Points(part["tokens"].to_numpy(), part["ppl"].to_numpy(), seed, moved)
    return found


def standing(frame: pl.DataFrame) -> Any:  # noqa: ANN401  a rich table
    """PPL of every model at every budget, each of seed 0: the same tokens in the same order; and who is ahead."""
    mean = frame.filter(pl.col("seed") == 0)
    kinds = mean["kind"].unique(maintain_order=True).to_list()
    rows: list[tuple[object, ...]] = []
    for (budget,), part in mean.sort("tokens", maintain_order=True).group_by("tokens", maintain_order=True):
        ppl = dict(zip(part["kind"], part["ppl"], strict=True))
        best = KINDS[min(ppl, key=lambda kind: ppl[kind])].label
        rows.append((f"{budget:,}", *(f"{ppl[kind]:,.2f}" for kind in kinds), best))
    head = ("tokens", *(KINDS[kind].label for kind in kinds), "lowest")
    return table(
        "\nPPL beside the baselines, seed 0, on the same test set", head, rows, frozenset(range(len(kinds) + 1))
    )


def ahead(frame: pl.DataFrame) -> str:
    """Which baselines are below the network, and at how many budgets: one sentence."""
    said = lost_to(frame)
    return f"With seed 0, {said}" if frame["seed"].n_unique() > 1 else said


def lost_to(frame: pl.DataFrame) -> str:
    """The same of seed 0, as a part of a sentence.

    Args:
        frame: a row a training: kind, tokens, seed, nats.
    """
    first = frame.filter(pl.col("seed") == 0)
    network = first.filter(pl.col("kind") == CVFP.name).select("tokens", own="nats")
    beside = first.filter(pl.col("kind") != CVFP.name).join(network, on="tokens")
    lost = beside.filter(pl.col("nats") < pl.col("own")).group_by("kind", maintain_order=True).len()
    said = [f"{KINDS[kind].label} at {count} of {len(network)} budgets" for kind, count in lost.iter_rows()]
    return f"CVFP loses to {', to '.join(said)}" if said else "CVFP beats every baseline at every budget here"
