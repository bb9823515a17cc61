"""Tokens per second of both phases on a device relative to its limits, and the loss compared with the CPU's.

    python -m tests.bench.gpu [--device cuda] [--width 768] [--layers 6] [--vocabulary 50257] [--compile]

The limits are measured: the rate of a large matrix product and of a large copy. A phase cannot be faster than its
multiply-adds at the first rate, nor than writing and reading its activations at the second. The same seed is trained on
the CPU on few tokens, without the noise of phase 1, which differs between devices, and the losses must agree within the
tolerance.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from trainer.cvfp.model import Network
from trainer.cvfp.settings import Shape
from trainer.experiment.training import Data, Training
from trainer.prepare.streams import Stream
from trainer.prepare.template import TEXT
from trainer.presets import PRESETS, Preset

Precision = Literal["float32", "bfloat16"]
TOLERANCE: dict[Precision, float] = {"float32": 0.005, "bfloat16": 0.02}
"""Maximum difference of the loss between the device and the CPU, in nats."""


def say(line: str) -> None:
    """Print a line of the table."""
    sys.stdout.write(line + "\n")


def seconds(device: str, work: Callable[[], object], times: int = 5) -> float:
    """The best of some runs, including the wait for the device."""

    def wait() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    work()
    found = []
    for _ in range(times):
        wait()
        begun = time.perf_counter()
        work()
        wait()
        found.append(time.perf_counter() - begun)
    return min(found)


def limits(device: str, dtype: torch.dtype) -> tuple[float, float]:
    """Multiply-adds per second of a large product, and bytes per second of a large copy."""
    side = 8192 if device.startswith("cuda") else 2048
    a = torch.randn(side, side, device=device, dtype=dtype)
    big = torch.empty(1 << (28 if device.startswith("cuda") else 24), device=device)
    copied = torch.empty_like(big)
    return side**3 / seconds(device, lambda: a @ a), 2 * 4 * len(big) / seconds(device, lambda: copied.copy_(big))


def text(tokens: int, vocabulary: int, seed: int) -> Stream:
    """Ids with Zipf's frequencies, in which half of the tokens determine the next one."""
    generator = np.random.default_rng(seed)
    ids = np.minimum(generator.zipf(1.2, tokens), vocabulary - 1).astype(np.int32)
    ids[1::2] = (ids[::2][: len(ids[1::2])] * 7 + 1) % vocabulary
    starts = np.arange(0, tokens, 500)
    said, widths = np.full(len(ids), TEXT, np.uint8), np.ones(vocabulary, np.int32)
    return Stream(ids, starts, np.zeros(len(starts), np.int64), widths, said, 0, separated=False)


def bound(shape: Shape, rates: list[tuple[float, float]]) -> list[float]:
    """Maximum tokens per second of a parallel pass and of phase 2's batches, at these rates.

    Forward and backward take three products per weight, two for a frozen head. A layer's input, sum and output are
    written and read in both directions; the logits of a token are written and read twice.
    """
    with torch.device("meta"):
        counts = Network(shape, None).parameter_counts()
    head = shape.vocabulary * shape.embedding
    products = [3 * counts["context_block"], 3 * counts["token_block"] + (2 if shape.tied else 3) * head]
    widths = [3 * sum(shape.context_widths[1:]), 3 * sum(shape.token_widths[1:]) + shape.vocabulary]
    pairs = zip(products, widths, rates, strict=True)
    return [min(fast / product, wide / (4 * 4 * width)) for product, width, (fast, wide) in pairs]


def train(preset: Preset, data: Data, device: str, *, compiled: bool) -> tuple[dict[int, float], float]:
    """Tokens per second of each phase's fastest pass, including its checks, and the test loss."""
    times: dict[int, list[float]] = {1: [], 2: []}

    def tell(line: dict[str, Any]) -> None:
        if "converged" in line or "evaluation" in line:
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            times[line["phase"]].append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        run = Training(preset, data, 0, Path(folder), identity="gpu", device=device, tell=tell)
        if compiled:
            run.network.context.compile()
            run.network.token.compile()
        record = run.run()
    return {phase: data.train.tokens / float(np.diff(at).min()) for phase, at in times.items()}, float(record["nats"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=4096, help="tokens per step")
    parser.add_argument("--compare", type=int, default=2_000, help="tokens of the comparison with the CPU")
    parser.add_argument("--compile", action="store_true", help="add a row with torch.compile")
    asked = parser.parse_args()
    if asked.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("torch finds no GPU: install a build of torch for it, or take another --device")
    shape = Shape(asked.vocabulary, asked.width, asked.width, asked.layers, 2, weight_std=0.05)
    base = replace(
        PRESETS["house"],
        shape=shape,
        phase1=replace(PRESETS["house"].phase1, passes=6, share=1.1),
        phase2=replace(PRESETS["house"].phase2, steps=0, epochs=3, evaluations=3, batch=asked.batch),
    )
    little = replace(base, phase1=replace(base.phase1, noise=0.0), phase2=replace(base.phase2, batch=256))
    table = np.random.default_rng(0).normal(0, 0.14, (asked.vocabulary, asked.width)).astype(np.float32)
    held = text(asked.compare, asked.vocabulary, 1)
    large = Data(text(asked.tokens, asked.vocabulary, 0), held, held, table)
    small = Data(text(asked.compare, asked.vocabulary, 0), held, held, table)
    here = train(little, small, "cpu", compiled=False)[1]
    first = limits(asked.device, torch.float32)
    say(f"{torch.__version__}, {torch.cuda.get_device_name() if asked.device.startswith('cuda') else asked.device}")
    say(f"limits: {first[0] / 1e12:.2f} T multiply-adds/s in float32, {first[1] / 1e9:,.0f} GB/s copied")
    say(f"loss on the CPU: {here:.4f} nats after {asked.compare:,} tokens\n")
    say("| precision | phase 1 tokens/s | of its limit | phase 2 tokens/s | of its limit | loss against the CPU |")
    say("| --- | --- | --- | --- | --- | --- |")
    failed = False
    rows: list[tuple[Precision, bool]] = [("float32", False), ("bfloat16", False), ("bfloat16", True)]
    for precision, compiled in rows[: 2 + asked.compile]:
        tolerance = TOLERANCE[precision]
        fast, same = (replace(one, phase2=replace(one.phase2, precision=precision)) for one in (base, little))
        rates, _ = train(fast, large, asked.device, compiled=compiled)
        there = train(same, small, asked.device, compiled=compiled)[1]
        ideal = bound(shape, [first, limits(asked.device, getattr(torch, precision))])
        off = abs(there - here)
        failed |= not off <= tolerance or not math.isfinite(off)
        say(
            f"| {precision}{', compiled' if compiled else ''} | {rates[1]:,.0f} | "
            f"{rates[1] / ideal[0]:.0%} | {rates[2]:,.0f} | {rates[2] / ideal[1]:.0%} | "
            f"{off:.4f} nats, {tolerance} allowed |"
        )
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
