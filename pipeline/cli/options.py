"""Arguments and options that several commands of `refine` share."""

from pathlib import Path
from typing import Annotated

import typer


def local(path: Path | None) -> Path | None:
    """A path that is written to: only a run may be in a bucket."""
    if ":/" in str(path):  # else the import is not worth its time
        from pipeline.store.bucket import PlaceError, check_local

        try:
            check_local(path)
        except PlaceError as error:
            raise typer.BadParameter(str(error)) from error
    return path


RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
PlanFile = Annotated[
    str | None,
    typer.Option(
        metavar="PLAN", help="A plan in TOML, or the name of one that comes with refine: `refine plan --list`."
    ),
]
Drops = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SQL", help='An additional rule: "ppl > 800", or "noisy: ppl > 800" with its reason. Repeatable.'
    ),
]
Split = Annotated[str | None, typer.Option(metavar="NAME", help="Split of a hub dataset or a saved DatasetDict.")]
Config = Annotated[str | None, typer.Option(metavar="NAME", help="Configuration of a hub dataset.")]
Revision = Annotated[str | None, typer.Option(metavar="NAME", help="Revision of a hub dataset.")]
RecordShape = Annotated[
    str | None,
    typer.Option(
        metavar="SHAPE",
        help="Shape of the records: ultrachat, ultrachat-original, sharegpt, openai, chat, alpaca, prompt, preference, "
        "oasst, oasst-best, text. By default recognised for each file.",
    ),
]
Map = Annotated[
    str | None,
    typer.Option(
        metavar="MEANING=COLUMN,...",
        help="Columns that hold messages, system, tools, prompt, reply or text, and fields of a message that hold its "
        "role and content, such as messages=thread,role=who,content=body.",
    ),
]
As = Annotated[
    str | None,
    typer.Option(
        "--as", metavar="source", help="Also write the kept records as they came, with all fields, to kept/ of the run."
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="Read only the first N rows.")]

RunSource = Annotated[
    str | None,
    typer.Argument(
        metavar="SOURCE",
        help="A file (Parquet, Arrow, JSON, CSV; .gz, .bz2, .xz, .zst), a folder of files at any depth, a saved "
        "Dataset, or a hub id such as HuggingFaceH4/ultrachat_200k. By default the embedded corpus `chitchat`; "
        "`chitchat-planted` is the same with known damage.",
    ),
]
Source = Annotated[
    str | None,
    typer.Argument(
        metavar="SOURCE",
        help="A run (its refined corpus), a file or folder of records, a saved Dataset, or a hub id. By default "
        "the embedded corpus `chitchat`.",
    ),
]
PresetName = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="house (our own settings), or those of one of the original experiments: e1, e2, e3a, e3b, e4a, e4b.",
    ),
]
Network = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="cvfp, transformer or gru, which have the same size; or all, where the verdict is that of cvfp.",
    ),
]
HousePreset = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="house. The presets of the original experiments report the set that selects their weights, and are "
        "refused.",
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        min=0,
        max=2**32 - 1,
        metavar="N",
        help="Seed of the order of conversations, the weights and the noise. The original experiments used 42.",
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
        help="ppmi (PPMI-SVD of the training pool), ppmi-budget (of the tokens of each budget), gpt2, random, a .npy "
        "file, or a file of GPT-2's weights.",
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Of matrix products in training: float32, or bf16, which is faster on a GPU. Scores are float32.",
    ),
]
TestTokens = Annotated[
    int,
    typer.Option(
        min=1, max=1_000_000_000, metavar="N", help="Minimum tokens of the test set; fewer if the corpus is too small."
    ),
]
Budgets = Annotated[
    str | None,
    typer.Option(
        metavar="TOKENS",
        help="Training tokens, comma-separated. By default 6,250 to 200,000, each twice the previous one; half of that "
        "for a screen.",
    ),
]
Seeds = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Training runs per budget and corpus. By default 16 for all budgets together; 24 orders of a screen.",
    ),
]
Workers = Annotated[
    int, typer.Option(min=0, metavar="N", help="Parallel training runs of one thread; 0: one per core.")
]
Loss = Annotated[
    str,
    typer.Option(
        metavar="TARGETS", help="Tokens that networks are trained to predict: all, or replies alone. Both are scored."
    ),
]
Device = Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda, or another torch device.")]
Screen = Annotated[
    bool, typer.Option("--screen", "--quick", help="Answer in a minute, with n-gram models in the place of networks.")
]
WorthKnowing = Annotated[
    float,
    typer.Option(
        min=0.0,
        max=1.0,
        metavar="SHARE",
        help="The smallest difference of perplexity that matters: a smaller one counts as none.",
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="Train even if nothing can be found, as between nearly equal corpora.")
]
ExperimentOut = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        callback=local,
        help="Folder of the experiment; an interrupted one is resumed. By default a new one in data/experiments/.",
    ),
]
Work = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        callback=local,
        help="Folder of the training runs. By default one in data/experiments/ for these corpora and options, so that "
        "the same command resumes.",
    ),
]
LatestRun = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN",
        help="The run that raw and refined belong to. By default the run in data/runs/ or the current folder that "
        "finished last.",
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE",
        help="What you train for: a run, a file or folder of records, or a hub id. It becomes a third test set, which "
        "the verdict is about; near-duplicates of either corpus are left out of it.",
    ),
]
ReportOut = Annotated[
    Path | None, typer.Option(metavar="DIR", callback=local, help="Folder of the report. By default one in reports/.")
]
CheckFails = Annotated[bool, typer.Option("--check", help="Exit with 1 if a check fails.")]
MinKept = Annotated[
    float,
    typer.Option(min=0.0, max=1.0, metavar="SHARE", help="Minimum share of conversations kept that passes the checks."),
]
MaxKept = Annotated[
    float,
    typer.Option(min=0.0, max=1.0, metavar="SHARE", help="Maximum share of conversations kept that passes the checks."),
]
