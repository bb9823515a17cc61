"""Students: the recurrent model that a teacher's configuration asks for, and which of its layers replaces which.

mamba2      Llama-like teachers: the teacher itself with Mamba-2 mixers in the place of attention (Bamba without
            attention layers); others: `Mamba2ForCausalLM` of the same width, two blocks for a layer
hybrid:K    the same with K attention layers of the teacher, evenly spaced
mamba       `MambaForCausalLM` (Mamba-1) of the same width, two blocks for a layer
cvfp        the network of the preset `house` with the teacher's vocabulary; any teacher will do
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from trainer.causal import CausalModel, ModelError, quiet
from trainer.presets import HOUSE

LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose layers are those of Llama: RMSNorm, rotary attention, SwiGLU."""
STUDENTS = ("auto", "mamba2", "mamba", "cvfp", "hybrid:K")
CVFP, CVFP_PRESET = "cvfp", HOUSE
CVFP_FROZEN = ("network.embedding.", "network.embed_norm.", "network.context.")
"""Parameters of a CVFP that learn before the teacher comes, as in phase 1, and then stay."""
CHUNK = {"cpu": 32, "cuda": 256}
"""Tokens of a chunk of the Mamba-2 scan by device: shorter ones cost less on a processor."""
BLOCKS = 2
"""Blocks of a Mamba without MLPs in the place of one layer of the teacher."""
KERNEL = 4
"""Taps of the convolution of a mixer."""
STATE = 16
"""State size of Mamba-1."""
DT = 1e-3, 1e-1
"""Range of the time step at the start, as in Mamba-2 (Dao and Gu 2024)."""
DECAY = 1.0, 16.0
"""Range of -A at the start, as in Mamba-2."""
UNSUPPORTED = {"sliding_attention": "sliding window", "chunked_attention": "chunked attention"}
"""Kinds of layers that no student replaces."""


class DistillError(ModelError):
    """A teacher, a student or a text does not suit distillation."""


@dataclass(frozen=True, eq=False)
class Site:
    """Where the student takes over from a module of the teacher, whose input it can be given.

    Attributes:
        teacher: the module of the teacher.
        blocks: modules of the student, applied one after another.
        added: whether teacher and blocks add to their input; what they add is then compared, else what they give.
    """

    teacher: nn.Module
    blocks: tuple[nn.Module, ...]
    added: bool

    def target(self, x: Tensor, y: Tensor) -> Tensor:
        """What the blocks are to give for an input and an output of the teacher's module."""
        return y - x if self.added else y

    def __call__(self, x: Tensor) -> Tensor:
        """What the blocks give for the teacher's input."""
        y = x
        for block in self.blocks:
            y = first(block(y))
        return self.target(x, y)


@dataclass(frozen=True, eq=False)
class Student:
    """A student of a teacher.

    Attributes:
        network: the model of transformers.
        kind: "mamba2", "mamba", "hybrid:K" or "cvfp".
        sites: where it takes over; a CVFP has none.
        pairs: layers of the teacher and of the student after which both have the same residual stream.
        copied: whether it has the teacher's layers, all but attention.
        frozen: how the names of parameters begin that do not learn from the teacher.
    """

    network: Any
    kind: str
    sites: tuple[Site, ...]
    pairs: tuple[tuple[nn.Module, nn.Module], ...]
    copied: bool
    frozen: tuple[str, ...] = ()


def first(value: Any) -> Any:  # noqa: ANN401  layers of transformers give a tensor, or a tuple that begins with it
    """The tensor that a module gives."""
    return value[0] if isinstance(value, tuple) else value


def layers(network: Any) -> Any:  # noqa: ANN401  transformers has no types
    """The layers of a model."""
    count = network.config.get_text_config().num_hidden_layers
    return next(one for one in network.modules() if isinstance(one, nn.ModuleList) and len(one) == count)


def kept_layers(kind: str, count: int) -> list[int]:
    """The attention layers of the teacher, of `count`, that a student keeps, evenly spaced; of `mamba2` none.

    Raises:
        DistillError: there is no such student, or it keeps no layer, or all.
    """
    name, _, number = kind.partition(":")
    if kind in {"auto", "mamba2", "mamba", CVFP}:
        return []
    if name != "hybrid" or not number.isdecimal():
        raise DistillError(f"--student is {kind!r}, expected {', '.join(STUDENTS)} with a number K of attention layers")
    keep = int(number)
    if not 0 < keep < count:
        raise DistillError(
            f"--student is {kind}, and the teacher has {count} layers: keep 1 to {count - 1}, or take mamba2"
        )
    return [round((i + 0.5) * count / keep - 0.5) for i in range(keep)]


def check_teacher(teacher: CausalModel) -> None:
    """Refuse a teacher whose layers no student can replace: sliding windows, experts, linear attention."""
    config = teacher.network.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        kinds.add("sliding_attention")
    if any(getattr(config, name, None) for name in ("num_local_experts", "num_experts", "n_routed_experts")):
        kinds.add("experts")
    if strange := sorted(kinds - {"full_attention"}):
        found = ", ".join(UNSUPPORTED.get(one, one.replace("_", " ")) for one in strange)
        raise DistillError(
            f"{teacher.name} ({config.model_type}) has layers that are not supported ({found}): take a teacher with "
            "full attention in every layer"
        )


def build(teacher: CausalModel, kind: str, seed: int) -> Student:
    """A student whose weights are drawn: embeddings, mixers and all.

    Raises:
        DistillError: there is no such student of this teacher.
    """
    if kind == CVFP:
        return _cvfp(teacher, seed)
    check_teacher(teacher)
    config = teacher.network.config.get_text_config()
    kept = kept_layers(kind, config.num_hidden_layers)
    like = config.model_type in LLAMA_LIKE and config.hidden_act == "silu"
    if kept and not like:
        raise DistillError(
            f"--student is {kind}, and a {config.model_type} model has other layers than {', '.join(LLAMA_LIKE)}: "
            "take mamba2 or mamba"
        )
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(seed)
        if like and kind != "mamba":
            return _with_mlps(teacher, kept)
        return _without_mlps(teacher, "mamba" if kind == "mamba" else "mamba2")


def _cvfp(teacher: CausalModel, seed: int) -> Student:
    """The network of the preset, with a row for each id of the teacher's tokenizer."""
    from trainer.cvfp import causal

    shape = replace(CVFP_PRESET.shape, vocabulary=teacher.ids)
    network = causal.network(shape, seed, teacher.start, teacher.end)
    return Student(network.to(teacher.network.device), CVFP, (), (), copied=False, frozen=CVFP_FROZEN)


def _shared(teacher: CausalModel) -> dict[str, Any]:
    """Settings that every student has from its teacher."""
    config = teacher.network.config.get_text_config()
    return {
        "vocab_size": teacher.network.get_input_embeddings().weight.shape[0],
        "hidden_size": config.hidden_size,
        "tie_word_embeddings": bool(config.tie_word_embeddings),
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": None,
    }


def _chunk(teacher: CausalModel) -> int:
    return CHUNK.get(teacher.network.device.type, CHUNK["cuda"])


def _with_mlps(teacher: CausalModel, kept: list[int]) -> Student:
    """The teacher's architecture with mixers: `BambaForCausalLM`."""
    library: Any = import_module("transformers")
    config = teacher.network.config.get_text_config()
    heads, size = config.num_attention_heads, getattr(config, "head_dim", None)
    size = size or config.hidden_size // heads
    if heads * size % config.hidden_size:
        raise DistillError(
            f"{teacher.name} has {heads} heads of {size} components and a width of {config.hidden_size}: a mixer needs "
            f"a whole multiple of the width, and {heads} * {size} = {heads * size} is none"
        )
    attention = layers(teacher.network)[0].self_attn
    if kept and hasattr(attention, "q_norm"):
        raise DistillError(
            f"{teacher.name} has norms of queries and keys, which the attention of a hybrid has not: take mamba2"
        )
    made = library.BambaConfig(
        **_shared(teacher),
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=size,
        hidden_act=config.hidden_act,
        rms_norm_eps=config.rms_norm_eps,
        max_position_embeddings=config.max_position_embeddings,
        attn_layer_indices=kept or None,
        attention_bias=attention.q_proj.bias is not None,
        mlp_bias=layers(teacher.network)[0].mlp.down_proj.bias is not None,
        rope_parameters=dict(config.rope_parameters),
        mamba_n_heads=heads,
        mamba_d_head=size,
        mamba_n_groups=heads,
        mamba_d_state=size,
        mamba_d_conv=KERNEL,
        mamba_expand=heads * size // config.hidden_size,
        mamba_chunk_size=_chunk(teacher),
        mamba_proj_bias=True,
    )
    made.rope_parameters["partial_rotary_factor"] = config.rope_parameters.get("partial_rotary_factor", 1.0)
    network = library.BambaForCausalLM(made)
    both = list(zip(layers(teacher.network), network.model.layers, strict=True))
    sites = tuple(Site(a.self_attn, (b.mamba,), added=False) for a, b in both if hasattr(b, "mamba"))
    for site in sites:
        draw_mixer(site.blocks[0])
    name = f"hybrid:{len(kept)}" if kept else "mamba2"
    return Student(network.to(teacher.network.device), name, sites, tuple(both), copied=True)


def _without_mlps(teacher: CausalModel, kind: str) -> Student:
    """A Mamba of the teacher's width, `BLOCKS` blocks for each layer."""
    library: Any = import_module("transformers")
    config, shared = teacher.network.config.get_text_config(), _shared(teacher)
    shared |= {"num_hidden_layers": BLOCKS * config.num_hidden_layers, "use_bias": True}
    if kind == "mamba":
        network = library.MambaForCausalLM(library.MambaConfig(**shared, state_size=STATE, conv_kernel=KERNEL))
    else:
        heads = config.num_attention_heads
        if 2 * config.hidden_size % heads:
            raise DistillError(f"{teacher.name} has {heads} heads, which do not divide its width {config.hidden_size}")
        size = 2 * config.hidden_size // heads
        made = library.Mamba2Config(
            **shared, num_heads=heads, head_dim=size, state_size=size, n_groups=1, chunk_size=_chunk(teacher)
        )
        network = library.Mamba2ForCausalLM(made)
    blocks = list(network.backbone.layers)
    if kind == "mamba2":
        for block in blocks:
            draw_mixer(block.mixer)
    parts = [tuple(blocks[i : i + BLOCKS]) for i in range(0, len(blocks), BLOCKS)]
    both = list(zip(layers(teacher.network), parts, strict=True))
    sites = tuple(Site(layer, part, added=True) for layer, part in both)
    pairs = tuple((layer, part[-1]) for layer, part in both)
    return Student(network.to(teacher.network.device), kind, sites, pairs, copied=False)


def check_stages(student: Student, teacher: CausalModel, stages: Sequence[int]) -> None:
    """Refuse stages that match what a student does not have, and set up the teacher for stage 1."""
    if not student.sites and tuple(stages) != (3,):
        raise DistillError(
            f"--stages is {','.join(map(str, stages))}, and a {student.kind} student has no layers to match with the "
            "teacher's: take 3"
        )
    if 1 not in stages:
        return
    if not student.copied:
        raise DistillError(
            f"--stages has 1, which matches mixers with attention, and a {student.kind} student of "
            f"{teacher.network.config.model_type} has other layers: take 2,3"
        )
    teacher.network.set_attn_implementation("eager")  # others give no matrices


@torch.no_grad()
def draw_mixer(mixer: Any) -> None:  # noqa: ANN401  transformers has no types
    """Draw convolution, time step and decay of a Mamba-2 mixer as Mamba-2 does: Bamba's own forgets in a token."""
    nn.init.kaiming_uniform_(mixer.conv1d.weight, a=math.sqrt(5))
    low, high = map(math.log, DT)
    dt = torch.exp(torch.empty(mixer.num_heads).uniform_(low, high))
    mixer.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
    mixer.A_log.copy_(torch.empty(mixer.num_heads).uniform_(*DECAY).log())
