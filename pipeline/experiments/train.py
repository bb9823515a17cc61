"""`refine train`: networks on a corpus, beside their baselines; and the preparation that `refine scale` shares."""

import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.text import Text

from pipeline.experiments import corpus as corpora
from pipeline.experiments.formats import number
from pipeline.ownership import check_experiment, experiment_claimed
from pipeline.terminal import BEAT_INTERVAL, console, duration, repeating, safe, say, table
from stages.stage import reason
from trainer import presets
from trainer.experiment import jobs, kinds
from trainer.experiment.jobs import Job
from trainer.experiment.kinds import CVFP, KINDS, RANDOM_BLOCK, TRANSFORMER
from trainer.experiment.records import read
from trainer.prepare import arms
from trainer.prepare import prepared as preparing
from trainer.prepare.choices import Choices, load_vocabulary, outside
from trainer.prepare.prepared import ExperimentData
from trainer.presets import Preset, PresetError

DEFAULT_BUDGET = 100_000
"""Training tokens of `refine train` if neither --budget nor the preset names a number."""
EXPERIMENTS = Path("data/experiments")
"""Default parent folder of experiments, relative to the working directory."""


@dataclass(frozen=True)
class TrainOptions:
    """The options that `refine train` and `refine scale` share; their help describes each."""

    source: str | None = None
    split: str | None = None
    config: str | None = None
    revision: str | None = None
    shape: str | None = None
    limit: int | None = None
    preset: str = "house"
    choices: Choices = field(default_factory=Choices)
    out: Path | None = None
    device: str = "cpu"
    network: str = CVFP.name
    loss: str = "all"
    precision: str = "float32"

    def folder(self, name: str) -> Path:
        """The experiment's folder: `out`, or a new one named by the corpus, the preset and the time."""
        word = re.sub(r"[^A-Za-z0-9]+", "-", Path(name).name.split(".")[0]).strip("-")[:40] or "corpus"
        return self.out or EXPERIMENTS / f"{word}-{self.preset}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """The outcome of `train`: the folder of the first network's run, the prepared data, and the record of each model.

    The networks come first in `records`, which are by the name of the kind. The folder holds record.json,
    metrics.jsonl, scores.npz and weights.safetensors.
    """

    folder: Path
    data: dict[str, Any]
    records: Mapping[str, dict[str, Any]]
    preset: Preset


def check_device(name: str) -> None:
    """Compute something on a torch device; raises `PresetError` if that is not possible."""
    if name == "cpu":  # always there, and torch takes 2 CPU seconds to import
        return
    import torch

    try:
        float(torch.ones(1, device=name, dtype=torch.float64) + 1)  # sums are float64
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise PresetError(
            f"--device {name} is not available ({reason(error)}): take cpu, or install torch for it"
        ) from error


def numbers(text: str | None) -> list[int] | None:
    """Parse budgets such as "10000,20_000,1e5".

    Raises:
        PresetError: one of them is not a whole number of 2 or more.
    """
    if text is None:
        return None
    budgets = []
    for word in text.split(","):
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not (2 <= value < math.inf and value.is_integer()):  # noqa: PLR2004  an input and a target
            raise PresetError(f"--budgets has {word.strip()!r}, expected whole numbers of tokens, such as 10000,1e5")
        budgets.append(int(value))
    return budgets


@contextmanager
def open_experiment(options: TrainOptions) -> Iterator[tuple[Path, Preset, ExperimentData]]:
    """Lock the experiment's folder and yield it, the preset sized for its vocabulary, and the data.

    Raises:
        RunFolderError: the folder is in use, or belongs to another corpus or to something else.
        SourceError, TrainerError: the corpus, the preset or an option does not serve.
    """
    preset = presets.find(options.preset).trained_on(options.loss).computed_in(options.precision)
    check_device(options.device)
    given = outside(preset, options.choices)
    load_vocabulary(preset, options.choices)
    if options.out is not None:
        check_experiment(options.out, "--out")
    source = corpora.read(
        options.source,
        split=options.split,
        config=options.config,
        revision=options.revision,
        shape=options.shape,
        limit=options.limit,
    )
    for note in source.notes:
        say(f"refine: {note}")
    say(f"corpus {source.name}: {len(source.frame):,} conversations")
    claim = {"corpus": source.name, "digest": source.digest}
    with experiment_claimed(options.folder(source.name), claim, "--out") as folder:
        if options.out is None:
            say(f"experiment {folder}: to continue after an interruption, repeat the command with --out {folder}")
        groups = None if preset.validation is not None else corpora.groups(source.frame[preset.text.column])
        keys = arms.distinct(corpora.keys(source.frame["text"]))  # otherwise copies would be neighbours in every order
        with preparation():
            data = preparing.prepare(source.frame, keys, groups, preset, options.choices, folder / "data", given)
        preparing.check_loss(data, preset)
        del source, groups, keys  # training runs read the folder alone
        for line in data.record.lines():
            say(line)
        for flaw in preset.flaws:
            say(f"known bug of the original, reproduced: {flaw}")
        yield folder, preset.sized(data.record.vocabulary), data


@contextmanager
def preparation(*, networks: bool = True) -> Iterator[None]:
    """Say what the block does, and every half minute that it is still at work: on a large corpus it takes minutes."""
    parts = ("the split", "the vocabulary", "the token streams", *(["the embeddings"] if networks else []))
    say(f"preparing {', '.join(parts[:-1])} and {parts[-1]} ...")
    began = time.monotonic()
    with repeating(BEAT_INTERVAL, lambda: f"still preparing, {time.monotonic() - began:,.0f} s so far"):
        yield


def train(
    options: TrainOptions,
    budget: int | None = None,
    seed: int = 0,
    threads: int = 0,
    *,
    baselines: bool = True,
    export: str | None = None,
) -> TrainingResult:
    """Train one network or all, and baselines on the same split; runs that are already there are not repeated.

    The budget is in training tokens, by default the preset's or 100,000. The seed is that of the order of
    conversations, the weights and the noise. 0 `threads` are OMP_NUM_THREADS, or one per core. The `export` "hf" writes
    the transformer into the folder hf/ of its run, which transformers opens.

    Raises:
        SourceError, RunFolderError: the corpus or the folder does not serve.
        TrainerError: the budget exceeds the training pool, an option does not serve, or a run met NaN.
    """
    import torch

    networks = kinds.networks(options.network)
    if export is not None and (export != "hf" or TRANSFORMER.name not in networks):
        raise kinds.NetworkError(
            f"--export is {export} with --network {options.network}, expected --export hf with --network transformer"
        )
    configured = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # a list has one number per level
    default = int(configured) if configured.isascii() and configured.isdecimal() else 0
    threads = threads or default or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    with open_experiment(options) as (folder, preset, data):
        count = budget or (data.budgets(preset, None)[-1] if preset.samples else min(DEFAULT_BUDGET, data.pool.tokens))
        data.budgets(preset, [count])
        network = Job(networks[0], count, seed, str(folder / "data"), data.digest, preset, options.device, threads)
        records = {}
        for kind in (*networks, *(kinds.baselines(networks) if baselines else ())):
            job = replace(network, kind=kind)
            place = folder / "trainings" / job.name
            if (place / "record.json").exists():
                records[kind] = read(place)
            elif kind in networks:
                say(f"\n{KINDS[kind].label}: {count:,} tokens, preset {preset.name}, seed {seed}, {threads} threads")
                steps = job.trained.phase2.total(count - 1)
                records[kind] = jobs.train(job, data, place, MetricsPrinter(preset.phase1.passes, steps))
            else:
                say(f"{KINDS[kind].label} ...")
                records[kind] = jobs.carry_out(folder / "trainings", {job.name: job}, job.name)
            if export is not None and kind == TRANSFORMER.name:
                from trainer.experiment import export as exporting

                exporting.export(place, folder / "data" / "tokenizer.json", place / "hf")
                say(f"{place / 'hf'}: the transformer and its tokenizer, for transformers")
    return TrainingResult(folder / "trainings" / network.name, data.record.as_dict(), records, preset)


class MetricsPrinter:
    """Prints the metrics of a training run, with the time left of the phase at the rate since the line before."""

    def __init__(self, passes: int, steps: int) -> None:
        self._totals = {"pass": passes, "step": steps}
        self._last: dict[str, tuple[int, float]] = {}

    def __call__(self, line: dict[str, Any]) -> None:
        _say_metrics(line, "".join(self._left(line, unit) for unit in self._totals if unit in line))

    def _left(self, line: dict[str, Any], unit: str) -> str:
        number, now = int(line[unit]), time.monotonic()
        before, since = self._last.get(unit, (number, now))
        self._last[unit] = number, now
        left = self._totals[unit] - number
        if before >= number or left <= 0:
            return ""
        return f", about {duration(left * (now - since) / (number - before))} left of phase {line['phase']}"


def _say_metrics(line: dict[str, Any], left: str) -> None:
    if "resumed" in line:
        say(f"resumed after {line['resumed']}")
    elif "converged" in line:
        say(
            f"pass {line['pass']:>3}  loss {line['loss']:+.5f}  CVFP {line['cvfp']:.5f}  diversity "
            f"{line['diversity']:+.5f}  converged {line['converged']:6.1%}  {line['tokens_per_s']:,.0f} tokens/s{left}"
        )
    elif "effective_rank" in line:
        say(
            f"contexts: effective rank {line['effective_rank_share']:.1%} of the width, variance {line['variance']:.3f}"
            " between tokens" + (f"; start forgotten: {line['verdict'].lower()}" if "verdict" in line else "")
        )
        if line["collapsed"]:
            say("refine: the contexts have COLLAPSED into one or two: the result is a model without context")
    elif "validation_loss" in line:
        best = "  best" if line["best"] else ""
        say(
            f"step {line['step']:>6}  train {line['train_loss']:.4f}  validation {line['validation_loss']:.4f} nats, "
            f"accuracy {line['validation_accuracy']:.2%}  {line['tokens_per_s']:,.0f} tokens/s{left}{best}"
        )
    else:
        say(f"contexts by {line.get('how') or line.get('contexts')}")


def print_training(result: TrainingResult, *, as_json: bool) -> None:
    """Print the scores of the network and its baselines as a table, or everything as JSON."""
    if as_json:
        report = {"folder": str(result.folder), "data": result.data, **result.records}
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
        return
    network, preset = next(iter(result.records.values())), result.preset
    replies = network["replies"]
    rows: list[tuple[object, ...]] = [
        (
            KINDS[kind].label,
            f"{record['nats']:.4f}",
            f"{record['bits_per_byte']:.4f}",
            number(record["ppl"]),
            "-" if record["accuracy"] is None else f"{record['accuracy']:.2%}",
            *(() if replies is None else (f"{record['replies']['nats']:.4f}", number(record["replies"]["ppl"]))),
        )
        for kind, record in result.records.items()
    ]
    name = "Validation set, which also selects the epoch" if preset.validation is not None else "Test set"
    title = f"\n{name}: {network['test_tokens']:,} tokens of {network['test_conversations']:,} conversations"
    title += "" if replies is None else f", {replies['test_tokens']:,} of them of replies"
    out = console()
    of_replies = () if replies is None else ("nats, replies", "PPL, replies")
    head = ("", "nats per token", "bits per byte", "PPL", "accuracy", *of_replies)
    out.print(table(title, head, rows, frozenset(range(1, len(head)))))
    out.print(Text(safe("\n".join(remarks(result.records, decays=preset.phase2.decay)))))
    out.print(Text(safe(f"\n{result.folder}: record.json, metrics.jsonl, scores.npz, weights.safetensors")))


def remarks(records: Mapping[str, dict[str, Any]], *, decays: bool) -> list[str]:
    """Sentences beside the scores: which models beat the first network, and whether more steps might help.

    If the learning rate `decays` to 0, the last evaluation is usually the best, and says nothing about more steps.
    """
    (first, network), sentences = next(iter(records.items())), []
    better = [KINDS[kind].label for kind, record in records.items() if record["nats"] < network["nats"]]
    if better:
        sentences.append(f"{KINDS[first].label} loses to {', '.join(better)}")
    elif len(records) > 1:
        sentences.append(f"{KINDS[first].label} beats every other model")
    block = records.get(RANDOM_BLOCK.name)
    if block and block["nats"] >= network["nats"]:
        gain = block["nats"] - network["nats"]
        sentences.append(f"phase 1 improves the loss by {gain:.4f} nats over a random block (one seed)")
    if network["best_evaluation"] == network["evaluations"] and not decays:
        sentences.append("the last evaluation was the best: more steps might help")
    if network.get("collapsed"):
        sentences.append("the contexts collapsed into one or two")
    return sentences
