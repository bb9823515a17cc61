"""The commands that train: `refine train`, `scale`, `compare` and `ablate`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import options as o


def train(
    source: o.Source = None,
    budget: Annotated[
        int | None,
        typer.Option(min=2, metavar="TOKENS", help="Training tokens. By default 100,000, or the preset's largest."),
    ] = None,
    preset: o.PresetName = "house",
    seed: o.Seed = 0,
    device: o.Device = "cpu",
    threads: Annotated[
        int,
        typer.Option(
            min=0,
            max=1024,
            metavar="N",
            help="CPU threads; 0: one per core. Results are reproducible for a given number of threads.",
        ),
    ] = 0,
    tokenizer: o.Tokenizer = None,
    embeddings: o.EmbeddingsFrom = None,
    test_tokens: o.TestTokens = 100_000,
    baselines: Annotated[bool, typer.Option(help="Train and score the baselines on the same split.")] = True,
    out: o.ExperimentOut = None,
    split: o.Split = None,
    config: o.Config = None,
    revision: o.Revision = None,
    shape: o.RecordShape = None,
    limit: o.Limit = None,
    as_json: o.AsJson = False,
) -> None:
    """Train one CVFP language model on a corpus, and its baselines."""
    from pipeline.experiments import train
    from trainer.prepare.choices import Choices

    choices = Choices(tokenizer, embeddings, test_tokens)
    options = train.TrainOptions(source, split, config, revision, shape, limit, preset, choices, out, device)
    train.print_training(train.train(options, budget, seed, threads, baselines=baselines), as_json=as_json)


def scale(
    context: typer.Context,
    source: o.Source = None,
    points: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Fit this CSV instead of training: columns tokens, ppl and optionally corpus, seed."
        ),
    ] = None,
    budgets: Annotated[
        str | None, typer.Option(metavar="TOKENS", help="Training tokens, comma-separated. By default the preset's.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="Training runs per budget.")] = 3,
    predict: Annotated[
        list[float] | None, typer.Option(metavar="TOKENS", help="Predict the PPL at this budget. Repeatable.")
    ] = None,
    preset: o.PresetName = "house",
    device: o.Device = "cpu",
    workers: o.Workers = 0,
    tokenizer: o.Tokenizer = None,
    embeddings: o.EmbeddingsFrom = None,
    test_tokens: o.TestTokens = 100_000,
    out: o.ExperimentOut = None,
    split: o.Split = None,
    config: o.Config = None,
    revision: o.Revision = None,
    shape: o.RecordShape = None,
    limit: o.Limit = None,
    as_json: o.AsJson = False,
) -> None:
    """Fit the scaling law PPL = A * tokens^alpha to a corpus.

    Models are trained on nested budgets with several seeds.
    """
    if points is not None:
        _fit(context, points, predict or [], as_json=as_json)
        return
    from pipeline.experiments import scale, train
    from trainer.prepare.choices import Choices

    choices = Choices(tokenizer, embeddings, test_tokens)
    options = train.TrainOptions(source, split, config, revision, shape, limit, preset, choices, out, device)
    result = scale.scale(options, train.numbers(budgets), seeds, workers, predict or [])
    scale.print_scaling(result, as_json=as_json)


def _fit(context: typer.Context, points: Path, predict: list[float], *, as_json: bool) -> None:
    """Fit a table of points; options of a training run are refused."""
    from pipeline.experiments import laws
    from trainer.scaling import ScalingError

    others = [
        "SOURCE" if name == "source" else f"--{name.replace('_', '-')}"
        for name in context.params
        if name not in {"points", "predict", "as_json"}
        and getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    ]
    if others:
        raise ScalingError(f"--points fits a table and trains nothing: omit {', '.join(others)}")
    laws.show(laws.fit_points(points, predict), as_json=as_json)


def compare(
    raw: Annotated[
        str,
        typer.Argument(metavar="RAW", help="raw or refined (of the run), or a file, a folder, a run, a hub id."),
    ] = "raw",
    refined: Annotated[str, typer.Argument(metavar="REFINED", help="The corpus to compare with RAW.")] = "refined",
    run: o.LatestRun = None,
    budgets: o.Budgets = None,
    seeds: o.Seeds = None,
    preset: o.HousePreset = "house",
    quick: o.Quick = False,
    train: Annotated[
        bool, typer.Option("--train/--no-train", help="Train models, or only describe the corpora in seconds.")
    ] = True,
    out: o.ReportOut = None,
    work: o.Work = None,
    workers: o.Workers = 0,
    device: o.Device = "cpu",
    tokenizer: o.Tokenizer = None,
    embeddings: o.SharedEmbeddings = None,
    test_tokens: o.TestTokens = 100_000,
    split: o.Split = None,
    config: o.Config = None,
    revision: o.Revision = None,
    shape: o.RecordShape = None,
    limit: o.Limit = None,
    check: o.CheckFails = False,
    min_kept: o.MinKept = 0.05,
    max_kept: o.MaxKept = 1.0,
    as_json: o.AsJson = False,
) -> None:
    """Compare two corpora by scaling laws: did refining help?

    The laws are fitted to models trained on both corpora.
    """
    from pipeline.api.compare import token_counts
    from pipeline.compare.command import CompareOptions
    from pipeline.compare.command import compare as carry_out
    from pipeline.compare.corpora import HubOptions
    from pipeline.compare.data import TrainingOptions
    from pipeline.compare.show import print_comparison
    from pipeline.report.run.checks import Bounds
    from trainer.prepare.choices import Choices

    choices, counts = Choices(tokenizer, embeddings, test_tokens), token_counts(budgets)
    training = TrainingOptions(preset, choices, counts, seeds, quick, device, workers, work)
    hub, bounds = HubOptions(split, config, revision, shape), Bounds(min_kept, max_kept)
    words = tuple(sys.argv[1:])
    result = carry_out(CompareOptions(raw, refined, run, out, limit, train, training, hub, bounds, words))
    print_comparison(result, as_json=as_json)
    if check and result.failed:
        sys.exit(1)


def ablate(
    folder: o.RunFolder,
    budgets: o.Budgets = None,
    seeds: o.Seeds = None,
    preset: o.HousePreset = "house",
    quick: o.Quick = False,
    train: Annotated[
        bool, typer.Option("--train/--no-train", help="Train models, or only count what each rule drops.")
    ] = True,
    out: o.ReportOut = None,
    work: o.Work = None,
    workers: o.Workers = 0,
    device: o.Device = "cpu",
    tokenizer: o.Tokenizer = None,
    embeddings: o.SharedEmbeddings = None,
    test_tokens: o.TestTokens = 100_000,
    check: o.CheckFails = False,
    min_kept: o.MinKept = 0.05,
    max_kept: o.MaxKept = 1.0,
    as_json: o.AsJson = False,
) -> None:
    """Find the rule that changed the scaling exponent.

    Models are trained without each rule, and with each rule alone.
    """
    from pipeline import ablate as ablating
    from pipeline.api.compare import token_counts
    from pipeline.compare.data import TrainingOptions
    from pipeline.report.run.checks import Bounds
    from trainer.prepare.choices import Choices

    choices, counts = Choices(tokenizer, embeddings, test_tokens), token_counts(budgets)
    training = TrainingOptions(preset, choices, counts, seeds, quick, device, workers, work)
    bounds, words = Bounds(min_kept, max_kept), tuple(sys.argv[1:])
    result = ablating.ablate(ablating.AblateOptions(folder, out, train, training, bounds, words))
    ablating.print_ablation(result, as_json=as_json)
    if check and result.failed:
        sys.exit(1)
