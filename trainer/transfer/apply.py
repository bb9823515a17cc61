"""A difference on another model of the same shapes: its weights plus a multiple of the difference (task arithmetic).

Whole tensors of an adapter are values of the tuned model; what is added is their difference from the base's.
"""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from trainer.causal import TOKENS, CausalModel
from trainer.transfer import roles as telling
from trainer.transfer.adapter import Adapter, AdapterWriter, Change, full_name, tensors_of
from trainer.transfer.roles import Kind, Roles
from trainer.transfer.weights import FLOATS, SINGLE, Checkpoint, TensorFile, WeightsError, Writer, read

RELATED = 0.7
"""Median |W_T - W_S|/|W_S| of linear weights below which two models are related; unrelated ones have about 1.4."""
LOOKED_AT = 24
"""Linear weights by which that is judged."""
RANDOM_SEED = 0
TRANSPOSED = ("conv1d", "embedding")
"""Kinds of weights that are the transpose of the product of their factors."""


@dataclass(frozen=True)
class Relation:
    """How far a target is from the base of an adapter.

    `distance` is the median of |W_T - W_S|/|W_S| over linear weights; None if the shapes differ, and `why` says how.
    """

    distance: float | None
    why: str

    @property
    def related(self) -> bool:
        """Whether a difference of weights may carry over."""
        return self.distance is not None and self.distance < RELATED


@dataclass(frozen=True)
class Transfer:
    """An adapter, its base and a target of the same shapes, with the changes by the names of the target's tensors."""

    adapter: Adapter
    base: Checkpoint
    target: Checkpoint
    roles: Roles
    changes: Mapping[str, Change]

    def transposed(self, name: str) -> bool:
        """Whether a weight is the transpose of the product of its factors."""
        return self.roles.by_name[name].kind in TRANSPOSED

    def difference(self, name: str) -> Tensor:
        """The difference of one tensor, float32, in the shape of the target's."""
        change = self.changes[name]
        first = self.base.read(name).float()
        return change.add_to(first, 1.0, transposed=self.transposed(name)).sub_(first)

    def random(self, name: str) -> Tensor:
        """Noise with the norm and the rank of a tensor's difference; it depends on the name alone."""
        d, change = self.difference(name), self.changes[name]
        seed = RANDOM_SEED + sum(ord(c) * (i + 1) for i, c in enumerate(name))
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(d.shape, generator=generator)
        if change.a is not None:
            left, right = (torch.randn(n, change.a.shape[0], generator=generator) for n in d.shape)
            noise = left @ right.T
        scaled: Tensor = noise * (d.norm() / noise.norm().clamp(min=1e-30))
        return scaled


def relation(base: Checkpoint, target: Checkpoint) -> Relation:
    """How far a target is from the base of an adapter, by some linear weights."""
    kinds = [str(one.config.get("model_type")) for one in (base, target)]
    if kinds[0] != kinds[1]:
        return Relation(None, f"{base.name} is of type {kinds[0]} and {target.name} of type {kinds[1]}")
    for name in sorted(base.tensors.keys() & target.tensors.keys()):
        if base.tensors[name].shape != target.tensors[name].shape:
            shapes = f"{base.tensors[name].shape} and {target.tensors[name].shape}"
            return Relation(None, f"{name} has the shapes {shapes}")
    if alone := sorted(base.tensors.keys() ^ target.tensors.keys()):
        return Relation(None, f"{alone[0]} is in one of them alone")
    roles = telling.roles(base)
    linear = sorted(name for name in base.tensors if roles.by_name[name].kind in {"linear", "conv1d"})
    found = []
    for name in linear[:: max(len(linear) // LOOKED_AT, 1)]:
        first = base.read(name).float()
        found.append(float((target.read(name).float() - first).norm() / first.norm().clamp(min=1e-30)))
    distance = median(found) if found else math.inf
    return Relation(distance, f"half of the linear weights differ by {distance:.2f} of their size or more")


def open_transfer(adapter: Adapter, base: Checkpoint, target: Checkpoint) -> Transfer:
    """The changes of an adapter by the names of a target's tensors; a WeightsError if one has no place."""
    roles = telling.roles(target)
    names = {full_name(name, roles): name for name in target.tensors}
    pair = {f"{roles.embedding}.weight", f"{roles.head}.weight"}
    tied = {f"{roles.head}.weight"} if roles.tied else set()
    if roles.tied and not adapter.tied and len(alone := pair & adapter.changes.keys()) == 1:
        raise WeightsError(
            f"{adapter.folder} changes {min(alone)} alone, and {target.name} has one tensor for its input embedding "
            "and its head: take --space function"
        )
    changes = {}
    for name, change in adapter.changes.items():
        if name in names:
            _check_shape(adapter, change, roles.by_name[names[name]].kind, name, target.tensors[names[name]])
            _check_copy(adapter, change, name, base.tensors[names[name]])
            changes[names[name]] = change
        elif name not in tied:
            raise WeightsError(
                f"{adapter.folder} changes {name}, which {target.name} does not have: take --space function"
            )
    return Transfer(adapter, base, target, roles, changes)


def _check_shape(adapter: Adapter, change: Change, kind: Kind, name: str, target: TensorFile) -> None:
    """Refuse a change of another shape than a tensor's, or of whole numbers."""
    if change.a is not None and change.b is not None:
        shape: tuple[int, ...] = (change.b.shape[0], change.a.shape[1])
        shape = shape[::-1] if kind in TRANSPOSED else shape
    else:
        assert change.values is not None  # noqa: S101  factors or values
        shape = change.values.shape
    if shape != target.shape:
        raise WeightsError(
            f"{adapter.folder} changes {name} by a difference of shape {shape}, and {target.path} has {target.shape}: "
            "get the adapter again, or take --space function"
        )
    if target.kind not in FLOATS:
        raise WeightsError(f"{target.path} has {name} of type {target.kind}: name an unquantised model")


def _check_copy(adapter: Adapter, change: Change, name: str, base: TensorFile) -> None:
    """Refuse factors on top of other values than the base's."""
    if change.a is None or change.values is None:
        return
    values = read(change.values)
    if not torch.equal(values, read(base).to(values.dtype)):
        raise WeightsError(
            f"{adapter.folder} has factors of {name} and other values of it than {base.path}: name the model that it "
            "is of with --source, or merge it first"
        )


@torch.no_grad()
def move(target: CausalModel, transfer: Transfer, scale: float, *, random: bool = False) -> CausalModel:
    """A copy of the target in memory with `scale` times the difference, or as much noise, on its weights."""
    network = copy.deepcopy(target.network)
    for name in transfer.changes:
        d = transfer.random(name) if random else transfer.difference(name)
        parameter = network.get_parameter(full_name(name, transfer.roles))
        parameter += scale * d.to(parameter.device)
    return replace(target, network=network)


def write_model(transfer: Transfer, scale: float, folder: Path) -> None:
    """Write the target plus `scale` times the difference, file by file; at 0 its tensors are the same bytes."""
    by_file: dict[Path, list[str]] = {}
    for name, one in transfer.target.tensors.items():
        by_file.setdefault(one.path, []).append(name)
    for path, names in by_file.items():
        if path.suffix != ".safetensors":
            raise WeightsError(f"{path} is no safetensors file")
        writer = Writer(folder / path.name)
        for name in names:
            writer.add(name, _moved(transfer, name, scale))
        writer.close()
    for path in sorted(transfer.target.folder.iterdir()):
        if path.is_file() and path.name != SINGLE and path.suffix in {".json", ".txt", ".model", ".jinja"}:
            shutil.copy(path, folder / path.name)


def write_adapter(transfer: Transfer, scale: float, folder: Path) -> None:
    """Write `scale` times the difference as an adapter of the target."""
    place = transfer.target.folder
    local = Path(transfer.target.name).expanduser().is_dir()
    writer = AdapterWriter(folder, str(place.resolve()) if local else transfer.target.name, transfer.roles)
    whole = _whole_modules(transfer)
    for name, change in transfer.changes.items():
        role = transfer.roles.by_name[name]
        if role.module in whole:
            continue
        if change.a is not None and change.b is not None:
            dtype = own_type(transfer, name)
            b = read(change.b).float() * (scale * change.scale)
            b, a = (_finite(one.to(dtype), name, scale) for one in (b, read(change.a)))
            writer.add_factors(role.module, b, a, role.kind)
    for name in transfer.changes:
        role = transfer.roles.by_name[name]
        if role.kind == "bias" and role.module in writer.ranks:
            writer.add_bias(role.module, _moved(transfer, name, scale))
    for module in sorted(whole):
        writer.add_whole(module, _module(transfer, module, scale))
    if transfer.roles.tied and transfer.roles.embedding in whole:
        writer.add_whole(transfer.roles.head, _module(transfer, transfer.roles.embedding, scale))
    writer.close()


def own_type(transfer: Transfer, name: str) -> torch.dtype:
    """The type of a tensor of the target."""
    kinds = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16}
    return kinds.get(transfer.target.tensors[name].kind, torch.bfloat16)


def _moved(transfer: Transfer, name: str, scale: float) -> Tensor:
    tensor = transfer.target.read(name)
    if name not in transfer.changes or not scale:
        return tensor
    return _finite((tensor.float() + scale * transfer.difference(name)).to(tensor.dtype), name, scale)


def _finite(tensor: Tensor, name: str, scale: float) -> Tensor:
    """A tensor that is about to be written, or a WeightsError."""
    if not torch.isfinite(tensor).all():
        raise WeightsError(
            f"{name} holds NaN or infinity at scale {scale:g}: the adapter or a model is damaged, or the scale is too "
            "large; nothing is written"
        )
    return tensor


def _module(transfer: Transfer, module: str, scale: float) -> Iterator[tuple[str, Tensor]]:
    names = {full_name(name, transfer.roles): name for name in transfer.target.tensors}
    for name, _ in tensors_of(transfer.target, transfer.roles, module):
        yield name, _moved(transfer, names[f"{module}.{name}"], scale)


def _whole_modules(transfer: Transfer) -> set[str]:
    """The modules that the adapter keeps whole, but the head that is tied to the embedding."""
    found, by_name = set(transfer.adapter.whole), transfer.roles.by_name
    modules = {role.module for role in by_name.values()}
    full = {module for module in modules for one in found if module == one or module.endswith(f".{one}")}
    own = full | {one for one in found if any(module.startswith(f"{one}.") for module in modules)}
    held = {by_name[name].module for name, change in transfer.changes.items() if change.a is not None} | own
    own |= {  # PEFT loads tensors of modules that are not named, too
        by_name[name].module
        for name, change in transfer.changes.items()
        if change.values is not None and not any(f"{by_name[name].module}.".startswith(f"{one}.") for one in held)
    }
    return own - ({transfer.roles.head} if transfer.roles.tied else set())


def check_adapter(adapter: Adapter) -> None:
    """Refuse an adapter that adds tokens: another model's vocabulary has no place for them."""
    if (adapter.folder / TOKENS).is_file():
        raise WeightsError(f"{adapter.folder} adds tokens to its base's vocabulary, which another model does not have")
