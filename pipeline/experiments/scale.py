"""`refine scale`: training runs at several budgets and seeds, the scaling law of each kind of model, baselines."""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich.text import Text

from pipeline.experiments.formats import number
from pipeline.experiments.laws import CorpusLaws, fit_laws, show
from pipeline.experiments.points_csv import Corpora
from pipeline.experiments.schedule import carry_out
from pipeline.experiments.train import TrainOptions, open_experiment
from pipeline.terminal import console, safe, table
from stages.files import save_json
from trainer.experiment.jobs import Job
from trainer.experiment.kinds import KINDS, KNESER_NEY, baselines, networks
from trainer.experiment.points import points, resample
from trainer.prepare.prepared import ExperimentData
from trainer.presets import Preset
from trainer.scaling import Points, ScalingError


@dataclass(frozen=True, eq=False)
class ScalingResult:
    """The outcome of `scale`: the experiment's folder, the prepared data, the runs, and the law of each kind of model.

    The folder holds points.csv, law.json and trainings/. `runs` has one row per training run: kind, tokens, seed, ppl,
    nats, bits_per_byte, accuracy, test_tokens, replies_ppl, folder. `laws` have predictions and are by the label of the
    kind; those of the `networks` are fitted to all seeds. `replies` are the same of replies alone, None without any.
    """

    folder: Path
    data: dict[str, Any]
    runs: pl.DataFrame
    laws: CorpusLaws
    networks: tuple[str, ...]
    replies: CorpusLaws | None = None

    def as_dict(self) -> dict[str, Any]:
        """The laws for a script."""
        return self.laws.as_dict() | {"replies": None if self.replies is None else self.replies.as_dict()}


def scale(
    options: TrainOptions, budgets: list[int] | None, seeds: int = 3, workers: int = 0, predict: Sequence[float] = ()
) -> ScalingResult:
    """Train every kind of model at every budget, and fit scaling laws; runs that are already there are not repeated.

    Budgets are in training tokens, by default the preset's; so are the budgets to `predict` PPL at. 0 workers are one
    per core.

    Raises:
        SourceError, RunFolderError: the corpus or the folder does not serve.
        TrainerError: a budget exceeds the training pool, a run met NaN, or the points carry no law.
    """
    if any(not (math.isfinite(count) and count > 0) for count in predict):
        raise ScalingError("--predict takes numbers of tokens above 0, such as 1000000")
    if budgets is not None and len(set(budgets)) < 2:  # noqa: PLR2004  a line needs two points
        raise ScalingError("--budgets names one size, and a law needs 2 or more, an interval 3: name more")
    trained = networks(options.network)
    with open_experiment(options) as (folder, preset, data):
        counts = data.budgets(preset, budgets)
        if len(counts) < 2:  # noqa: PLR2004
            raise ScalingError(
                f"of the budgets of preset {preset.name} only {counts[0]:,} tokens fit the training pool of "
                f"{data.pool.tokens:,}, and a law needs 2 or more: name others with --budgets, or take a larger corpus"
            )
        jobs = scale_jobs(folder, preset, data, counts, trained, seeds=seeds, device=options.device)
        carry_out(folder / "trainings", jobs, workers, options.device)
        folders = [folder / "trainings" / job.name for job in jobs]
        runs, resampled = points(folders, data.clusters)
        names = pl.col("kind").replace_strict({name: kind.label for name, kind in KINDS.items()})
        runs.select(names.alias("corpus"), pl.exclude("kind")).write_csv(folder / "points.csv")  # as --points reads it
        laws, of_replies = fit_laws(points_by_kind(runs, resampled), predict), None
        if data.test.replies:
            alone = np.broadcast_to([[False], [True]], (2, len(data.test)))
            moved = resample(folders, data.clusters, mask=alone)
            of_replies = fit_laws(points_by_kind(runs.with_columns(ppl="replies_ppl"), moved), predict)
        result = ScalingResult(folder, data.record.as_dict(), runs, laws, trained, of_replies)
        save_json(folder / "law.json", result.as_dict())
    return result


def print_scaling(result: ScalingResult, *, as_json: bool) -> None:
    """Print the networks' laws and how the baselines compare, or everything as JSON."""
    if as_json:
        report = {"folder": str(result.folder), "data": result.data, **result.as_dict()}
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
        return
    labels = [KINDS[kind].label for kind in result.networks]
    budgets = [one.tokens for one in result.laws.predictions[labels[0], "power"]]
    show(fit_laws({label: result.laws.points[label] for label in labels}, budgets))
    out = console()
    if result.replies is not None:
        out.print(Text("\nOn replies alone", style="bold"))
        show(fit_laws({label: result.replies.points[label] for label in labels}, budgets))
    out.print(baseline_table(result.runs))
    beaten = lost_to(result.runs, result.networks[0])
    out.print(Text(safe(f"With seed 0, {beaten}" if result.runs["seed"].n_unique() > 1 else beaten)))
    out.print(Text(safe(f"\n{result.folder}: points.csv, law.json (the baselines' laws included), trainings/")))


def scale_jobs(
    folder: Path,
    preset: Preset,
    data: ExperimentData,
    budgets: Sequence[int],
    trained: tuple[str, ...],
    *,
    seeds: int,
    device: str,
) -> list[Job]:
    """The training runs of an experiment, the networks first.

    Networks are trained with every seed, and so are counts if a seed draws another order; other baselines are trained
    with one seed.
    """
    return [
        Job(kind, count, seed, str(folder / "data"), data.digest, preset, device)
        for kind in (*trained, *baselines(trained))
        for count in budgets
        for seed in range(seeds)
        if seed == 0 or kind in trained or (kind == KNESER_NEY.name and preset.shuffled)
    ]


def points_by_kind(runs: pl.DataFrame, resampled: NDArray[np.float64] | None) -> Corpora:
    """The points of each kind of model, by its name; runs of a single seed are independent points."""
    made: Corpora = {}
    for (kind,), part in runs.with_row_index("row").group_by("kind", maintain_order=True):
        seed = part["seed"].to_numpy() if part["seed"].n_unique() > 1 else None
        moved = None if resampled is None else resampled[part["row"].to_numpy()]
        made[KINDS[kind].label] = Points(part["tokens"].to_numpy(), part["ppl"].to_numpy(), seed, moved)
    return made


def baseline_table(runs: pl.DataFrame) -> Any:  # noqa: ANN401  a rich table
    """PPL of every model at every budget with seed 0: the same tokens in the same order."""
    first = runs.filter(pl.col("seed") == 0).sort("tokens", maintain_order=True)
    ppl = first.pivot("kind", index="tokens", values="ppl")
    labels = [KINDS[kind].label for kind in ppl.columns[1:]]
    rows: list[tuple[object, ...]] = [
        (f"{budget:,}", *map(number, each), labels[each.index(min(each))]) for budget, *each in ppl.iter_rows()
    ]
    title = "\nPPL beside the baselines, seed 0, on the same test set"
    return table(title, ("tokens", *labels, "lowest"), rows, frozenset(range(len(labels) + 1)))


def lost_to(runs: pl.DataFrame, network: str) -> str:
    """Which models have a lower loss than a network with seed 0, and at how many of their budgets, as a clause.

    The rows of `runs` are training runs: kind, tokens, seed, nats.
    """
    first = runs.filter(pl.col("seed") == 0)
    own = first.filter(pl.col("kind") == network).select("tokens", own="nats")
    beside = first.filter(pl.col("kind") != network).join(own, on="tokens")
    lost = (pl.col("nats") < pl.col("own")).sum().alias("lost")
    counts = beside.group_by("kind", maintain_order=True).agg(lost, pl.len())
    each = [f"{KINDS[kind].label} at {few} of {budgets} budgets" for kind, few, budgets in counts.iter_rows() if few]
    name, every = KINDS[network].label, "" if (counts["len"] == len(own)).all() else " that both have"
    return f"{name} loses to {', to '.join(each)}" if each else f"{name} beats every other model at every budget{every}"
