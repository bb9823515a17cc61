"""What the tensors of a model are: linear weights, biases, norms, embeddings; and where, by layer and role.

The classes of modules come from a model without weights (torch's meta device), so every architecture that transformers
knows is told apart. Of an unknown one, linear weights are found by shape and name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import torch

from trainer.causal import architecture, quiet
from trainer.transfer.weights import Checkpoint, TensorFile, WeightsError

Kind = Literal["linear", "conv1d", "bias", "embedding", "head", "norm", "other"]
NOT_LINEAR = re.compile(r"(^|[._])(embed|wte|wpe|emb|norm|ln|lm_head|embeddings?)", re.IGNORECASE)
"""Names of modules whose 2-dimensional weights are no linear weights, in an unknown architecture."""
OUTSIDE = "outside layers"


@dataclass(frozen=True)
class Role:
    """What a tensor is.

    Attributes:
        kind: of the tensor; the weight of a "conv1d" is stored [in, out].
        module: full name of the module in the model.
        layer: number of its layer; None outside layers.
        name: of the module within its layer, with ".bias" for a bias.
        linear: whether its module is a linear layer, whose bias an adapter can hold.
        lost: whether the model has no such module, as where transformers merges tensors while it loads them.
    """

    kind: Kind
    module: str
    layer: int | None
    name: str
    linear: bool = False
    lost: bool = False

    @property
    def part(self) -> str:
        """The part of a model: attention, MLP, norms, embeddings, other."""
        if self.kind in {"embedding", "head"}:
            return "embeddings"
        if self.kind == "norm" or re.search(r"norm|(^|\.)ln", self.name):
            return "norms"
        if re.search(r"attn|attention", self.name):
            return "attention"
        return "MLP" if re.search(r"mlp|feed_forward|ffn|fc|dense", self.name) else "other"


@dataclass(frozen=True)
class Roles:
    """The roles of all tensors by their names in the checkpoint, and the names of the input embedding and the head.

    `tied` is whether the head is the input embedding. `known` is whether transformers knows the architecture.
    """

    by_name: Mapping[str, Role]
    embedding: str
    head: str
    tied: bool
    known: bool


def roles(checkpoint: Checkpoint) -> Roles:
    """The roles of a checkpoint's tensors; a WeightsError if it is no causal language model."""
    model = _without_weights(checkpoint)
    if model is None:
        return Roles(
            {name: _guess(name, one) for name, one in checkpoint.tensors.items()}, "", "", tied=False, known=False
        )
    modules = dict(model.named_modules())
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {id(module): name for name, module in modules.items()}
    tied = bool(model.config.get_text_config().tie_word_embeddings)
    prefix = f"{model.base_model_prefix}."
    made, rename = {}, _renaming(model)
    for name in checkpoint.tensors:
        full = rename(name)
        if full.rpartition(".")[0] not in modules and prefix + full.rpartition(".")[0] in modules:
            full = prefix + full  # a checkpoint of the model without its head, such as GPT-2's on the hub
        made[name] = _role(full, modules, embedding, head)
    return Roles(made, names[id(embedding)], names[id(head)], tied=tied, known=True)


def _without_weights(checkpoint: Checkpoint) -> Any:  # noqa: ANN401  transformers has no types
    """The model without weights; None if transformers does not know its type."""
    transformers: Any = import_module("transformers")
    kind = str(checkpoint.config.get("model_type"))
    if kind not in import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING_NAMES:
        return None
    known = import_module("transformers.models.auto.modeling_auto").MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if kind not in known:
        raise WeightsError(
            f"{checkpoint.name} is no causal language model (its architecture is {architecture(checkpoint.config)}): "
            f"name one of a type such as {', '.join(kind for kind in ('gpt2', 'llama', 'mamba') if kind in known)}"
        )
    try:
        with quiet(), torch.device("meta"):
            config = transformers.AutoConfig.from_pretrained(str(checkpoint.folder))
            return transformers.AutoModelForCausalLM.from_config(config)
    except Exception as error:  # the type depends on what is wrong with the configuration
        why = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise WeightsError(f"the config.json of {checkpoint.name} makes no model ({why}): get it again") from error


def _renaming(model: Any) -> Callable[[str], str]:  # noqa: ANN401  transformers has no types
    """How transformers renames the tensors of old checkpoints while it loads them, such as `embed_out` to `lm_head`."""
    if find_spec("transformers.conversion_mapping") is None:
        return lambda name: name
    transforms = import_module("transformers.conversion_mapping").get_model_conversion_mapping(model)
    loading = import_module("transformers.core_model_loading")
    renamings = [one for one in transforms or () if isinstance(one, loading.WeightRenaming)]
    return lambda name: str(loading.rename_source_key(name, renamings, [])[0])


def _role(full: str, modules: Mapping[str, Any], embedding: Any, head: Any) -> Role:  # noqa: ANN401  modules
    path, _, leaf = full.rpartition(".")
    layer, name = _place(path)
    module = modules.get(path)
    if module is None:
        return Role("other", path, layer, f"{name}.{leaf}", lost=True)
    linear = isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"
    if leaf == "bias":
        return Role("bias", path, layer, f"{name}.bias", linear=linear)
    kind: Kind = "other"
    if module is embedding or isinstance(module, torch.nn.Embedding):
        kind = "embedding"
    elif module is head:
        kind = "head"
    elif linear and leaf == "weight":
        kind = "conv1d" if type(module).__name__ == "Conv1D" else "linear"
    elif "norm" in type(module).__name__.lower():
        kind = "norm"
    return Role(kind, path, layer, name if leaf == "weight" else f"{name}.{leaf}", linear=linear)


def _place(path: str) -> tuple[int | None, str]:
    """The number of a module's layer, and its name within the layer."""
    found = re.search(r"(?:^|\.)(\d+)(?:\.|$)", path)
    return (None, path) if found is None else (int(found[1]), path[found.end() :])


def _guess(name: str, one: TensorFile) -> Role:
    """The role of a tensor of an unknown architecture, by its name and shape."""
    path, _, leaf = name.rpartition(".")
    layer, role = _place(path)
    if leaf == "bias":
        return Role("bias", path, layer, f"{role}.bias", linear=False)
    if leaf == "weight" and len(one.shape) == 2 and not NOT_LINEAR.search(path):  # noqa: PLR2004  a matrix
        return Role("linear", path, layer, role, linear=True)
    return Role("other", path, layer, role if leaf == "weight" else f"{role}.{leaf}")
