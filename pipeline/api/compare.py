"""`refine.compare`: two corpora compared from Python."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline import terminal
from pipeline.api.run import Run
from pipeline.compare import command
from pipeline.compare.command import CompareOptions
from pipeline.compare.corpora import HubOptions
from pipeline.compare.data import TrainingOptions
from pipeline.compare.result import Comparison
from pipeline.experiments.train import numbers
from pipeline.report.run.checks import Bounds
from pipeline.store.bucket import check_local
from trainer.prepare.choices import Choices

FLAGS = {"exclude": "not", "as_": "as", "map_": "map"}
"""Options whose names are words or functions of Python, by the names of their arguments."""


def compare(
    first: Run | Path | str = "raw",
    second: Run | Path | str = "refined",
    *,
    run: Run | Path | str | None = None,
    target: Run | Path | str | None = None,
    budgets: str | Sequence[int] | None = None,
    seeds: int | None = None,
    network: str = "cvfp",
    loss: str = "all",
    precision: str = "float32",
    preset: str = "house",
    screen: bool = False,
    worth_knowing: float = 0.005,
    force: bool = False,
    train: bool = True,
    out: Path | str | None = None,
    work: Path | str | None = None,
    workers: int = 0,
    device: str = "cpu",
    tokenizer: str | None = None,
    embeddings: str | None = None,
    test_tokens: int = 300_000,
    split: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    shape: str | None = None,
    limit: int | None = None,
    min_kept: float = 0.05,
    max_kept: float = 1.0,
    progress: bool = False,
) -> Comparison:
    """Compare two corpora by scaling laws as `refine compare` does, and write the report.

    Args:
        first: "raw" or "refined" (of the run), or a file, a folder, a run or a hub id.
        second: the corpus to compare with the first.
        run: the run that raw and refined belong to; by default the one that finished last.
        target: what you train for, a run, a file, a folder or a hub id: a third test set, which the verdict is about.
        budgets: training tokens; by default 6,250 to 200,000, each twice the previous one; half of that for a screen.
        seeds: training runs per budget and corpus; by default 16 for all budgets together, and 24 of a screen.
        network: cvfp, transformer, gru, or all; the verdict is then that of cvfp.
        loss: tokens that networks are trained to predict: all, or replies.
        precision: of matrix products in training: float32 or bf16.
        preset: name of the preset.
        screen: answer in a minute, with n-gram models in the place of networks.
        worth_knowing: the smallest relative difference of perplexity that matters: a smaller one counts as none.
        force: train even if nothing can be found, as between nearly equal corpora.
        train: train models; otherwise the corpora are only described.
        out: folder of the report; by default one in reports/.
        work: folder of the training runs; by default one in data/experiments/, which the same call resumes.
        workers: parallel training runs of one thread; 0: one per core.
        device: torch device.
        tokenizer: bpe, bpe:N, gpt2, or a tokenizer.json.
        embeddings: ppmi, ppmi-budget, gpt2, random, a .npy file, or a file of GPT-2's weights.
        test_tokens: minimum tokens of the test set.
        split: split of a hub dataset or a saved DatasetDict.
        config: configuration of a hub dataset.
        revision: revision of a hub dataset.
        shape: shape of the records; recognised by default.
        limit: number of rows to read of each corpus; by default all.
        min_kept: minimum share of conversations kept that passes the checks.
        max_kept: maximum share of conversations kept that passes the checks.
        progress: show progress and notes on stderr.

    Raises:
        RefineError: the corpora cannot be compared; the message says why and what to do.
    """
    typed = words("compare", compare, dict(locals()), ("first", "second"))
    check_local(out, work)
    choices = Choices(tokenizer, embeddings, test_tokens)
    counts = token_counts(budgets)
    options = CompareOptions(
        *(text(first), text(second), _path(run), _path(out), limit, train),
        TrainingOptions(
            *(
                preset,
                choices,
                counts,
                seeds,
                screen,
                device,
                workers,
                _path(work),
                force,
                worth_knowing,
                network,
                loss,
                precision,
            )
        ),
        *(
            HubOptions(split, config, revision, shape),
            Bounds(min_kept, max_kept),
            typed,
        ),
        target=None if target is None else text(target),
    )
    with terminal.progress(show=progress):
        return command.compare(options)


def token_counts(budgets: str | Sequence[int] | None) -> tuple[int, ...] | None:
    """Budgets, as a list or comma-separated, as numbers of tokens; raises `PresetError` if they are none."""
    counts = numbers(budgets if budgets is None or isinstance(budgets, str) else ",".join(map(str, budgets)))
    return None if counts is None else tuple(counts)


def words(
    command: str, function: Callable[..., object], given: Mapping[str, object], named: Sequence[str]
) -> tuple[str, ...]:
    """The command line that does the same as a call, for a report; the arguments `named` come without an option."""
    made = [command, *(text(given[name]) for name in named if given[name] is not None)]
    for name, parameter in inspect.signature(function).parameters.items():
        value, flag = given[name], FLAGS.get(name, name.replace("_", "-"))
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY or name == "progress" or value == parameter.default:
            continue
        if isinstance(value, bool):
            made.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            made += [f"--{flag}", ",".join(map(str, value)) if isinstance(value, list | tuple) else text(value)]
    return tuple(made)


def text(corpus: object) -> str:
    """A corpus as it is typed: the path of a run, or the name."""
    return str(corpus.path if isinstance(corpus, Run) else corpus)


def _path(folder: Run | Path | str | None) -> Path | None:
    return None if folder is None else Path(text(folder))
