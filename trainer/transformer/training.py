"""Next-token training of a transformer on windows of a stream, and the scores of every target.

A window is the first token of a conversation (its end-of-text token, in the separated layout) and up to `WINDOW`
tokens that follow each other. A piece of a conversation is one window. A longer conversation is scored in windows that
overlap by half, so that a later target is predicted from 64 to 128 tokens before it. No token sees another
conversation.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.cvfp.head import score
from trainer.cvfp.phase2 import Scores, State
from trainer.cvfp.scan import Tape
from trainer.cvfp.settings import Phase2
from trainer.transformer.model import Transformer

WINDOW = 128
"""Maximum tokens of a window, not counting its first."""
SCORED_WINDOWS = 64
"""Maximum number of windows that are scored at a time."""


@dataclass(frozen=True)
class Windows:
    """W windows of a stream: positions of inputs, int64 [W].

    A window reads `first`, and `begins` to `ends`. The targets of `counts` to `ends` are its own; of the inputs before,
    another window has scored the targets.
    """

    first: Tensor
    begins: Tensor
    ends: Tensor
    counts: Tensor

    def __len__(self) -> int:
        return len(self.first)

    def positions(self, which: Tensor) -> tuple[Tensor, Tensor]:
        """Positions [rows, tokens] of the inputs of some windows, padded at their ends, and whether a target counts."""
        first, begins, ends = self.first[which, None], self.begins[which, None], self.ends[which, None]
        at = begins + torch.arange(int((ends - begins).max()), device=first.device)
        own = torch.cat((first >= self.counts[which, None], (at >= self.counts[which, None]) & (at < ends)), dim=1)
        return torch.cat((first, at.minimum(ends - 1)), dim=1), own


def windows(tape: Tape, overlap: int = 0) -> Windows:
    """The windows of a stream, whose targets are all of its targets, each once."""
    stops = torch.cat((tape.starts[1:], tape.starts.new_tensor([len(tape) - 1])))
    step = WINDOW - overlap
    beyond = stops - tape.starts - (WINDOW + 1)  # inputs that the first window does not hold
    number = 1 + (beyond.clamp(min=0) + step - 1) // step
    owner = torch.repeat_interleave(number)
    nth = torch.arange(len(owner), device=owner.device) - (number.cumsum(0) - number)[owner]
    first = tape.starts[owner]
    counts = torch.where(nth > 0, first + 1 + WINDOW + (nth - 1) * step, first)
    begins = torch.where(nth > 0, counts - overlap, first + 1)
    ends = torch.minimum(first + 1 + WINDOW + nth * step, stops[owner])
    return Windows(first, begins, ends, counts)


def batches(model: Transformer, tape: Tape, settings: Phase2, state: State) -> Iterator[tuple[Tensor, Tensor]]:
    """What the head reads [rows, E] and targets [rows] of the batches from `state.step`, endlessly.

    An epoch has all windows in random order, in batches of equally many windows and about `settings.batch` tokens.
    """
    every = windows(tape)
    count = min(settings.per_epoch(len(tape) - 1), len(every))
    while True:
        epoch, done = divmod(state.step, count)
        generator = torch.Generator().manual_seed((state.seed << 20) + epoch)
        order = torch.randperm(len(every), generator=generator).to(tape.ids.device)
        for which in order.tensor_split(count)[done:]:
            at, own = every.positions(which)
            if tape.learned is not None:
                own &= tape.learned[at + 1]
            with torch.autocast(tape.ids.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
                z = model(tape.ids[at])
            yield z.float()[own], tape.ids[at[own] + 1]


@torch.no_grad()
def evaluate(model: Transformer, tape: Tape) -> Scores:
    """Score every target of a stream."""
    every = windows(tape, WINDOW // 2)
    nats = torch.empty(len(tape) - 1, device=tape.ids.device)
    right = torch.empty(len(tape) - 1, dtype=torch.bool, device=tape.ids.device)
    order = torch.argsort(every.ends - every.begins, stable=True)
    for which in order.tensor_split(math.ceil(len(every) / SCORED_WINDOWS)):  # of similar lengths
        at, own = every.positions(which)
        nats[at[own]], right[at[own]] = score(model(tape.ids[at])[own], *model.output, tape.ids[at[own] + 1])
    return Scores(nats, right)
