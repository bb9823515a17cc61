"""The scan of Mamba-1 beside that of transformers: `python -m tests.bench.mamba_scan`.

CPU seconds of one thread, the least of five, alternating: the scan alone, and a `MambaForCausalLM` with 8 layers.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module

import torch
from torch import Tensor

from pipeline.terminal import say
from trainer.causal import quiet
from trainer.distill import scan

RUNS = 5
BATCH, LENGTH, STATE = 4, 128, 16


def least(losses: dict[str, Callable[[], Tensor]]) -> str:
    """The least CPU seconds of forward and backward passes, and how many times as fast the second is."""
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in losses}
    for _ in range(RUNS):
        for name, loss in losses.items():
            began = time.process_time()
            found = loss()
            middle = time.process_time()
            found.backward()  # type: ignore[no-untyped-call]
            spent[name].append((middle - began, time.process_time() - middle))
    (a, b), (c, d) = (min(one, key=sum) for one in spent.values())
    return f"forward {a:.3f} and {c:.3f} CPU s, backward {b:.3f} and {d:.3f}: {b / d:.1f} times as fast"


def scans(width: int) -> str:
    """The scan alone."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((BATCH, width, LENGTH), (BATCH, width, LENGTH), (BATCH, STATE, LENGTH), (BATCH, STATE, LENGTH))
    x, dt, b, c = (torch.randn(shape, generator=generator).requires_grad_() for shape in shapes)
    a = (-16 * torch.rand(width, STATE, generator=generator)).requires_grad_()
    theirs = import_module(scan.MODULE).mamba_selective_scan
    every = {"transformers": theirs, "refine": scan.selective_scan}
    return least(
        {name: partial(lambda f: f(x, dt, a, b, c, delta_softplus=True).sum(), f) for name, f in every.items()}
    )


def models(width: int) -> str:
    """A whole model."""
    library = import_module("transformers")
    settings = {"vocab_size": 1024, "num_hidden_layers": 8, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    torch.manual_seed(0)
    model = library.MambaForCausalLM(library.MambaConfig(hidden_size=width, **settings)).train()
    ids = torch.randint(0, 1024, (BATCH, LENGTH))

    def loss(place: contextlib.AbstractContextManager[None]) -> Tensor:
        with place:
            found: Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
        return found

    size = sum(p.numel() for p in model.parameters()) / 1e6
    with quiet():
        both = least(
            {"transformers": lambda: loss(contextlib.nullcontext()), "refine": lambda: loss(scan.linear_time())}
        )
    return f"a model of {size:.1f} M parameters: {both}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    for width in (64, 256):
        say(f"{BATCH} x {LENGTH} tokens, the scan at width {2 * width}: {scans(2 * width)}")
        say(f"{BATCH} x {LENGTH} tokens, {models(width)}")
