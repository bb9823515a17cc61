"""Contexts along a text: c_t = F(c_{t-1}, u_t) from c = 0, exactly, by a sequential scan or by parallel sweeps.

A sweep applies F to all tokens at once, each with the context that the sweep before gave its predecessor. After k
sweeps a token is exact as far as its last k tokens go. So for a block that forgets (a small perturbation shrinks from
token to token) tens to hundreds of sweeps reach float noise; a block that does not is noticed, and scanned.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stages.text.compiled import Kernels
from trainer.cvfp.model import NORM_EPS, ContextBlock, Network

LOOPS = Kernels(
    "trainer.cvfp.scan_kernel",
    {"scan": "f4* b1* i8** f4* f4* f4* f4* f4 f4** f4*"},
    fastmath=("reassoc", "contract"),
)
Floats = NDArray[np.float32]

ScanMethod = Literal["auto", "sequential", "sweeps"]

CHUNK = 4096
"""Tokens whose inputs are made at a time on a processor."""
CHUNK_DEVICE = 1 << 15
"""The same on an accelerator, where a sweep of few tokens takes as long as one of many."""
SWEEPS = 320
"""Sweeps of a chunk after which it is scanned instead; the block that house draws needs about 200."""
TOLERANCE = 1e-5
"""Largest change of any component in the last sweep, by default; contexts have components up to 5, whose float32 noise
after some layers is 4e-6."""
LOOK = 8
"""Sweeps between two looks at the change: a look waits for the device."""
PATIENCE = 32
"""Sweeps in which the change must have halved, else it is given up; the largest of many changes falls unevenly."""


@dataclass
class Report:
    """How contexts were computed: the methods used, the sweeps of the slowest chunk, the largest last change."""

    sequential: int = 0
    swept: int = 0
    sweeps: int = 0
    change: float = 0.0

    def said(self) -> str:
        """One phrase for the record."""
        if not self.swept:
            return "sequential scan"
        back = (
            f"; {self.sequential:,} tokens by sequential scan, where sweeps did not settle" if self.sequential else ""
        )
        return f"parallel sweeps ({self.sweeps} at most, last change {self.change:.1e}){back}"


@dataclass(frozen=True)
class Tape:
    """A stream of token ids on a device, and where contexts start anew.

    Attributes:
        ids: [N] int64.
        starts: sorted positions whose preceding context and token history are empty; position 0 is always one.
        wraps: whether phase 1 gives position 0 the last context of the pass before, as the original has it for its one
            stream without borders.
    """

    ids: Tensor
    starts: Tensor
    wraps: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def marks(self) -> Tensor:
        """[N] bool: which positions start anew. Made once, so that no loop waits for the device to look it up."""
        marks = torch.zeros(len(self), dtype=torch.bool, device=self.ids.device)
        marks[self.starts] = True
        return marks

    def fresh(self, a: int, b: int) -> Tensor:
        """[b - a] bool: which of positions a to b start anew."""
        return self.marks[a:b]

    def span(self, a: int, b: int) -> Tensor:
        """Positions a to b."""
        return torch.arange(a, b, device=self.ids.device)

    def age(self, positions: Tensor) -> Tensor:
        """[rows] int64: tokens between a position and the start that it belongs to."""
        return positions - self.starts[torch.searchsorted(self.starts, positions, right=True) - 1]


def inputs(network: Network, tape: Tape, positions: Tensor, embedding: nn.Embedding | None = None) -> Tensor:
    """u_t at these positions: [rows, nE], oldest token first; tokens before a start are zero vectors, not normed ones.

    Args:
        network: its embedding norm is used.
        tape: the tokens.
        positions: [rows] int64, in any order.
        embedding: another embedding than the context block's.
    """
    embedding = embedding or network.embedding
    n = network.shape.inputs
    if n == 1:
        return network.normed(embedding(tape.ids[positions]))
    age = tape.age(positions)
    columns = []
    for back in range(n - 1, -1, -1):
        e = network.normed(embedding(tape.ids[(positions - back).clamp(min=0)]))
        columns.append(e.masked_fill((age < back)[:, None], 0.0))
    return torch.cat(columns, dim=1)


def chunk(device: torch.device) -> int:
    """Tokens whose contexts are made at a time."""
    return CHUNK if device.type == "cpu" else CHUNK_DEVICE


class Scanner:
    """A context block, ready to be scanned along texts. Its weights are read once: make another when they change."""

    def __init__(self, network: Network, how: ScanMethod = "auto", tolerance: float = TOLERANCE) -> None:
        self.network, self.tolerance = network, tolerance
        device = next(network.parameters()).device
        self.sequential = how == "sequential" or (how == "auto" and device.type == "cpu")
        self.report = Report()
        self._packed: _Packed | None = None

    @torch.no_grad()
    def along(self, tape: Tape, first: Tensor | None = None) -> Iterator[tuple[int, int, list[Tensor]]]:
        """(a, b, L tensors [b - a, D_i]) for consecutive chunks of the text.

        Args:
            tape: the tokens.
            first: [C]; the context before the first token, instead of zero.
        """
        c = torch.zeros(self.network.shape.context, device=tape.ids.device) if first is None else first.clone()
        step = chunk(tape.ids.device)
        for a in range(0, len(tape), step):
            b = min(a + step, len(tape))
            fresh = tape.fresh(a, b)
            if first is not None and a == 0:
                fresh = fresh.clone()
                fresh[0] = False
            states = self.step(c, inputs(self.network, tape, tape.span(a, b)), fresh)
            c = states[-1][-1].clone()
            yield a, b, states

    @torch.no_grad()
    def step(self, c: Tensor, u: Tensor, fresh: Tensor) -> list[Tensor]:
        """Contexts of consecutive tokens: L tensors [rows, D_i], from the context c [C] before the first of them."""
        if not self.sequential:
            found = self._sweep(c, u, fresh)
            if found is not None:
                self.report.swept += len(u)
                return found
        self.report.sequential += len(u)
        return self._scan(c, u, fresh)

    def _sweep(self, c: Tensor, u: Tensor, fresh: Tensor) -> list[Tensor] | None:
        """Sweep until the largest change is within the tolerance; None where it does not get there."""
        first = torch.where(fresh[0], torch.zeros_like(c), c)
        last = c.new_zeros(len(u), self.network.shape.context)
        keep = (~fresh[1:, None]).to(c.dtype)
        changes: list[float] = []
        for sweep in range(1, SWEEPS + 1):
            states = self.network.context(torch.cat((first[None], last[:-1] * keep)), u)
            if sweep % LOOK == 0 or sweep >= len(u):
                change = float((states[-1] - last).abs().max())
                if change <= self.tolerance:
                    self.report.sweeps = max(self.report.sweeps, sweep)
                    self.report.change = max(self.report.change, change)
                    return list(states)
                changes.append(change)
                if sweep > PATIENCE and not change < changes[-1 - PATIENCE // LOOK] / 2:
                    return None
            last = states[-1]
        return None

    def _scan(self, c: Tensor, u: Tensor, fresh: Tensor) -> list[Tensor]:
        """Token by token, on the processor: an accelerator takes a millisecond a token, whatever its width."""
        if self._packed is None:
            self._packed = _pack(self.network.context)
        states = self._packed.scan(c.cpu(), u.cpu(), fresh.cpu())
        return [each.to(u.device) for each in states]


@dataclass(frozen=True)
class _Packed:
    """The weights of a context block as the compiled scan takes them: the arrays of all layers, one after the other."""

    token: list[tuple[Tensor | None, Tensor]]  # of each layer: the token part of its matrix, its bias
    shapes: NDArray[np.int64]
    weights: Floats
    residuals: Floats
    norms: Floats

    def scan(self, c: Tensor, u: Tensor, fresh: Tensor) -> list[Tensor]:
        given = [bias if part is None else torch.addmm(bias, u, part.T).flatten() for part, bias in self.token]
        sizes = [len(u) * len(bias) for _, bias in self.token]
        out = np.empty(sum(sizes), np.float32)
        scratch = np.empty((3, self.shapes[:, :2].max()), np.float32)
        weights = (torch.cat(given).numpy(), self.weights, self.residuals, self.norms)
        LOOPS.call("scan", c.clone().numpy(), fresh.numpy(), self.shapes, *weights, NORM_EPS, scratch, out)
        return [torch.from_numpy(each).view(len(u), -1) for each in np.split(out, np.cumsum(sizes)[:-1])]


@torch.no_grad()
def _pack(block: ContextBlock) -> _Packed:
    """Copies of the weights, on the processor."""
    token: list[tuple[Tensor | None, Tensor]] = []
    shapes, weights, residuals, norms = [], [], [], []
    for layer, takes in copy.deepcopy(block).cpu().stack():
        matrix, bias = layer.linear.weight, layer.linear.bias
        main = layer.residual.in_features if layer.residual is not None else len(bias)
        token.append((matrix[:, main:].contiguous() if takes else None, bias.detach().clone()))
        shapes.append((main, len(bias), takes, layer.residual is not None))
        weights.append(matrix[:, :main].T.flatten())
        if layer.residual is not None:
            residuals.append(torch.cat((layer.residual.weight.T, layer.residual.bias[None])).flatten())
        norms.append(torch.cat((layer.norm.weight, layer.norm.bias)))
    flat = (torch.cat([torch.empty(0), *each]).numpy() for each in (weights, residuals, norms))
    return _Packed(token, np.array(shapes, np.int64), *flat)
