"""The recurrent baseline: one GRU of the network's size with the same embeddings and the same kind of head."""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from trainer.cvfp.head import score
from trainer.cvfp.model import Network
from trainer.cvfp.phase2 import Scores, State, optimise, start
from trainer.cvfp.scan import Tape
from trainer.cvfp.settings import Phase2

LANES = 8
"""Number of parts of the stream that are read in parallel; the tokens of a step are spread over them."""


def hidden(blocks: int, width: int) -> int:
    """Hidden width H at which a GRU of E = `width` has `blocks` scalars: 3 H^2 + (4E + 6) H + E, with a projection."""
    half = (4 * width + 6) / 6
    return max(round(math.sqrt(half * half + (blocks - width) / 3) - half), 1)


class Recurrent(nn.Module):
    """Frozen, normed embedding -> GRU -> projection -> norm -> head; embedding, head and size are the network's."""

    def __init__(self, network: Network, seed: int) -> None:
        super().__init__()
        shape, counts = network.shape, network.parameter_counts()
        self.width = hidden(counts["context_block"] + counts["token_block"], shape.embedding)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.cell = nn.GRU(shape.embedding, self.width, batch_first=True)
            self.project = nn.Linear(self.width, shape.embedding)
        self.norm = nn.LayerNorm(shape.embedding)
        self.embedding = copy.deepcopy(network.token_embedding).requires_grad_(requires_grad=False)
        self.head = copy.deepcopy(network.head)

    @property
    def output(self) -> tuple[Tensor, Tensor | None]:
        """Weight [V, E] and bias [V] of the head."""
        return (self.embedding.weight, None) if self.head is None else (self.head.weight, self.head.bias)

    def forward(self, ids: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Ids [lanes, rows] -> [lanes, rows, E] and the state after them."""
        e = nn.functional.layer_norm(self.embedding(ids), (self.embedding.embedding_dim,))
        out, state = self.cell(e, state)
        return self.norm(self.project(out)), state


def train(network: Network, tape: Tape, validation: Tape, settings: Phase2, seed: int) -> tuple[Recurrent, State]:
    """Train with the settings of phase 2, in float32; the model ends with the weights of the best evaluation.

    The stream is cut into lanes that are read in parallel. The state is carried along each lane, and gradients are
    truncated at a step. The end-of-text token marks the borders of conversations.
    """
    model = Recurrent(network, seed).to(tape.ids.device)
    settings = replace(settings, precision="float32", restore=True)
    state = start({name: p for name, p in model.named_parameters() if p.requires_grad}, settings, seed)
    lanes = max(min(LANES, settings.batch, len(tape) // 64), 1)  # fewer in a short stream
    text = tape.ids[: len(tape) // lanes * lanes].view(lanes, -1)
    batches = _batches(model, text, max(settings.batch // lanes, 1))
    rows = (text.shape[1] - 1) * lanes
    name = "the GRU baseline"
    optimise(name, model.output, batches, lambda: evaluate(model, validation), settings, state, rows, lambda *_: None)
    model.load_state_dict(state.weights, strict=False)
    return model, state


def _batches(model: Recurrent, lanes: Tensor, window: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The model's output [rows, E] and targets [rows] of `window` tokens of each lane [lanes, N], endlessly."""
    last = lanes.shape[1] - 1
    while True:
        before = None
        for a in range(0, last, window):
            b = min(a + window, last)
            z, before = model(lanes[:, a:b], before)
            before = before.detach()
            yield z.flatten(0, 1), lanes[:, a + 1 : b + 1].reshape(-1)


@torch.no_grad()
def evaluate(model: Recurrent, tape: Tape, window: int = 4096) -> Scores:
    """Score every target of a stream, read in one lane."""
    nats, right, state = [], [], None
    for a in range(0, len(tape) - 1, window):
        b = min(a + window, len(tape) - 1)
        z, state = model(tape.ids[None, a:b], state)
        one, hit = score(z[0], *model.output, tape.ids[a + 1 : b + 1])
        nats.append(one)
        right.append(hit)
    return Scores(torch.cat(nats), torch.cat(right))
