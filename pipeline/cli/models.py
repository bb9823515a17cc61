"""Commands about models that were trained elsewhere: their scores, what training changed in them."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import options as o

Base = Annotated[
    str,
    typer.Argument(metavar="BASE", help="Folder or hub id of a causal language model (id@commit pins it)."),
]


def score(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="Folders or hub ids of causal language models (id@commit pins one), or folders of adapters.",
        ),
    ] = None,
    on: Annotated[
        Path | None,
        typer.Option(metavar="WORK", help="Folder of an experiment, whose test set and models are used."),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Score this corpus instead: a run, a file, a folder, a hub id."),
    ] = None,
    adapter: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="Also score MODEL with this adapter of PEFT. Repeatable.")
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Test set of a comparison: raw, refined, or both. By default that of its verdict."
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(min=4, metavar="TOKENS", help="Tokens of a window. By default 512, or the model's positions."),
    ] = None,
    device: o.Device = "cpu",
    limit: o.Limit = None,
    training_texts: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            callback=o.local,
            help="Write the training conversations of each corpus of WORK to DIR, to train a model on elsewhere: none "
            "is near a test conversation.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", callback=o.local, help="Also write the result as JSON to FILE.")
    ] = None,
    as_json: o.AsJson = False,
) -> None:
    """Score causal language models in bits per byte on a comparison's test sets."""
    from pipeline.models import score as scoring

    options = scoring.ScoreOptions(
        *(tuple(models or ()), tuple(adapter or ()), on, text, test, context, device, limit, training_texts)
    )
    scoring.check_file(out, options)
    made = scoring.score(options)
    if made is not None:
        scoring.print_scores(made, out, as_json=as_json)


transfer = typer.Typer(
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="The difference of two models as an adapter, and that difference on another model.",
)


@transfer.command(epilog="Example: refine transfer extract base-model tuned-model --out difference")
def extract(
    base: Base,
    tuned: Annotated[
        str, typer.Argument(metavar="TUNED", help="Folder or hub id of the model that was trained from it.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", callback=o.local, help="Folder of the adapter.")] = ...,  # type: ignore[assignment]
    rank: Annotated[
        str, typer.Option(metavar="N", help="Rank of linear weights: auto (by --energy), a number, or full.")
    ] = "auto",
    energy: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of the squared difference that factors keep.")
    ] = 0.9,
    max_rank: Annotated[int, typer.Option(min=1, metavar="N", help="Maximum rank if it is chosen.")] = 256,
    whole: Annotated[
        str,
        typer.Option(
            metavar="WHAT",
            help="What is no linear weight: auto keeps it as it is, none leaves it out, NAME,... keeps only modules "
            "whose names end so.",
        ),
    ] = "auto",
    embeddings: Annotated[
        str, typer.Option(metavar="HOW", help="Input embedding: whole, or lora, at the same rank or energy.")
    ] = "whole",
    only: Annotated[
        str | None, typer.Option(metavar="REGEX", help="Only tensors whose names hold this regular expression.")
    ] = None,
    exclude: Annotated[
        str | None, typer.Option("--not", metavar="REGEX", help="No tensors whose names hold this one.")
    ] = None,
    svd: Annotated[str, typer.Option(metavar="HOW", help="auto, or lapack.")] = "auto",
    dtype: Annotated[
        str, typer.Option(metavar="TYPE", help="Of the adapter: same (as the base), float32, bfloat16 or float16.")
    ] = "same",
    score: Annotated[
        Path | None,
        typer.Option(metavar="WORK", help="Score base, tuned and adapter on the test set of this experiment."),
    ] = None,
    report: o.ReportOut = None,
    force: Annotated[
        bool, typer.Option("--force", help="Extract from models that were not trained from one another.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be kept and how; write nothing.")] = False,
    as_json: o.AsJson = False,
) -> None:
    """Write what training changed in a model as an adapter of PEFT."""
    from pipeline.models import extract as extracting
    from trainer.transfer.extract import options_of, plan

    options = options_of(rank, energy, max_rank, whole, embeddings, only, exclude, svd, dtype, force=force)
    if dry_run:
        extracting.print_plan(plan(base, tuned, options), as_json=as_json)
        return
    command = shlex.join(("refine", *sys.argv[1:]))
    made = extracting.extract_adapter(base, tuned, out, options, score, report, command)
    extracting.print_extraction(made, as_json=as_json)


@transfer.command(epilog="Example: refine transfer apply difference other-model --out moved --on chats.jsonl")
def apply(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="Folder of an adapter, such as extract's.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Folder or hub id of the other model.")],
    out: Annotated[Path, typer.Option(metavar="DIR", callback=o.local, help="Folder of the result.")] = ...,  # type: ignore[assignment]
    space: Annotated[
        str,
        typer.Option(
            metavar="SPACE",
            help="weights, function, representation (experimental), or auto: weights if the models are related, else "
            "function.",
        ),
    ] = "auto",
    scale: Annotated[
        float | None,
        typer.Option(metavar="X", help="Scale of the difference. By default the best on validation, 0 included."),
    ] = None,
    on: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Texts: to train on, to choose the scale by, and to test on.")
    ] = None,
    score: Annotated[
        Path | None, typer.Option(metavar="WORK", help="Test on the test set of this experiment; its texts by default.")
    ] = None,
    rank: Annotated[int, typer.Option(min=1, metavar="N", help="Rank of the factors, in the other spaces.")] = 8,
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Steps of training, in that of functions.")] = 300,
    as_: Annotated[
        str, typer.Option("--as", metavar="WHAT", help="adapter, or model: the target with it.")
    ] = "adapter",
    source: Annotated[
        str | None, typer.Option(metavar="BASE", help="The model that the adapter is of. By default the one it names.")
    ] = None,
    map_: Annotated[
        str,
        typer.Option("--map", metavar="HOW", help="Between streams of states: orthogonal, or least-squares."),
    ] = "orthogonal",
    seed: o.Seed = 0,
    limit: o.Limit = None,
    as_json: o.AsJson = False,
) -> None:
    """Apply the difference of an adapter to another model, beside the baselines that it must beat."""
    from pipeline.models import apply as applying

    options = applying.ApplyOptions(
        *(adapter, target, out, space, scale, on, rank, steps, as_, source, score, map_, seed, limit)
    )
    made = applying.apply_adapter(options, shlex.join(("refine", *sys.argv[1:])))
    applying.print_applied(made, as_json=as_json)


def distill(
    teacher: Annotated[
        str, typer.Argument(metavar="TEACHER", help="Folder or hub id of a transformer (id@commit pins it).")
    ],
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="A run (its refined corpus), a file or folder of records, a hub id; or two corpora, such as raw and "
            "refined, to find out which is better to distil on.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", callback=o.local, help="Folder of the student or students.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(metavar="RUN", help="The run of raw and refined. By default the latest one.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Students of each of two corpora. By default 3.")
    ] = None,
    student: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            help="mamba2, mamba, cvfp, or hybrid:K with K attention layers of the teacher; auto: mamba2.",
        ),
    ] = "auto",
    tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Training tokens, over all stages.")] = 1_000_000,
    stages: Annotated[
        str, typer.Option(metavar="LIST", help="3, or 2,3, or 1,2,3: matrices, hidden states, logits. auto: 3.")
    ] = "auto",
    alpha: Annotated[
        float, typer.Option(metavar="SHARE", help="Weight of the teacher's logits; the texts have the rest.")
    ] = 0.5,
    temperature: Annotated[float, typer.Option(metavar="T", help="Temperature of both logits.")] = 1.0,
    hidden: Annotated[
        float | None,
        typer.Option(metavar="X", help="Weight of the states after each layer. By default 0.5; a cvfp has none."),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(min=4, metavar="TOKENS", help="Tokens of a window. By default 512, or the teacher's positions."),
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, metavar="TOKENS", help="Tokens of a step.")] = None,
    lr: Annotated[float | None, typer.Option(metavar="X", help="Maximum learning rate.")] = None,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Also train controls on the same tokens: from scratch, the teacher itself."),
    ] = False,
    score: Annotated[
        Path | None,
        typer.Option(metavar="WORK", help="Score on the test set of this experiment, not on a part of SOURCE."),
    ] = None,
    seed: o.Seed = 0,
    device: o.Device = "cpu",
    limit: o.Limit = None,
    as_json: o.AsJson = False,
) -> None:
    """Train a recurrent student (Mamba, CVFP) of a transformer, beside the controls it must beat."""
    from pipeline.models import distill as distilling
    from pipeline.models import distill_corpora as both

    options = distilling.DistillOptions(
        *(teacher, sources[0], out, student, tokens, stages, alpha, temperature, hidden, context, batch, lr),
        *(seed, device, compare, score, limit),
    )
    made = both.distill_on(options, sources, run, seeds, shlex.join(("refine", *sys.argv[1:])))
    if isinstance(made, distilling.Distilled):
        distilling.print_distilled(made, as_json=as_json)
    else:
        both.print_corpora(made, as_json=as_json)
