"""`refine`: one function a command, and the one place where errors become sentences."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Refine chat corpora: measure every conversation, drop by rules, keep a reason for each drop.",
    epilog="Example: refine run --stages dedup --limit 200 --out first-run",
)

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
PlanFile = Annotated[
    Path | None, typer.Option("--plan", metavar="FILE", help="A plan in TOML; `refine plan` prints the default one.")
]
Drops = Annotated[
    list[str] | None,
    typer.Option("--drop", metavar="SQL", help='One more rule, such as "ppl > 800" or "noisy: ppl > 800"; repeatable.'),
]

Source = Annotated[
    str | None,
    typer.Argument(
        metavar="SOURCE",
        help="A run (its refined corpus), a Parquet or JSONL file or folder, a saved Dataset, or a hub id. Without it: "
        "the embedded corpus `chitchat`.",
    ),
]
PresetName = Annotated[
    str, typer.Option("--preset", help="house, or one of the user's experiments: e1, e2, e3a, e3b, e4a, e4b.")
]
Tokenizer = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="bpe (trained on the training pool), bpe:N, gpt2, or a tokenizer.json."),
]
EmbeddingsFrom = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="ppmi (PPMI-SVD of the training pool), ppmi-budget (of each budget's own tokens), gpt2, random, a .npy "
        "file, or a file of GPT-2's weights.",
    ),
]
TestTokens = Annotated[
    int, typer.Option(min=1, max=1_000_000_000, metavar="N", help="Tokens of the test set, where the corpus allows.")
]
ExperimentOut = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="The experiment's folder; an interrupted one goes on there. By default a new one in data/experiments/.",
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, or another device of torch's.")]
Split = Annotated[str | None, typer.Option(help="The split of a hub dataset or saved DatasetDict.")]
Config = Annotated[str | None, typer.Option(help="The configuration of a hub dataset.")]
Revision = Annotated[str | None, typer.Option(help="The revision of a hub dataset.")]
RecordShape = Annotated[str | None, typer.Option(help="The records' shape; recognised by default.")]
Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="Read only the first N rows.")]


@app.command(epilog="Example: refine run --stages heuristics --limit 200 --out my-run   (the embedded chitchat corpus)")
def run(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE",
            help="A Parquet or JSONL file (.gz, .zst), a folder of them, a saved Dataset, or a hub id such as "
            "HuggingFaceH4/ultrachat_200k. Without it: the embedded corpus `chitchat`.",
        ),
    ] = None,
    stages: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help="Only these stages of the plan, comma-separated, with the rules they suffice for."
        ),
    ] = None,
    plan: PlanFile = None,
    drop: Drops = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The run folder; an interrupted run goes on there. By default a new one in data/runs/."
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Worker processes; 0: one a core.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Read only the first N rows.")] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            help="The records' shape: ultrachat, ultrachat-original, sharegpt, openai, text. Recognised by default."
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="The split of a hub dataset or saved DatasetDict.")] = None,
    config: Annotated[str | None, typer.Option(help="The configuration of a hub dataset.")] = None,
    revision: Annotated[str | None, typer.Option(help="The revision of a hub dataset.")] = None,
    shard_rows: Annotated[int, typer.Option(min=1, metavar="N", help="Rows of a shard at most.")] = 2000,
    max_unreadable: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, metavar="SHARE", help="The share of unreadable rows past which the run stops."),
    ] = 0.01,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and whether it can be.")] = False,
    as_json: AsJson = False,
) -> None:
    """Refine a corpus: ingest, measure, decide, write."""
    from pipeline import commands
    from pipeline.ingest import Limits

    asked = commands.Asked(
        source=source, split=split, config=config, revision=revision, out=out, workers=workers, as_json=as_json
    )
    limits = Limits(rows=shard_rows, limit=limit, unreadable=max_unreadable, shape=commands.shape(shape))
    chosen = commands.plan(plan, stages, drop or [])
    if dry_run:
        commands.dry_run(asked, chosen, limits)
    else:
        commands.run(asked, chosen, limits)


@app.command(epilog='Example: refine decide my-run --drop "n_words < 20"')
def decide(folder: RunFolder, plan: PlanFile = None, drop: Drops = None, as_json: AsJson = False) -> None:
    """Apply changed rules to a run in seconds, without measuring anything.

    --drop adds to the run's plan in place of what an earlier --drop added; without options the plan holds again.
    """
    from pipeline import commands

    commands.decide(folder, plan, drop or [], as_json=as_json)


@app.command(epilog="Example: refine show my-run --reason too_short -n 3")
def show(
    folder: RunFolder,
    reason: Annotated[str | None, typer.Option(help="Only conversations dropped for this reason.")] = None,
    id: Annotated[str | None, typer.Option("--id", help="One conversation, with all its signals.")] = None,  # noqa: A002
    kept: Annotated[bool, typer.Option("--kept", help="Kept conversations instead of dropped ones.")] = False,
    n: Annotated[int, typer.Option("-n", min=1, help="How many.")] = 5,
    seed: Annotated[int, typer.Option(help="Which ones: the same seed, the same conversations.")] = 0,
    full: Annotated[bool, typer.Option("--full", help="Whole messages.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look at what was dropped, and why."""
    from pipeline import show as showing

    showing.show(folder, showing.Wanted(reason, id, kept=kept, n=n, seed=seed, full=full), as_json=as_json)


@app.command(epilog="Example: refine report my-run --out my-report")
def report(
    folder: RunFolder,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The folder of the report; by default reports/ and the run's name."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 when a check fails.")] = False,
    min_kept: Annotated[
        float, typer.Option(min=0.0, max=1.0, metavar="SHARE", help="The least share kept that the checks let pass.")
    ] = 0.05,
    max_kept: Annotated[
        float, typer.Option(min=0.0, max=1.0, metavar="SHARE", help="The largest share kept that they let pass.")
    ] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Show a run on one page: heatmaps, distributions, examples and checks."""
    from pipeline.report import command
    from pipeline.report.checks import Bounds

    command.report(folder, out, Bounds(min_kept, max_kept), fail=check, as_json=as_json)


@app.command(epilog="Example: refine dedup my-run/raw/00000.parquet --kept kept.txt")
def dedup(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A Parquet or JSONL file (.gz, .zst), or a folder of them, as one corpus."),
    ],
    kept: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="Where kept ids go, one a line; the kept rows, where OUT ends in .parquet."),
    ] = None,
    removed: Annotated[
        Path | None, typer.Option(metavar="OUT.parquet", help="Where removed ids go: id, duplicate_of, jaccard.")
    ] = None,
    column: Annotated[str, typer.Option(help="The column of texts.")] = "text",
    id: Annotated[  # noqa: A002
        str | None, typer.Option("--id", help="The column of ids. By default `id`; without it row numbers from 0.")
    ] = None,
    threshold: Annotated[
        float, typer.Option(help="Jaccard of word 5-grams from which on two texts are duplicates.")
    ] = 0.7,
    order: Annotated[
        str, typer.Option(help='Which of two is kept: longest, first, or by a column, such as "score DESC".')
    ] = "longest",
    against: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="An earlier corpus with the same column: texts near one of it go as well."),
    ] = None,
    max_cluster: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, metavar="SHARE", help="Stop when more than this share (1,000 at least) go for one text."
        ),
    ] = 0.05,
    workers: Annotated[int, typer.Option(min=0, help="Threads; 0: one a core.")] = 0,
    explain: Annotated[bool, typer.Option("--explain", help="Show bands, S-curve, recall and clusters.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove near-duplicates from one file, without a run."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # else NumPy starts threads that wait in vain, 0.1 s of CPU
    from pipeline import dedup_file

    wanted = dedup_file.Wanted(file, kept, removed, column, id, threshold, order, against, max_cluster, workers)
    dedup_file.dedup(wanted, explain=explain, as_json=as_json)


@app.command(epilog="Example: refine train --budget 2000 --limit 700 --tokenizer bpe:512 --out trained")
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
    from pipeline import training
    from trainer.prepared import Wanted

    wanted = Wanted(tokenizer, embeddings, test_tokens)
    asked = training.Asked(source, split, config, revision, shape, limit, preset, wanted, out, device, as_json)
    training.train(asked, budget, seed, threads, baselines=baselines)


@app.command(epilog="Example: refine scale --points points.csv --predict 1000000")
def scale(
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
    workers: Annotated[int, typer.Option(min=0, help="Trainings at a time, one thread each; 0: one a core.")] = 0,
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
        from pipeline import points as fitting
        from trainer.scaling import ScalingError

        if source is not None or budgets is not None or out is not None:
            raise ScalingError("--points fits a table and trains nothing: leave SOURCE, --budgets and --out away")
        fitting.points(points, predict=predict or [], as_json=as_json)
        return
    from pipeline import scaling, training
    from trainer.prepared import Wanted

    wanted = Wanted(tokenizer, embeddings, test_tokens)
    asked = training.Asked(source, split, config, revision, shape, limit, preset, wanted, out, device, as_json)
    scaling.scale(asked, training.numbers(budgets), seeds, workers, predict or [])


Budgets = Annotated[
    str | None,
    typer.Option(
        metavar="TOKENS",
        help="Training tokens, comma-separated; by default 3,125 to 100,000, each twice the one before.",
    ),
]
LatestRun = Annotated[
    Path | None,
    typer.Option(
        "--run", metavar="RUN", help="The run that raw and refined are of; by default the latest in data/runs/."
    ),
]
Quick = Annotated[
    bool, typer.Option("--quick", help="Three budgets and one seed unless named, in minutes; it never concludes.")
]
Work = Annotated[
    Path | None,
    typer.Option(
        "--work",
        metavar="DIR",
        help="Where trainings lie; by default a folder in data/experiments/ for these corpora and options, so that the "
        "same command goes on where it stopped.",
    ),
]
Workers = Annotated[int, typer.Option(min=0, help="Trainings at a time, one thread each; 0: one a core.")]
ReportOut = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="The folder of the report; by default one in reports/.")
]
CheckFails = Annotated[bool, typer.Option("--check", help="Exit with 1 when a check fails.")]


@app.command(epilog="Example: refine compare raw refined --run my-run --no-train --out comparison")
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
    preset: PresetName = "house",
    quick: Quick = False,
    train: Annotated[
        bool, typer.Option("--train/--no-train", help="Whether to train at all; without, sizes and mixes in seconds.")
    ] = True,
    out: ReportOut = None,
    work: Work = None,
    workers: Workers = 0,
    device: Device = "cpu",
    tokenizer: Tokenizer = None,
    embeddings: EmbeddingsFrom = None,
    test_tokens: TestTokens = 100_000,
    split: Split = None,
    config: Config = None,
    revision: Revision = None,
    limit: Limit = None,
    check: CheckFails = False,
    as_json: AsJson = False,
) -> None:
    """Compare two corpora by the scaling laws of models trained on them: did refining help?"""
    from pipeline import compare as comparing
    from pipeline.compare_corpora import Hub
    from pipeline.compare_data import How
    from pipeline.training import numbers
    from trainer.prepared import Wanted

    counts = numbers(budgets)
    wanted = Wanted(tokenizer, embeddings, test_tokens)
    how = How(preset, wanted, None if counts is None else tuple(counts), seeds, quick, device, workers, work)
    hub = Hub(split, config, revision)
    asked = comparing.Asked(raw, refined, run, out, limit, train, how, check, as_json, tuple(sys.argv[1:]), hub)
    comparing.compare(asked)


@app.command(epilog="Example: refine ablate my-run --no-train --out my-ablation")
def ablate(
    folder: RunFolder,
    budgets: Budgets = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Trainings of each budget and arm; by default 3.")
    ] = None,
    preset: PresetName = "house",
    quick: Quick = False,
    train: Annotated[
        bool, typer.Option("--train/--no-train", help="Whether to train at all; without, what each rule drops.")
    ] = True,
    out: ReportOut = None,
    work: Work = None,
    workers: Workers = 0,
    device: Device = "cpu",
    tokenizer: Tokenizer = None,
    embeddings: EmbeddingsFrom = None,
    test_tokens: TestTokens = 100_000,
    check: CheckFails = False,
    as_json: AsJson = False,
) -> None:
    """Say which rule of a run moved the exponent: each left out in turn, and each alone."""
    from pipeline import ablate as ablating
    from pipeline.compare_data import How
    from pipeline.training import numbers
    from trainer.prepared import Wanted

    counts = numbers(budgets)
    wanted = Wanted(tokenizer, embeddings, test_tokens)
    how = How(preset, wanted, None if counts is None else tuple(counts), seeds, quick, device, workers, work)
    ablating.ablate(folder, how, out, train=train, fail=check, as_json=as_json)


@app.command(epilog="Example: refine stages")
def stages(
    name: Annotated[
        str | None, typer.Argument(metavar="STAGE", help="One stage, with its parameters and signals.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The stages there are, and the signals that rules can use."""
    from pipeline import commands

    commands.stages(name, as_json=as_json)


@app.command(epilog="Example: refine plan > plan.toml")
def plan() -> None:
    """Print the default plan, to read it or to start one's own."""
    sys.stdout.write(Path(__file__).with_name("default.toml").read_text(encoding="utf-8"))


@app.command(epilog="Example: refine status")
def status(
    folder: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="The folder of a run; by default all in data/runs/.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """How far runs are."""
    from pipeline import commands

    commands.status(folder, as_json=as_json)


class _Stopped(BaseException):
    """Ctrl-C or SIGTERM; no library takes it for its own."""


def _stop(_number: int, _frame: object) -> None:
    raise _Stopped


def main() -> None:
    """The entry point: a user's error is one sentence on stderr, 1 as exit code; --debug shows the traceback."""
    debug = "--debug" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--debug"]
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    try:
        app()
    except _Stopped:
        sys.stderr.write(
            "\nrefine: stopped; what is complete is kept, and the same command goes on (a run with the same --out)\n"
        )
        sys.stderr.flush()
        os._exit(130)  # at once: workers end with this process
    except Exception as error:  # the one error boundary
        if debug:
            raise
        from pipeline.terminal import sentence

        sys.stderr.write(f"refine: {sentence(error)}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
