"""Initial weights of a student: the teacher's, and least squares for what the student's mixers give.

A Llama-like teacher gives a student all but attention, and the weights of attention to its mixers (Wang et al. 2024):

    in_proj rows [z | x | B | C | dt] <- [0, so that silu(z) = 1 | W_v | W_k D^(-1/4) | W_q D^(-1/4) | small]

Then `out_proj` of each mixer is solved for, by ridge regression of what the teacher's module gives for its own inputs.
That is the stage that others train for thousands of steps, in closed form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from trainer.causal import CausalModel
from trainer.distill.student import Site, Student, first, layers
from trainer.transfer import representation

OPEN = 1.2784645427610738
"""The gate at which silu is 1."""
RIDGE = 1e-3
"""Ridge penalty, as a share of the mean diagonal of the Gram matrix."""
SMALL = 0.02
"""Standard deviation of the weights of the time step at the start."""


class Tap:
    """What modules read and give while it is open, detached: `inputs` and `outputs` by the number of the module."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.inputs: dict[int, Tensor] = {}
        self.outputs: dict[int, Any] = {}
        self._handles = [
            module.register_forward_hook(self._keeper(i), with_kwargs=True) for i, module in enumerate(modules)
        ]

    def _keeper(self, i: int) -> Any:  # noqa: ANN401  a hook
        def keep(_: nn.Module, words: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:  # noqa: ANN401
            self.inputs[i] = words[0] if words else named["hidden_states"]
            self.outputs[i] = output

        return keep

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


@torch.no_grad()
def copy_weights(teacher: CausalModel, student: Student) -> None:
    """Give the student the teacher's embeddings and head; a copied student also norms, MLPs, attention and mixers."""
    source, network = teacher.network, student.network
    network.get_input_embeddings().weight.copy_(source.get_input_embeddings().weight)
    network.get_output_embeddings().weight.copy_(source.get_output_embeddings().weight)
    if not student.copied:
        return
    network.model.final_layernorm.load_state_dict(source.model.norm.state_dict())
    for old, new in zip(layers(source), network.model.layers, strict=True):
        new.feed_forward.load_state_dict(old.mlp.state_dict())
        new.input_layernorm.load_state_dict(old.input_layernorm.state_dict())
        new.pre_ff_layernorm.load_state_dict(old.post_attention_layernorm.state_dict())
        if hasattr(new, "mamba"):
            _copy_attention(old.self_attn, new.mamba)
            continue
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            _copy_linear(getattr(old.self_attn, name), getattr(new.self_attn, name))


def _copy_linear(old: nn.Linear, new: nn.Linear) -> None:
    new.weight.copy_(old.weight)
    if new.bias is not None:
        new.bias.zero_()
        if old.bias is not None:
            new.bias.copy_(old.bias)


def _copy_attention(attention: Any, mixer: Any) -> None:  # noqa: ANN401  transformers has no types
    """Queries, keys and values into the input projection of a mixer, the output projection into its own."""
    heads, size = mixer.num_heads, mixer.head_dim
    weight, bias = mixer.in_proj.weight, mixer.in_proj.bias
    inner = heads * size
    bias.zero_()
    weight[:inner].zero_()
    bias[:inner].fill_(OPEN)
    scales = (("v_proj", 1.0), ("k_proj", size**-0.25), ("q_proj", size**-0.25))
    for i, (name, scale) in enumerate(scales, 1):
        old, rows = getattr(attention, name), slice(i * inner, (i + 1) * inner)
        weight[rows] = _repeat(old.weight, inner, size) * scale
        if old.bias is not None:
            bias[rows] = _repeat(old.bias, inner, size) * scale
    weight[4 * inner :].normal_(0, SMALL, generator=torch.Generator(weight.device).manual_seed(0))
    _copy_linear(attention.o_proj, mixer.out_proj)


def _repeat(rows: Tensor, inner: int, size: int) -> Tensor:
    """Rows of grouped heads, each as often as its group has queries."""
    each = rows.reshape(-1, size, *rows.shape[1:]).repeat_interleave(inner // len(rows), dim=0)
    return each.flatten(0, 1)


@torch.no_grad()
def fit_outputs(teacher: CausalModel, student: Student, ids: Tensor, there: Tensor, *, mean: bool = False) -> None:
    """Solve for the output projections of all sites, on texts [rows, tokens] and the mask of their tokens.

    With `mean`, mixers instead give the mean of what they are to give, whatever they read: the floor that a student
    without any mixing reaches.
    """
    with Tap([site.teacher for site in student.sites]) as tap:
        teacher.network(input_ids=ids, use_cache=False)
    own = there.bool()
    for i, site in enumerate(student.sites):
        x = tap.inputs[i]
        _fit(site, x, site.target(x, first(tap.outputs[i])), own, mean=mean)


def _fit(site: Site, x: Tensor, rest: Tensor, own: Tensor, *, mean: bool) -> None:
    """Fit the blocks of a site one after another, each to what those before it have left."""
    for block in site.blocks:
        out = output_of(block)
        if mean:
            out.weight.zero_()
            out.bias.copy_(rest[own].mean(dim=0))
        else:
            with Tap([out]) as tap:
                block(x)
            weight, bias = ridge(tap.inputs[0][own], rest[own])
            out.weight.copy_(weight.T)
            out.bias.copy_(bias)
        if site.added:
            after = first(block(x))
            x, rest = after, rest - (after - x)


def output_of(block: Any) -> Any:  # noqa: ANN401  transformers has no types
    """The output projection of a mixer, or of a block with one."""
    return getattr(block, "mixer", block).out_proj


def ridge(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """W [D, E] and b [E] that minimise |x W + b - y|^2 + lambda |W|^2, in float64; x [N, D], y [N, E]."""
    x, y = x.double(), y.double()
    centre, mean = x.mean(dim=0), y.mean(dim=0)
    weight = representation.ridge(x - centre, y - mean, RIDGE)
    return weight.float(), (mean - centre @ weight).float()
