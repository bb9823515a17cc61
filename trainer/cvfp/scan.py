"""Contexts along a text: c_t = F(c_{t-1}, u_t) from c = 0, by a sequential scan or by parallel sweeps.

A sweep applies F to all tokens at once, each with its predecessor's context from the sweep before. After k sweeps a
context is exact with respect to the last k tokens. If the block is contractive (a small perturbation shrinks from token
to token), tens to hundreds of sweeps reach float32 noise; otherwise the text is scanned.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from stages.text.compiled import Kernels
from trainer.cvfp.model import NORM_EPS, ContextBlock, Layer, Network

LOOPS = Kernels(
    "trainer.cvfp.scan_kernel",
    {"scan": "f4* b1* i8** f4* f4* f4* f4* f4 f4** f4*"},
    fastmath=("reassoc", "contract"),
)
ScanMethod = Literal["auto", "sequential", "sweeps"]

CHUNK_CPU = 4096
"""Tokens per chunk on a CPU."""
CHUNK_DEVICE = 1 << 15
"""Tokens per chunk on an accelerator, where a sweep of few tokens takes as long as one of many."""
MAX_SWEEPS = 320
"""Sweeps of a chunk after which it is scanned instead; the initial block of `house` needs about 200."""
TOLERANCE = 1e-5
"""Maximum change of any component in the last sweep. Components reach 5, and their float32 noise 4e-6."""
CHECK_INTERVAL = 8
"""Sweeps between two checks of the change, each of which waits for the device."""
HALVING_SWEEPS = 32
"""Sweeps within which the change must halve, or sweeping is given up."""
MAX_BYTES_IN_MEMORY = 1 << 28
"""Maximum size of the contexts of a stream in memory, in bytes. The system can reclaim the pages of a mapped file."""


@dataclass
class ScanReport:
    """Record of a scan: tokens per method, sweeps of the slowest chunk, largest change in a last sweep."""

    sequential: int = 0
    swept: int = 0
    sweeps: int = 0
    change: float = 0.0

    def describe(self) -> str:
        """The report as one phrase."""
        if not self.swept:
            return "sequential scan"
        rest = f"; {self.sequential:,} tokens by sequential scan, because sweeps did not converge"
        sweeps = f"parallel sweeps (at most {self.sweeps}, last change {self.change:.1e})"
        return sweeps + (rest if self.sequential else "")


@dataclass(frozen=True)
class Tape:
    """A stream of token ids [N] on a device, and the ascending positions where contexts restart; the first is 0.

    `learned`, bool [N], are the ids that are trained on when they are targets; None for all. If the tape `wraps`, phase
    1 gives position 0 the last context of the pass before, as the original code does.
    """

    ids: Tensor
    starts: Tensor
    wraps: bool = False
    learned: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def marks(self) -> Tensor:
        """Bool [N]: which positions are starts. Computed once, because a look-up would wait for the device."""
        marks = torch.zeros(len(self), dtype=torch.bool, device=self.ids.device)
        marks[self.starts] = True
        return marks

    def span(self, a: int, b: int) -> Tensor:
        """The positions a to b, int64 [b - a]."""
        return torch.arange(a, b, device=self.ids.device)

    def trained(self, positions: Tensor) -> Tensor:
        """Those of some positions, int64 [rows], whose targets are trained on."""
        return positions if self.learned is None else positions[self.learned[positions + 1]]

    def age(self, positions: Tensor) -> Tensor:
        """Distance of each position from the last start, int64 [rows]."""
        return positions - self.starts[torch.searchsorted(self.starts, positions, right=True) - 1]


def inputs(network: Network, tape: Tape, positions: Tensor, embedding: nn.Embedding | None = None) -> Tensor:
    """u_t [rows, nE] at these positions, int64 [rows] in any order, oldest token first.

    Tokens before a start are zero vectors. The default embedding is the context block's.
    """
    embedding = embedding or network.embedding
    n = network.shape.inputs
    if n == 1:
        return network.normalise(embedding(tape.ids[positions]))
    age = tape.age(positions)
    columns = []
    for back in range(n - 1, -1, -1):
        e = network.normalise(embedding(tape.ids[(positions - back).clamp(min=0)]))
        columns.append(e.masked_fill((age < back)[:, None], 0.0))
    return torch.cat(columns, dim=1)


def chunks(tape: Tape) -> Iterator[tuple[int, int]]:
    """First and last + 1 position of consecutive chunks of a text."""
    step = CHUNK_CPU if tape.ids.device.type == "cpu" else CHUNK_DEVICE
    for a in range(0, len(tape), step):
        yield a, min(a + step, len(tape))


class Scanner:
    """Computes contexts along texts. It reads the weights once, so make a new scanner after they change.

    The default method is the sequential scan on a CPU and sweeps elsewhere.
    """

    def __init__(self, network: Network, how: ScanMethod = "auto") -> None:
        self.network = network
        device = next(network.parameters()).device
        self.sequential = how == "sequential" or (how == "auto" and device.type == "cpu")
        self.report = ScanReport()

    @torch.no_grad()
    def along(self, tape: Tape, first: Tensor | None = None) -> Iterator[tuple[int, int, list[Tensor]]]:
        """(a, b, L tensors [b - a, D_i]) for consecutive chunks of a text, from the context `first` [C], or zero."""
        c = torch.zeros(self.network.shape.context, device=tape.ids.device) if first is None else first.clone()
        for a, b in chunks(tape):
            fresh = tape.marks[a:b]
            if first is not None and a == 0:
                fresh = fresh.clone()
                fresh[0] = False
            states = self.step(c, inputs(self.network, tape, tape.span(a, b)), fresh)
            c = states[-1][-1].clone()
            yield a, b, states

    @torch.no_grad()
    def step(self, c: Tensor, u: Tensor, fresh: Tensor) -> list[Tensor]:
        """Contexts of consecutive tokens, L tensors [rows, D_i], from the context c [C] before them."""
        if not self.sequential:
            states = self._sweep(c, u, fresh)
            if states is not None:
                self.report.swept += len(u)
                return states
        self.report.sequential += len(u)
        contexts = self._compiled.scan(c.cpu(), u.cpu(), fresh.cpu())  # an accelerator takes a millisecond per token
        return [each.to(u.device) for each in contexts]

    @cached_property
    def _compiled(self) -> _CompiledScan:
        return _CompiledScan(self.network.context)

    def _sweep(self, c: Tensor, u: Tensor, fresh: Tensor) -> list[Tensor] | None:
        """Sweep until the largest change is within the tolerance; None if that fails."""
        first = torch.where(fresh[0], torch.zeros_like(c), c)
        last = c.new_zeros(len(u), self.network.shape.context)
        keep = (~fresh[1:, None]).to(c.dtype)
        changes: list[float] = []
        for sweep in range(1, MAX_SWEEPS + 1):
            states = self.network.context(torch.cat((first[None], last[:-1] * keep)), u)
            if sweep % CHECK_INTERVAL == 0 or sweep >= len(u):
                change = float((states[-1] - last).abs().max())
                if change <= TOLERANCE:
                    self.report.sweeps = max(self.report.sweeps, sweep)
                    self.report.change = max(self.report.change, change)
                    return list(states)
                changes.append(change)
                if sweep > HALVING_SWEEPS and not change < changes[-1 - HALVING_SWEEPS // CHECK_INTERVAL] / 2:
                    return None
            last = states[-1]
        return None


class _CompiledScan:
    """The weights of a context block as the compiled scan takes them: the arrays of all layers, one after the other."""

    @torch.no_grad()
    def __init__(self, block: ContextBlock) -> None:
        self.token: list[tuple[Tensor | None, Tensor]] = []  # of each layer: the token part of its matrix, its bias
        shapes, weights, residuals, norms = [], [torch.empty(0)], [torch.empty(0)], [torch.empty(0)]
        for layer in copy.deepcopy(block).cpu().layers:
            assert isinstance(layer, Layer)  # noqa: S101  a ModuleList forgets the type
            matrix, bias = layer.linear.weight, layer.linear.bias
            main = layer.residual.in_features if layer.residual is not None else len(bias)
            self.token.append((matrix[:, main:].contiguous() if layer.other else None, bias.detach().clone()))
            shapes.append((main, len(bias), layer.other > 0, layer.residual is not None))
            weights.append(matrix[:, :main].T.flatten())
            if layer.residual is not None:
                residuals.append(torch.cat((layer.residual.weight.T, layer.residual.bias[None])).flatten())
            norms.append(torch.cat((layer.norm.weight, layer.norm.bias)))
        self.shapes = np.array(shapes, np.int64)
        self.weights = [torch.cat(each).numpy() for each in (weights, residuals, norms)]

    def scan(self, c: Tensor, u: Tensor, fresh: Tensor) -> list[Tensor]:
        """Contexts of consecutive tokens on the CPU, token by token; see `Scanner.step`."""
        given = [bias if part is None else torch.addmm(bias, u, part.T).flatten() for part, bias in self.token]
        sizes = [len(u) * len(bias) for _, bias in self.token]
        out = np.empty(sum(sizes), np.float32)
        scratch = np.empty((3, self.shapes[:, :2].max()), np.float32)
        weights = (torch.cat(given).numpy(), *self.weights)
        LOOPS.call("scan", c.clone().numpy(), fresh.numpy(), self.shapes, *weights, NORM_EPS, scratch, out)
        return [torch.from_numpy(each).view(len(u), -1) for each in np.split(out, np.cumsum(sizes)[:-1])]


def room(rows: int, width: int, device: torch.device, path: Path, limit: int = MAX_BYTES_IN_MEMORY) -> Tensor:
    """An uninitialised float32 [rows, width]; on a CPU and above `limit` bytes it is mapped from a new file."""
    if device.type != "cpu" or 4 * rows * width <= limit:
        return torch.empty(rows, width, device=device)
    path.parent.mkdir(parents=True, exist_ok=True)
    return torch.from_file(str(path), shared=True, size=rows * width).view(rows, width)


@dataclass(frozen=True)
class Contexts:
    """c^1 ... c^L of every token of a stream."""

    layers: list[Tensor]
    """L float32 tensors [N, D_i]."""
    report: ScanReport

    @classmethod
    def of(cls, network: Network, tape: Tape, folder: Path, limit: int = MAX_BYTES_IN_MEMORY) -> Self:
        """Scan a stream. Above `limit` bytes the layers are files in the folder, which the caller removes."""
        widths = network.shape.context_widths[1:]
        each = limit // len(widths)
        layers = [
            room(len(tape), width, tape.ids.device, folder / f"{i}.contexts", each) for i, width in enumerate(widths)
        ]
        scanner = Scanner(network)
        for a, b, states in scanner.along(tape):
            for layer, state in zip(layers, states, strict=True):
                layer[a:b] = state
        return cls(layers, scanner.report)

    def at(self, positions: Tensor | slice) -> list[Tensor]:
        """The contexts of some tokens: L tensors [rows, D_i]."""
        return [layer[positions] for layer in self.layers]
