"""The contexts of a whole stream, made once and kept: in memory, or in files where they are large."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainer.cvfp.model import Network
from trainer.cvfp.scan import Report, ScanMethod, Scanner, Tape, chunk

LARGE = 1 << 28
"""Bytes of contexts past which they lie in files, whose pages the system can take back."""


def room(rows: int, width: int, device: torch.device, path: Path, large: int = LARGE) -> Tensor:
    """An uninitialised [rows, width], float32: in memory, or past `large` bytes and on a processor in a file."""
    if device.type != "cpu" or 4 * rows * width <= large:
        return torch.empty(rows, width, device=device)
    path.parent.mkdir(parents=True, exist_ok=True)
    return torch.from_file(str(path), shared=True, size=rows * width).view(rows, width)


@dataclass(frozen=True)
class Contexts:
    """c^1 ... c^L of every token of a stream.

    Attributes:
        layers: L tensors [N, D_i], float32.
        report: how they were computed.
    """

    layers: list[Tensor]
    report: Report

    @classmethod
    def of(cls, network: Network, tape: Tape, folder: Path, how: ScanMethod = "auto", large: int = LARGE) -> Contexts:
        """Scan a stream.

        Args:
            network: its context block, embedding and norm as they are now.
            tape: the stream.
            folder: where files go, if contexts are larger than `large`; whoever owns the folder removes it.
            how: see `Scanner`.
            large: bytes, of all layers, past which contexts lie in files.
        """
        widths = network.shape.context_widths[1:]
        each = large // len(widths)
        layers = [
            room(len(tape), width, tape.ids.device, folder / f"{i}.contexts", each) for i, width in enumerate(widths)
        ]
        scanner = Scanner(network, how)
        for a, b, states in scanner.along(tape):
            for layer, state in zip(layers, states, strict=True):
                layer[a:b] = state
        return cls(layers, scanner.report)

    def rows(self, a: int, b: int) -> list[Tensor]:
        """Of tokens a to b: L tensors [b - a, D_i]."""
        return [layer[a:b] for layer in self.layers]

    def picked(self, positions: Tensor) -> list[Tensor]:
        """Of these tokens: L tensors [rows, D_i]."""
        return [layer[positions] for layer in self.layers]

    def chunks(self) -> Iterator[tuple[int, int, list[Tensor]]]:
        """(a, b, states) for consecutive chunks of the stream."""
        step = chunk(self.layers[0].device)
        for a in range(0, len(self.layers[0]), step):
            b = min(a + step, len(self.layers[0]))
            yield a, b, self.rows(a, b)
