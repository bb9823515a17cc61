"""The `house` preset and its baselines on the trainer benchmark or the embedded default.

    python -m tests.bench.house IDS.npz|default [--budgets 10000,20000,40000,80000,160000,200000] [--seeds 1]

IDS.npz has train and val ids, the starts of samples, and embeddings made from 2.96 M tokens of the same documents,
which help the networks and not the count models. PPL is on the 20,001 targets of val, in two ways:

- given: embeddings of the file; val selects the epoch.
- honest: embeddings from the training ids alone; the last ids of the budget select the epoch (20,000, or a fifth of the
  budget if that is less) and are not trained on, although the count models have them.

On the embedded default PPL is on the test set, and the validation set selects the epoch in both ways. Given are the
embeddings of the whole training pool, honest those of the budget's own tokens. tests/bench/house_choice.py has the
alternatives to house.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.experiment import baselines
from trainer.experiment.single_phase import GruRun
from trainer.experiment.training import Data, ResumableRun, Training
from trainer.prepare import prepared as preparing
from trainer.prepare.choices import Choices
from trainer.prepare.ppmi import ppmi_svd
from trainer.prepare.streams import Stream
from trainer.prepare.template import TEXT
from trainer.presets import PRESETS, Preset

HELD = 20_000
SIZE = 8192
Arrays = dict[str, NDArray[Any]]


def say(line: str) -> None:
    """Print a line of the table without buffering."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def stream(ids: NDArray[Any], starts: NDArray[Any], a: int, b: int) -> Stream:
    """Ids a to b; a sample cut at a starts there."""
    inside = np.unique(np.append(starts[(starts >= a) & (starts < b)] - a, 0)).astype(np.int64)
    widths = np.ones(SIZE, np.int32)
    said = np.full(b - a, TEXT, np.uint8)
    return Stream(ids[a:b].astype(np.int32), inside, np.zeros(len(inside), np.int64), widths, said, 0, separated=False)


def given(arrays: Arrays, budget: int) -> Data:
    train = stream(arrays["train"], arrays["train_starts"], 0, budget)
    val = stream(arrays["val"], arrays["val_starts"], 0, len(arrays["val"]))
    return Data(train, val, val, arrays["embeddings"])


def honest(arrays: Arrays, budget: int, width: int) -> Data:
    kept = budget - min(HELD, budget // 5)
    train = stream(arrays["train"], arrays["train_starts"], 0, kept)
    held = stream(arrays["train"], arrays["train_starts"], kept, budget)
    table = ppmi_svd(train.ids, train.starts, SIZE, width).table
    return Data(train, held, stream(arrays["val"], arrays["val_starts"], 0, len(arrays["val"])), table)


def ppl(preset: Preset, data: Data, seed: int, of: type[ResumableRun] = Training) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return float(of(preset, data, seed, Path(folder), identity="bench").run()["ppl"])


def embedded(folder: Path) -> Path:
    """Folder with the data of the embedded default, split by near-duplicate clusters; made if missing."""
    if not (folder / "prepared.json").exists():
        from pipeline.experiments import corpus

        frame = corpus.read(None).frame
        groups = corpus.groups(frame["text"])
        preparing.prepare(frame, corpus.keys(frame["text"]), groups, PRESETS["house"], Choices(), folder)
    return folder


def default(folder: Path, budget: int, seed: int) -> tuple[Data, Data]:
    """Data of the embedded default: with embeddings of the pool, and with those of the budget's tokens."""
    found = preparing.load(embedded(folder))
    stream, preset = found.budget(PRESETS["house"], budget, seed), PRESETS["house"]
    own = replace(found, table=None).embeddings_for(preset, stream, seed)
    assert found.table is not None  # of the pool, as the preset says
    first, second = (Data(stream, found.validation, found.test, table) for table in (found.table, own))
    return first, second


def row(data: tuple[Data, Data], preset: Preset, seed: int) -> dict[str, float]:
    one, other = data
    random = replace(preset, phase1=replace(preset.phase1, passes=0))
    return {
        "CVFP, given": ppl(preset, one, seed),
        "random block, given": ppl(random, one, seed),
        "GRU, given": ppl(preset, one, seed, GruRun),
        "CVFP, honest": ppl(preset, other, seed),
        "Kneser-Ney 5-gram": math.exp(baselines.kneser_ney(one.train, one.test, SIZE).mean()),
        "unigram": math.exp(baselines.unigram(one.train, one.test, SIZE).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("corpus", help="file of the benchmark, or default")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("data/experiments/house-choice/embedded"),
        help="folder of the default's data",
    )
    parser.add_argument("--budgets", default="10000,20000,40000,80000,160000,200000")
    parser.add_argument("--seeds", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    arrays: Arrays = {}
    if asked.corpus != "default":
        with np.load(asked.corpus) as file:
            arrays = {name: file[name] for name in file.files}
    head, preset = True, PRESETS["house"]
    for budget in map(int, asked.budgets.split(",")):
        for seed in range(asked.seeds):
            begun = time.process_time()
            if arrays:
                data = given(arrays, budget), honest(arrays, budget, preset.shape.embedding)
            else:
                data = default(asked.folder, budget, seed)
            found = row(data, preset, seed)
            if head:
                say(f"| tokens | seed | {' | '.join(found)} | CPU s |\n|{' --- |' * (len(found) + 3)}")
                head = False
            shown = " | ".join(f"{value:.1f}" for value in found.values())
            say(f"| {budget:,} | {seed} | {shown} | {time.process_time() - begun:.0f} |")


if __name__ == "__main__":
    main()
