"""Mixing matrices of Mamba-2 mixers: what a state-space layer and attention do to a text, as matrices of its positions.

With a negative decay A, time steps dt and vectors B, C of a head,

    M[i, j] = C_i . B_j exp(A (dt_{j+1} + ... + dt_i)) dt_j    for j <= i, else 0

and the layer without its skip, gate and norm gives M x (Dao and Gu 2024). dt belongs to M. A row of softmax sums to 1,
one of M does not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def mixing_matrix(decay: Tensor, dt: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """M [..., T, T] for a decay A [...], time steps [..., T], and B and C [..., T, N]."""
    total = (decay[..., None] * dt).cumsum(dim=-1)
    steps = (total[..., :, None] - total[..., None, :]).tril()  # the upper half would overflow
    return ((c @ b.mT) * steps.exp() * dt[..., None, :]).tril()


def of_mixer(mixer: Any, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401  transformers has no types
    """The matrices [rows, H, T, T] of a Mamba-2 mixer that reads x [rows, T, E], and what they are applied to.

    The latter are [rows, H, T, D].
    """
    tokens, groups = x.shape[1], mixer.n_groups
    _, inner, dt = mixer.in_proj(x).split([mixer.intermediate_size, mixer.conv_dim, mixer.num_heads], dim=-1)
    inner = mixer.act(mixer.conv1d(inner.mT)[..., :tokens].mT)
    width = groups * mixer.ssm_state_size
    values, b, c = inner.split([mixer.intermediate_size, width, width], dim=-1)
    b, c = (
        one.unflatten(-1, (groups, -1)).repeat_interleave(mixer.num_heads // groups, dim=2).transpose(1, 2)
        for one in (b, c)
    )
    dt = functional.softplus(dt + mixer.dt_bias).clamp(*mixer.time_step_limit).transpose(1, 2)
    decay = -mixer.A_log.exp().expand(len(x), -1)
    return mixing_matrix(decay, dt, b, c), values.unflatten(-1, (mixer.num_heads, -1)).transpose(1, 2)


def distance(ours: Tensor, theirs: Tensor, own: Tensor) -> Tensor:
    """Mean over texts and heads of the Frobenius norm of a difference of matrices [rows, H, T, T]; rows `own` count."""
    off: Tensor = (ours - theirs) * own[:, None, :, None]
    # The square root has no gradient at 0, which a row of equal matrices would reach.
    return off.square().sum(dim=(-2, -1)).add(torch.finfo(off.dtype).tiny).sqrt().mean()
