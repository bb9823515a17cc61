"""Folders of adapters as PEFT reads them: written a tensor at a time, and read as differences of the base's tensors."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from stages.files import save_json
from trainer.causal import ADAPTER, base_of, read_config
from trainer.transfer.roles import Kind, Roles
from trainer.transfer.weights import FLOATS, Checkpoint, TensorFile, WeightsError, Writer, header, read

TENSORS = "adapter_model.safetensors"
DEFAULT_ALPHA = 8
"""Alpha of a LoRA whose configuration has none, as in PEFT."""
NOTHING = "dummy-target-modules"
"""Target that PEFT takes for an adapter without factors."""
ROOT = "base_model.model."
BELOW = ".base_layer."
"""What stands before the name of a tensor that a layer with factors had before."""
FACTORS = ".lora_A.weight", ".lora_B.weight"
EMBEDDING_FACTORS = ".lora_embedding_A", ".lora_embedding_B"


@dataclass
class AdapterWriter:
    """Writes the folder of an adapter; `close` writes adapter_config.json."""

    folder: Path
    base: str
    roles: Roles
    ranks: dict[str, int] = field(default_factory=dict)
    whole: list[str] = field(default_factory=list)
    biases: int = 0
    transposed: bool = False

    def __post_init__(self) -> None:
        self.tensors = Writer(self.folder / TENSORS)

    def add_factors(self, module: str, b: Tensor, a: Tensor, kind: Kind) -> None:
        """Low-rank factors of a weight: its difference is b a [out, in], and that of an embedding (b a)^T.

        A head that is tied to the embedding gets them too, as PEFT expects.
        """
        first, second = EMBEDDING_FACTORS if kind == "embedding" else FACTORS
        self.tensors.add(f"{ROOT}{module}{first}", a)
        self.tensors.add(f"{ROOT}{module}{second}", b)
        self.ranks[module] = a.shape[0]
        self.transposed |= kind == "conv1d"
        if kind == "embedding" and self.roles.tied:
            self.add_factors(self.roles.head, a.T.contiguous(), b.T.contiguous(), "head")

    def add_bias(self, module: str, bias: Tensor) -> None:
        """The tuned bias of a linear layer that has factors; PEFT loads it by this name alone."""
        self.tensors.add(f"{ROOT}{module}{BELOW}bias", bias)
        self.biases += 1

    def add_whole(self, module: str, tensors: Iterator[tuple[str, Tensor]]) -> None:
        """All tensors of a module, as they are in the tuned model, by their names within the module."""
        for name, tensor in tensors:
            self.tensors.add(f"{ROOT}{module}.{name}", tensor)
        self.whole.append(module)

    def close(self) -> None:
        """Write both files."""
        self.tensors.close()
        common = Counter(self.ranks.values()).most_common(1)[0][0] if self.ranks else 1
        others = {f"^{re.escape(module)}": rank for module, rank in self.ranks.items() if rank != common}
        tied = self.roles.tied and self.roles.embedding in {*self.whole, *self.ranks}
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base,
            "r": common,
            "lora_alpha": common,
            "rank_pattern": others,
            "alpha_pattern": others,
            "target_modules": sorted(self.ranks) or NOTHING,
            "modules_to_save": sorted(self.whole) or None,
            "bias": "lora_only" if self.biases else "none",
            "fan_in_fan_out": self.transposed,
            "ensure_weight_tying": tied,
            "lora_dropout": 0.0,
            "inference_mode": True,
        }
        save_json(self.folder / ADAPTER, config)


@dataclass(frozen=True)
class Change:
    """The difference of one tensor of the base: factors b a times a scale, or a tensor of values in its place.

    With factors, `values` is a copy of the base's tensor, which PEFT writes beside those of an embedding or a head.
    """

    b: TensorFile | None
    a: TensorFile | None
    scale: float
    values: TensorFile | None

    def add_to(self, base: Tensor, times: float, *, transposed: bool) -> Tensor:
        """The base's tensor, float32, plus `times` the difference."""
        if self.a is None or self.b is None:
            assert self.values is not None  # noqa: S101  factors or values
            return base + times * (read(self.values).float() - base)
        product = (times * self.scale) * (read(self.b).float() @ read(self.a).float())
        return base + (product.T if transposed else product)


@dataclass(frozen=True)
class Adapter:
    """The folder of an adapter: the change of each tensor of its base, by its name in the base's model.

    `whole` are the names, or the ends of names, of modules that it keeps whole. `tied` is whether a change of the input
    embedding is one of a head that is tied to it.
    """

    folder: Path
    base: str
    changes: Mapping[str, Change]
    whole: tuple[str, ...]
    tied: bool

    @classmethod
    def open(cls, folder: Path, base: str | None = None) -> Adapter:
        """Open a LoRA adapter, with biases and whole modules; `base` is by default the model that it names.

        Raises:
            ModelError, WeightsError: it is no LoRA adapter in safetensors.
        """
        base, config = base or base_of(folder), read_config(folder / ADAPTER)
        kind = str(config.get("peft_type"))
        if kind != "LORA" or config.get("use_dora"):
            raise WeightsError(
                f"{folder} is an adapter of type {'DoRA' if config.get('use_dora') else kind}, expected LoRA: "
                "save_as_lora of peft converts some others"
            )
        if not (folder / TENSORS).is_file():
            raise WeightsError(f"{folder} holds no {TENSORS}: name the folder of an adapter in safetensors")
        tensors, whole = header(folder / TENSORS), config.get("modules_to_save") or []
        if not isinstance(whole, list) or not all(isinstance(one, str) for one in whole):
            raise WeightsError(f"{folder / ADAPTER} has no names of modules in modules_to_save: get it again")
        if strange := [name for name, one in tensors.items() if one.kind not in FLOATS]:
            raise WeightsError(
                f"{folder / TENSORS} has {strange[0]} of type {tensors[strange[0]].kind}, expected floats of 16 bits "
                "or more: get it unquantised"
            )
        return cls(folder, base, dict(_changes(tensors, config)), tuple(whole), bool(config.get("ensure_weight_tying")))


def _changes(tensors: Mapping[str, TensorFile], config: Mapping[str, Any]) -> Iterator[tuple[str, Change]]:
    for name, one in tensors.items():
        short = name.removeprefix(ROOT)
        pair = next((pair for pair in (FACTORS, EMBEDDING_FACTORS) if short.endswith(pair[0])), None)
        if pair is not None:
            module = short.removesuffix(pair[0])
            other = tensors.get(f"{ROOT}{module}{pair[1]}")
            if other is None:
                raise WeightsError(f"{one.path} has {name} and no lora_B beside it: get it again")
            if len(one.shape) != 2 or other.shape[1:] != one.shape[:1] or not one.shape[0]:  # noqa: PLR2004  matrices
                raise WeightsError(
                    f"{one.path} has {name} of shape {one.shape} and the other factor of shape {other.shape}, which "
                    "have no product: get it again"
                )
            below = tensors.get(f"{ROOT}{module}{BELOW}weight")
            yield f"{module}.weight", Change(other, one, _scale(module, one.shape[0], config), below)
        elif ".lora_" in short:
            last = next((pair for pair in (FACTORS, EMBEDDING_FACTORS) if short.endswith(pair[1])), None)
            if last is None:
                raise WeightsError(f"{one.path} has {name}, which is no factor of a weight: merge it first")
            if f"{ROOT}{short.removesuffix(last[1])}{last[0]}" not in tensors:
                raise WeightsError(f"{one.path} has {name} and no lora_A beside it: get it again")
        elif not short.endswith(f"{BELOW}weight"):
            yield short.replace(BELOW, "."), Change(None, None, 1.0, one)


def _scale(module: str, rank: int, config: Mapping[str, Any]) -> float:
    """Alpha over rank, or over its root, as PEFT has it; patterns match the end of a module's name."""
    patterns, alpha = config.get("alpha_pattern") or {}, config.get("lora_alpha", DEFAULT_ALPHA)
    try:
        alpha = next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), alpha)
    except (AttributeError, TypeError, re.error) as error:
        raise WeightsError(f"{ADAPTER} has an alpha_pattern that cannot be read ({error}): get it again") from error
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise WeightsError(f"{ADAPTER} has the lora_alpha {alpha!r}, expected a number: get it again")
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def tensors_of(checkpoint: Checkpoint, roles: Roles, module: str) -> Iterator[tuple[str, TensorFile]]:
    """The tensors of a module and of those in it, by their names within the module."""
    for name, one in checkpoint.tensors.items():
        path = full_name(name, roles)
        if path.startswith(f"{module}."):
            yield path.removeprefix(f"{module}."), one


def full_name(name: str, roles: Roles) -> str:
    """The name of a checkpoint's tensor in the model."""
    return f"{roles.by_name[name].module}.{name.rpartition('.')[2]}"
