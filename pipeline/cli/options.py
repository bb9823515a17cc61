"""Arguments and options that several commands of `refine` have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
HousePreset = Annotated[
    str,
    typer.Option(
        "--preset",
        help="house; the presets of the user's experiments report the set that chooses their weights, and are refused.",
    ),
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
SharedEmbeddings = Annotated[
    str | None,
    typer.Option(
        "--embeddings",
        metavar="NAME",
        help="ppmi (PPMI-SVD of the training pools of both), gpt2, random, a .npy file, or a file of GPT-2's weights.",
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
MinKept = Annotated[
    float, typer.Option(min=0.0, max=1.0, metavar="SHARE", help="The least share kept that the checks let pass.")
]
MaxKept = Annotated[
    float, typer.Option(min=0.0, max=1.0, metavar="SHARE", help="The largest share kept that they let pass.")
]
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
