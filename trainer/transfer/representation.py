"""A difference as states (experimental): what tuning adds to the residual stream, mapped to that of another model.

    M_l     maps centred states of the source after block k = round(l L_S / L_T) to those of the target after block l
    want_l  = H_T^l + scale (H_S'^k - H_S^k) M_l
    dW_l    = argmin |Z dW - (want_l - now_l)|^2 at a rank: of the last matrix of block l that writes to the stream

Z are the inputs of that matrix and now_l the states after block l, both of the target with all earlier changes. There
is no gradient. How well M explains states says nothing about what carries over; the scale is chosen on validation.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from trainer.causal import CausalModel, ModelError
from trainer.transfer import roles as telling
from trainer.transfer.adapter import AdapterWriter
from trainer.transfer.weights import Checkpoint

WRITERS = {
    "gpt2": ("h", "mlp.c_proj"),
    "gpt_neox": ("layers", "mlp.dense_4h_to_h"),
    "phi": ("layers", "mlp.fc2"),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), ("layers", "mlp.down_proj")),
}
"""By model type: the blocks of its decoder, and the last matrix of a block that writes to the residual stream."""
MAX_TOKENS = 4096
"""Maximum number of tokens whose states are compared."""
ROWS = 16
"""Pieces of text that are read at a time."""
MAP_RIDGE, WRITER_RIDGE = 1e-3, 1e-2
"""Ridge of the map between streams and of the change of a matrix, in mean diagonals of the Gram matrix."""


@dataclass(frozen=True, eq=False)
class Fit:
    """A target whose last matrices are changed: the model, and the factors b [out, r] and a [r, in] by module."""

    model: CausalModel
    factors: Mapping[str, tuple[Tensor, Tensor]]


def check_type(kind: str, name: str) -> None:
    """Refuse a model type whose blocks are not known."""
    if kind not in WRITERS:
        raise ModelError(
            f"{name} is of type {kind}, and the space of representations knows {', '.join(WRITERS)}: take "
            "--space function"
        )


def first(pieces: Sequence[Tensor]) -> list[Tensor]:
    """The first pieces, at least one, of at most `MAX_TOKENS` ids in all."""
    sizes = torch.tensor([len(one) for one in pieces]).cumsum(0)
    return list(pieces[: max(int((sizes <= MAX_TOKENS).sum()), 1)])


def states(model: CausalModel, pieces: Sequence[Tensor]) -> list[Tensor]:
    """The states after each block at every position of the pieces, float32 [positions, width]."""
    return _capture(model, pieces, [(block, "out") for block in _blocks(model)])


def mapped(
    source: Sequence[Tensor], tuned: Sequence[Tensor], target: Sequence[Tensor], how: str = "orthogonal"
) -> list[Tensor]:
    """What tuning adds to the source's states after each block, in the target's stream [positions, width]."""
    made = []
    for i, own in enumerate(target, 1):
        k = max(round(i * len(source) / len(target)), 1) - 1
        made.append((tuned[k] - source[k]) @ stream_map(source[k], own, how))
    return made


def stream_map(x: Tensor, y: Tensor, how: str) -> Tensor:
    """The map [d_x, d_y] from centred states x to centred states y: least squares, or orthogonal with one scale."""
    x, y = (one.double() - one.double().mean(0) for one in (x, y))
    if how == "least-squares":
        return ridge(x, y, MAP_RIDGE).float()
    u, s, v = torch.linalg.svd(x.T @ y, full_matrices=False)
    best: Tensor = (u @ v) * (s.sum() / x.square().sum().clamp(min=1e-30))
    return best.float()


def ridge(x: Tensor, y: Tensor, weight: float) -> Tensor:
    """argmin_W |x W - y|^2 + weight tr(G)/d |W|^2 with G = x^T x, in float64."""
    x, y = x.double(), y.double()
    gram = x.T @ x
    gram.diagonal().add_(weight * gram.diagonal().mean())
    best: Tensor = torch.linalg.solve(gram, x.T @ y)
    return best


def reduced_rank(x: Tensor, y: Tensor, rank: int, weight: float = WRITER_RIDGE) -> tuple[Tensor, Tensor]:
    """Factors b [out, r] and a [r, in] of (b a)^T, the best map of a rank from x to y: ridge, then the SVD of x W."""
    w = ridge(x, y, weight)
    v = torch.linalg.svd(x.double() @ w, full_matrices=False).Vh[:rank].T
    return v.contiguous(), (w @ v).T.contiguous()


@torch.no_grad()
def fit(target: CausalModel, pieces: Sequence[Tensor], additions: Sequence[Tensor], scale: float, rank: int) -> Fit:
    """Change the last matrix of each block, first to last, so that states become the target's plus the additions."""
    model = replace(target, network=copy.deepcopy(target.network))
    before, factors = states(target, pieces), {}
    for i, (block, (name, module)) in enumerate(zip(_blocks(model), _writers(model), strict=True)):
        now, z = _capture(model, pieces, [(block, "out"), (module, "in")])
        b, a = (one.float() for one in reduced_rank(z, before[i] + scale * additions[i] - now, rank))
        change(module, b @ a)
        factors[name] = b, a
    return Fit(model, factors)


@torch.no_grad()
def randomised(target: CausalModel, fitted: Fit, seed: int = 0) -> CausalModel:
    """The target with noise of the rank and the norm of each change."""
    model, generator = replace(target, network=copy.deepcopy(target.network)), torch.Generator().manual_seed(seed)
    for name, module in _writers(model):
        b, a = fitted.factors[name]
        noise = torch.randn(b.shape, generator=generator) @ torch.randn(a.shape, generator=generator)
        change(module, noise * ((b @ a).norm() / noise.norm().clamp(min=1e-30)))
    return model


def change(module: Any, d: Tensor) -> None:  # noqa: ANN401  a Linear, or a Conv1D of transformers
    """Add a difference [out, in] to the weight of a linear layer, which a Conv1D stores [in, out]."""
    module.weight.add_((d.T if type(module).__name__ == "Conv1D" else d).to(module.weight.device))


def save(fitted: Fit, target: Checkpoint, folder: Path) -> None:
    """Write the changes as an adapter of the target."""
    roles = telling.roles(target)
    local = Path(target.name).expanduser().is_dir()
    writer = AdapterWriter(folder, str(target.folder.resolve()) if local else target.name, roles)
    kinds = {role.module: role.kind for role in roles.by_name.values() if role.kind in {"linear", "conv1d"}}
    for name, (b, a) in fitted.factors.items():
        writer.add_factors(name, b, a, kinds[name])
    writer.close()


def _decoder(network: Any) -> Any:  # noqa: ANN401  transformers has no types
    """The model of transformers, in an adapter of PEFT or not."""
    return network.get_base_model() if hasattr(network, "peft_config") else network


def _blocks(model: CausalModel) -> list[Any]:
    network = _decoder(model.network)
    return list(getattr(network.base_model, WRITERS[network.config.model_type][0]))


def _writers(model: CausalModel) -> Iterator[tuple[str, Any]]:
    """The last matrix of each block, with the full name of its module."""
    names = {id(module): name for name, module in model.network.named_modules()}
    for block in _blocks(model):
        module = block.get_submodule(WRITERS[_decoder(model.network).config.model_type][1])
        yield names[id(module)], module


@torch.no_grad()
def _capture(
    model: CausalModel, pieces: Sequence[Tensor], places: Sequence[tuple[Any, Literal["in", "out"]]]
) -> list[Tensor]:
    """What goes into or comes out of modules at every position of the pieces, float32 [positions, width] each."""
    found: list[list[Tensor]] = [[] for _ in places]
    own = torch.empty(0)

    def keep(_: Any, given: Any, out: Any, i: int) -> None:  # noqa: ANN401  a hook of torch
        value = given[0] if places[i][1] == "in" else out[0] if isinstance(out, tuple) else out
        found[i].append(value[own].float().cpu())

    hooks = [module.register_forward_hook(partial(keep, i=i)) for i, (module, _) in enumerate(places)]
    try:
        for begin in range(0, len(pieces), ROWS):
            some = list(pieces[begin : begin + ROWS])
            batch = torch.nn.utils.rnn.pad_sequence(some, batch_first=True, padding_value=-1).to(model.network.device)
            own = batch >= 0
            model.network(input_ids=batch.clamp(min=0), attention_mask=own.long(), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.cat(one) for one in found]
