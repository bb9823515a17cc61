"""Alternatives to the `house` preset: one setting changed at a time, on two corpora, judged by held-out tokens.

    python -m tests.bench.house_choice IDS.npz [--budgets 10000,...] [--variants "5 layers,..."] [--seeds 1]
                                       [--device cuda] [--workers 2]

The corpora are the trainer benchmark (IDS.npz, with the embeddings of the file) and the embedded default (embeddings of
its training pool). A variant is judged by the loss on the tokens that select the epoch: on the benchmark the last ids
of the budget (20,000, or a fifth of the budget if that is less), on the default its validation set. The test sets (val
of the benchmark, test set of the default) select nothing; their table comes last. It takes hours on a CPU and minutes
on a GPU; finished training runs in the folder are not repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.engine.local import Local
from tests.bench.house import HELD, SIZE, embedded, stream
from trainer.experiment.jobs import Job, run
from trainer.experiment.kinds import CVFP
from trainer.experiment.records import read
from trainer.prepare import prepared as preparing
from trainer.prepare.prepared import DataRecord, SetSize
from trainer.presets import HOUSE, Preset

T = TypeVar("T")
Key = tuple[str, int, str, int]
"""Corpus, budget, variant, seed."""
BENCHMARK, DEFAULT = "benchmark", "embedded default"
BUDGETS = (10_000, 20_000, 40_000, 80_000, 160_000, 200_000)


def shaped(**fields: Any) -> Preset:
    """House with another shape."""
    return replace(HOUSE, shape=replace(HOUSE.shape, **fields))


def first(**fields: Any) -> Preset:
    """House with another phase 1."""
    return replace(HOUSE, phase1=replace(HOUSE.phase1, **fields))


def second(preset: Preset = HOUSE, **fields: Any) -> Preset:
    """House, or another, with another phase 2."""
    return replace(preset, phase2=replace(preset.phase2, **fields))


DECAY, RATE = HOUSE.phase2.weight_decay, HOUSE.phase2.rate
VARIANTS = {
    "house": HOUSE,
    "widths reduced": shaped(widths="reduced"),
    "context of 256": shaped(context=256, weight_std=0.035),
    "1 layer": shaped(layers=1),
    "2 layers": shaped(layers=2),
    "5 layers": shaped(layers=5),
    "1 input token": shaped(inputs=1),
    "3 input tokens": shaped(inputs=3),
    "4 input tokens": shaped(inputs=4),
    "frozen tied head": shaped(tied=True),
    "trained tied head": second(shaped(tied=True, own_embedding=True), train_embedding=True),
    "embedding trained": second(shaped(own_embedding=True), train_embedding=True),
    "weight std 0.025": shaped(weight_std=0.025),
    "weight std 0.1": shaped(weight_std=0.1),
    "rate x 1/2": second(rate=RATE / 2),
    "rate x 2": second(rate=RATE * 2),
    "batch 256": second(batch=256),
    "batch 1024": second(batch=1024),
    "epochs x 1/2": second(epochs=HOUSE.phase2.epochs // 2, steps=HOUSE.phase2.steps // 2),
    "epochs x 2": second(epochs=HOUSE.phase2.epochs * 2, steps=HOUSE.phase2.steps * 2),
    "weight decay x 1/2": second(weight_decay=DECAY / 2),
    "weight decay x 2": second(weight_decay=DECAY * 2),
    "weight decay 0.01": second(weight_decay=0.01, decay_tokens=0),
    "dropout 0.1": second(dropout=0.1),
    "dropout 0.3": second(dropout=0.3),
    "phase 1 skipped": first(passes=0),
    "phase 1 of 20 passes": first(passes=20),
}


def benchmark(arrays: dict[str, NDArray[Any]], budget: int, folder: Path) -> Path:
    """Folder with the data of the benchmark at one budget."""
    kept = budget - min(HELD, budget // 5)
    made = {
        "pool": stream(arrays["train"], arrays["train_starts"], 0, kept),
        "validation": stream(arrays["train"], arrays["train_starts"], kept, budget),
        "test": stream(arrays["val"], arrays["val_starts"], 0, len(arrays["val"])),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, each in made.items():
        each.save(folder / name)
    np.save(folder / "keys.npy", np.arange(len(made["pool"]), dtype=np.uint64))
    np.save(folder / "embeddings.npy", arrays["embeddings"])
    np.save(folder / "clusters.npy", np.arange(len(made["test"])))
    record = DataRecord(
        identity="",
        tokenizer="that of the benchmark",
        vocabulary=SIZE,
        embeddings="embeddings: those of the benchmark",
        embeddings_tokens=-1,
        table=(SIZE, arrays["embeddings"].shape[1]),
        notes=(),
        digest=f"benchmark-{budget}",
        **{name: SetSize.of(each) for name, each in made.items()},
    )
    (folder / "prepared.json").write_text(json.dumps(record.as_dict()), encoding="utf-8")
    return folder


def jobs(
    ids: Path, folder: Path, budgets: Sequence[int], variants: Sequence[str], *, seeds: int, device: str
) -> dict[Key, Job]:
    """One training run per corpus, budget, variant and seed."""
    with np.load(ids) as file:
        arrays = {name: file[name] for name in file.files}
    found = {}
    whole = preparing.load(embedded(folder / "embedded"))
    for budget in budgets:
        part = preparing.load(benchmark(arrays, budget, folder / f"benchmark-{budget}"))
        for name in variants:
            variant = VARIANTS[name]
            for seed in range(seeds):
                for corpus, data, count in ((BENCHMARK, part, part.pool.tokens), (DEFAULT, whole, budget)):
                    if count > data.pool.tokens:
                        continue
                    preset = replace(variant.sized(data.record.vocabulary), shuffled=corpus == DEFAULT)
                    job = Job(CVFP.name, count, seed, str(data.folder), data.digest, preset, device)
                    found[corpus, budget, name, seed] = job
    return found


def lean(task: Callable[[str], T], folder: Path, name: str) -> T:
    """Run a task and remove its weights."""
    done = task(name)
    (folder / name / "weights.safetensors").unlink(missing_ok=True)
    return done


def table(found: dict[Key, dict[str, Any]], key: str, seeds: int) -> Iterator[str]:
    """PPL of house, and the relative difference of each variant, as means over seeds; the last column is the mean."""
    columns = sorted({(corpus, budget) for corpus, budget, _, _ in found})
    yield "| variant | " + " | ".join(f"{corpus} {budget:,}" for corpus, budget in columns) + " | mean |"
    yield "| --- |" + " --- |" * (len(columns) + 1)

    def nats(name: str) -> NDArray[np.float64]:
        return np.array(
            [
                np.mean([found.get((*column, name, seed), {}).get(key, np.nan) for seed in range(seeds)])
                for column in columns
            ]
        )

    house = nats("house")
    yield "| house, PPL | " + " | ".join(f"{ppl:.1f}" for ppl in np.exp(house)) + " | |"
    for name in VARIANTS:
        off = nats(name) - house
        if name != "house" and not np.isnan(off).all():
            mean = np.expm1(np.nanmean(off))
            shown = ["" if np.isnan(each) else f"{np.expm1(each):+.1%}" for each in off]
            yield f"| {name} | {' | '.join(shown)} | {mean:+.1%} |"


def main() -> None:
    """Run what is missing, and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ids", type=Path)
    parser.add_argument(
        "--folder", type=Path, default=Path("data/experiments/house-choice"), help="folder of data and training runs"
    )
    parser.add_argument("--budgets", default=",".join(map(str, BUDGETS)))
    parser.add_argument("--variants", default=",".join(VARIANTS), help="variants beside house; default all")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    budgets = [int(each) for each in asked.budgets.split(",")]
    variants = list(dict.fromkeys(("house", *asked.variants.split(","))))
    wanted = jobs(asked.ids, asked.folder, budgets, variants, seeds=asked.seeds, device=asked.device)
    engine, trainings = Local(asked.workers), asked.folder / "trainings"
    try:
        run(
            trainings,
            list(wanted.values()),
            lambda task, names: engine.map(partial(lean, task, trainings), names),
            lambda _job, _record: None,
        )
    finally:
        engine.close()
    records = {key: read(trainings / job.name) for key, job in wanted.items()}
    for key, about in (("validation_loss", "The tokens that select the epoch"), ("nats", "The test sets")):
        sys.stdout.write("\n".join((f"\n{about}:\n", *table(records, key, asked.seeds))) + "\n")


if __name__ == "__main__":
    main()
