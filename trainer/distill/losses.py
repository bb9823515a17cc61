"""What a student is trained to minimise in each stage, as a mean over the tokens of a batch.

    1  matrices   mean over texts and heads of |M - attention|_F, summed over layers
    2  hidden     |site(x) - teacher(x)|^2 / |teacher(x)|^2 for the teacher's inputs x, mean over layers
    3  logits     alpha T^2 KL(softmax(z_T / T) || softmax(z / T)) + (1 - alpha) CE
                  + weight * |h - h_T|^2 / |h_T|^2 after each layer, mean over layers

A relative error of 1 is no better than zero, and layers count alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.causal import CausalModel
from trainer.distill import mixing
from trainer.distill.initial import Tap
from trainer.distill.student import Site, Student, first

IGNORED = -100
"""Target of padding."""
TILE = 1 << 17
"""Logits of some rows that are processed together on a processor, half a megabyte."""


@dataclass(frozen=True)
class Weights:
    """Weights of stage 3: `alpha` of the KL divergence at a temperature against cross entropy, and of hidden states."""

    alpha: float = 0.5
    temperature: float = 1.0
    hidden: float = 0.5


@dataclass(frozen=True, eq=False)
class Batch:
    """Texts: inputs and targets [rows, tokens], padded at their ends; a target of padding is `IGNORED`."""

    inputs: Tensor
    targets: Tensor

    @property
    def own(self) -> Tensor:
        """The mask of the tokens that are no padding."""
        return self.targets != IGNORED


def relative_error(ours: Tensor, theirs: Tensor, own: Tensor) -> Tensor:
    """|ours - theirs|^2 / |theirs|^2 over the tokens of a mask."""
    there = own[..., None]
    return ((ours - theirs) * there).square().sum() / (theirs * there).square().sum().clamp(min=1e-12)


def logits(network: Any, batch: Batch, ids: int) -> Tensor:  # noqa: ANN401  transformers has no types
    """Logits [rows * tokens, V], padding included."""
    z: Tensor = network(input_ids=batch.inputs, use_cache=False).logits[..., :ids].float()
    return z.flatten(0, 1)


def cross_entropy(network: Any, batch: Batch, ids: int) -> Tensor:  # noqa: ANN401  transformers has no types
    """Mean nats of the targets."""
    return functional.cross_entropy(logits(network, batch, ids), batch.targets.flatten(), ignore_index=IGNORED)


def soft_cross_entropy(aim: Tensor, z: Tensor, targets: Tensor, weights: Weights) -> Tensor:
    """Mean of alpha T^2 KL(softmax(aim / T) || softmax(z / T)) + (1 - alpha) CE over the rows that have a target.

    `aim` and `z` are [rows, V]; `aim` has no gradient. The gradient is computed with the value, some rows at a time, so
    that they stay in a processor's cache.
    """
    loss: Tensor = _SoftCrossEntropy.apply(z, aim, targets, weights)  # type: ignore[no-untyped-call]
    return loss


class _SoftCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, aim: Tensor, targets: Tensor, weights: Weights) -> Tensor:  # noqa: ANN401
        own = targets != IGNORED
        slope, total = torch.empty_like(z), z.new_zeros((), dtype=torch.float64)
        rows = max(TILE // z.shape[1], 1) if z.device.type == "cpu" else len(z)
        for a in range(0, len(z), rows):
            part = slice(a, a + rows)
            values = _nats(z[part], aim[part], targets[part].clamp(min=0), weights, slope[part])
            total += (values * own[part]).sum()
        slope *= (own / own.sum())[:, None]
        ctx.save_for_backward(slope)
        return (total / own.sum()).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        (slope,) = ctx.saved_tensors
        return slope * grads[0], None, None, None


def _nats(z: Tensor, aim: Tensor, targets: Tensor, weights: Weights, slope: Tensor) -> Tensor:
    """The loss of each row; its gradient by z is written to `slope`."""
    alpha, t = weights.alpha, weights.temperature
    warm, aim = (z, aim) if t == 1 else (z / t, aim / t)
    p, q = torch.softmax(aim, 1), torch.softmax(warm, 1, out=slope)
    norm = _normaliser(warm, q)
    divergence = torch.linalg.vecdot(p, aim - warm) - _normaliser(aim, p) + norm
    if t == 1:
        slope.sub_(p, alpha=alpha)
    else:
        own = torch.softmax(z, 1)
        norm = _normaliser(z, own)
        slope.sub_(p).mul_(alpha * t).add_(own, alpha=1 - alpha)
    at = targets[:, None]
    slope.scatter_add_(1, at, slope.new_full((1, 1), alpha - 1).expand(at.shape))
    nats: Tensor = alpha * t * t * divergence + (1 - alpha) * (norm - z.gather(1, at)[:, 0])
    return nats


def _normaliser(z: Tensor, softmax: Tensor) -> Tensor:
    """Ln of the sum of exp z of each row, whose softmax is known: the largest probability is exp(max - ln sum)."""
    return z.amax(1) - softmax.amax(1).log()


def matrices(teacher: CausalModel, student: Student, batch: Batch) -> Tensor:
    """Stage 1."""
    with torch.no_grad(), Tap([site.teacher for site in student.sites]) as tap:
        teacher.network(input_ids=batch.inputs, use_cache=False, output_attentions=True)
    parts = [
        mixing.distance(mixing.of_mixer(site.blocks[0], tap.inputs[i])[0], tap.outputs[i][1], batch.own)
        for i, site in enumerate(student.sites)
    ]
    return torch.stack(parts).sum()


def hidden(teacher: CausalModel, student: Student, batch: Batch) -> Tensor:
    """Stage 2."""
    with torch.no_grad(), Tap([site.teacher for site in student.sites]) as tap:
        teacher.network(input_ids=batch.inputs, use_cache=False)
    parts = [_site_error(site, tap.inputs[i], first(tap.outputs[i]), batch) for i, site in enumerate(student.sites)]
    return torch.stack(parts).mean()


def _site_error(site: Site, x: Tensor, y: Tensor, batch: Batch) -> Tensor:
    return relative_error(site(x), site.target(x, y), batch.own)


def everything(teacher: CausalModel, student: Student, batch: Batch, weights: Weights) -> Tensor:
    """Stage 3; the teacher reads the same batch in the same process."""
    with torch.no_grad(), Tap([layer for layer, _ in student.pairs]) as theirs:
        aim = logits(teacher.network, batch, teacher.ids)
    with Tap([layer for _, layer in student.pairs]) as ours:
        z = logits(student.network, batch, teacher.ids)
    loss = soft_cross_entropy(aim, z, batch.targets.flatten(), weights)
    if not weights.hidden:
        return loss
    parts = [
        relative_error(first(ours.outputs[i]), first(theirs.outputs[i]), batch.own) for i in range(len(student.pairs))
    ]
    return loss + weights.hidden * torch.stack(parts).mean()


def modules_of(student: Student) -> list[nn.Module]:
    """The modules that learn in stages 1 and 2."""
    return [block for site in student.sites for block in site.blocks]
