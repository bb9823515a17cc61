"""Training of a student in stages, and of the controls beside it; a run that was stopped resumes bit for bit.

The order of texts depends on the seed and the epoch alone, so a checkpoint is weights, the optimiser's state and a few
numbers. The weights of the best evaluation are kept.
"""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.causal import CausalModel, encode
from trainer.distill import losses, scan
from trainer.distill.losses import IGNORED, Batch, Weights
from trainer.distill.student import DistillError, Student
from trainer.experiment import checkpoint
from trainer.experiment.checkpoint import Checkpoint
from trainer.optimisers import AdamW

STEPS = 500
"""Number of steps by default; a step has `MIN_BATCH` to `MAX_BATCH` tokens."""
MIN_BATCH, MAX_BATCH = 512, 16_384
RATE = 2e-3
"""Default learning rate at a width of 64; it falls with the square root of the width."""
WARM_UP = 0.05
"""Share of a stage's steps in which the learning rate rises."""
CLIP = 1.0
"""Maximum norm of a gradient."""
BETAS = 0.9, 0.95
EVALUATIONS = 20
"""Evaluations of a run, in equal distances."""
MIN_VALIDATION, MAX_VALIDATION = 1_000, 20_000
"""Bounds of the tokens that are scored at an evaluation, else a hundredth of the training tokens."""
STALLED = 0.01
"""A stage before the last ends if its validation loss falls by less than this share in a tenth of the steps."""
BUCKET = 16
"""Batches whose texts are sorted by length together, so that little is padded."""
SAVING = 0.1
"""Maximum share of the time that is spent on checkpoints."""
MAX_PASSES = 8
"""Passes over the texts above which a warning is given."""


@dataclass(frozen=True)
class Settings:
    """How a student is trained.

    Attributes:
        tokens: targets in total, over all stages.
        batch: targets of a step, about.
        rate: maximum learning rate.
        stages: of 1 (matrices), 2 (hidden) and 3 (logits), ascending; the last is 3.
        weights: of the parts of stage 3.
        seed: of the weights that are drawn and of the order of texts.
    """

    tokens: int
    batch: int
    rate: float
    stages: tuple[int, ...] = (3,)
    weights: Weights = field(default_factory=Weights)
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Texts:
    """Pieces of texts to train on and to validate on: ids, int64, each with a start token if the model has one."""

    train: Sequence[Tensor]
    validation: Sequence[Tensor]

    @property
    def tokens(self) -> int:
        """Targets of one pass."""
        return sum(len(piece) - 1 for piece in self.train)


@dataclass(frozen=True, eq=False)
class Lesson:
    """What is trained: a network, and by stage its loss and the parameters that learn."""

    name: str
    network: Any
    losses: Mapping[int, Callable[[Batch], Tensor]]
    learning: Mapping[int, Callable[[str], bool]]
    ids: int
    stages: tuple[int, ...] = (3,)


@dataclass
class State:
    """Where a run is: `stage` counts those of the lesson, `begin` is the step at which it began.

    `lines` are its evaluations, and `best` is the smallest validation loss of the last stage, in nats.
    """

    stage: int = 0
    begin: int = 0
    step: int = 0
    lines: list[dict[str, Any]] = field(default_factory=list)
    best: float = math.inf
    best_step: int = 0
    done: bool = False


def pieces(model: CausalModel, conversations: pl.DataFrame, context: int) -> list[Tensor]:
    """Conversations cut into pieces of at most `context` inputs, each with the start token before it."""
    start = [] if model.start is None else [model.start]
    opening = torch.tensor(start, dtype=torch.int64)
    cut = [
        torch.cat((opening, part))
        for ids, _ in encode(model, conversations)
        for part in torch.split(torch.from_numpy(ids[len(start) :]), context + 1 - len(start))
    ]
    return [piece for piece in cut if len(piece) > 1]


def plan(lengths: Sequence[int], settings: Settings) -> list[NDArray[np.int64]]:
    """The rows of each step: epochs of all texts in random order, in batches of about equally many targets.

    Texts of a batch are of similar lengths; the order of batches is random.
    """
    sizes, steps, seen, epoch = np.array(lengths) - 1, list[NDArray[np.int64]](), 0, 0
    while seen < settings.tokens:
        generator = np.random.default_rng([settings.seed, epoch])
        order = generator.permutation(len(sizes))
        window = max(round(BUCKET * settings.batch / sizes.mean()), 1)
        parts = [order[i : i + window] for i in range(0, len(order), window)]
        batches = [rows for part in parts for rows in _batches(part[np.argsort(-sizes[part])], sizes, settings.batch)]
        for i in generator.permutation(len(batches)):
            if seen < settings.tokens:
                steps.append(batches[i])
                seen += int(sizes[batches[i]].sum())
        epoch += 1
    return steps


def _batches(rows: NDArray[np.int64], sizes: NDArray[np.int64], batch: int) -> Iterator[NDArray[np.int64]]:
    """Consecutive rows, sorted by falling size, of about `batch` tokens, padding included."""
    begin = 0
    while begin < len(rows):
        end = begin + max(round(batch / int(sizes[rows[begin]])), 1)
        yield rows[begin:end]
        begin = end


def batch_of(texts: Sequence[Tensor], device: torch.device) -> Batch:
    """Texts as one batch."""
    pad = torch.nn.utils.rnn.pad_sequence
    inputs = pad([ids[:-1] for ids in texts], batch_first=True)
    targets = pad([ids[1:] for ids in texts], batch_first=True, padding_value=IGNORED)
    return Batch(inputs.to(device), targets.to(device))


def student_lesson(teacher: CausalModel, student: Student, settings: Settings, *, frozen: bool = False) -> Lesson:
    """A student that learns from its teacher; with `frozen`, all but its mixers learn, and in stage 3 alone."""
    blocks = {id(p) for module in losses.modules_of(student) for p in module.parameters()}
    mixers = {name for name, p in student.network.named_parameters() if id(p) in blocks}
    return Lesson(
        "mean" if frozen else "student",
        student.network,
        {
            1: lambda batch: losses.matrices(teacher, student, batch),
            2: lambda batch: losses.hidden(teacher, student, batch),
            3: lambda batch: losses.everything(teacher, student, batch, settings.weights),
        },
        {
            1: mixers.__contains__,
            2: mixers.__contains__,
            3: lambda name: not (frozen and name in mixers) and not name.startswith(student.frozen),
        },
        teacher.ids,
        (3,) if frozen else settings.stages,
    )


def text_lesson(
    name: str,
    network: Any,  # noqa: ANN401  transformers has no types
    ids: int,
    frozen: tuple[str, ...] = (),
) -> Lesson:
    """A network that learns the texts alone, by cross entropy; parameters whose names begin with `frozen` stay."""
    learns = {3: lambda name: not name.startswith(frozen)}
    return Lesson(name, network, {3: lambda batch: losses.cross_entropy(network, batch, ids)}, learns, ids)


def shares(stages: Sequence[int], tokens: int) -> dict[int, float]:
    """The largest share of the tokens of each stage but the last: a third up to 3 million tokens, 5 % from 100 million.

    Stages 1 and 2 divide it.
    """
    place = min(max(math.log(tokens / 3e6) / math.log(100e6 / 3e6), 0.0), 1.0)
    early = [stage for stage in stages if stage != 3]  # noqa: PLR2004  the last stage
    return dict.fromkeys(early, (1 / 3) ** (1 - place) * 0.05**place / max(len(early), 1))


def train(
    lesson: Lesson, texts: Texts, settings: Settings, place: Path, tell: Callable[[dict[str, Any]], None]
) -> State:
    """Train a lesson's network in place; it ends with the weights of its best evaluation, in `place` until removed.

    Raises:
        DistillError: a loss is not a finite number.
        CheckpointError: a checkpoint is damaged.
    """
    run = _Run(lesson, texts, settings, place, tell)
    with scan.linear_time() if lesson.network.config.model_type == "mamba" else contextlib.nullcontext():
        while not run.state.done:
            run.stage()
    run.keep_best()
    return run.state


class _Run:
    """A run between its checkpoints."""

    def __init__(
        self, lesson: Lesson, texts: Texts, settings: Settings, place: Path, tell: Callable[[dict[str, Any]], None]
    ) -> None:
        self.lesson, self.texts, self.settings, self.tell = lesson, texts, settings, tell
        self.path = place / f"{lesson.name}.safetensors"
        self.parameters = dict(lesson.network.named_parameters())
        self.device = next(iter(self.parameters.values())).device
        self.steps = plan([len(piece) for piece in texts.train], settings)
        self.interval = max(len(self.steps) // EVALUATIONS, 1)
        self.validation = _some(texts.validation, settings.tokens // 100)
        self.state, self.best = State(), dict[str, Tensor]()
        self.optimiser: torch.optim.Optimizer | None = None
        self.saving, self.saved_at, self.parts = 0.0, 0.0, 1
        if self.path.exists():
            self._resume()

    def stage(self) -> None:
        """Train until the present stage ends."""
        lesson, state = self.lesson, self.state
        number = lesson.stages[state.stage]
        optimiser = self._optimiser(number)
        end, last = self._end(number), number == lesson.stages[-1]
        if last and state.step == state.begin:
            self._evaluate(number, None)
        while state.step < end:
            share = (state.step - state.begin) / max(end - state.begin, 1)
            for group in optimiser.param_groups:
                group["lr"] = self.settings.rate * _schedule(share, decays=last)
            loss = self._step(number, optimiser)
            state.step += 1
            if (state.step - state.begin) % self.interval == 0 or state.step == end:
                self._evaluate(number, loss)
                if not last and _stalls([line["validation"] for line in state.lines if line["stage"] == number]):
                    break
                self._save()
        self._next()

    def _end(self, number: int) -> int:
        """The step at which a stage ends at the latest."""
        if number == self.lesson.stages[-1]:
            return len(self.steps)
        share = shares(self.lesson.stages, self.settings.tokens)[number]
        return min(self.state.begin + max(round(share * len(self.steps)), 1), len(self.steps) - 1)

    def _step(self, number: int, optimiser: torch.optim.Optimizer) -> float:
        """One step; if memory does not suffice, the batch is halved once, and gradients are added up."""
        rows = self.steps[self.state.step]
        try:
            value = self._descend(number, rows, optimiser)
        except RuntimeError as error:
            if not _lacks_memory(error) or self.parts > 1 or len(rows) == 1:
                raise _too_large(error, self.settings.batch) if _lacks_memory(error) else error from None
            self.parts = 2
            return self._step(number, optimiser)
        if not math.isfinite(value):
            raise DistillError(
                f"the loss of stage {number} is not a finite number at step {self.state.step + 1}: take a lower --lr "
                f"than {self.settings.rate:g}"
            )
        torch.nn.utils.clip_grad_norm_([p for p in self.parameters.values() if p.requires_grad], CLIP)
        optimiser.step()
        return value

    def _descend(self, number: int, rows: NDArray[np.int64], optimiser: torch.optim.Optimizer) -> float:
        """The loss of some texts, whose gradients replace the old ones."""
        optimiser.zero_grad()
        parts = [
            batch_of([self.texts.train[i] for i in part], self.device) for part in np.array_split(rows, self.parts)
        ]
        total, value = sum(int(part.own.sum()) for part in parts), 0.0
        for part in parts:
            loss = self.lesson.losses[number](part) * (int(part.own.sum()) / total)
            loss.backward()  # type: ignore[no-untyped-call]
            value += float(loss.detach())
        return value

    def _optimiser(self, number: int) -> torch.optim.Optimizer:
        """The optimiser of a stage, which goes on if its run was resumed."""
        learning = self.lesson.learning[number]
        for name, p in self.parameters.items():
            p.requires_grad_(learning(name))
        made = AdamW(
            [p for p in self.parameters.values() if p.requires_grad],
            self.settings.rate,
            BETAS,
            weight_decay=0.0,
            fused=True,
        )
        if self.path.exists() and self.state.step > self.state.begin:
            checkpoint.to_optimiser(checkpoint.load(self.path), made)
        self.optimiser = made
        return made

    @torch.no_grad()
    def _evaluate(self, number: int, loss: float | None) -> None:
        """Score the validation set; in the last stage, keep the best weights."""
        state, last = self.state, number == self.lesson.stages[-1]
        total, count = 0.0, 0
        for texts in self.validation:
            batch = batch_of(texts, self.device)
            size = int(batch.own.sum())
            of = (
                losses.cross_entropy(self.lesson.network, batch, self.lesson.ids) if last else self._loss(number, batch)
            )
            total, count = total + float(of) * size, count + size
        value = total / count
        if last and value < state.best:
            state.best, state.best_step = value, state.step
            self.best = {name: p.detach().clone() for name, p in self.parameters.items()}
        line = {"training": self.lesson.name, "stage": number, "step": state.step, "loss": loss, "validation": value}
        state.lines.append(line)
        self.tell(line)

    def _loss(self, number: int, batch: Batch) -> Tensor:
        return self.lesson.losses[number](batch)

    def _next(self) -> None:
        """Go on to the next stage, or end."""
        state = self.state
        state.stage, state.begin = state.stage + 1, state.step
        state.done, self.optimiser = state.stage == len(self.lesson.stages), None
        self._save(at_once=True)

    def keep_best(self) -> None:
        """Give the network the weights of the best evaluation."""
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(self.best[name])
                p.requires_grad_(requires_grad=False)

    def _save(self, *, at_once: bool = False) -> None:
        """Write a checkpoint, unless writing takes too large a share of the time."""
        began = time.monotonic()
        if not at_once and (began - self.saved_at) * SAVING < self.saving:
            return
        tensors = {f"best.{name}": one for name, one in self.best.items()}
        if not self.state.done:
            tensors |= {f"network.{name}": p for name, p in self.parameters.items()}
            tensors |= {} if self.optimiser is None else checkpoint.of_optimiser(self.optimiser)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save(self.path, Checkpoint(tensors, asdict(self.state)))
        self.saved_at = time.monotonic()
        self.saving = self.saved_at - began

    def _resume(self) -> None:
        found = checkpoint.load(self.path)
        self.state = State(**found.values)
        self.best = {name: one.to(self.device) for name, one in found.part("best").items()}
        if not self.state.done:
            with torch.no_grad():
                for name, one in found.part("network").items():
                    self.parameters[name].copy_(one)
            self.tell({"training": self.lesson.name, "resumed": True, "step": self.state.step})


def _some(texts: Sequence[Tensor], tokens: int) -> list[list[Tensor]]:
    """The first texts of a validation set, about so many tokens, in batches."""
    most = min(max(tokens, MIN_VALIDATION), MAX_VALIDATION)
    ends = np.cumsum([len(ids) - 1 for ids in texts])
    some = sorted(texts[: max(int(np.searchsorted(ends, most, side="right")), 1)], key=len)
    rows = max(MAX_BATCH // 4 // max(len(some[-1]), 1), 1)
    return [some[i : i + rows] for i in range(0, len(some), rows)]


def _lacks_memory(error: RuntimeError) -> bool:
    """Whether torch could not allocate memory, on a processor or an accelerator."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def _too_large(error: RuntimeError, batch: int) -> DistillError:
    """The error of a batch that does not fit, with the bytes that were asked for."""
    asked = re.search(r"allocate ([\d.]+ ?\w*)", str(error).replace("allocate memory", ""))
    what = f" for {asked[1]} more" if asked else ""
    return DistillError(
        f"memory does not suffice{what}, although each batch was halved: take a --batch below {batch // 2:,}"
    )


def _stalls(history: Sequence[float]) -> bool:
    """Whether a validation loss has fallen too little in the last tenth of the steps."""
    back = EVALUATIONS // 10
    return len(history) > back and history[-1] > (1 - STALLED) * history[-1 - back]


def _schedule(share: float, *, decays: bool) -> float:
    """The learning rate at a share of a stage: a linear warm-up, then 1, or a cosine to 0 in the last stage."""
    if share < WARM_UP:
        return (share + 1e-3) / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP))) if decays else 1.0


def check_stages(text: str) -> tuple[int, ...]:
    """The stages by their option: auto is 3.

    Raises:
        DistillError: they are something else.
    """
    known = {"auto": (3,), "3": (3,), "2,3": (2, 3), "1,2,3": (1, 2, 3)}
    if text.replace(" ", "") not in known:
        raise DistillError(f"--stages is {text!r}, expected {', '.join(known)}")
    return known[text.replace(" ", "")]


def default_batch(tokens: int) -> int:
    """Tokens of a step if none are given."""
    return min(max(tokens // STEPS, MIN_BATCH), MAX_BATCH)


def default_rate(width: int) -> float:
    """The learning rate of a student of a width if none is given."""
    return RATE * math.sqrt(64 / width)
