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
from trainer.transfer.function import kl

IGNORED = -100
"""Target of padding."""


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
    return (ours - theirs)[own].square().sum() / theirs[own].square().sum().clamp(min=1e-12)


def logits(network: Any, batch: Batch, ids: int) -> Tensor:  # noqa: ANN401  transformers has no types
    """Logits [tokens, V] of the tokens that are no padding."""
    z: Tensor = network(input_ids=batch.inputs, use_cache=False).logits[..., :ids].float()
    return z[batch.own]


def cross_entropy(network: Any, batch: Batch, ids: int) -> Tensor:  # noqa: ANN401  transformers has no types
    """Mean nats of the targets."""
    return functional.cross_entropy(logits(network, batch, ids), batch.targets[batch.own])


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
    loss = (1 - weights.alpha) * functional.cross_entropy(z, batch.targets[batch.own])
    loss = loss + weights.alpha * kl(aim, z, weights.temperature)
    if not weights.hidden:
        return loss
    parts = [
        relative_error(first(ours.outputs[i]), first(theirs.outputs[i]), batch.own) for i in range(len(student.pairs))
    ]
    return loss + weights.hidden * torch.stack(parts).mean()


def modules_of(student: Student) -> list[nn.Module]:
    """The modules that learn in stages 1 and 2."""
    return [block for site in student.sites for block in site.blocks]
