"""One training run, from a stream of ids to a record. An interrupted run resumes bit for bit.

Its folder holds metrics.jsonl (one line per pass and evaluation, appended as they happen) and checkpoint.safetensors
while it runs; at the end weights.safetensors, scores.npz (nats and targets of each test conversation) and, last,
record.json.
"""

import math
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.cvfp import phase1, phase2
from trainer.cvfp.model import Network
from trainer.cvfp.phase1 import NotFiniteError
from trainer.cvfp.phase2 import Scores, State
from trainer.cvfp.scan import Contexts, Tape
from trainer.experiment import checkpoint
from trainer.experiment.checkpoint import Checkpoint
from trainer.experiment.gru import Recurrent
from trainer.experiment.kinds import CVFP, RANDOM_BLOCK
from trainer.experiment.records import add_metrics, save_metrics, summarise, write
from trainer.prepare.streams import Stream
from trainer.prepare.template import REPLY
from trainer.presets import Preset
from trainer.transformer.model import Transformer

COLLAPSED_VARIANCE = 1e-3
"""Variance between tokens of a context's component (1 after a norm) below which contexts have collapsed into one."""
COLLAPSED_RANK = 2.0
"""Effective rank at or below which contexts have collapsed: two distinct contexts have no more."""
INTERVAL = 30.0
"""Seconds between checkpoints."""


def tape(stream: Stream, device: str, *, reset: bool, loss: str = "all") -> Tape:
    """A stream on a device; with `reset`, contexts restart at each conversation. The loss is that of `Phase2`."""
    learned = torch.from_numpy(stream.classes == REPLY).to(device) if loss == "replies" else None
    starts = stream.starts[stream.starts < stream.tokens - 1] if reset else np.zeros(1, np.int64)
    ids, first = (torch.from_numpy(each.astype(np.int64)).to(device) for each in (stream.ids, starts))
    return Tape(ids, first, wraps=not reset, learned=learned)


@dataclass(frozen=True)
class Data:
    """The data of a training run; `embeddings` are float32 [V, E]."""

    train: Stream
    validation: Stream
    test: Stream
    embeddings: np.ndarray


def cvfp(preset: Preset, data: Data, seed: int) -> Network:
    """The CVFP network of a preset before training, with the embeddings of the data."""
    network = Network(preset.sized(len(data.embeddings)).shape, seed)
    network.set_embedding(torch.from_numpy(data.embeddings))
    return network


class ResumableRun(ABC):
    """A training run of a network in a folder.

    A checkpoint with another `identity` is ignored. `tell` is called with each line of the metrics; `interval` is the
    seconds between checkpoints. `about` are further fields of the record.
    """

    network: Network | Transformer | Recurrent

    def __init__(
        self,
        preset: Preset,
        data: Data,
        seed: int,
        folder: Path,
        *,
        identity: str,
        device: str = "cpu",
        tell: Callable[[dict[str, Any]], None] = lambda _line: None,
        interval: float = INTERVAL,
        about: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.preset, self.data, self.seed, self.folder = preset, data, seed, folder
        self.identity, self.device, self.tell, self.interval, self.about = identity, device, tell, interval, about
        folder.mkdir(parents=True, exist_ok=True)
        layout: dict[str, Any] = {"reset": preset.reset, "loss": preset.phase2.loss}
        self.tapes = [tape(each, device, **layout) for each in (data.train, data.validation, data.test)]
        self.network = self.build().to(device)
        self.lines: list[dict[str, Any]] = []
        self.checkpoint = folder / "checkpoint.safetensors"
        self.seconds: dict[str, float] = {}  # of each phase, summed over resumptions
        self._last_lap, self._last_save = time.perf_counter(), time.monotonic()

    @property
    @abstractmethod
    def kind(self) -> str:
        """Name of the kind of model, in `KINDS`."""

    @abstractmethod
    def build(self) -> Network | Transformer | Recurrent:
        """The network before training, with the embeddings of the data."""

    @abstractmethod
    def learn(self, start: Checkpoint | None) -> State:
        """Train from the start or from a checkpoint; the network ends with the weights that are kept."""

    @abstractmethod
    def score(self) -> Scores:
        """The scores of the test set."""

    def phase_fields(self) -> dict[str, Any]:
        """Fields of the record about the phases of training, from the metrics."""
        return {}

    def run(self) -> dict[str, Any]:
        """Train or resume, and return the record.

        A CheckpointError if the checkpoint is damaged; a NotFiniteError if a loss or a weight is NaN or infinite.
        """
        start = self._resume()
        save_metrics(self.folder, self.lines)
        try:
            return self._finish(self.learn(start))
        except NotFiniteError as error:
            there = self.checkpoint.exists()
            last = f"the last good checkpoint is {self.checkpoint}" if there else "no checkpoint had been written yet"
            fix = "try other embeddings, another seed or another preset"
            raise NotFiniteError(f"{self.folder.name}: {error}; {last}: {fix}") from error

    def _resume(self) -> Checkpoint | None:
        """Load this run's checkpoint, if there is one, and restore weights, metrics and times from it."""
        if not self.checkpoint.exists():
            return None
        start = checkpoint.load(self.checkpoint)
        values = start.values
        if values.get("identity") != self.identity:
            return None
        if missing := {"phase", "lines", "seconds"} - values.keys():
            raise checkpoint.CheckpointError(
                f"{self.checkpoint} lacks {', '.join(sorted(missing))}: remove it to restart the training run"
            )
        self.network.load_state_dict(start.part("network"))
        self.lines, self.seconds = values["lines"], values["seconds"]
        at = f"pass {values['number']}" if values["phase"] == 1 else f"step {values['step']:,}"
        self.tell({"resumed": f"phase {values['phase']}, {at}"})
        return Checkpoint(
            {name: t if name == "generator" else t.to(self.device) for name, t in start.tensors.items()}, values
        )

    def _save(self, state: phase1.State | State) -> None:
        if time.monotonic() - self._last_save < self.interval:
            return
        content = checkpoint.of_state(state)
        weights = {f"network.{name}": t for name, t in self.network.state_dict().items()}
        values = {"identity": self.identity, "lines": self.lines, "seconds": self.seconds}
        checkpoint.save(self.checkpoint, Checkpoint(content.tensors | weights, content.values | values))
        self._last_save = time.monotonic()

    def _say(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        add_metrics(self.folder, line)
        self.tell(line)

    def _lap(self, name: str) -> float:
        """Add the seconds since the last call to a phase, and return them."""
        now = time.perf_counter()
        passed, self._last_lap = now - self._last_lap, now
        self.seconds[name] = self.seconds.get(name, 0.0) + passed
        return passed

    def _finish(self, state: State) -> dict[str, Any]:
        """Score the test set; write weights, scores and, last, the record."""
        if self.preset.validation is not None:  # the validation set is the reported one
            scores, stream = state.scores, self.data.validation
        else:
            scores, stream = self.score(), self.data.test
        if scores is None:
            raise NotFiniteError("training made no step: the budget holds no target")
        self._lap("test")
        if not torch.isfinite(scores.nats).all():
            raise NotFiniteError(f"after step {state.step} the loss on the test set is not a finite number")
        shape = asdict(self.network.shape)
        checkpoint.save(self.folder / "weights.safetensors", Checkpoint(self.network.state_dict(), {"shape": shape}))
        record = {
            **summarise(scores.nats.cpu().numpy(), scores.right.cpu().numpy(), stream),
            "kind": self.kind,
            "tokens": self.data.train.tokens,
            "conversations": len(self.data.train),
            "seed": self.seed,
            "steps": state.step,
            "evaluations": state.evaluations,
            "best_evaluation": state.best_evaluation,
            "validation_loss": state.best,
            **self.phase_fields(),
            "parameters": self.network.parameter_counts(),
            "seconds": self.seconds,
            "tokens_per_s": self.data.train.tokens / sum(self.seconds.values()),
            "threads": torch.get_num_threads(),
            "device": self.device,
            "torch": torch.__version__,
            "identity": self.identity,
            **self.about,
        }
        write(self.folder, record, self.lines, scores.nats.cpu().numpy(), stream)
        for path in self.folder.glob("*checkpoint.safetensors*"):  # and what a killed process was writing
            path.unlink()
        for which in range(2):
            shutil.rmtree(self.folder / f".contexts-{which}", ignore_errors=True)
        return record


class Training(ResumableRun):
    """A training run of CVFP in both phases; without passes of phase 1, of a random frozen block."""

    network: Network

    @property
    def kind(self) -> str:
        """Name of the kind of model, in `KINDS`."""
        return (CVFP if self.preset.phase1.passes else RANDOM_BLOCK).name

    def build(self) -> Network:
        """The network before training, with the embeddings of the data."""
        return cvfp(self.preset, self.data, self.seed)

    def learn(self, start: Checkpoint | None) -> State:
        """Both phases."""
        if start is None or start.values["phase"] == 1:
            self._phase1(start)
            start = None
        return self._phase2(start)

    def score(self) -> Scores:
        """The scores of the test set."""
        return phase2.evaluate(self.network, self.tapes[2])

    def _phase1(self, start: Checkpoint | None) -> None:
        settings, text = self.preset.phase1, self.tapes[0]
        if not settings.passes:
            return
        state, report = phase1.begin(
            self.network, text, settings, self.seed, folder=self.folder / ".contexts-0", scanned=start is None
        )
        if start is None:
            self._say({"phase": 1, "pass": 1, "how": report.describe()})
        else:
            checkpoint.to_state(start, state)
        self._lap("phase 1")

        def tell(done: phase1.Pass, state: phase1.State) -> None:
            self._say(done.record() | {"tokens_per_s": len(text) / self._lap("phase 1")})
            self._save(state)

        phase1.run(self.network, text, settings, state, tell)
        self._check(state.contexts)

    def _check(self, contexts: Tensor) -> None:
        """Log effective rank and variance of the contexts, and whether they have collapsed."""
        width = self.preset.shape.context
        spread = phase1.variance(contexts)
        if not math.isfinite(spread):  # one NaN is enough; contexts may be mapped from a file, so nothing copies them
            raise NotFiniteError("after phase 1 the contexts are not finite numbers")
        rank = phase1.effective_rank(contexts)
        line = {"phase": 1, "effective_rank": rank, "effective_rank_share": rank / width, "variance": spread}
        trials = 1 if self.preset.reset else self.preset.phase1.trials  # with resets there is nothing to forget
        history, verdict, noiseless = phase1.forgetting(self.network, self.tapes[1], trials)
        if not torch.isfinite(noiseless).all():
            raise NotFiniteError("after phase 1 the contexts of the validation set are not finite numbers")
        exact = phase1.effective_rank(noiseless)
        forgetting = {"forgetting": history, "verdict": verdict} if history else {}
        if len(noiseless) >= width:
            rank, spread = min(rank, exact), min(spread, phase1.variance(noiseless))
        collapsed = spread < COLLAPSED_VARIANCE or rank <= COLLAPSED_RANK
        self._say({**line, "validation_effective_rank": exact, **forgetting, "collapsed": collapsed})
        self._lap("phase 1")

    def _phase2(self, start: Checkpoint | None) -> State:
        settings = self.preset.phase2.sized(self.data.train.tokens)
        state = phase2.begin(self.network, settings, self.seed)
        if start is not None:
            checkpoint.to_state(start, state)
        contexts = None
        if not settings.live:
            contexts = (
                Contexts.of(self.network, self.tapes[0], self.folder / ".contexts-0"),
                Contexts.of(self.network, self.tapes[1], self.folder / ".contexts-1"),
            )
            if start is None:
                self._say({"phase": 2, "contexts": contexts[0].report.describe()})
        self._lap("phase 2")

        def tell(done: phase2.Evaluation, state: State) -> None:
            self._lap("phase 2")
            self._say(done.record())
            self._save(state)

        phase2.run(self.network, self.tapes[0], self.tapes[1], settings, state, contexts, tell)
        return state

    def phase_fields(self) -> dict[str, Any]:
        """Fields of the record about phase 1 and the contexts, from the metrics."""
        last = next((line for line in reversed(self.lines) if "converged" in line), {"pass": 0, "converged": None})
        checked = next((line for line in self.lines if "effective_rank" in line), {})
        return {
            "passes": last["pass"],
            "converged": last["converged"],
            **{key: checked.get(key) for key in ("effective_rank_share", "variance", "collapsed")},
            "contexts": [line[key] for line in self.lines for key in ("how", "contexts") if key in line],
        }
