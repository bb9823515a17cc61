"""The contexts of a whole stream, computed once and kept in memory or, if they are large, in files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainer.cvfp.model import Network
from trainer.cvfp.scan import ScanMethod, Scanner, ScanReport, Tape, chunk

MAX_BYTES_IN_MEMORY = 1 << 28
"""Maximum size of the contexts of a stream in memory, in bytes. The system can reclaim the pages of a mapped file."""


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
    def of(
        cls,
        network: Network,
        tape: Tape,
        folder: Path,
        how: ScanMethod = "auto",
        limit: int = MAX_BYTES_IN_MEMORY,
    ) -> Contexts:
        """Scan a stream. Above `limit` bytes the layers are files in the folder, which the caller removes."""
        widths = network.shape.context_widths[1:]
        each = limit // len(widths)
        layers = [
            room(len(tape), width, tape.ids.device, folder / f"{i}.contexts", each) for i, width in enumerate(widths)
        ]
        scanner = Scanner(network, how)
        for a, b, states in scanner.along(tape):
            for layer, state in zip(layers, states, strict=True):
                layer[a:b] = state
        return cls(layers, scanner.report)

    def rows(self, a: int, b: int) -> list[Tensor]:
        """The contexts of tokens a to b: L tensors [b - a, D_i]."""
        return [layer[a:b] for layer in self.layers]

    def at(self, positions: Tensor) -> list[Tensor]:
        """The contexts of these tokens: L tensors [rows, D_i]."""
        return [layer[positions] for layer in self.layers]

    def chunks(self) -> Iterator[tuple[int, int, list[Tensor]]]:
        """(a, b, `rows(a, b)`) for consecutive chunks of the stream."""
        step = chunk(self.layers[0].device)
        for a in range(0, len(self.layers[0]), step):
            b = min(a + step, len(self.layers[0]))
            yield a, b, self.rows(a, b)
