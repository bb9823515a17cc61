"""A trained transformer as a folder that transformers opens: the same function, as a model of type Phi.

Phi has a bias in its head, as ours has, but layer norm where we have RMSNorm, and attention and MLP side by side.
Layer norm of (x, -x) is (norm(x), -norm(x)), because its mean is 0 and its variance is the mean square of x. So the
export has twice the width, and two layers for each of ours: one whose MLP adds nothing, and one whose attention adds
nothing. The norm of the embedding is applied to the table.
"""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trainer import TrainerError
from trainer.causal import quiet
from trainer.experiment import checkpoint
from trainer.prepare import vocabulary
from trainer.prepare.vocabulary import MESSAGE_END, TEMPLATE, Vocabulary
from trainer.transformer.model import BASE, NORM_EPS
from trainer.transformer.training import WINDOW

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + (message.role if message.role in ['user', 'assistant', 'system', 'tool'] else 'other') + '|>' }}"
    "{{ message.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""The chat template of a preset with roles, as tokenizers of transformers write it."""


class ExportError(TrainerError):
    """A network cannot be exported."""


def export(run: Path, tokenizer: Path, folder: Path) -> None:
    """Write the transformer of a finished training run and its tokenizer for transformers.

    Args:
        run: folder of the training run, with weights.safetensors.
        tokenizer: the tokenizer.json of its data.
        folder: where config.json, model.safetensors and the tokenizer's files go; replaced if it is there.

    Raises:
        ExportError: the head is tied.
        CheckpointError: the weights are damaged.
    """
    weights = checkpoint.load(run / "weights.safetensors")
    if weights.values["shape"]["tied"]:
        raise ExportError(f"{run} has a tied head, which is not exported: train a preset with an untied head")
    words = vocabulary.load(tokenizer)
    aside = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    with quiet():
        _model(weights.tensors, weights.values["shape"]["heads"], words).save_pretrained(aside)
        _tokenizer(words).save_pretrained(aside)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def _model(state: dict[str, Tensor], heads: int, words: Vocabulary) -> Any:  # noqa: ANN401  transformers has no types
    library: Any = import_module("transformers")
    rows, width = state["embedding.weight"].shape
    layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("layers."))
    config = library.PhiConfig(
        vocab_size=rows,
        hidden_size=2 * width,
        intermediate_size=state["layers.0.expand.weight"].shape[0],
        num_hidden_layers=2 * layers,
        num_attention_heads=2 * heads,
        hidden_act="relu2",
        max_position_embeddings=WINDOW + 1,
        layer_norm_eps=NORM_EPS,
        rope_parameters={"rope_type": "default", "rope_theta": BASE, "partial_rotary_factor": 1.0},
        tie_word_embeddings=False,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        bos_token_id=words.end,
        eos_token_id=words.end,
    )
    model = library.PhiForCausalLM(config)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        _fill(model, state)
    return model


def _tokenizer(words: Vocabulary) -> Any:  # noqa: ANN401  transformers has no types
    fast: Any = import_module("transformers").PreTrainedTokenizerFast
    end = words.decode([words.end])
    made = fast(tokenizer_object=words.tokenizer, bos_token=end, eos_token=end)
    if words.tokenizer.token_to_id(MESSAGE_END) is not None:
        made.chat_template = CHAT_TEMPLATE
        made.add_special_tokens({"additional_special_tokens": list(TEMPLATE)})
    return made


def _fill(model: Any, state: dict[str, Tensor]) -> None:  # noqa: ANN401  transformers has no types
    """Write the weights of ours into those of a Phi model, which are zeros."""
    core = model.model
    table = functional.rms_norm(
        state["embedding.weight"], state["embedding.weight"].shape[1:], state["embedding_norm.weight"], NORM_EPS
    )
    core.embed_tokens.weight.copy_(torch.cat((table, -table), 1))
    width = table.shape[1]
    for i, layer in enumerate(core.layers):
        name, attends = f"layers.{i // 2}", i % 2 == 0
        gain = state[f"{name}.{'attention' if attends else 'mlp'}_norm.weight"]
        layer.input_layernorm.weight[:width] = gain
        if attends:
            parts = state[f"{name}.qkv.weight"].view(3, width, width)
            for own, part in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True):
                getattr(layer.self_attn, own).weight[:width, :width] = part
            out, into = layer.self_attn.dense.weight, state[f"{name}.project.weight"]
        else:
            layer.mlp.fc1.weight[:, :width] = state[f"{name}.expand.weight"]
            out, into = layer.mlp.fc2.weight, state[f"{name}.contract.weight"]
        out[:, : into.shape[1]] = torch.cat((into, -into))
    core.final_layernorm.weight[:width] = state["norm.weight"]
    model.lm_head.weight[:, :width] = state["head.weight"]
    model.lm_head.bias.copy_(state["head.bias"])
