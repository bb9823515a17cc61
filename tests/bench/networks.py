"""The networks of `--network` on the embedded default: perplexity, and CPU seconds of a whole training run.

    python -m tests.bench.networks [--budgets 12500,50000,100000] [--seeds 1] [--folder FOLDER]

A run is that of an experiment with the preset `house`, on one thread, from prepared data to its record. Its seconds
include the evaluations and the test set. The 5-gram model is beside them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.house import embedded
from trainer.experiment.jobs import Job, carry_out
from trainer.experiment.kinds import KINDS, KNESER_NEY, NETWORKS
from trainer.prepare import prepared as preparing
from trainer.presets import HOUSE


def cell(kind: str, budget: int, seed: int, folder: Path) -> str:
    """PPL on the test set and CPU seconds of one run."""
    data = preparing.load(folder)
    job = Job(kind, budget, seed, str(folder), data.digest, HOUSE.sized(data.record.vocabulary))
    with tempfile.TemporaryDirectory() as place:
        begun = time.process_time()
        record = carry_out(Path(place), {job.name: job}, job.name)
    return f"{record['ppl']:.1f} in {time.process_time() - begun:.0f} s"


def main() -> None:
    """Print a row per budget and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", default="12500,50000,100000")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--folder", type=Path, default=Path("data/experiments/house-choice/embedded"), help="folder of the data"
    )
    options = parser.parse_args()
    kinds, folder = (*NETWORKS, KNESER_NEY.name), embedded(options.folder)
    cell(NETWORKS[0], 100, 0, folder)  # the kernel is compiled before the clock runs
    sys.stdout.write(f"| tokens | seed | {' | '.join(KINDS[kind].label for kind in kinds)} |\n")
    sys.stdout.write(f"|{' --- |' * (len(kinds) + 2)}\n")
    for budget in map(int, options.budgets.split(",")):
        for seed in range(options.seeds):
            cells = " | ".join(cell(kind, budget, seed, folder) for kind in kinds)
            sys.stdout.write(f"| {budget:,} | {seed} | {cells} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
