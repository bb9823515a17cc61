"""`refine train` and `refine scale`: from a corpus to prepared data, trainings, and what is said of them."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.text import Text

from pipeline.experiments import corpus as corpora
from pipeline.ownership import check_experiment, experiment_claimed
from pipeline.terminal import console, safe, say, table
from trainer import presets
from trainer.experiment import jobs
from trainer.experiment.jobs import Job
from trainer.experiment.kinds import BASELINES, CVFP, KINDS, RANDOM_BLOCK
from trainer.experiment.records import read
from trainer.prepare import arms
from trainer.prepare import prepared as preparing
from trainer.prepare.choices import Choices, named, outside
from trainer.prepare.prepared import Prepared
from trainer.presets import Preset, PresetError

BUDGET = 100_000
"""Training tokens of `refine train`, where none are named and the preset counts none."""


@dataclass(frozen=True)
class TrainOptions:
    """What a user asks for; see the help of `refine train` and `refine scale`."""

    source: str | None
    split: str | None
    config: str | None
    revision: str | None
    shape: str | None
    limit: int | None
    preset: str
    wanted: Choices
    out: Path | None
    device: str
    as_json: bool

    def checked(self) -> Preset:
        """The preset, when the device is there: said before any work.

        Raises:
            PresetError: there is no such preset or device.
        """
        found = presets.find(self.preset)
        device(self.device)
        return found

    def folder(self, name: str) -> Path:
        """The experiment's folder; a new one where none is named."""
        word = re.sub(r"[^A-Za-z0-9]+", "-", Path(name).name.split(".")[0]).strip("-")[:40] or "corpus"
        return self.out or EXPERIMENTS / f"{word}-{self.preset}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"


def device(name: str) -> None:
    """Compute something on a device of torch's.

    Raises:
        PresetError: it cannot be.
    """
    import torch

    try:
        float(torch.ones(1, device=name, dtype=torch.float64) + 1)  # sums are float64
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise PresetError(f"--device {name} is not there ({said}): take cpu, or install torch for it") from error


def numbers(said: str | None) -> list[int] | None:
    """Budgets as a user writes them: "10000,20_000,1e5".

    Raises:
        PresetError: one is not a whole number of 2 or more.
    """
    if said is None:
        return None
    found = []
    for word in said.split(","):
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not (2 <= value < math.inf and value.is_integer()):  # noqa: PLR2004  an input and a target
            raise PresetError(f"--budgets has {word.strip()!r}, expected whole numbers of tokens, such as 10000,1e5")
        found.append(int(value))
    return found


@contextmanager
def prepared(asked: TrainOptions) -> Iterator[tuple[Path, Preset, Prepared]]:
    """The experiment's folder, held alone; the preset for its vocabulary; and the data, made or found.

    Raises:
        RunFolderError: the folder is another process's, another corpus's, or of something else.
        SourceError, TrainerError: the corpus, the preset or an option does not serve.
    """
    preset = asked.checked()
    given = outside(preset, asked.wanted)
    named(preset, asked.wanted)
    if asked.out is not None:
        check_experiment(asked.out, "--out")
    source = corpora.read(
        asked.source,
        split=asked.split,
        config=asked.config,
        revision=asked.revision,
        shape=asked.shape,
        limit=asked.limit,
    )
    for note in source.notes:
        say(f"refine: {note}")
    say(f"corpus {source.name}: {len(source.frame):,} conversations")
    claim = {"corpus": source.name, "digest": source.digest}
    with experiment_claimed(asked.folder(source.name), claim, "--out") as folder:
        if asked.out is None:
            say(f"experiment {folder}: after an interruption the same command goes on with --out {folder}")
        texts = source.frame[preset.text.column]
        groups = None if preset.validation is not None else corpora.groups(texts)
        keys = arms.distinct(source.keys())  # else copies would stand next to each other in every order
        data = preparing.prepare(source.frame, keys, groups, preset, asked.wanted, folder / "data", given)
        del source, texts, groups, keys  # trainings read the folder alone
        for line in data.record.lines():
            say(line)
        for flaw in preset.flaws:
            say(f"as the user ran it: {flaw}")
        yield folder, preset.sized(data.record.vocabulary), data


def train(asked: TrainOptions, budget: int | None, seed: int, threads: int, *, baselines: bool) -> None:
    """One training and its baselines on the same split."""
    import torch

    said = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # a list has a number a level
    threads = threads or (int(said) if said.isascii() and said.isdecimal() else 0) or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    with prepared(asked) as (folder, preset, data):
        _train(asked, folder, preset, data, budget, seed, threads, baselines=baselines)


def _train(  # noqa: PLR0917  what `train` is asked for, and what it found
    asked: TrainOptions,
    folder: Path,
    preset: Preset,
    data: Prepared,
    budget: int | None,
    seed: int,
    threads: int,
    *,
    baselines: bool,
) -> None:
    count = budget or (data.budgets(preset, None)[-1] if preset.samples else min(BUDGET, data.pool.tokens))
    data.budgets(preset, [count])
    kinds = (CVFP.name, *(BASELINES if baselines else ()))
    first = Job(CVFP.name, count, seed, str(folder / "data"), data.digest, preset, asked.device, threads)
    records = {}
    for kind in kinds:
        job = replace(first, kind=kind)
        where = folder / "trainings" / job.name
        if (where / "record.json").exists():
            records[kind] = read(where)
        elif kind == CVFP.name:
            say(f"\n{KINDS[kind].label}: {count:,} tokens, preset {preset.name}, seed {seed}, {threads} threads")
            records[kind] = jobs.train(job, data, where, _line)
        else:
            say(f"{KINDS[kind].label} ...")
            records[kind] = jobs.carry_out(folder / "trainings", {job.name: job}, job.name)
    _finish(asked, preset, folder / "trainings" / first.name, records, data)


def _line(line: dict[str, Any]) -> None:
    """One line of the metrics as a person reads it."""
    if "resumed" in line:
        say(f"goes on after {line['resumed']}")
    elif "converged" in line:
        say(
            f"pass {line['pass']:>3}  loss {line['loss']:+.5f}  CVFP {line['cvfp']:.5f}  diversity "
            f"{line['diversity']:+.5f}  converged {line['converged']:6.1%}  {line['tokens_per_s']:,.0f} tokens/s"
        )
    elif "effective_rank" in line:
        say(
            f"contexts: effective rank {line['effective_rank_share']:.1%} of the width, variance {line['variance']:.3f}"
            " between tokens" + (f"; start forgotten: {line['verdict'].lower()}" if "verdict" in line else "")
        )
        if line["collapsed"]:
            say("refine: the contexts have COLLAPSED into one or two: what follows is a model without context")
    elif "validation_loss" in line:
        best = "  best" if line["best"] else ""
        say(
            f"step {line['step']:>6}  train {line['train_loss']:.4f}  validation {line['validation_loss']:.4f} nats, "
            f"accuracy {line['validation_accuracy']:.2%}  {line['tokens_per_s']:,.0f} tokens/s{best}"
        )
    else:
        say(f"contexts by {line.get('how') or line.get('contexts')}")


def _finish(
    asked: TrainOptions, preset: Preset, where: Path, records: dict[str, dict[str, Any]], data: Prepared
) -> None:
    if asked.as_json:
        found = {"folder": str(where), "data": data.record.as_dict(), **records}
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    one = records[CVFP.name]
    rows: list[tuple[object, ...]] = [
        (
            KINDS[kind].label,
            f"{r['nats']:.4f}",
            f"{r['bits_per_byte']:.4f}",
            f"{r['ppl']:,.2f}",
            "-" if r["accuracy"] is None else f"{r['accuracy']:.2%}",
        )
        for kind, r in records.items()
    ]
    which = "Validation set, which chose the epoch too" if preset.validation is not None else "Test set"
    what = f"\n{which}: {one['test_tokens']:,} tokens of {one['test_conversations']:,} conversations"
    out = console()
    out.print(table(what, ("", "nats a token", "bits a byte", "PPL", "accuracy"), rows, frozenset({1, 2, 3, 4})))
    out.print(Text(safe("\n".join(verdicts(records, falls=preset.phase2.decay)))))
    out.print(Text(safe(f"\n{where}: record.json, metrics.jsonl, scores.npz, weights.safetensors")))


def verdicts(records: dict[str, dict[str, Any]], *, falls: bool) -> list[str]:
    """What must be said beside the numbers: who beats the network, and a budget of steps that may be too small.

    Args:
        records: by kind.
        falls: whether the learning rate fell to 0, so that the last evaluation is the best as a rule.
    """
    one, said = records[CVFP.name], []
    better = [KINDS[kind].label for kind, r in records.items() if r["nats"] < one["nats"]]
    if better:
        said.append(f"CVFP loses to {', '.join(better)}")
    elif len(records) > 1:
        said.append("CVFP beats every baseline here")
    block = records.get(RANDOM_BLOCK.name)
    if block and block["nats"] >= one["nats"]:
        said.append(f"phase 1 is worth {block['nats'] - one['nats']:.4f} nats against a random block, one seed")
    if one["best_evaluation"] == one["evaluations"] and not falls:
        said.append("the last evaluation was the best: more steps might still help")
    if one["collapsed"]:
        said.append("the contexts collapsed into one or two")
    return said


EXPERIMENTS = Path("data/experiments")
"""Where experiments lie by default, in the folder that refine is started in."""
