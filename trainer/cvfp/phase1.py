"""Phase 1: the context block learns contexts that differ between tokens and hold still between passes.

Pass 1 is the sequential scan. Every later pass k gives each token, in parallel, the context that pass k-1 gave its
predecessor (with noise), and takes one optimiser step on

    (1 - w) * mean (C^(k) - C^(k-1))^2  +  w * diversity,   diversity = -||X - mean row||_F / (a power of the rows)

Nothing of the next token enters. The convergence of the recurrence proves nothing about learning (a random block of
constant width is contractive already): what is reported beside it, effective rank and variance, tells collapse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer import TrainerError
from trainer.cvfp.contexts import room
from trainer.cvfp.model import Network
from trainer.cvfp.scan import Report, Scanner, Tape, inputs
from trainer.cvfp.settings import Phase1

EPS = 1e-10
BLOCK = 1024
"""Tokens that go through the block at a time on a processor: their activations stay in its cache."""


class NotFiniteError(TrainerError):
    """Training met NaN or infinity; the message says where."""


@dataclass(frozen=True)
class Pass:
    """What one pass measured: token-weighted means of the parts, and the share of tokens that held still."""

    number: int
    loss: float
    cvfp: float
    diversity: float
    converged: float

    def record(self) -> dict[str, Any]:
        """The line in the metrics."""
        return {
            "phase": 1,
            "pass": self.number,
            "loss": self.loss,
            "cvfp": self.cvfp,
            "diversity": self.diversity,
            "converged": self.converged,
        }


@torch.no_grad()
def loss_and_slope(now: Tensor, before: Tensor, settings: Phase1) -> tuple[Tensor, Tensor]:
    """The loss of one chunk and its gradient, in closed form: that of ||X - mean row|| has no term for the mean row.

    Args:
        now: C^(k) [rows, C].
        before: C^(k-1) [rows, C].
        settings: weight, kind of diversity, threshold.

    Returns:
        Loss, CVFP, diversity and share of converged tokens [4]; the gradient of the loss with respect to `now`.
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
    """Where phase 1 stands after a pass: enough to go on bit for bit."""

    number: int
    contexts: Tensor  # [N, C], those of the pass, with the response to its noise
    optimiser: torch.optim.Optimizer
    generator: torch.Generator
    converged: float = 0.0


def begin(
    network: Network, tape: Tape, settings: Phase1, seed: int, *, folder: Path = Path(), scanned: bool = True
) -> tuple[State, Report]:
    """Pass 1, the scan from c = 0 without noise; and how it was done.

    Args:
        network: its context block is what will be trained.
        tape: the training stream.
        settings: of the phase.
        seed: of the noise.
        folder: where contexts lie, if they are large.
        scanned: False where the caller has contexts to put in; nothing is computed then.
    """
    scanner = Scanner(network)
    contexts = room(len(tape), network.shape.context, tape.ids.device, folder / "pass.contexts")
    for a, b, states in scanner.along(tape) if scanned else ():
        contexts[a:b] = states[-1]
    optimiser = torch.optim.Adam(network.context.parameters(), lr=settings.rate)
    generator = torch.Generator(device=tape.ids.device).manual_seed(seed)
    return State(1, contexts, optimiser, generator), scanner.report


def finished(state: State, settings: Phase1) -> bool:
    """Whether no pass is left to do."""
    done = state.number >= settings.least and state.converged >= settings.share
    return state.number >= settings.passes or done


def run(network: Network, tape: Tape, settings: Phase1, state: State, tell: Callable[[Pass, State], None]) -> None:
    """All passes that are left.

    Args:
        network: its context block is trained in place.
        tape: the training stream.
        settings: of the phase.
        state: after the last pass that was done; changed in place.
        tell: called after each pass.

    Raises:
        NotFiniteError: a loss is NaN or infinite, and the network is as the pass found it; or a weight is after the
            step.
    """
    while not finished(state, settings):
        done = one_pass(network, tape, settings, state)
        state.number, state.converged = done.number, done.converged
        tell(done, state)


def one_pass(network: Network, tape: Tape, settings: Phase1, state: State) -> Pass:
    """One pass over all tokens and one optimiser step; `state.contexts` becomes those of the pass."""
    parameters = list(network.context.parameters())
    rows = len(tape)
    sums = torch.zeros(4, dtype=torch.float64, device=tape.ids.device)
    state.optimiser.zero_grad()
    chunks = list(_chunks(rows, settings.chunk))
    last = state.contexts[-1].clone()  # the context before the first token is the last one of the pass before
    for a, b in chunks:
        before = state.contexts[a:b]
        shifted = torch.cat((last[None], before[:-1]))
        last = before[-1].clone()
        fresh = None if tape.wraps else tape.fresh(a, b)
        shifted = _shift(shifted, fresh, settings, state.generator)
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
    """F(S, u) of the tokens from a on, so many at a time."""
    for start in range(0, len(shifted), block):
        part = shifted[start : start + block]
        with torch.no_grad():
            u = inputs(network, tape, tape.span(a + start, a + start + len(part)))
        yield network.context(part, u)[-1]


def _shift(shifted: Tensor, fresh: Tensor | None, settings: Phase1, generator: torch.Generator) -> Tensor:
    """Contexts as the predecessors left them: none before a conversation's first token, and noise on the rest."""
    if fresh is not None:
        shifted = shifted.masked_fill(fresh[:, None], 0.0)
    if settings.noise:
        noise = torch.empty_like(shifted).normal_(generator=generator)
        shifted = shifted.add_(noise, alpha=settings.noise)
    return shifted


def _chunks(rows: int, size: int) -> Iterator[tuple[int, int]]:
    size = size or rows
    for a in range(0, rows, size):
        yield a, min(a + size, rows)


@torch.no_grad()
def forgetting(network: Network, tape: Tape, trials: int) -> tuple[list[float], str, Tensor]:
    """How fast the recurrence forgets its start: the validation stream, scanned again from where it ended.

    Returns:
        The mean squared difference between one scan and the next; "CONVERGED", "CONVERGING" or "DIVERGING" by the slope
        of a straight line through them, as the original says; the contexts of the last scan [N, C]. With resets at
        conversation borders there is nothing to forget but in the first conversation, and one scan is enough.
    """
    history, before, first = [], None, None
    found = torch.empty(len(tape), network.shape.context, device=tape.ids.device)
    for _ in range(trials):
        scanner = Scanner(network)
        for a, b, states in scanner.along(tape, first):
            found[a:b] = states[-1]
        if before is not None:
            history.append(float((found - before).square().mean()))
        before, first = found.clone(), found[-1]
    return history, _verdict(history), found


def _verdict(history: list[float]) -> str:
    if len(history) < 2:  # noqa: PLR2004  a line needs two points
        return "UNKNOWN"
    y = torch.tensor(history, dtype=torch.float64)
    x = torch.arange(len(y), dtype=torch.float64)
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    if slope < -0.001:  # noqa: PLR2004  the original's limits
        return "CONVERGING"
    if slope > 0.001:  # noqa: PLR2004
        return "DIVERGING"
    return "CONVERGED" if float(y.std(correction=0)) < 0.01 else "UNKNOWN"  # noqa: PLR2004


@torch.no_grad()
def effective_rank(contexts: Tensor, seed: int = 0, most: int = 10_000) -> float:
    """Exp of the entropy of the singular values' shares, of the uncentred matrix [rows, C]; at most min(rows, C).

    Roy and Vetterli, "The effective rank" (2007), on at most `most` rows drawn by seed. Computed from the Gram matrix
    in float64, which costs a hundredth of a singular value decomposition.
    """
    if len(contexts) > most:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(len(contexts), generator=generator)[:most]
        contexts = contexts[drawn.to(contexts.device)]
    wide = contexts.double()
    gram = wide.T @ wide if wide.shape[0] >= wide.shape[1] else wide @ wide.T
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    shares = values / values.sum()
    return float(torch.exp(-(shares * torch.log(shares + EPS)).sum()))


@torch.no_grad()
def variance(contexts: Tensor) -> float:
    """Mean over components of their variance between tokens; near 0 the contexts [N, C] have collapsed into one."""
    return float(contexts.var(dim=0, correction=0).mean())
