"""A difference as a function of text: what a tuned model predicts beyond its base, added to another model's logits.

    z(x) = z_T(x) + scale (z_S'(x) - z_S(x))           at decoding (proxy-tuning, Liu et al. 2024)
    a LoRA of T is trained on KL(softmax(z) || softmax(z_LoRA)), mean over tokens

It needs no relation of weights, only one vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from trainer.causal import CausalModel, ModelError, encode, quiet
from trainer.optimisers import AdamW

WINDOW = 128
"""Tokens of a window that is trained on."""
BATCH = 512
"""Tokens of a step, about."""
RATE, WARM_UP = 3e-3, 0.05
"""Learning rate and share of the steps of its linear warm-up, before a cosine to 0."""
WRITTEN = 256
"""Windows that the tuned source writes if there are no texts."""


@dataclass(frozen=True)
class LoraOptions:
    """How a LoRA is trained on all linear layers: its rank, steps and seed; alpha is twice the rank."""

    rank: int = 8
    steps: int = 300
    seed: int = 0


class Proxy(torch.nn.Module):
    """A model whose logits are those of the target plus a multiple of the difference of two others."""

    def __init__(self, target: CausalModel, tuned: CausalModel, base: CausalModel, scale: float) -> None:
        super().__init__()
        self.models, self.scale, self.ids = (target, tuned, base), scale, target.ids

    @property
    def device(self) -> torch.device:
        """That of the target."""
        device: torch.device = self.models[0].network.device
        return device

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *, use_cache: bool = False) -> SimpleNamespace:
        """Logits [rows, tokens, V]."""
        more = {"attention_mask": attention_mask, "use_cache": use_cache}
        z = [one.network(input_ids=input_ids, **more).logits[..., : self.ids].float() for one in self.models]
        return SimpleNamespace(logits=z[0] + self.scale * (z[1] - z[2]))


def proxy(target: CausalModel, tuned: CausalModel, base: CausalModel, scale: float) -> CausalModel:
    """The target with the difference at decoding."""
    return replace(target, name="the difference at decoding", network=Proxy(target, tuned, base, scale))


def check_vocabularies(models: Sequence[CausalModel]) -> None:
    """Refuse models that do not encode text to the same ids; rows that no text encodes to do not count."""
    first = models[0].tokenizer.get_vocab()
    for other in models[1:]:
        theirs = other.tokenizer.get_vocab()
        if theirs != first:
            token = next((one for one in {**first, **theirs} if first.get(one) != theirs.get(one)), "")
            raise ModelError(
                f"{models[0].name} and {other.name} have other vocabularies ({token!r} is {first.get(token)} and "
                f"{theirs.get(token)}): a difference of functions needs one tokenizer"
            )


def pieces(model: CausalModel, conversations: pl.DataFrame) -> list[Tensor]:
    """Conversations cut into pieces of at most `WINDOW` ids, each with the start token before it, int64."""
    size = min(WINDOW, model.positions or WINDOW)
    start = [] if model.start is None else [model.start]
    made = []
    for ids, _ in encode(model, conversations):
        body = torch.from_numpy(ids[len(start) :])
        made += [
            torch.cat((torch.tensor(start, dtype=torch.int64), part)) for part in torch.split(body, size - len(start))
        ]
    return [piece for piece in made if len(piece) > 1]


@torch.no_grad()
def write_texts(model: CausalModel, seed: int, count: int = WRITTEN) -> list[Tensor]:
    """Windows that a model writes itself at temperature 1, from its start token, in ids that the tokenizer knows."""
    if model.start is None:
        raise ModelError(f"{model.name} has no token to write from: give texts with --on")
    size = min(WINDOW, model.positions or WINDOW)
    padding = list(range(model.ids, len(model.network.get_output_embeddings().weight)))
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(seed)
        start = torch.full((count, 1), model.start, device=model.network.device)
        ids = model.network.generate(
            input_ids=start,
            attention_mask=torch.ones_like(start),
            do_sample=True,
            top_k=0,
            max_new_tokens=size - 1,
            suppress_tokens=padding or None,
            pad_token_id=model.end if model.end is not None else model.start,
        )
    return [row.cpu() for row in ids]


def train_lora(
    target: CausalModel,
    texts: Sequence[Tensor],
    options: LoraOptions,
    teacher: CausalModel | None,
    tell: Callable[[str], None] = lambda _: None,
) -> CausalModel:
    """A LoRA of the target, trained on the logits of a teacher, or on the texts themselves without one.

    The target itself is left as it is: its weights are copied. The result depends on texts, options and threads alone.

    Raises:
        ModelError: peft is missing, the rank is too large, there are no texts, or a loss is not a finite number.
    """
    try:
        peft: Any = import_module("peft")
    except ImportError as error:
        raise ModelError("a LoRA is trained by the package peft: pip install 'refine[models]'") from error
    linear = [one for one in target.network.modules() if type(one).__name__ in {"Linear", "Conv1D"}]
    most = max((min(one.weight.shape) for one in linear), default=1)
    if options.rank > most:
        raise ModelError(
            f"--rank is {options.rank:,}, and no matrix of {target.name} has a rank above {most:,}: take fewer"
        )
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(options.seed)
        config = peft.LoraConfig(
            r=options.rank, lora_alpha=2 * options.rank, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        network = peft.get_peft_model(copy.deepcopy(target.network), config).eval()
    if not texts:
        raise ModelError("the texts to train on are all shorter than two tokens: take others with --on")
    trained = [p for p in network.parameters() if p.requires_grad]
    optimiser = AdamW(trained, lr=RATE, weight_decay=0.0)
    generator = np.random.default_rng(options.seed)
    rows = max(BATCH // WINDOW, 1)
    for step in range(options.steps):
        for group in optimiser.param_groups:
            group["lr"] = RATE * _schedule(step, options.steps)
        chosen = generator.integers(0, len(texts), rows)
        loss = _loss(network, [texts[i] for i in chosen], target, teacher)
        if not torch.isfinite(loss):
            raise ModelError(
                f"the loss of the LoRA is not a finite number at step {step + 1:,}: the weights of a model or of the "
                "adapter are damaged"
            )
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if (step + 1) % max(options.steps // 5, 1) == 0:
            tell(f"step {step + 1:,} of {options.steps:,}: loss {float(loss.detach()):.4f}")
    network.requires_grad_(requires_grad=False)
    return replace(target, name=f"{target.name} + LoRA", network=network)


def _loss(network: Any, texts: Sequence[Tensor], target: CausalModel, teacher: CausalModel | None) -> Tensor:  # noqa: ANN401
    longest = max(map(len, texts)) - 1
    shape = len(texts), longest
    inputs, targets, there = (torch.zeros(shape, dtype=torch.int64) for _ in range(3))
    for i, ids in enumerate(texts):
        size = len(ids) - 1
        inputs[i, :size], targets[i, :size], there[i, :size] = ids[:-1], ids[1:], 1
    inputs, targets, there = (one.to(target.network.device) for one in (inputs, targets, there))
    own = there.bool()
    z = network(input_ids=inputs, attention_mask=there, use_cache=False).logits[..., : target.ids].float()[own]
    if teacher is None:
        return torch.nn.functional.cross_entropy(z, targets[own])
    with torch.no_grad():
        aim = teacher.network(input_ids=inputs, attention_mask=there, use_cache=False).logits[..., : target.ids].float()
    return kl(aim[own], z)


def kl(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(softmax(teacher / T) || softmax(student / T)) * T^2, mean over tokens: logits [tokens, V]."""
    p, q = (torch.log_softmax(z / temperature, dim=-1) for z in (teacher, student))
    return (p.exp() * (p - q)).sum(dim=-1).mean() * temperature**2


def _schedule(step: int, steps: int) -> float:
    warm = max(round(WARM_UP * steps), 1)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))


@torch.no_grad()
def randomised(model: CausalModel, seed: int = 0) -> CausalModel:
    """A trained LoRA whose factors are noise, with the norm of each product."""
    network, generator = copy.deepcopy(model.network), torch.Generator().manual_seed(seed)
    factors = dict(network.named_parameters())
    for name, a in factors.items():
        if ".lora_A." in name:
            b = factors[name.replace(".lora_A.", ".lora_B.")]
            norm = (b @ a).norm()
            for one in (a, b):
                one.copy_(torch.randn(one.shape, generator=generator).to(one.device))
            b.mul_(norm / (b @ a).norm().clamp(min=1e-30))
    return replace(model, network=network)


def save_lora(model: CausalModel, base: str, folder: Path) -> None:
    """Write a trained LoRA for PEFT, with the name of its base."""
    place = Path(base).expanduser()
    model.network.peft_config["default"].base_model_name_or_path = str(place.resolve()) if place.is_dir() else base
    model.network.save_pretrained(str(folder))
