"""Cross-entropy over a large vocabulary without keeping the logits: made, used for loss and gradient, and overwritten.

The logits of some rows at a time stay in the processor's cache; the gradient to z (and to the head, where that is
trained) is taken while they are there. Nothing V-wide outlives a slice, and a frozen head costs no gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SLICE = 1 << 20
"""Logits that are held at a time on a processor: 4 MB; more is not faster."""
SLICE_DEVICE = 1 << 27
"""The same on an accelerator."""


def slice_rows(vocabulary: int, device: torch.device) -> int:
    """Rows whose logits are made at a time."""
    return max((SLICE if device.type == "cpu" else SLICE_DEVICE) // vocabulary, 16)


def _logits(z: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """Logits [rows, V], in the first rows of `out` where that has their type."""
    room = out[: len(z)] if out.dtype == z.dtype else None
    return torch.mm(z, weight.T, out=room) if bias is None else torch.addmm(bias, z, weight.T, out=room)


def _picked(logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The largest logit of each row [rows], and that of its wanted id [rows]."""
    return logits.amax(dim=1), logits.gather(1, wanted)[:, 0]


def _nats(logits: Tensor, top: Tensor, picked: Tensor) -> Tensor:
    """Nats of the wanted ids [rows]; the logits become their softmax, so that one slice lies in the cache and not two.

    The largest chance is 1 / sum exp(logit - largest logit), so that nats are exact where a chance is 0 in float32.
    """
    torch.softmax(logits, dim=1, out=logits)  # row by row, so that it may write where it reads
    return top - picked - logits.amax(dim=1).log()


class _CrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of rows; gradients are made in the forward pass."""

    @staticmethod
    def forward(  # noqa: PLR0917  what autograd passes
        ctx: Any,  # noqa: ANN401
        z: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        trained = weight.requires_grad
        dz = torch.empty_like(z)
        dweight = torch.zeros_like(weight) if trained else None
        dbias = torch.zeros_like(bias) if trained and bias is not None else None
        low = weight.to(dtype)
        total = z.new_zeros((), dtype=torch.float64)
        step = slice_rows(len(weight), z.device)
        made = z.new_empty(min(step, len(z)), len(weight))
        for a in range(0, len(z), step):
            part, wanted = z[a : a + step], targets[a : a + step, None]
            chances = _logits(part.to(dtype), low, None if bias is None else bias.to(dtype), made).to(z.dtype)
            total += _nats(chances, *_picked(chances, wanted)).sum()
            chances.scatter_add_(1, wanted, chances.new_full((1, 1), -1.0).expand(len(part), 1))
            if dtype == z.dtype:
                torch.mm(chances, low, out=dz[a : a + step])
            else:
                dz[a : a + step] = chances.to(dtype) @ low
            if dweight is not None and dtype == z.dtype:
                dweight.addmm_(chances.T, part)
            elif dweight is not None:
                dweight += chances.T.to(dtype) @ part.to(dtype)
            if dbias is not None:
                dbias += chances.sum(dim=0)
        ctx.save_for_backward(dz, dweight, dbias)
        ctx.rows = len(z)
        return (total / len(z)).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        dz, dweight, dbias = ctx.saved_tensors
        scale = grads[0] / ctx.rows
        return (
            dz * scale,
            None if dweight is None else dweight * scale,
            None if dbias is None else dbias * scale,
            None,
            None,
        )


def cross_entropy(
    z: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Mean of -ln softmax(z W^T + b)[target] over rows.

    Args:
        z: [rows, E].
        weight: [V, E]; gets a gradient where it requires one.
        bias: [V], or None; trained together with the weight, or not at all.
        targets: [rows] int64.
        dtype: of the products; softmax, loss and sums are float32 in any case.
    """
    found: Tensor = _CrossEntropy.apply(z, weight, bias, targets, dtype)  # type: ignore[no-untyped-call]
    return found


@torch.no_grad()
def score(z: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row: -ln softmax(z W^T + b)[target] in nats (float32), and whether the target has the largest logit."""
    nats, right = z.new_empty(len(z)), torch.empty(len(z), dtype=torch.bool, device=z.device)
    step = slice_rows(len(weight), z.device)
    made = z.new_empty(min(step, len(z)), len(weight))
    for a in range(0, len(z), step):
        rows = slice(a, a + step)
        logits = _logits(z[rows], weight, bias, made)
        top, picked = _picked(logits, targets[rows, None])
        hit = picked == top
        first = logits[hit].argmax(dim=1) == targets[rows][hit]  # of equal logits the first
        right[rows] = hit.index_put((hit,), first)
        nats[rows] = _nats(logits, top, picked)
    return nats, right
