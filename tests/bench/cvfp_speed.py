"""A whole run of the original code's last state (49da23b) at E = C = 128, L = 3: seconds, loss, memory.

    python -m tests.bench.cvfp_speed IDS.npz [--tokens 80000] [--threads 1]

IDS.npz has train, val and embeddings (8192 x 128). The original's figures were measured on another day on a machine of
the same kind. With the same passes and epochs the losses must be nearly equal; CVFP at pass 2 and validation PPL depend
a little on the initial weights.
"""

from __future__ import annotations

import argparse
import math
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from trainer.cvfp import phase1, phase2
from trainer.cvfp.model import Network
from trainer.cvfp.scan import Contexts, Tape
from trainer.cvfp.settings import Phase1, Phase2, Shape

ORIGINAL = {
    10_000: (0.011335, 1427.24, None),
    20_000: (0.011277, 997.05, None),
    40_000: (0.011252, 755.49, None),
    80_000: (0.011242, 626.77, 338.0),
}
"""CVFP at pass 2, validation PPL and seconds of the whole run on one thread, by tokens."""
BOUND = {"pass": 11.4e-6, "batch": 52e-6}
"""Seconds per token at 90 GFLOP/s, the best of large products on one thread, of a parallel pass and of phase 2's
batches (forward and backward, frozen head)."""


def say(line: str) -> None:
    """Print a line of the table."""
    sys.stdout.write(line + "\n")


class Clock:
    """CPU and wall seconds since the last lap."""

    def __init__(self) -> None:
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def lap(self) -> tuple[float, float]:
        cpu, wall = time.process_time(), time.perf_counter()
        found = cpu - self.cpu, wall - self.wall
        self.cpu, self.wall = cpu, wall
        return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("ids", type=Path)
    parser.add_argument("--tokens", type=int, default=80_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=42)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    with np.load(asked.ids) as arrays:
        train, val = (torch.from_numpy(arrays[name].astype(np.int64)) for name in ("train", "val"))
        table = torch.from_numpy(arrays["embeddings"])
    start = torch.zeros(1, dtype=torch.int64)
    rows = asked.tokens
    text, validation = Tape(train[:rows], start, wraps=True), Tape(val, start, wraps=True)
    network = Network(Shape(8192, 128, 128, 3, 1, "reduced", tied=True), seed=asked.seed)
    network.set_embedding(table)
    phase1.begin(network, Tape(train[:64], start), Phase1(), 0)  # the kernel is compiled before the clock runs
    clock, taken = Clock(), {}
    state, _ = phase1.begin(network, text, Phase1(), seed=asked.seed)
    taken["pass 1"] = clock.lap()
    passes: list[phase1.Pass] = []
    phase1.run(network, text, Phase1(), state, lambda done, _: passes.append(done))
    taken["parallel passes"] = clock.lap()
    phase1.forgetting(network, validation, Phase1().trials)
    taken["validation check"] = clock.lap()
    del state
    with tempfile.TemporaryDirectory() as folder:
        contexts = tuple(Contexts.of(network, each, Path(folder)) for each in (text, validation))
    taken["contexts"] = clock.lap()
    settings, second = Phase2(), phase2.begin(network, Phase2(), asked.seed)
    phase2.run(network, text, validation, settings, second, (contexts[0], contexts[1]), lambda *_: None)
    epochs = clock.lap()
    for _ in range(second.evaluations):
        phase2.evaluate(network, validation, contexts[1])
    checks = clock.lap()  # repeated to know their share of the epochs
    taken["epochs"] = (epochs[0] - checks[0], epochs[1] - checks[1])
    taken[f"{second.evaluations} evaluations"] = checks
    report(rows, passes, second, taken)


def report(rows: int, passes: list[phase1.Pass], second: phase2.State, taken: dict[str, tuple[float, float]]) -> None:
    """Print a Markdown table."""
    say("| step | CPU s | wall s | us per token | times its bound |\n| --- | --- | --- | --- | --- |")
    times = {"parallel passes": (len(passes), BOUND["pass"]), "epochs": (second.evaluations, BOUND["batch"])}
    for name, (cpu, wall) in taken.items():
        count, bound = times.get(name, (1, math.nan))
        each = cpu / rows / count
        above = "" if math.isnan(bound) else f"{each / bound:.2f}"
        say(f"| {f'{count} ' if count > 1 else ''}{name} | {cpu:.1f} | {wall:.1f} | {each * 1e6:.1f} | {above} |")
    cpu, wall = (sum(each) for each in zip(*taken.values(), strict=True))
    say(f"| **all** | {cpu:.1f} | {wall:.1f} | | |")
    cvfp, ppl, seconds = ORIGINAL.get(rows, (math.nan, math.nan, None))
    say(f"\nCVFP at pass 2 {passes[0].cvfp:.6f} (original {cvfp}), converged at the end {passes[-1].converged:.1%}")
    say(f"validation PPL {math.exp(second.best):.2f} at epoch {second.best_evaluation} (original {ppl})")
    if seconds:
        say(f"whole run: {seconds / cpu:.2f} times the original's {seconds:.0f} s per thread")
    say(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
