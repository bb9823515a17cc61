"""Phase 2: next-token training of the token block and of an untied head, over the contexts of the frozen block.

Inputs are x_0 ... x_{N-2}, targets x_1 ... x_{N-1}. Contexts come in one of two ways:

- cached (the original code's last state): embedding and norm are frozen, so contexts are constant. They are scanned
  once.
- live (the experiments E1 to E4): the embedding norm is trained too, through the current token of the token block.
  Contexts change with it, so they are scanned again batch by batch, carried along the epoch, and on the validation
  stream after every epoch.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from trainer import TrainerError
from trainer.cvfp.head import cross_entropy, score
from trainer.cvfp.model import Network
from trainer.cvfp.phase1 import NotFiniteError
from trainer.cvfp.scan import Contexts, Scanner, Tape, chunks, inputs
from trainer.cvfp.settings import Phase2
from trainer.optimisers import AdamW

Head = tuple[Tensor, Tensor | None]
"""Weight [V, E] and bias [V] of a head."""


@dataclass(frozen=True)
class Scores:
    """The scores of a stream: [N - 1] nats of each target (float32), and whether it had the largest logit."""

    nats: Tensor
    right: Tensor

    def trained(self, tape: Tape) -> "Scores":
        """The scores of the targets that are trained on."""
        if tape.learned is None:
            return self
        return Scores(self.nats[tape.learned[1:]], self.right[tape.learned[1:]])

    @property
    def loss(self) -> float:
        """Mean nats per token."""
        return float(self.nats.double().mean())

    @property
    def accuracy(self) -> float:
        """Share of targets that had the largest logit."""
        return float(self.right.double().mean())


@dataclass(frozen=True)
class Evaluation:
    """One evaluation on the validation stream.

    `train_loss` is the token-weighted mean loss of the batches since the previous evaluation, and `tokens_per_s` are
    their targets per second of wall time.
    """

    evaluation: int
    step: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float
    best: bool
    tokens_per_s: float

    def record(self) -> dict[str, Any]:
        """The evaluation as a line of metrics.jsonl."""
        return {"phase": 2, **asdict(self)}


@dataclass
class State:
    """The state after an evaluation, sufficient to resume bit for bit."""

    trained: dict[str, nn.Parameter]
    optimiser: torch.optim.Optimizer
    generator: torch.Generator
    seed: int
    step: int = 0
    evaluations: int = 0
    best: float = math.inf
    best_evaluation: int = 0
    worse: int = 0  # evaluations since the best one
    weights: dict[str, Tensor] = field(default_factory=dict)  # of the best evaluation, if they are restored
    scores: Scores | None = None  # of the best evaluation

    def over(self, settings: Phase2, rows: int) -> bool:
        """Whether no step is left."""
        return self.step >= settings.total(rows) or 0 < settings.patience <= self.worse


def trained_parameters(network: Network, settings: Phase2) -> dict[str, nn.Parameter]:
    """The parameters that phase 2 trains, by name; matrices first."""
    parts: list[tuple[str, nn.Module | None]] = [("token", network.token), ("head", network.head)]
    if settings.live:
        parts.append(("embed_norm", network.embed_norm))
    if settings.train_embedding:
        if network.own_embedding is None and not settings.live:
            raise TrainerError("cached contexts are constant: train_embedding needs own_embedding or live contexts")
        parts.append(("embedding" if network.own_embedding is None else "own_embedding", network.token_embedding))
    named = [(f"{name}.{key}", p) for name, part in parts if part is not None for key, p in part.named_parameters()]
    return dict(sorted(named, key=lambda each: each[1].dim() == 1))


def begin(network: Network, settings: Phase2, seed: int) -> State:
    """The state before the first step. All parameters but the trained ones are frozen."""
    chosen = trained_parameters(network, settings)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in chosen)
    return start(chosen, settings, seed)


def start(trained: dict[str, nn.Parameter], settings: Phase2, seed: int) -> State:
    """The state before the first step of AdamW on some parameters; only matrices have weight decay."""
    groups = [
        {"params": [p for p in trained.values() if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained.values() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimiser = AdamW(groups, lr=settings.rate, fused=True)
    generator = torch.Generator(device=next(iter(trained.values())).device).manual_seed(seed)
    return State(trained, optimiser, generator, seed)


def run(  # noqa: PLR0917  a network, its data, how far it is
    network: Network,
    tape: Tape,
    validation: Tape,
    settings: Phase2,
    state: State,
    contexts: tuple[Contexts, Contexts] | None,
    tell: Callable[[Evaluation, State], None],
) -> None:
    """Run the remaining steps, which change the network and the state, and call `tell` after each evaluation.

    `contexts` are those of both streams, or None with `settings.live`. With `settings.restore` the network ends with
    the weights of the best evaluation. A NotFiniteError if a loss is not finite.
    """
    if contexts is None:
        batches = _live(network, tape, settings)
    else:
        batches = _batches_with_contexts(network, tape, settings, state, contexts[0])

    def validate() -> Scores:
        return evaluate(network, validation, contexts and contexts[1]).trained(validation)

    optimise("phase 2", network.output, batches, validate, settings, state, len(tape) - 1, tell)
    network.load_state_dict(state.weights, strict=False)


def optimise(  # noqa: PLR0917  a model, its data, how far it is
    name: str,
    head: Head,
    batches: Iterator[tuple[Tensor, Tensor]],
    validate: Callable[[], Scores],
    settings: Phase2,
    state: State,
    rows: int,
    tell: Callable[[Evaluation, State], None],
) -> None:
    """Take the remaining steps of an epoch of `rows` targets, and call `tell` after each evaluation by `validate`.

    `batches` are inputs of the head [rows, E] and targets [rows], endlessly. A NotFiniteError with the name of the
    model if a loss is not finite.
    """
    while not state.over(settings, rows):
        until, began = next(step for step in settings.evaluated(rows) if step > state.step), time.perf_counter()
        loss, seen = _train(name, head, islice(batches, until - state.step), settings, state, settings.total(rows))
        rate = seen / (time.perf_counter() - began)
        scores = validate()
        if not math.isfinite(scores.loss):
            raise NotFiniteError(f"{name}, after step {state.step}: the loss on validation is {scores.loss}")
        state.evaluations += 1
        state.worse += 1
        best = scores.loss < state.best
        if best:
            state.best, state.best_evaluation, state.worse, state.scores = scores.loss, state.evaluations, 0, scores
            if settings.restore:
                state.weights = {key: p.detach().clone() for key, p in state.trained.items()}
        tell(Evaluation(state.evaluations, state.step, loss, scores.loss, scores.accuracy, best, rate), state)


def _train(  # noqa: PLR0917  the same
    name: str, head: Head, batches: Iterable[tuple[Tensor, Tensor]], settings: Phase2, state: State, total: int
) -> tuple[float, int]:
    """Take a step per batch, out of `total`, without waiting for the device; the mean loss of targets, their number."""
    start, chosen = state.step, list(state.trained.values())
    summed, seen = torch.zeros((), dtype=torch.float64, device=chosen[0].device), 0
    finite, good = torch.ones_like(summed, dtype=torch.bool), torch.zeros_like(summed, dtype=torch.int64)
    for z, targets in batches:
        if not len(targets):  # no token of the batch is trained on
            good += finite
            state.step += 1
            continue
        loss = cross_entropy(
            _drop(z, settings.dropout, state.generator), *head, targets, getattr(torch, settings.precision)
        )
        state.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(chosen, settings.clip)
        for group in state.optimiser.param_groups:
            group["lr"] = settings.rate_at(state.step, total)
        state.optimiser.step()
        finite &= torch.isfinite(loss.detach())
        good += finite
        summed += loss.detach().double() * len(targets)
        seen += len(targets)
        state.step += 1
    if not finite:
        raise NotFiniteError(f"{name}, step {start + int(good) + 1}: the loss is not a finite number")
    return float(summed) / max(seen, 1), seen


def _drop(z: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Dropout by a generator that checkpoints keep."""
    return z * torch.empty_like(z).bernoulli_(1 - share, generator=generator) / (1 - share) if share else z


def _batches_with_contexts(
    network: Network, tape: Tape, settings: Phase2, state: State, contexts: Contexts
) -> Iterator[tuple[Tensor, Tensor]]:
    """z^L and targets of the batches from `state.step`, endlessly."""
    rows = len(tape) - 1
    while True:
        epoch, done = divmod(state.step, settings.per_epoch(rows))
        order = None
        if settings.shuffle:
            generator = torch.Generator().manual_seed((state.seed << 20) + epoch)
            order = torch.randperm(rows, generator=generator).to(tape.ids.device)
        for a in range(done * settings.batch, rows, settings.batch):
            b = min(a + settings.batch, rows)
            at = tape.trained(tape.span(a, b) if order is None else order[a:b])
            states = contexts.at(slice(a, b) if order is None and tape.learned is None else at)
            with torch.autocast(tape.ids.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
                z = network.token(states, inputs(network, tape, at, network.token_embedding))
            yield z.float(), tape.ids[at + 1]


def _live(network: Network, tape: Tape, settings: Phase2) -> Iterator[tuple[Tensor, Tensor]]:
    """The same with live contexts, scanned batch by batch and carried along the epoch."""
    rows, n = len(tape) - 1, network.shape.inputs
    scanner = Scanner(network)
    while True:
        c = torch.zeros(network.shape.context, device=tape.ids.device)
        behind = torch.zeros(n - 1, network.shape.embedding, device=tape.ids.device)
        for a in range(0, rows, settings.batch):
            b = min(a + settings.batch, rows)
            at = tape.span(a, b)
            e = network.normalise(network.token_embedding(tape.ids[at]))
            known = torch.cat((behind, e.detach()))  # past embeddings keep the value they had when they were current
            age = tape.age(at)
            past = [known[i : i + b - a].masked_fill((age < n - 1 - i)[:, None], 0.0) for i in range(n - 1)]
            u = torch.cat([*past, e], dim=1)
            states = scanner.step(c, u.detach(), tape.marks[a:b])
            c, behind = states[-1][-1].clone(), known[len(known) - n + 1 :]
            yield network.token(states, u), tape.ids[at + 1]


@torch.no_grad()
def evaluate(network: Network, tape: Tape, contexts: Contexts | None = None) -> Scores:
    """Score every target of a stream; without its contexts it is scanned."""
    rows = len(tape) - 1
    nats = torch.empty(rows, device=tape.ids.device)
    right = torch.empty(rows, dtype=torch.bool, device=tape.ids.device)
    weight, bias = network.output
    if contexts is None:
        spans = Scanner(network).along(tape)
    else:
        spans = ((a, b, contexts.at(slice(a, b))) for a, b in chunks(tape))
    for a, end, states in spans:
        b = min(end, rows)
        at = tape.span(a, b)
        z = network.token([each[: b - a] for each in states], inputs(network, tape, at, network.token_embedding))
        nats[a:b], right[a:b] = score(z, weight, bias, tape.ids[at + 1])
    return Scores(nats, right)
