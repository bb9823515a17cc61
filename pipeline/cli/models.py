"""Commands about models that were trained elsewhere: their scores, what training changed in them."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import options as o

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="Folder or hub id of a causal language model (id@commit pins it)."),
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
        typer.Option(min=2, metavar="TOKENS", help="Tokens of a window. By default 512, or the model's positions."),
    ] = None,
    device: o.Device = "cpu",
    limit: o.Limit = None,
    training_texts: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write the training conversations of each corpus of WORK to DIR, to train a model on elsewhere: none "
            "is near a test conversation.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the result as JSON to FILE.")] = None,
    as_json: o.AsJson = False,
) -> None:
    """Score causal language models in bits per byte on a comparison's test sets."""
    from pipeline.models import score as scoring

    options = scoring.ScoreOptions(
        *(tuple(models or ()), tuple(adapter or ()), on, text, test, context, device, limit, training_texts)
    )
    made = scoring.score(options)
    if made is not None:
        scoring.print_scores(made, out, as_json=as_json)
