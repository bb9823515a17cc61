"""The shape of the network, and the settings of both training phases."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from trainer import TrainerError

MAX_DECAY_FACTOR = 8.0
"""Maximum factor on `weight_decay` for short streams; more decay would undo each step."""


class ShapeError(TrainerError):
    """A network cannot have this shape."""


@dataclass(frozen=True)
class Shape:
    """The shape of a network and the distribution of its initial weights.

    V, E, C, L and n of the equations are `vocabulary`, `embedding`, `context`, `layers` and `inputs`.

    Attributes:
        widths: "constant": every context layer has width C and reads u; "reduced": widths fall in equal steps from
            C + nE to C, and only the first context layer reads u.
        tied: whether the head is the embedding without a bias; otherwise it is a matrix and a bias that start at zero.
        weight_std: standard deviation of the layers' weights, whatever their fan-in. The dynamics depend on
            weight_std * sqrt(width): a small perturbation of a context is 0.471 times as large after one token at
            width 768 with 0.1, 0.485 times at width 128 with 0.245, and 0.656 times at width 128 with 0.1.
        own_embedding: whether the token block and a tied head have a separate embedding, which starts as a copy. It can
            be trained while contexts, which come from the first one, stay constant.
    """

    vocabulary: int
    embedding: int = 768
    context: int = 768
    layers: int = 3
    inputs: int = 1
    widths: Literal["constant", "reduced"] = "constant"
    tied: bool = False
    weight_std: float = 0.1
    bias_std: float = 0.01
    own_embedding: bool = False

    def __post_init__(self) -> None:
        for name in ("vocabulary", "embedding", "context", "layers", "inputs"):
            if getattr(self, name) < 1:
                raise ShapeError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.widths not in {"constant", "reduced"}:
            raise ShapeError(f"widths is {self.widths!r}, expected constant or reduced")

    @property
    def tokens(self) -> int:
        """T = nE, width of u."""
        return self.inputs * self.embedding

    @property
    def context_widths(self) -> list[int]:
        """D_0 ... D_L, width before and after each context layer. Of the reduced variant D_0 = C + T is [c; u]."""
        if self.widths == "constant":
            return [self.context] * (self.layers + 1)
        top = self.context + self.tokens
        return [top - self.tokens * i // self.layers for i in range(self.layers + 1)]

    @property
    def token_widths(self) -> list[int]:
        """K_0 ... K_L, width before and after each token layer."""
        if self.widths == "constant":
            return [self.tokens] + [self.embedding] * self.layers
        return [self.tokens - (self.tokens - self.embedding) * i // self.layers for i in range(self.layers + 1)]


@dataclass(frozen=True)
class Phase2:
    """Settings of phase 2. The defaults are those of the original code's last state (49da23b).

    Attributes:
        live: whether the embedding norm is trained and contexts are recomputed with it; otherwise they are cached.
        train_embedding: whether the token block's embedding (and with it a tied head) is trained. With cached contexts
            this needs `Shape.own_embedding`.
        epochs: maximum number of passes over the training stream, unless `steps` are more.
        steps: minimum number of optimiser steps; a small stream is repeated until it is reached. 0: no minimum.
        evaluations: number of evenly spaced evaluations on the validation stream; 0 for one per epoch.
        patience: consecutive evaluations without improvement after which training stops; 0 never stops early.
        shuffle: whether a batch holds random tokens, redrawn each epoch, instead of consecutive ones.
        warmup: share of the steps over which the rate rises from 0.
        decay: whether the rate then falls to 0 along a cosine.
        decay_tokens: training tokens at which `weight_decay` applies as it is. Elsewhere it scales with
            1 / sqrt(tokens), because more steps per epoch decay more, up to `MAX_DECAY_FACTOR`. (Wang and Aitchison
            2024, "How to set AdamW's weight decay as you scale model and dataset size", derive 1 / tokens; the root
            was measured here, see `HOUSE`.) 0: it applies to every stream.
        dropout: share of the token block's output that training sets to zero before the head.
        precision: "float32", or "bfloat16" for the matrix products of head and token block in training. Weights,
            softmax, loss and evaluation are always float32.
        restore: whether the network ends with the weights of the best evaluation; otherwise with the last ones, as the
            original did, although it reports the best epoch.
        loss: targets that are trained on and that choose the best evaluation: "all", or those of "replies". A batch
            has as many tokens in either case, so that equal budgets take equally many steps.
    """

    live: bool = False
    train_embedding: bool = False
    epochs: int = 10
    steps: int = 0
    evaluations: int = 0
    patience: int = 1
    batch: int = 512  # tokens
    shuffle: bool = False
    rate: float = 0.001  # at its peak
    warmup: float = 0.0
    decay: bool = False
    weight_decay: float = 0.0  # decoupled (AdamW), on matrices only
    decay_tokens: int = 0
    dropout: float = 0.0
    clip: float = 1.0  # L2 norm of the gradient
    precision: Literal["float32", "bfloat16"] = "float32"
    restore: bool = False
    loss: Literal["all", "replies"] = "all"

    def __post_init__(self) -> None:
        if self.loss not in {"all", "replies"}:
            raise TrainerError(f"the loss is {self.loss!r}, expected all or replies")
        if self.live and (self.steps or self.evaluations or self.shuffle or self.loss != "all"):
            raise TrainerError("live contexts need whole epochs in order: omit steps, evaluations, shuffle and loss")

    def sized(self, tokens: int) -> Phase2:
        """These settings with the weight decay for this number of training tokens."""
        if not self.decay_tokens:
            return self
        decay = self.weight_decay * min(math.sqrt(self.decay_tokens / max(tokens, 1)), MAX_DECAY_FACTOR)
        return replace(self, weight_decay=decay, decay_tokens=0)

    def total(self, rows: int) -> int:
        """Maximum number of steps for a stream with this number of targets."""
        return max(self.epochs * self.per_epoch(rows), self.steps)

    def per_epoch(self, rows: int) -> int:
        """Steps per epoch; the last batch may be short."""
        return math.ceil(rows / self.batch)

    def evaluated(self, rows: int) -> list[int]:
        """The steps after which the validation stream is evaluated, ascending."""
        total = self.total(rows)
        if not self.evaluations:
            return sorted({*range(self.per_epoch(rows), total, self.per_epoch(rows)), total})
        return sorted({math.ceil(total * (i + 1) / self.evaluations) for i in range(self.evaluations)})

    def rate_at(self, step: int, total: int) -> float:
        """Learning rate of a step, counted from 0, out of `total`."""
        warm = self.warmup * total
        if step < warm:
            return self.rate * (step + 1) / (warm + 1)
        if self.decay:
            return self.rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))
        return self.rate


@dataclass(frozen=True)
class Phase1:
    """Settings of phase 1. The defaults are those of the original code's last state (49da23b).

    Attributes:
        passes: maximum number of passes, including the sequential one; 0 skips the phase (a random frozen block).
        least: minimum number of passes. At pass 2 the weights have not changed yet, so every token is converged.
        chunk: tokens per loss; 0 for one loss over all tokens.
        weight: weight w of the diversity term; the CVFP term has 1 - w.
        noise: standard deviation of the noise added to the carried-over contexts.
        threshold: mean squared change of a context below which its token is converged.
        share: share of converged tokens at or above which the phase stops.
        diversity: "rows" divides the norm by the number of rows, so the term weakens with more rows (the original);
            "rms" divides it by sqrt(rows * width), which gives the standard deviation of a component.
        weighted: whether a chunk counts by its rows; otherwise every chunk counts the same, even a short last one (the
            original).
        trials: scans of the validation stream in the forgetting check, if contexts cross conversation borders.
    """

    passes: int = 40
    least: int = 5
    chunk: int = 8000
    weight: float = 0.5
    noise: float = 0.1
    rate: float = 0.002
    clip: float = 1.0  # L2 norm of the gradient
    threshold: float = 0.03
    share: float = 0.95
    diversity: Literal["rows", "rms"] = "rows"
    weighted: bool = False
    trials: int = 4
