"""Cross-entropy over a large vocabulary without keeping the logits: made, used for loss and gradient, and overwritten.

Logits are made tile by tile, some hundred rows times a part of the vocabulary, so that a tile and the part of the
matrix that it needs stay in a core's own cache while its normaliser and its share of the gradient are taken (a running
normaliser: Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"). Nothing V-wide outlives some
rows, and a frozen head costs no gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

ROWS = 512
"""Rows of a tile on a processor."""
TILE = 1024
"""Logits of a row in a tile there: with all rows 2 MB, and half a megabyte of the matrix where E is 128."""
KEPT = 1 << 23
"""Logits of all rows that are held at a time there where the head is trained: 32 MB."""
KEPT_DEVICE = 1 << 27
"""The same on an accelerator, trained or not: a tile holds all logits of its rows."""

Tile = tuple[int, int, Tensor]
"""a, b, and the logits of ids a to b [rows, b - a], float32."""


def _shape(vocabulary: int, device: torch.device) -> tuple[int, int]:
    """Rows and columns of a tile."""
    if device.type == "cpu":
        return min(max(KEPT // vocabulary, 64), ROWS), min(TILE, vocabulary)
    return max(KEPT_DEVICE // vocabulary, 16), vocabulary


def _room(z: Tensor, vocabulary: int, *, kept: bool) -> Tensor:
    """Where the logits of a tile, or of all tiles of some rows, are made."""
    rows, columns = _shape(vocabulary, z.device)
    return torch.empty(min(rows, len(z)) * (vocabulary if kept else columns), device=z.device)


def _tiles(z: Tensor, weight: Tensor, bias: Tensor | None, room: Tensor, *, kept: bool) -> Iterator[Tile]:
    """The tiles of some rows, to be overwritten; each takes the place of the one before, unless they are kept."""
    columns = _shape(len(weight), z.device)[1]
    for a in range(0, len(weight), columns):
        b = min(a + columns, len(weight))
        at = len(z) * a if kept else 0
        made = room[at : at + len(z) * (b - a)].view(len(z), b - a)
        out = made if made.dtype == z.dtype else None
        part = weight[a:b].T
        logits = torch.mm(z, part, out=out) if bias is None else torch.addmm(bias[a:b], z, part, out=out)
        yield a, b, made if out is not None else made.copy_(logits)


def _own(wanted: Tensor, a: int, b: int) -> tuple[Tensor, Tensor]:
    """Whether the wanted id of a row is one of a tile's [rows], and its column there [rows, 1], any where it is not."""
    return (wanted >= a) & (wanted < b), (wanted - a).clamp(0, b - a - 1)[:, None]


def _normaliser(logits: Tensor, top: Tensor) -> Tensor:
    """The ln of the sum of exp of each row [rows]; the logits become their softmax: one tile in the cache and not two.

    The largest chance is 1 / sum exp(logit - largest logit), so that nats are exact where a chance is 0 in float32.

    Args:
        logits: [rows, T].
        top: [rows], the largest of each row.
    """
    torch.softmax(logits, dim=1, out=logits)  # row by row, so that it may write where it reads
    return top - logits.amax(dim=1).log()


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
        dz = torch.zeros_like(z)
        dweight = torch.zeros_like(weight) if trained else None
        dbias = torch.zeros_like(bias) if trained and bias is not None else None
        low, low_bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        room = _room(z, len(weight), kept=trained)
        total = z.new_zeros((), dtype=torch.float64)
        step = _shape(len(weight), z.device)[0]
        for a in range(0, len(z), step):
            part, wanted, out = z[a : a + step], targets[a : a + step], dz[a : a + step]
            tiles = _tiles(part.to(dtype), low, low_bias, room, kept=trained)
            if dweight is None:
                nats = _frozen(tiles, part.to(dtype), low, low_bias, wanted, out)
            else:
                nats, slopes = _slopes(tiles, wanted)
                for first, last, slope in slopes:
                    _add(out, slope, low[first:last])
                    _add(dweight[first:last], slope.T, part.to(dtype))
                    if dbias is not None:
                        dbias[first:last] += slope.sum(dim=0)
            total += nats.sum()
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


def _add(out: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a b to `out`; the product is made in the type of b."""
    if out.dtype == b.dtype:
        out.addmm_(a, b)
    else:
        out += a.to(b.dtype) @ b


def _frozen(  # noqa: PLR0917  tiles, and what they are of
    tiles: Iterator[Tile], z: Tensor, weight: Tensor, bias: Tensor | None, wanted: Tensor, dz: Tensor
) -> Tensor:
    """Nats of the wanted ids [rows]; the gradient of their sum to z is added to dz, which holds zeros.

    A tile's share is taken at once, by the normaliser so far, and mended where the next tile changes that.
    """
    norm = dz.new_full((len(dz),), -torch.inf)
    for a, b, logits in tiles:
        own = _normaliser(logits, logits.amax(dim=1))
        both = torch.logaddexp(norm, own)
        dz.mul_((norm - both).exp_()[:, None])
        dz.addcmul_(logits.to(z.dtype) @ weight[a:b], (own - both).exp_()[:, None])
        norm = both
    rows = weight[wanted].to(dz.dtype)
    dz.sub_(rows)
    norm -= (z * rows).sum(dim=1)
    return norm if bias is None else norm - bias[wanted]


def _slopes(tiles: Iterator[Tile], wanted: Tensor) -> tuple[Tensor, Iterator[Tile]]:
    """Nats of the wanted ids [rows], and the gradient of their sum to the logits, tile by tile and in their place."""
    nats, norm = torch.zeros(()), torch.zeros(())
    kept: list[tuple[int, int, Tensor, Tensor, Tensor, Tensor]] = []
    for a, b, logits in tiles:
        inside, at = _own(wanted, a, b)
        picked = logits.gather(1, at)[:, 0].masked_fill_(~inside, 0.0)
        own = _normaliser(logits, logits.amax(dim=1))
        norm, nats = (torch.logaddexp(norm, own), nats - picked) if kept else (own, -picked)
        kept.append((a, b, logits, own, inside, at))

    def slopes() -> Iterator[Tile]:
        for a, b, chances, own, inside, at in kept:
            if len(kept) > 1:
                chances.mul_((own - norm).exp_()[:, None])
            yield a, b, chances.scatter_add_(1, at, -inside.to(chances.dtype)[:, None])

    return nats + norm, slopes()


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
    """Of each row: -ln softmax(z W^T + b)[target] in nats (float32), and whether the target has the largest logit.

    Of equal logits the first is the largest.
    """
    nats, right = z.new_empty(len(z)), torch.empty(len(z), dtype=torch.bool, device=z.device)
    room = _room(z, len(weight), kept=False)
    step = _shape(len(weight), z.device)[0]
    for start in range(0, len(z), step):
        rows = slice(start, start + step)
        wanted = targets[rows]
        picked, norm, best = (z.new_full((len(wanted),), -torch.inf) for _ in range(3))
        hit = torch.zeros_like(wanted, dtype=torch.bool)
        for a, b, logits in _tiles(z[rows], weight, bias, room, kept=False):
            inside, at = _own(wanted, a, b)
            picked = torch.where(inside, logits.gather(1, at)[:, 0], picked)
            top = logits.amax(dim=1)
            lead = inside & (picked == top) & (top > best)
            if z.device.type == "cpu":
                lead = lead.index_put((lead,), logits[lead].argmax(dim=1) == at[lead, 0])
            else:  # choosing rows would wait for the device
                lead &= logits.argmax(dim=1) == at[:, 0]
            hit = torch.where(inside, lead, hit & (picked >= top))
            best = torch.maximum(best, top)
            norm = torch.logaddexp(norm, _normaliser(logits, top))
        nats[rows], right[rows] = norm - picked, hit
    return nats, right
