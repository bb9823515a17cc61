"""Phase 1: the context block learns contexts that differ between tokens and are stable between passes.

Pass 1 is the sequential scan C^(1)_t = F(C^(1)_{t-1}, u_t). Every later pass k runs in parallel over all tokens, each
with the context that pass k-1 gave its predecessor, plus noise, and takes one optimiser step:

    S_t = C^(k-1)_{t-1} + noise,    C^(k) = F(S, u)
    loss = (1 - w) mean (C^(k) - C^(k-1))^2 + w div(C^(k)),    div(X) = -||X - mean row||_F / (a power of the rows)

The next token is not used. Convergence of the recurrence is no evidence of learning, because a random block of constant
width is contractive already; effective rank and variance reveal a collapse.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer import TrainerError
from trainer.cvfp.model import Network
from trainer.cvfp.scan import Scanner, ScanReport, Tape, inputs, room
from trainer.cvfp.settings import Phase1
from trainer.optimisers import Adam

EPS = 1e-10
BLOCK = 1024
"""Tokens per forward pass on a CPU, so that the activations stay in its cache."""
CONVERGED_SLOPE, CONVERGED_STD = 0.001, 0.01
"""The original code's limits on the slope and the standard deviation of the forgetting check's history."""


class NotFiniteError(TrainerError):
    """A loss or a weight is NaN or infinite; the message says where."""


@dataclass(frozen=True)
class Pass:
    """Token-weighted means of one pass: the loss, its two terms, and the share of converged tokens."""

    number: int
    loss: float
    cvfp: float
    diversity: float
    converged: float

    def record(self) -> dict[str, Any]:
        """The pass as a line of metrics.jsonl."""
        values = asdict(self)
        return {"phase": 1, "pass": values.pop("number"), **values}


@torch.no_grad()
def loss_and_slope(now: Tensor, before: Tensor, settings: Phase1) -> tuple[Tensor, Tensor]:
    """Loss, CVFP, diversity and share of converged tokens of C^(k) and C^(k-1), both [rows, C]; the loss's gradient.

    The gradient by `now` is in closed form (the term of the mean row is zero).
    """
    rows, width = now.shape
    moved = now - before
    change = moved.square().mean(dim=1)
    centred = now - now.mean(dim=0)
    spread = torch.linalg.vector_norm(centred)
    divisor = rows if settings.diversity == "rows" else math.sqrt(rows * width)
    cvfp, apart = change.mean(), -spread / divisor
    loss = (1 - settings.weight) * cvfp + settings.weight * apart
    still = (change < settings.threshold).to(now.dtype).mean()
    slope = moved.mul_(2 * (1 - settings.weight) / width).div_(rows)
    slope.sub_(centred.mul_(settings.weight / divisor).div_(spread.clamp(min=EPS)))
    return torch.stack((loss, cvfp, apart, still)), slope


@dataclass
class State:
    """The state after a pass, sufficient to resume bit for bit."""

    number: int
    contexts: Tensor  # [N, C] of the last pass, including the response to its noise
    optimiser: torch.optim.Optimizer
    generator: torch.Generator
    converged: float = 0.0


def begin(
    network: Network, tape: Tape, settings: Phase1, seed: int, *, folder: Path = Path(), scanned: bool = True
) -> tuple[State, ScanReport]:
    """Pass 1, the scan from c = 0 without noise. Returns the state and how the scan was computed.

    Large contexts are a file in the folder. Without `scanned` they are left to be filled from a checkpoint.
    """
    scanner = Scanner(network)
    contexts = room(len(tape), network.shape.context, tape.ids.device, folder / "pass.contexts")
    for a, b, states in scanner.along(tape) if scanned else ():
        contexts[a:b] = states[-1]
    optimiser = Adam(network.context.parameters(), lr=settings.rate)
    generator = torch.Generator(device=tape.ids.device).manual_seed(seed)
    return State(1, contexts, optimiser, generator), scanner.report


def run(network: Network, tape: Tape, settings: Phase1, state: State, tell: Callable[[Pass, State], None]) -> None:
    """Run the remaining passes, which change the context block and the state, and call `tell` after each.

    A NotFiniteError if a loss is not finite (the weights are then those before the pass), or a weight after the step.
    """
    while state.number < settings.passes and (state.number < settings.least or state.converged < settings.share):
        done = one_pass(network, tape, settings, state)
        state.number, state.converged = done.number, done.converged
        tell(done, state)


def one_pass(network: Network, tape: Tape, settings: Phase1, state: State) -> Pass:
    """One pass over all tokens and one optimiser step; `state.contexts` is overwritten."""
    parameters = list(network.context.parameters())
    rows = len(tape)
    sums = torch.zeros(4, dtype=torch.float64, device=tape.ids.device)
    state.optimiser.zero_grad()
    size = settings.chunk or rows
    chunks = [(a, min(a + size, rows)) for a in range(0, rows, size)]
    last = state.contexts[-1].clone()  # wrap-around: the last context of the pass before precedes the first token
    for a, b in chunks:
        before = state.contexts[a:b]
        shifted = torch.cat((last[None], before[:-1]))
        last = before[-1].clone()
        if not tape.wraps:
            shifted = shifted.masked_fill(tape.marks[a:b, None], 0.0)
        if settings.noise:
            noise = torch.empty_like(shifted).normal_(generator=state.generator)
            shifted = shifted.add_(noise, alpha=settings.noise)
        block = BLOCK if shifted.device.type == "cpu" else len(shifted)
        blocks = list(_outputs(network, tape, a, shifted, block))
        share = (b - a) / rows if settings.weighted else 1 / len(chunks)
        now = torch.cat([block.detach() for block in blocks])
        parts, slope = loss_and_slope(now, before, settings)
        torch.autograd.backward(blocks, (slope * share).split(block))  # type: ignore[no-untyped-call]
        sums += parts.double() * (b - a)
        state.contexts[a:b] = now
    torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
    means = (sums / rows).tolist()
    if not all(map(math.isfinite, means)):
        raise NotFiniteError(f"phase 1, pass {state.number + 1}: the loss is {means[0]}")
    state.optimiser.step()
    if not all(bool(torch.isfinite(p).all()) for p in parameters):
        raise NotFiniteError(f"phase 1, pass {state.number + 1}: a weight is not a finite number after its step")
    return Pass(state.number + 1, *means)


def _outputs(network: Network, tape: Tape, a: int, shifted: Tensor, block: int) -> Iterator[Tensor]:
    """F(S, u) of the tokens from a, in blocks."""
    for start in range(0, len(shifted), block):
        part = shifted[start : start + block]
        with torch.no_grad():
            u = inputs(network, tape, tape.span(a + start, a + start + len(part)))
        yield network.context(part, u)[-1]


@torch.no_grad()
def forgetting(network: Network, tape: Tape, trials: int) -> tuple[list[float], str, Tensor]:
    """Measure how fast the recurrence forgets its start, by repeated scans, each from the last context.

    Returns the mean squared differences between successive scans, the verdict by the slope of a line through them, and
    the contexts of the last scan [N, C].
    """
    history, before, first = [], None, None
    contexts = torch.empty(len(tape), network.shape.context, device=tape.ids.device)
    for _ in range(trials):
        for a, b, states in Scanner(network).along(tape, first):
            contexts[a:b] = states[-1]
        if before is not None:
            history.append(float((contexts - before).square().mean()))
        before, first = contexts.clone(), contexts[-1]
    return history, _verdict(history), contexts


def _verdict(history: list[float]) -> str:
    if len(history) < 2:  # noqa: PLR2004  a line needs two points
        return "UNKNOWN"
    scans = np.arange(len(history))
    slope = np.cov(scans, history)[0, 1] / np.var(scans, ddof=1)
    if abs(slope) > CONVERGED_SLOPE:
        return "CONVERGING" if slope < 0 else "DIVERGING"
    return "CONVERGED" if np.std(history) < CONVERGED_STD else "UNKNOWN"


@torch.no_grad()
def effective_rank(contexts: Tensor, seed: int = 0, limit: int = 10_000) -> float:
    """Effective rank of an uncentred matrix [rows, C] (Roy and Vetterli 2007, "The effective rank").

    It is exp of the entropy of the singular values divided by their sum, on at most `limit` rows drawn by the seed. The
    values come from the Gram matrix in float64, which costs a hundredth of a singular value decomposition.
    """
    if len(contexts) > limit:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(len(contexts), generator=generator)[:limit]
        contexts = contexts[drawn.to(contexts.device)]
    wide = contexts.double()
    gram = wide.T @ wide if wide.shape[0] >= wide.shape[1] else wide @ wide.T
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    shares = values / values.sum()
    return float(torch.exp(-(shares * torch.log(shares + EPS)).sum()))


@torch.no_grad()
def variance(contexts: Tensor) -> float:
    """Variance between tokens, averaged over components; near 0 the contexts [N, C] have collapsed into one."""
    return float(contexts.var(dim=0, correction=0).mean())
