"""A CVFP network as a model of transformers, which saves, loads and scores it like any other.

Importing this module makes transformers know the architecture.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from trainer.cvfp.model import Network
from trainer.cvfp.scan import Scanner, Tape, inputs
from trainer.cvfp.settings import Shape


class CvfpConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """The shape of a network, and its start and end tokens."""

    model_type = "cvfp"

    def __init__(self, shape: dict[str, Any] | None = None, **more: Any) -> None:  # noqa: ANN401
        self.shape = shape or asdict(Shape(1, 1, 1))
        super().__init__(**{"vocab_size": self.shape["vocabulary"], "tie_word_embeddings": False, **more})


class CvfpForCausalLM(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Logits of a network for texts [rows, tokens]; contexts start at zero in each row, and have no gradients."""

    config_class = CvfpConfig

    def __init__(self, config: CvfpConfig) -> None:
        super().__init__(config)
        self.network = Network(Shape(**config.shape), seed=None)
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, _: nn.Module) -> None:
        """Leave the weights to `Network.draw`."""

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of the context block."""
        return self.network.embedding

    def get_output_embeddings(self) -> nn.Module | None:
        """The head."""
        return self.network.head

    def forward(self, input_ids: Tensor, **_: Any) -> CausalLMOutput:  # noqa: ANN401  masks and caches
        """Padding at the end of a row changes nothing before it."""
        rows, length = input_ids.shape
        tape = Tape(input_ids.flatten(), torch.arange(rows, device=input_ids.device) * length)
        chunks = [states for _, _, states in Scanner(self.network).along(tape)]
        states = [torch.cat(parts) for parts in zip(*chunks, strict=True)]
        u = inputs(self.network, tape, tape.span(0, len(tape)), self.network.token_embedding)
        logits = nn.functional.linear(self.network.token(states, u), *self.network.output)
        return CausalLMOutput(logits=logits.view(rows, length, -1))


def network(shape: Shape, seed: int, start: int | None, end: int | None) -> CvfpForCausalLM:
    """A network with drawn weights."""
    made = CvfpForCausalLM(CvfpConfig(asdict(shape), bos_token_id=start, eos_token_id=end))
    made.network.draw(seed)
    return made


AutoConfig.register(CvfpConfig.model_type, CvfpConfig, exist_ok=True)
AutoModelForCausalLM.register(CvfpConfig, CvfpForCausalLM, exist_ok=True)
