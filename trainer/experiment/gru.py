"""The recurrent network: one GRU of CVFP's size with the same embeddings and the same kind of head."""

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from trainer.cvfp.head import score
from trainer.cvfp.model import Network
from trainer.cvfp.phase2 import Scores, State
from trainer.cvfp.scan import Tape
from trainer.cvfp.settings import Phase2

LANES = 8
"""Number of parts of the stream that are read in parallel; the tokens of a step are spread over them."""


def hidden(blocks: int, width: int) -> int:
    """Hidden width H at which a GRU of E = `width` has `blocks` scalars: 3 H^2 + (4E + 6) H + E, with a projection."""
    half = (4 * width + 6) / 6
    return max(round(math.sqrt(half * half + (blocks - width) / 3) - half), 1)


class Recurrent(nn.Module):
    """Frozen, normed embedding -> GRU -> projection -> norm -> head; embedding, head and size are those of `network`.

    `carried` [1, lanes, H] is the state of each lane after the last batch, which a checkpoint has to keep.
    """

    carried: Tensor

    def __init__(self, network: Network, seed: int, count: int = 1) -> None:
        super().__init__()
        shape, counts = network.shape, network.parameter_counts()
        self.shape = shape
        self.width = hidden(counts["context_block"] + counts["token_block"], shape.embedding)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.cell = nn.GRU(shape.embedding, self.width, batch_first=True)
            self.project = nn.Linear(self.width, shape.embedding)
        self.norm = nn.LayerNorm(shape.embedding)
        self.embedding = copy.deepcopy(network.token_embedding).requires_grad_(requires_grad=False)
        self.head = copy.deepcopy(network.head)
        self.register_buffer("carried", torch.zeros(1, count, self.width))

    @property
    def output(self) -> tuple[Tensor, Tensor | None]:
        """Weight [V, E] and bias [V] of the head."""
        return (self.embedding.weight, None) if self.head is None else (self.head.weight, self.head.bias)

    def forward(self, ids: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Ids [lanes, rows] -> [lanes, rows, E] and the state after them."""
        e = nn.functional.layer_norm(self.embedding(ids), (self.embedding.embedding_dim,))
        out, state = self.cell(e, state)
        return self.norm(self.project(out)), state

    def parameter_counts(self) -> dict[str, int]:
        """Number of scalars of each part and in total; a tied head counts once, as the embedding."""
        parts = {"embedding": self.embedding, "gru": self.cell, "projection": self.project, "norm": self.norm}
        parts |= {} if self.head is None else {"head": self.head}
        counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
        return {**counts, "total": sum(counts.values())}


def lanes(ids: Tensor, batch: int) -> Tensor:
    """A stream [N] cut into lanes [lanes, N] that are read in parallel, fewer of a short stream."""
    count = max(min(LANES, batch, len(ids) // 64), 1)
    return ids[: len(ids) // count * count].view(count, -1)


def batches(
    model: Recurrent, text: Tensor, settings: Phase2, state: State, learned: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """The model's output [rows, E] and targets [rows] of the batches of all lanes [lanes, N], endlessly.

    `learned`, bool [lanes, N], are the ids that are trained on when they are targets. The state is carried along each
    lane, and gradients are truncated at a step. The end-of-text token marks the borders of conversations.
    """
    last, window = text.shape[1] - 1, max(settings.batch // len(text), 1)
    while True:
        done = state.step % math.ceil(last / window)
        for a in range(done * window, last, window):
            b = min(a + window, last)
            z, after = model(text[:, a:b], model.carried if a else None)
            model.carried = after.detach()
            out, targets = z.flatten(0, 1), text[:, a + 1 : b + 1].reshape(-1)
            chosen = slice(None) if learned is None else learned[:, a + 1 : b + 1].reshape(-1)
            yield out[chosen], targets[chosen]


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
