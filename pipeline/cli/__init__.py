"""`refine`: one function per command, and the boundary where errors are printed."""

import atexit
import gc
import os
import signal
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from pipeline.cli import models
from pipeline.cli import options as o

app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Refine chat corpora: measure every conversation, drop by rules, keep a reason for each drop.",
    epilog="Example: refine run --stages dedup --limit 200 --out first-run",
)

_GLOBAL = {"--debug": 0, "--quiet": 0, "--log-file": 1}
"""Options of `refine` itself, which may also stand after the command, with the number of their values."""


def _version(value: bool) -> None:
    if value:
        from pipeline import VERSION

        typer.echo(f"refine {VERSION}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def main_options(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001  its callback does the work
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,  # noqa: ARG001
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress and no notes, only errors.")] = False,
    log_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Append progress, notes and errors to a file. These three may also stand after the command.",
        ),
    ] = None,
) -> None:
    """Handle the options that every command has."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)
    if quiet or log_file:
        from pipeline import terminal

        terminal.configure(quiet=quiet, log_file=log_file)


@app.command(epilog="Example: refine run --stages heuristics --limit 200 --out my-run   (the embedded chitchat corpus)")
def run(
    source: o.RunSource = None,
    stages: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Measure only these stages of the plan, comma-separated, and apply the rules that need no others.",
        ),
    ] = None,
    plan: o.PlanFile = None,
    drop: o.Drops = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the run; an interrupted run is resumed. By default a new one in data/runs/.",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, metavar="N", help="Worker processes; 0: one per core.")] = 0,
    engine: Annotated[
        str, typer.Option(metavar="NAME", help="What does the work: local, this machine, or ray, a Ray cluster.")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Ray cluster: auto or HOST:PORT of its head. By default a Ray of this machine."
        ),
    ] = None,
    limit: o.Limit = None,
    sample: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            help="Take only this share of the conversations, such as 1% or 0.01, drawn by a hash of their text: a "
            "first look, with an estimate of the whole.",
        ),
    ] = None,
    shape: o.RecordShape = None,
    map: o.Map = None,  # noqa: A002
    as_: o.As = None,
    split: o.Split = None,
    config: o.Config = None,
    revision: o.Revision = None,
    shard_rows: Annotated[int, typer.Option(min=1, metavar="N", help="Maximum number of rows per shard.")] = 2000,
    max_unreadable: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, metavar="SHARE", help="Maximum share of unreadable rows; above it the run stops."
        ),
    ] = 0.01,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be done, and whether it can be done; write nothing.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="With --dry-run: name all signals.")] = False,
    as_json: o.AsJson = False,
) -> None:
    """Refine a corpus: ingest, measure, decide, write."""
    from pipeline import sources
    from pipeline.api import run as api
    from pipeline.cli import runs
    from pipeline.ingest import Limits
    from pipeline.sources import originals
    from pipeline.sources.shapes import ColumnMap

    data = sources.find(source, split=split, config=config, revision=revision)
    chosen = api.chosen_plan(plan, stages, drop or (), map)
    columns = ColumnMap.parse(dict(chosen.map))
    part = None if sample is None else api.share(sample)
    limits = Limits(shard_rows, Limits.characters, limit, max_unreadable, shape, columns, part)
    target = api.folder_of(data, out)
    prepared = api.PreparedRun(data, chosen, limits, target, originals.is_asked(as_), engine, address)
    if dry_run:
        runs.dry_run(prepared, verbose=verbose, as_json=as_json)
    else:
        runs.finish(prepared.carry_out(workers, progress=True), as_json=as_json)


@app.command(epilog='Example: refine decide my-run --drop "n_words < 20"')
def decide(
    folder: o.RunFolder,
    plan: o.PlanFile = None,
    drop: o.Drops = None,
    as_: o.As = None,
    as_json: o.AsJson = False,
) -> None:
    """Apply changed rules to a run in seconds, without measuring again.

    --drop replaces the rules of earlier --drop options. Without options the rules of the plan apply alone.
    """
    from pipeline.api import run as api
    from pipeline.cli import runs

    run = api.decide(folder, plan=plan, drop=drop or (), as_=as_, progress=True)
    runs.finish(run, as_json=as_json)


@app.command(epilog="Example: refine show my-run --reason too_short -n 3")
def show(
    folder: o.RunFolder,
    reason: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only conversations dropped for this reason.")
    ] = None,
    id: Annotated[  # noqa: A002
        str | None, typer.Option(metavar="ID", help="One conversation with all its signals.")
    ] = None,
    kept: Annotated[bool, typer.Option("--kept", help="Kept conversations instead of dropped ones.")] = False,
    repaired: Annotated[
        bool, typer.Option("--repaired", help="Only conversations that were repaired, with what was removed.")
    ] = False,
    n: Annotated[int, typer.Option("-n", min=1, metavar="N", help="Number of conversations.")] = 5,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, metavar="N", help="Seed of the random sample of conversations.")
    ] = 0,
    full: Annotated[bool, typer.Option("--full", help="Do not cut long messages.")] = False,
    as_json: o.AsJson = False,
) -> None:
    """Look at conversations and the reasons why they were dropped.

    A duplicate is shown beside the conversation that was kept instead, with the words that differ.
    """
    from pipeline.cli.show import ShowOptions, print_conversations

    options = ShowOptions(reason, id, kept=kept, repaired=repaired, n=n, seed=seed, full=full)
    print_conversations(folder, options, as_json=as_json)


@app.command(epilog="Example: refine signals my-run --out signals.parquet")
def signals(
    folder: o.RunFolder,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            callback=o.local,
            help="A .parquet, .csv or .jsonl file. By default a summary is printed instead.",
        ),
    ] = None,
) -> None:
    """Write all signals of a run as one table."""
    from pipeline.cli import runs

    runs.signals(folder, out)


@app.command(epilog="Example: refine report my-run --out my-report")
def report(
    folder: o.RunFolder,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", callback=o.local, help="Folder of the report. By default the run's name in reports/."
        ),
    ] = None,
    check: o.CheckFails = False,
    min_kept: o.MinKept = 0.05,
    max_kept: o.MaxKept = 1.0,
    as_json: o.AsJson = False,
) -> None:
    """Show a run on one page: heatmaps, examples and checks."""
    from pipeline.api import report as api
    from pipeline.cli import runs

    made = api.report(folder, out=out, min_kept=min_kept, max_kept=max_kept, progress=True)
    runs.print_report(made, fail=check, as_json=as_json)


@app.command(epilog="Example: refine push my-run my-org/my-chats   (says what it would do; --yes does it)")
def push(
    folder: o.RunFolder,
    to: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Dataset on the hub; made if it does not exist.")],
    public: Annotated[bool, typer.Option("--public", help="Let everybody see the dataset.")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Upload. By default only what would be uploaded is printed.")
    ] = False,
    as_json: o.AsJson = False,
) -> None:
    """Upload a run as a dataset, private by default: card, refined/, rejected/, plan and manifest.

    The token is that of HF_TOKEN or `hf auth login`. An interrupted push continues with the same command.
    """
    from pipeline.api import push as api
    from pipeline.cli import runs

    runs.print_push(api.push(folder, to, public=public, yes=yes, progress=True), as_json=as_json)


@app.command(epilog="Example: refine plant --kinds exact_copy,shuffled_words --share 0.1 --limit 200 --out damaged")
def plant(
    source: o.Source = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", callback=o.local, help="Folder of the damaged corpus, new or empty.")
    ] = ...,  # type: ignore[assignment]
    kinds: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Kinds of damage, comma-separated. By default all: exact_copy, near_copy_95, near_copy_85, "
            "near_copy_75, shuffled_words, truncated, empty_reply, boilerplate, refusal, toxic, other_language, "
            "mojibake, repeated_lines, eval_item, swapped_replies.",
        ),
    ] = None,
    share: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of the conversations that each kind damages or copies.")
    ] = 0.02,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of all draws.")] = 0,
    evals: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Evaluation sets, a file or a folder, for the kind eval_item.")
    ] = None,
    split: o.Split = None,
    config: o.Config = None,
    revision: o.Revision = None,
    shape: o.RecordShape = None,
    limit: o.Limit = None,
    as_json: o.AsJson = False,
) -> None:
    """Plant known damage into a corpus: would your plan find it?

    `refine run` takes the damaged corpus, and `refine audit` says what it found. A conversation gets at most one kind
    of damage; copies are added.
    """
    from pipeline.api import plant as api
    from pipeline.cli import runs

    damage = api.plant(
        source,
        out=out,
        kinds=kinds or (),
        share=share,
        seed=seed,
        evals=evals,
        split=split,
        config=config,
        revision=revision,
        shape=shape,
        limit=limit,
    )
    runs.print_damage(damage, as_json=as_json)


@app.command(epilog="Example: refine audit damaged-run")
def audit(
    folder: o.RunFolder,
    clean: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="A run of the undamaged source with the same plan: what it drops is no false drop."
        ),
    ] = None,
    as_json: o.AsJson = False,
) -> None:
    """Say what a run found of the damage that `refine plant` planted: recall by kind, and by which rule."""
    from pipeline.api import plant as api
    from pipeline.cli import runs

    runs.print_audit(api.audit(folder, clean=clean), as_json=as_json)


@app.command(epilog="Example: refine dedup my-run/raw/00000.parquet --kept kept.txt")
def dedup(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A file or a folder, as refine run reads it, as one corpus."),
    ],
    kept: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT", callback=o.local, help="File for the kept rows, .parquet or .jsonl, or for their ids, .txt."
        ),
    ] = None,
    removed: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT.parquet", callback=o.local, help="File for the removed ids: id, duplicate_of, jaccard."
        ),
    ] = None,
    column: Annotated[
        str, typer.Option(metavar="NAME", help="Column of texts, or of messages. Without a `text` column, `messages`.")
    ] = "text",
    id: Annotated[  # noqa: A002
        str | None,
        typer.Option(
            metavar="NAME",
            help="Column of ids, one for each row. By default `id` if it is that, else row numbers from 0.",
        ),
    ] = None,
    threshold: Annotated[
        float,
        typer.Option(metavar="JACCARD", help="Two texts are duplicates at or above this Jaccard of word 5-grams."),
    ] = 0.7,
    order: Annotated[
        str,
        typer.Option(
            metavar="ORDER", help='Which duplicate is kept: longest, first, or by a column, such as "score DESC".'
        ),
    ] = "longest",
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="An earlier corpus with the same column; near-duplicates of its texts are removed too."
        ),
    ] = None,
    max_cluster: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            metavar="SHARE",
            help="Stop if more than this share of the texts, and 1,000 or more, are duplicates of one text.",
        ),
    ] = 0.05,
    workers: Annotated[int, typer.Option(min=0, metavar="N", help="Threads; 0: one per core.")] = 0,
    explain: Annotated[bool, typer.Option("--explain", help="Print bands, S-curve, recall and clusters.")] = False,
    as_json: o.AsJson = False,
) -> None:
    """Remove near-duplicates from one file, without a run."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy would start threads that are never used: 0.1 CPU s
    gc.disable()  # what is imported stays, and looking for garbage in it takes 0.1 CPU s
    from pipeline import dedup

    gc.enable()
    options = dedup.DedupOptions(file, kept, removed, column, id, threshold, order, against, max_cluster, workers)
    dedup.dedup(options, explain=explain, as_json=as_json)


@app.command(epilog="Example: refine train --budget 2000 --limit 700 --tokenizer bpe:512 --out trained")
def train(
    source: o.Source = None,
    budget: Annotated[
        int | None,
        typer.Option(min=2, metavar="TOKENS", help="Training tokens. By default 100,000, or the preset's largest."),
    ] = None,
    network: o.Network = "cvfp",
    loss: o.Loss = "all",
    precision: o.Precision = "float32",
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
    export: Annotated[
        str | None,
        typer.Option(metavar="hf", help="With --network transformer: also write the network as transformers opens it."),
    ] = None,
    out: o.ExperimentOut = None,
    split: o.Split = None,
    config: o.Config = None,
    revision: o.Revision = None,
    shape: o.RecordShape = None,
    limit: o.Limit = None,
    as_json: o.AsJson = False,
) -> None:
    """Train a small language model on a corpus, and its baselines."""
    from pipeline.experiments import train
    from trainer.prepare.choices import Choices

    choices = Choices(tokenizer, embeddings, test_tokens)
    options = train.TrainOptions(
        *(source, split, config, revision, shape, limit, preset, choices, out, device, network, loss, precision)
    )
    train.print_training(
        train.train(options, budget, seed, threads, baselines=baselines, export=export), as_json=as_json
    )


@app.command(epilog="Example: refine scale --points points.csv --predict 100000")
def scale(
    context: typer.Context,
    source: o.Source = None,
    points: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Fit this CSV instead of training: columns tokens, ppl and optionally corpus, seed, in any case.",
        ),
    ] = None,
    budgets: Annotated[
        str | None, typer.Option(metavar="TOKENS", help="Training tokens, comma-separated. By default the preset's.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="Training runs per budget.")] = 3,
    predict: Annotated[
        list[float] | None, typer.Option(metavar="TOKENS", help="Predict the PPL at this budget. Repeatable.")
    ] = None,
    network: o.Network = "cvfp",
    loss: o.Loss = "all",
    precision: o.Precision = "float32",
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
    options = train.TrainOptions(
        *(source, split, config, revision, shape, limit, preset, choices, out, device, network, loss, precision)
    )
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


@app.command(epilog="Example: refine compare raw refined --run my-run --no-train --out comparison")
def compare(
    raw: Annotated[
        str,
        typer.Argument(metavar="RAW", help="raw or refined (of the run), or a file, a folder, a run, a hub id."),
    ] = "raw",
    refined: Annotated[str, typer.Argument(metavar="REFINED", help="The corpus to compare with RAW.")] = "refined",
    run: o.LatestRun = None,
    target: o.Target = None,
    budgets: o.Budgets = None,
    seeds: o.Seeds = None,
    network: o.Network = "cvfp",
    loss: o.Loss = "all",
    precision: o.Precision = "float32",
    preset: o.HousePreset = "house",
    screen: o.Screen = False,
    worth_knowing: o.WorthKnowing = 0.005,
    force: o.Force = False,
    train: Annotated[
        bool, typer.Option("--train/--no-train", help="Train models, or only describe the corpora in seconds.")
    ] = True,
    out: o.ReportOut = None,
    work: o.Work = None,
    workers: o.Workers = 0,
    device: o.Device = "cpu",
    tokenizer: o.Tokenizer = None,
    embeddings: o.EmbeddingsFrom = None,
    test_tokens: o.TestTokens = 300_000,
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
    training = TrainingOptions(
        *(preset, choices, counts, seeds, screen, device, workers, work, force, worth_knowing, network, loss, precision)
    )
    hub, bounds = HubOptions(split, config, revision, shape), Bounds(min_kept, max_kept)
    words = tuple(sys.argv[1:])
    result = carry_out(CompareOptions(raw, refined, run, out, limit, train, training, hub, bounds, words, target))
    print_comparison(result, as_json=as_json)
    if check and result.failed:
        sys.exit(1)


@app.command(epilog="Example: refine ablate my-run --no-train --out my-ablation")
def ablate(
    folder: o.RunFolder,
    target: o.Target = None,
    budgets: o.Budgets = None,
    seeds: o.Seeds = None,
    loss: o.Loss = "all",
    precision: o.Precision = "float32",
    preset: o.HousePreset = "house",
    screen: o.Screen = False,
    train: Annotated[
        bool, typer.Option("--train/--no-train", help="Train models, or only count what each rule drops.")
    ] = True,
    out: o.ReportOut = None,
    work: o.Work = None,
    workers: o.Workers = 0,
    device: o.Device = "cpu",
    tokenizer: o.Tokenizer = None,
    embeddings: o.EmbeddingsFrom = None,
    test_tokens: o.TestTokens = 300_000,
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
    training = TrainingOptions(
        preset, choices, counts, seeds, screen, device, workers, work, loss=loss, precision=precision
    )
    bounds, words = Bounds(min_kept, max_kept), tuple(sys.argv[1:])
    result = ablating.ablate(ablating.AblateOptions(folder, out, train, training, bounds, words, target))
    ablating.print_ablation(result, as_json=as_json)
    if check and result.failed:
        sys.exit(1)


app.command(epilog="Example: refine score my-model --on data/experiments/my-experiment")(models.score)
app.add_typer(models.transfer, name="transfer")
app.command(epilog="Example: refine distill my-transformer my-run --out student")(models.distill)


@app.command(epilog="Example: refine search corpus/ --target good-chats/ --minutes 10 --out my-search")
def search(
    source: o.RunSource = None,
    target: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="What you train for, or held-out conversations of it: a run, a file or folder of records, or a hub "
            "id. It is divided in three: for signals, for the choice, and for its test.",
        ),
    ] = ...,  # type: ignore[assignment]
    minutes: Annotated[
        float, typer.Option(min=0.0, metavar="N", help="How long plans are tried, beside the run and the test.")
    ] = 10.0,
    candidates: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Number of plans to try, whatever the time.")
    ] = None,
    plan: o.PlanFile = None,
    shares: Annotated[
        str, typer.Option(metavar="SHARES", help="Shares of the conversations to select, in the order of trying.")
    ] = "0.2,0.1,0.4,0.05",
    goal: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="token: the best corpus per token; corpus: the best one if each is read to its end."
        ),
    ] = "token",
    screen: Annotated[
        bool, typer.Option("--screen", "--quick", help="Test the picked plan by n-gram models too, without networks.")
    ] = False,
    budgets: o.Budgets = None,
    seeds: o.Seeds = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            callback=o.local,
            help="Folder of the search, with its plan.toml; the same command continues in it. By default one in "
            "data/experiments/.",
        ),
    ] = None,
    workers: o.Workers = 0,
    test_tokens: o.TestTokens = 100_000,
    split: o.Split = None,
    config: o.Config = None,
    revision: o.Revision = None,
    shape: o.RecordShape = None,
    limit: o.Limit = None,
    as_json: o.AsJson = False,
) -> None:
    """Search for the plan that selects the best corpus for what you train for, and test it.

    Plans are tried by n-gram models on one part of the target. The best one is tested once on another part.
    """
    from pipeline import plan as planning
    from pipeline import search as searching
    from pipeline import sources
    from pipeline.api.compare import token_counts
    from pipeline.api.search import goal_named, numbers
    from pipeline.compare.data import TrainingOptions
    from pipeline.ingest import Limits
    from pipeline.search.page import print_search
    from trainer.prepare.choices import Choices

    options = searching.SearchOptions(
        source=sources.find(source, split=split, config=config, revision=revision),
        target=target,
        minutes=minutes,
        candidates=candidates,
        plan=None if plan is None else planning.find(plan),
        shares=numbers(shares),
        goal=goal_named(goal),
        limits=Limits(limit=limit, shape=shape),
        out=out,
        training=TrainingOptions(
            choices=Choices(test_tokens=test_tokens),
            budgets=token_counts(budgets),
            seeds=seeds,
            screen=screen,
            workers=workers,
        ),
        words=tuple(sys.argv[1:]),
    )
    print_search(searching.search(options), as_json=as_json)


@app.command(epilog="Example: refine stages ppl")
def stages(
    name: Annotated[
        str | None, typer.Argument(metavar="STAGE", help="A stage to show with its parameters and signals.")
    ] = None,
    as_json: o.AsJson = False,
) -> None:
    """List the stages and the signals that rules can use."""
    from pipeline.cli import runs

    runs.stages(name, as_json=as_json)


@app.command(epilog="Example: refine plan --plan sft > plan.toml")
def plan(
    plan: o.PlanFile = None,
    list_: Annotated[
        bool, typer.Option("--list", help="Print the names of the plans that come with refine, and what each is for.")
    ] = False,
    as_json: o.AsJson = False,
) -> None:
    """Print the default plan or another one, to read it or to edit a copy."""
    from pipeline.cli import runs

    if list_:
        runs.print_plans(as_json=as_json)
    else:
        runs.print_plan(plan, as_json=as_json)


@app.command(epilog="Example: refine status my-run")
def status(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN", help="Folders or URLs of runs; by default data/runs/* and the current folder."),
    ] = None,
    as_json: o.AsJson = False,
) -> None:
    """Show the progress of runs."""
    from pipeline.cli import runs

    runs.status(folders or [], as_json=as_json)


class _Interrupt(BaseException):
    """Ctrl-C or SIGTERM; not an Exception, so that no library catches it."""


def _stop(_number: int, _frame: object) -> None:
    raise _Interrupt


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate the global options, wherever they stand before `--`, from the other words."""
    ours, others = [], []
    end = words.index("--") if "--" in words else len(words)
    rest = iter(words[:end])
    for word in rest:
        name, equals, _ = word.partition("=")
        if name in _GLOBAL:
            values = list(islice(rest, 0 if equals else _GLOBAL[name]))
            if not equals and len(values) < _GLOBAL[name]:
                return [word], []  # typer reports the missing value
            ours += [word, *values]
        else:
            others.append(word)
    return ours, [*others, *words[end:]]


def _usage(error: TyperException) -> str:
    """A mistyped command or option as one sentence with what was probably meant."""
    message = error.format_message().rstrip(".").replace(". Did you mean", "; did you mean")
    if close := getattr(error, "possibilities", None):
        message = f"{error.message.replace(': ', ' ', 1)}; did you mean {' or '.join(sorted(close))}?"
    path = getattr(getattr(error, "ctx", None), "command_path", "refine")
    return f"{message[:1].lower()}{message[1:]} ({path} --help lists what there is)"


def main() -> None:
    """Run the command line; an error is one sentence on stderr and exit code 1, or 2 if the command is mistyped."""
    ours, sys.argv[1:] = _split(sys.argv[1:])
    atexit.register(gc.freeze)  # the process ends: nothing is gained by looking for garbage, which takes 0.1 CPU s
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    try:
        sys.exit(app([*ours, *sys.argv[1:]], prog_name="refine", standalone_mode=False))
    except _Interrupt:
        sys.stderr.write(
            "\nrefine: stopped; what is complete is kept, and the same command resumes (a run with the same --out)\n"
        )
        sys.stderr.flush()
        os._exit(130)  # at once: workers end with this process
    except TyperException as error:
        sys.stderr.write(f"refine: {_usage(error)}\n")
        sys.exit(error.exit_code)
    except Exception as error:  # the one error boundary
        if "--debug" in ours:
            raise
        from pipeline.api.errors import sentence
        from pipeline.terminal import say

        say(f"refine: {sentence(error)}", always=True)
        sys.exit(1)
    finally:
        if ours:  # this process may call main again, as the tests do
            from pipeline import terminal

            terminal.configure(quiet=False, log_file=None)
