"""Settings of phase 2: steps, rate, weight decay, and when it is evaluated."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from trainer import TrainerError

MOST_DECAY = 8.0
"""Where a stream is so short that its weight decay would undo each step."""


@dataclass(frozen=True)
class Phase2:
    """Settings of phase 2; the defaults are those of the original's last state (49da23b).

    Attributes:
        live: whether the embedding norm is trained and contexts follow it; else they are cached.
        train_embedding: whether the token block's embedding (and so a tied head) is trained. With cached contexts the
            network needs one of its own for it (`Shape.own_embedding`).
        epochs: passes over the training stream at most.
        steps: optimiser steps at least, so that a small stream is passed over more often; 0 for no such bound.
        evaluations: how often the validation stream is evaluated, evenly spaced; 0 for once an epoch.
        patience: evaluations in a row without an improvement after which it stops; 0 never stops early.
        batch: consecutive tokens of a step.
        shuffle: whether batches are random tokens of the stream, drawn anew each epoch, instead of consecutive ones.
        rate: learning rate.
        warmup: share of the steps over which it rises from 0.
        decay: whether it then falls to 0 along a cosine by the last step.
        weight_decay: decoupled (AdamW), on matrices only.
        decay_tokens: training tokens at which weight_decay holds. At others it goes with the inverse of their square
            root, since more steps an epoch decay more (Wang and Aitchison 2024, "How to set AdamW's weight decay as you
            scale model and dataset size", has the inverse; the root is what was measured here, see `HOUSE`), up to
            `MOST_DECAY` times. 0: it holds everywhere.
        dropout: share of the token block's output that is zeroed before the head, in training.
        clip: largest L2 norm of a gradient.
        precision: "float32", or "bfloat16" for the products of the head and the token block in training; weights,
            softmax and loss stay float32, and evaluation is float32 throughout.
        restore: whether the weights of the best evaluation are what is left; else those of the last, whose epoch is not
            the one reported (the original's).
    """

    live: bool = False
    train_embedding: bool = False
    epochs: int = 10
    steps: int = 0
    evaluations: int = 0
    patience: int = 1
    batch: int = 512
    shuffle: bool = False
    rate: float = 0.001
    warmup: float = 0.0
    decay: bool = False
    weight_decay: float = 0.0
    decay_tokens: int = 0
    dropout: float = 0.0
    clip: float = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    restore: bool = False

    def __post_init__(self) -> None:
        """Check what cannot go together.

        Raises:
            TrainerError: `live` with anything else than whole epochs in order: its contexts are carried from batch to
                batch, and would have to come from elsewhere.
        """
        if self.live and (self.steps or self.evaluations or self.shuffle):
            raise TrainerError("live contexts are carried along an epoch: leave steps, evaluations and shuffle away")

    def sized(self, tokens: int) -> Phase2:
        """These settings for so many training tokens."""
        if not self.decay_tokens:
            return self
        decay = self.weight_decay * min(math.sqrt(self.decay_tokens / max(tokens, 1)), MOST_DECAY)
        return replace(self, weight_decay=decay, decay_tokens=0)

    def total(self, rows: int) -> int:
        """Steps at most, for a stream of so many targets."""
        return max(self.epochs * self.per_epoch(rows), self.steps)

    def per_epoch(self, rows: int) -> int:
        """Steps of an epoch; the last batch may be short."""
        return math.ceil(rows / self.batch)

    def seen(self, step: int, rows: int) -> int:
        """Targets of all steps up to this one."""
        epochs, done = divmod(step, self.per_epoch(rows))
        return epochs * rows + min(done * self.batch, rows)

    def evaluated(self, rows: int) -> list[int]:
        """The steps after which the validation stream is evaluated."""
        total = self.total(rows)
        if not self.evaluations:
            return sorted({*range(self.per_epoch(rows), total, self.per_epoch(rows)), total})
        return sorted({math.ceil(total * (i + 1) / self.evaluations) for i in range(self.evaluations)})

    def rate_at(self, step: int, total: int) -> float:
        """Learning rate of a step, counted from 0, of `total`."""
        warm = self.warmup * total
        if step < warm:
            return self.rate * (step + 1) / (warm + 1)
        if self.decay:
            return self.rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))
        return self.rate


@dataclass(frozen=True)
class Phase1:
    """Settings of phase 1; the defaults are those of the original's last state (49da23b).

    Attributes:
        passes: most passes, the sequential one included; 0 skips the phase: a random frozen block.
        least: passes before it may stop; at pass 2 the weights have not changed, and all tokens are converged.
        chunk: tokens of one loss; 0 for all of them in one.
        weight: w, of diversity against stillness.
        noise: standard deviation of what is added to the contexts carried over.
        rate: learning rate of Adam.
        clip: largest L2 norm of a gradient.
        threshold: mean squared change of a context below which its token is converged.
        share: of converged tokens from which on the phase is over.
        diversity: "rows" divides the norm by the rows of the loss, so that its strength falls with them (the
            original's); "rms" by sqrt(rows * width): the standard deviation of a component, whatever the rows.
        weighted: chunks count by their rows; else all alike, a short last one too (the original's).
        trials: scans of the validation stream for the forgetting check, where contexts run across conversations.
    """

    passes: int = 40
    least: int = 5
    chunk: int = 8000
    weight: float = 0.5
    noise: float = 0.1
    rate: float = 0.002
    clip: float = 1.0
    threshold: float = 0.03
    share: float = 0.95
    diversity: Literal["rows", "rms"] = "rows"
    weighted: bool = False
    trials: int = 4
