"""The commands that train: `refine train`, `scale`, `compare` and `ablate`; they stand in pipeline/cli.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import (
    AsJson,
    Budgets,
    CheckFails,
    Config,
    Device,
    EmbeddingsFrom,
    ExperimentOut,
    HousePreset,
    LatestRun,
    Limit,
    MaxKept,
    MinKept,
    PresetName,
    Quick,
    RecordShape,
    ReportOut,
    Revision,
    RunFolder,
    SharedEmbeddings,
    Source,
    Split,
    TestTokens,
    Tokenizer,
    Work,
    Workers,
)


def train(
    source: Source = None,
    budget: Annotated[
        int | None,
        typer.Option(min=2, metavar="TOKENS", help="Training tokens; by default 100,000, or the preset's largest."),
    ] = None,
    preset: PresetName = "house",
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            max=2**32 - 1,
            help="Of the conversations' order, the weights and the noise; the user's experiments were run with 42.",
        ),
    ] = 0,
    device: Device = "cpu",
    threads: Annotated[
        int,
        typer.Option(min=0, max=1024, help="Processor threads; 0: one a core. The same number gives the same numbers."),
    ] = 0,
    tokenizer: Tokenizer = None,
    embeddings: EmbeddingsFrom = None,
    test_tokens: TestTokens = 100_000,
    baselines: Annotated[bool, typer.Option(help="Train and score the baselines on the same split.")] = True,
    out: ExperimentOut = None,
    split: Split = None,
    config: Config = None,
    revision: Revision = None,
    shape: RecordShape = None,
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """Train one CVFP language model on a corpus, beside its baselines."""
    from pipeline.experiments import train
    from trainer.prepare.choices import Choices

    choices = Choices(tokenizer, embeddings, test_tokens)
    options = train.TrainOptions(source, split, config, revision, shape, limit, preset, choices, out, device)
    train.print_training(train.train(options, budget, seed, threads, baselines=baselines), as_json=as_json)


def scale(
    context: typer.Context,
    source: Source = None,
    points: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Fit a table of yours instead: CSV with columns tokens, ppl and perhaps corpus, seed."
        ),
    ] = None,
    budgets: Annotated[
        str | None, typer.Option(metavar="TOKENS", help="Training tokens, comma-separated; by default the preset's.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="Trainings of each budget.")] = 3,
    predict: Annotated[
        list[float] | None, typer.Option(metavar="TOKENS", help="Predict PPL at this budget; repeatable.")
    ] = None,
    preset: PresetName = "house",
    device: Device = "cpu",
    workers: Workers = 0,
    tokenizer: Tokenizer = None,
    embeddings: EmbeddingsFrom = None,
    test_tokens: TestTokens = 100_000,
    out: ExperimentOut = None,
    split: Split = None,
    config: Config = None,
    revision: Revision = None,
    shape: RecordShape = None,
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """Train on nested budgets with several seeds, and fit the scaling law PPL = A * tokens^alpha, with intervals."""
    if points is not None:
        from pipeline.experiments import laws as fitting
        from trainer.scaling import ScalingError

        others = [
            "SOURCE" if name == "source" else f"--{name.replace('_', '-')}"
            for name in context.params
            if name not in {"points", "predict", "as_json"}
            and getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
        ]
        if others:
            raise ScalingError(f"--points fits a table and trains nothing: leave {', '.join(others)} away")
        fitting.show(fitting.fit_points(points, predict or []), as_json=as_json)
        return
    from pipeline.experiments import scale, train
    from trainer.prepare.choices import Choices

    choices = Choices(tokenizer, embeddings, test_tokens)
    options = train.TrainOptions(source, split, config, revision, shape, limit, preset, choices, out, device)
    result = scale.scale(options, train.numbers(budgets), seeds, workers, predict or [])
    scale.print_scaling(result, as_json=as_json)


def compare(
    raw: Annotated[
        str,
        typer.Argument(metavar="RAW", help="raw or refined (of the run), or a file, a folder, a run, a hub id."),
    ] = "raw",
    refined: Annotated[str, typer.Argument(metavar="REFINED", help="What it is compared with; the same.")] = "refined",
    run: LatestRun = None,
    budgets: Budgets = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Trainings of each budget and corpus; by default 3.")
    ] = None,
    preset: HousePreset = "house",
    quick: Quick = False,
    train: Annotated[
        bool,
        typer.Option("--train/--no-train", help="Whether to train at all; without, what they consist of, in seconds."),
    ] = True,
    out: ReportOut = None,
    work: Work = None,
    workers: Workers = 0,
    device: Device = "cpu",
    tokenizer: Tokenizer = None,
    embeddings: SharedEmbeddings = None,
    test_tokens: TestTokens = 100_000,
    split: Split = None,
    config: Config = None,
    revision: Revision = None,
    shape: RecordShape = None,
    limit: Limit = None,
    check: CheckFails = False,
    min_kept: MinKept = 0.05,
    max_kept: MaxKept = 1.0,
    as_json: AsJson = False,
) -> None:
    """Compare two corpora by the scaling laws of models trained on them: did refining help?"""
    from pipeline.compare import command as comparing
    from pipeline.compare.corpora import Hub
    from pipeline.compare.data import TrainingOptions
    from pipeline.compare.show import print_comparison
    from pipeline.experiments.train import numbers
    from pipeline.report.run.checks import Bounds
    from trainer.prepare.choices import Choices

    counts = numbers(budgets)
    wanted = Choices(tokenizer, embeddings, test_tokens)
    how = TrainingOptions(
        preset, wanted, None if counts is None else tuple(counts), seeds, quick, device, workers, work
    )
    hub = Hub(split, config, revision, shape)
    bounds, words = Bounds(min_kept, max_kept), tuple(sys.argv[1:])
    options = comparing.CompareOptions(raw, refined, run, out, limit, train, how, hub, bounds, words)
    result = comparing.compare(options)
    print_comparison(result, as_json=as_json)
    if check and result.failed:
        sys.exit(1)


def ablate(
    folder: RunFolder,
    budgets: Budgets = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Trainings of each budget and arm; by default 3.")
    ] = None,
    preset: HousePreset = "house",
    quick: Quick = False,
    train: Annotated[
        bool, typer.Option("--train/--no-train", help="Whether to train at all; without, what each rule drops.")
    ] = True,
    out: ReportOut = None,
    work: Work = None,
    workers: Workers = 0,
    device: Device = "cpu",
    tokenizer: Tokenizer = None,
    embeddings: SharedEmbeddings = None,
    test_tokens: TestTokens = 100_000,
    check: CheckFails = False,
    min_kept: MinKept = 0.05,
    max_kept: MaxKept = 1.0,
    as_json: AsJson = False,
) -> None:
    """Say which rule of a run moved the exponent: each left out in turn, and each alone."""
    from pipeline import ablate as ablating
    from pipeline.compare.data import TrainingOptions
    from pipeline.experiments.train import numbers
    from pipeline.report.run.checks import Bounds
    from trainer.prepare.choices import Choices

    counts = numbers(budgets)
    wanted = Choices(tokenizer, embeddings, test_tokens)
    how = TrainingOptions(
        preset, wanted, None if counts is None else tuple(counts), seeds, quick, device, workers, work
    )
    bounds, words = Bounds(min_kept, max_kept), tuple(sys.argv[1:])
    result = ablating.ablate(ablating.AblateOptions(folder, out, train, how, bounds, words))
    ablating.print_ablation(result, as_json=as_json)
    if check and result.failed:
        sys.exit(1)
