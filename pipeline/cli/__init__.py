"""`refine`: a function for each command (cli/train.py has those that train), and where errors become sentences."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import train as training
from pipeline.cli.options import AsJson, Config, Drops, Limit, MaxKept, MinKept, PlanFile, Revision, RunFolder, Split

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Refine chat corpora: measure every conversation, drop by rules, keep a reason for each drop.",
    epilog="Example: refine run --stages dedup --limit 200 --out first-run",
)


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
    limit: Limit = None,
    shape: Annotated[
        str | None,
        typer.Option(
            help="The records' shape: ultrachat, ultrachat-original, sharegpt, openai, text. Recognised by default."
        ),
    ] = None,
    split: Split = None,
    config: Config = None,
    revision: Revision = None,
    shard_rows: Annotated[int, typer.Option(min=1, metavar="N", help="Rows of a shard at most.")] = 2000,
    max_unreadable: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, metavar="SHARE", help="The share of unreadable rows past which the run stops."),
    ] = 0.01,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and whether it can be.")] = False,
    as_json: AsJson = False,
) -> None:
    """Refine a corpus: ingest, measure, decide, write."""
    from pipeline.cli import runs
    from pipeline.ingest import Limits

    asked = runs.RunOptions(
        source=source, split=split, config=config, revision=revision, out=out, workers=workers, as_json=as_json
    )
    limits = Limits(rows=shard_rows, limit=limit, unreadable=max_unreadable, shape=runs.shape(shape))
    chosen = runs.plan(plan, stages, drop or [])
    if dry_run:
        runs.dry_run(asked, chosen, limits)
    else:
        runs.run(asked, chosen, limits)


@app.command(epilog='Example: refine decide my-run --drop "n_words < 20"')
def decide(folder: RunFolder, plan: PlanFile = None, drop: Drops = None, as_json: AsJson = False) -> None:
    """Apply changed rules to a run in seconds, without measuring anything.

    --drop adds to the run's plan in place of what an earlier --drop added; without options the plan holds again.
    """
    from pipeline.cli import runs

    runs.decide(folder, plan, drop or [], as_json=as_json)


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
    from pipeline.cli import show as showing

    showing.show(folder, showing.ShowOptions(reason, id, kept=kept, n=n, seed=seed, full=full), as_json=as_json)


@app.command(epilog="Example: refine report my-run --out my-report")
def report(
    folder: RunFolder,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The folder of the report; by default reports/ and the run's name."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 when a check fails.")] = False,
    min_kept: MinKept = 0.05,
    max_kept: MaxKept = 1.0,
    as_json: AsJson = False,
) -> None:
    """Show a run on one page: heatmaps, distributions, examples and checks."""
    from pipeline.report import run
    from pipeline.report.run.checks import Bounds

    run.report(folder, out, Bounds(min_kept, max_kept), fail=check, as_json=as_json)


@app.command(epilog="Example: refine dedup my-run/raw/00000.parquet --kept kept.txt")
def dedup(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A Parquet or JSONL file (.gz, .zst), or a folder of them, as one corpus."),
    ],
    kept: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="File for the kept rows, .parquet or .jsonl, or for their ids, .txt."),
    ] = None,
    removed: Annotated[
        Path | None, typer.Option(metavar="OUT.parquet", help="File for the removed ids: id, duplicate_of, jaccard.")
    ] = None,
    column: Annotated[
        str, typer.Option(help="The column of texts, or of messages; without a `text` column, `messages`.")
    ] = "text",
    id: Annotated[  # noqa: A002
        str | None, typer.Option("--id", help="The column of ids. By default `id`, else row numbers from 0.")
    ] = None,
    threshold: Annotated[
        float, typer.Option(help="Two texts are duplicates at or above this Jaccard of their word 5-grams.")
    ] = 0.7,
    order: Annotated[
        str, typer.Option(help='Which of two duplicates is kept: longest, first, or by a column, such as "score DESC".')
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
    workers: Annotated[int, typer.Option(min=0, help="Threads; 0: one a core.")] = 0,
    explain: Annotated[bool, typer.Option("--explain", help="Print bands, S-curve, recall and clusters.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove near-duplicates from one file, without a run."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # else NumPy starts threads that wait in vain, 0.1 s of CPU
    from pipeline import dedup

    wanted = dedup.DedupOptions(file, kept, removed, column, id, threshold, order, against, max_cluster, workers)
    dedup.dedup(wanted, explain=explain, as_json=as_json)


app.command(epilog="Example: refine train --budget 2000 --limit 700 --tokenizer bpe:512 --out trained")(training.train)
app.command(
    epilog="Example: refine scale --budgets 1000,2000,4000 --seeds 2 --limit 700 --tokenizer bpe:512 --out scaled"
)(training.scale)
app.command(epilog="Example: refine compare raw refined --run my-run --no-train --out comparison")(training.compare)
app.command(epilog="Example: refine ablate my-run --no-train --out my-ablation")(training.ablate)


@app.command(epilog="Example: refine stages")
def stages(
    name: Annotated[
        str | None, typer.Argument(metavar="STAGE", help="One stage, with its parameters and signals.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The stages there are, and the signals that rules can use."""
    from pipeline.cli import runs

    runs.stages(name, as_json=as_json)


@app.command(epilog="Example: refine plan > plan.toml")
def plan() -> None:
    """Print the default plan, to read it or to start one's own."""
    from pipeline.plan import DEFAULT

    sys.stdout.write(DEFAULT.read_text(encoding="utf-8"))


@app.command(epilog="Example: refine status")
def status(
    folder: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="The folder of a run; by default all in data/runs/.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """How far runs are."""
    from pipeline.cli import runs

    runs.status(folder, as_json=as_json)


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
        from pipeline.cli.errors import sentence

        sys.stderr.write(f"refine: {sentence(error)}\n")
        sys.exit(1)
