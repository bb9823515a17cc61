"""The recurrent baseline: one GRU of the network's size with the same embeddings and the same kind of head."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from trainer.cvfp.head import cross_entropy, score
from trainer.cvfp.model import Network
from trainer.cvfp.phase1 import NotFiniteError
from trainer.cvfp.phase2 import Scores, State, drop, judge, optimiser
from trainer.cvfp.scan import Tape
from trainer.cvfp.settings import Phase2

LANES = 8
"""Number of parts of the stream that are read in parallel; the tokens of a step are spread over them."""


def hidden(blocks: int, width: int) -> int:
    """Hidden width H at which a GRU of E = `width` has `blocks` scalars: 3 H^2 + (4E + 6) H + E, with a projection."""
    half = (4 * width + 6) / 6
    return max(round(math.sqrt(half * half + (blocks - width) / 3) - half), 1)


class Recurrent(nn.Module):
    """Frozen, normed embedding -> GRU -> projection -> norm -> head, with the embedding and the size of a network."""

    def __init__(self, network: Network, seed: int) -> None:
        super().__init__()
        shape, counts = network.shape, network.parameter_counts()
        self.width = hidden(counts["context_block"] + counts["token_block"], shape.embedding)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.cell = nn.GRU(shape.embedding, self.width, batch_first=True)
            self.project = nn.Linear(self.width, shape.embedding)
        self.norm = nn.LayerNorm(shape.embedding)
        self.embedding = nn.Embedding.from_pretrained(  # type: ignore[no-untyped-call]
            network.token_embedding.weight.detach().clone()
        )
        self.head = None if shape.tied else nn.Linear(shape.embedding, shape.vocabulary)
        if self.head is not None:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    @property
    def output(self) -> tuple[Tensor, Tensor | None]:
        """Weight [V, E] and bias [V] of the head."""
        return (self.embedding.weight, None) if self.head is None else (self.head.weight, self.head.bias)

    def forward(self, ids: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Ids [lanes, rows] -> [lanes, rows, E] and the state after them."""
        e = nn.functional.layer_norm(self.embedding(ids), (self.embedding.embedding_dim,))
        out, state = self.cell(e, state)
        return self.norm(self.project(out)), state

    def trained_parameters(self) -> list[nn.Parameter]:
        """The parameters that require a gradient."""
        return [p for p in self.parameters() if p.requires_grad]


def train(network: Network, tape: Tape, validation: Tape, settings: Phase2, seed: int) -> tuple[Recurrent, State]:
    """Train with the settings of phase 2: tokens per step, number of steps, best weights on the validation stream.

    The stream is cut into lanes that are read in parallel. The state is carried along each lane, and gradients are
    truncated at a step. The end-of-text token marks the borders of conversations.
    """
    model = Recurrent(network, seed).to(tape.ids.device)
    state = State(
        optimiser(model.trained_parameters(), settings), torch.Generator(device=tape.ids.device).manual_seed(seed), seed
    )
    lanes = _lanes(tape.ids, settings.batch)
    rows = (lanes.shape[1] - 1) * lanes.shape[0]
    best: dict[str, Tensor] = {}
    steps = _steps(lanes, settings.batch)
    before: Tensor | None = None
    while not state.over(settings, rows):
        until = next(step for step in settings.evaluated(rows) if step > state.step)
        while state.step < until:
            first, ids, targets = next(steps)
            z, before = model(ids, None if first else before)
            before = before.detach()
            z = drop(z.reshape(-1, z.shape[-1]), settings, state.generator)
            cross_entropy(z, *model.output, targets.reshape(-1)).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.trained_parameters(), settings.clip)
            for group in state.optimiser.param_groups:
                group["lr"] = settings.rate_at(state.step, settings.total(rows))
            state.optimiser.step()
            state.optimiser.zero_grad()
            state.step += 1
        scores = evaluate(model, validation)
        if not math.isfinite(scores.loss):
            raise NotFiniteError(f"the GRU baseline, step {state.step}: the validation loss is {scores.loss}")
        judge(settings, state, scores)
        if state.worse == 0:
            best = {name: t.detach().clone() for name, t in model.state_dict().items()}
    model.load_state_dict(best)
    return model, state


def _lanes(ids: Tensor, batch: int) -> Tensor:
    """The stream as [lanes, rows], its remainder dropped; a short stream has fewer lanes."""
    lanes = max(min(LANES, batch, len(ids) // 64), 1)
    rows = len(ids) // lanes
    return ids[: lanes * rows].view(lanes, rows)


def _steps(lanes: Tensor, batch: int) -> Iterator[tuple[bool, Tensor, Tensor]]:
    """(first step of an epoch, inputs, targets) of the steps, endlessly."""
    window = max(batch // len(lanes), 1)
    while True:
        for a in range(0, lanes.shape[1] - 1, window):
            b = min(a + window, lanes.shape[1] - 1)
            yield a == 0, lanes[:, a:b], lanes[:, a + 1 : b + 1]


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
