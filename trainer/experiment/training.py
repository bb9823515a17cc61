"""One training, from a stream of ids to a record: phase 1, phase 2, the test set; resumed where it was stopped.

A folder holds it: metrics.jsonl (a line a pass and an evaluation, as they come), checkpoint.safetensors while it runs,
and at the end weights.safetensors, scores.npz (nats and targets of each test conversation) and, last, record.json.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.cvfp import phase1, phase2
from trainer.cvfp.contexts import Contexts
from trainer.cvfp.model import Network
from trainer.cvfp.phase1 import NotFiniteError
from trainer.cvfp.scan import Tape
from trainer.experiment import checkpoint
from trainer.experiment.kinds import CVFP, RANDOM_BLOCK
from trainer.experiment.records import add_metrics, reported, save_metrics, write
from trainer.prepare.streams import Stream
from trainer.presets import Preset

COLLAPSED = 1e-3
"""Variance of a context's component between tokens below which contexts have collapsed into one; a norm makes it 1."""
COLLAPSED_RANK = 2.0
"""Effective rank up to which they have collapsed as well: two points have no more, whatever their variance."""
INTERVAL = 30.0
"""Seconds between checkpoints."""
COUNTED = ("step", "evaluations", "best", "best_evaluation", "worse")
"""What a checkpoint says of phase 2, beside tensors."""

Tell = Callable[[dict[str, Any]], None]


def tape(stream: Stream, device: str, *, reset: bool) -> Tape:
    """A stream on a device; contexts start anew at each conversation, or only at the beginning."""
    starts = stream.starts[stream.starts < stream.tokens - 1] if reset else np.zeros(1, np.int64)
    ids, first = (torch.from_numpy(each.astype(np.int64)).to(device) for each in (stream.ids, starts))
    return Tape(ids, first, wraps=not reset)


@dataclass(frozen=True)
class Data:
    """What a training is given.

    Attributes:
        train: the budget's stream.
        validation: chooses the weights, nothing else.
        test: what the record reports.
        embeddings: float32 [V, E].
    """

    train: Stream
    validation: Stream
    test: Stream
    embeddings: np.ndarray


@dataclass
class _Clock:
    """Seconds of each phase, added up over resumptions."""

    seconds: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    def lap(self, name: str) -> float:
        """Put what passed since the last call to a phase's account; how much that was."""
        now = time.perf_counter()
        passed, self.began = now - self.began, now
        self.seconds[name] = self.seconds.get(name, 0.0) + passed
        return passed


class Training:
    """One training in a folder.

    Args:
        preset: how.
        data: on what.
        seed: of weights and noise.
        folder: where its files lie; it is made.
        identity: what names this training; a checkpoint of another one is not taken up.
        device: "cpu", "cuda" or another of torch's.
        tell: called with each line of the metrics.
        interval: seconds between checkpoints.
        compiled: whether torch compiles the two blocks, which takes a minute first.
        said: what else the record says: of the data, the preset.
    """

    def __init__(
        self,
        preset: Preset,
        data: Data,
        seed: int,
        folder: Path,
        *,
        identity: str,
        device: str = "cpu",
        tell: Tell = lambda _line: None,
        interval: float = INTERVAL,
        compiled: bool = False,
        said: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.preset, self.data, self.seed, self.folder = preset, data, seed, folder
        self.identity, self.device, self.tell, self.interval, self.said = identity, device, tell, interval, said
        folder.mkdir(parents=True, exist_ok=True)
        self.network = Network(preset.sized(len(data.embeddings)).shape, seed)
        self.network.set_embedding(torch.from_numpy(data.embeddings))
        self.network.to(device)
        if compiled:
            self.network.context.compile()
            self.network.token.compile()
        self.tapes = [tape(each, device, reset=preset.reset) for each in (data.train, data.validation, data.test)]
        self.lines: list[dict[str, Any]] = []
        self.clock = _Clock()
        self._saved = time.monotonic()

    def run(self) -> dict[str, Any]:
        """Train, or go on, and return the record.

        Raises:
            NotFiniteError: training met NaN or infinity; the message names the step and the last good checkpoint.
            CheckpointError: a checkpoint is damaged.
        """
        tensors, said = self._found()
        if said:
            at = f"step {said['step']:,}" if said["phase"] == 2 else f"pass {said['number']}"  # noqa: PLR2004
            self.tell({"resumed": f"phase {said['phase']}, {at}"})
        save_metrics(self.folder, self.lines)
        try:
            if said.get("phase") != 2:  # noqa: PLR2004
                self._phase1(tensors, said)
                tensors, said = {}, {}
            return self._finish(self._phase2(tensors, said))
        except NotFiniteError as error:
            there = self.checkpoint.exists()
            kept = f"the last good checkpoint is {self.checkpoint}" if there else "no checkpoint had been written yet"
            fix = "try other embeddings, another seed or another preset"
            raise NotFiniteError(f"{self.folder.name}: {error}; {kept}: {fix}") from error

    @property
    def checkpoint(self) -> Path:
        """Where the training stands."""
        return self.folder / "checkpoint.safetensors"

    def _found(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The checkpoint of this training, its weights and metrics put back; nothing where there is none."""
        if not self.checkpoint.exists():
            return {}, {}
        tensors, said = checkpoint.load(self.checkpoint)
        if said.get("identity") != self.identity:
            return {}, {}
        if lost := {"phase", "lines", "seconds"} - said.keys():
            raise checkpoint.CheckpointError(
                f"{self.checkpoint} lacks {', '.join(sorted(lost))}: remove it, and the training begins anew"
            )
        weights = {name.removeprefix("network."): t for name, t in tensors.items() if name.startswith("network.")}
        self.network.load_state_dict(weights)
        self.lines, self.clock.seconds = said["lines"], said["seconds"]
        return {name: t.to(self.device) if name != "generator" else t for name, t in tensors.items()}, said

    def _save(self, tensors: dict[str, Tensor], said: dict[str, Any]) -> None:
        if time.monotonic() - self._saved < self.interval:
            return
        weights = {f"network.{name}": t for name, t in self.network.state_dict().items()}
        said |= {"identity": self.identity, "lines": self.lines, "seconds": self.clock.seconds}
        checkpoint.save(self.checkpoint, tensors | weights, said)
        self._saved = time.monotonic()

    def _say(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        add_metrics(self.folder, line)
        self.tell(line)

    def _phase1(self, tensors: dict[str, Tensor], said: dict[str, Any]) -> None:
        settings, text = self.preset.phase1, self.tapes[0]
        if not settings.passes:
            return
        state, report = phase1.begin(
            self.network,
            text,
            settings,
            self.seed,
            folder=self.folder / ".contexts-0",
            scanned="contexts" not in tensors,
        )
        if "contexts" in tensors:  # resumed
            checkpoint.to_optimiser(state.optimiser, tensors)
            state.generator.set_state(tensors["generator"])
            state.number, state.converged = said["number"], said["converged"]
            state.contexts.copy_(tensors.pop("contexts"))
        else:
            self._say({"phase": 1, "pass": 1, "how": report.said()})
        self.clock.lap("phase 1")

        def tell(done: phase1.Pass, state: phase1.State) -> None:
            self._say(done.record() | {"tokens_per_s": len(text) / self.clock.lap("phase 1")})
            kept = checkpoint.of_optimiser(state.optimiser)
            kept |= {"contexts": state.contexts, "generator": state.generator.get_state()}
            self._save(kept, {"phase": 1, "number": state.number, "converged": state.converged})

        phase1.run(self.network, text, settings, state, tell)
        self._check(state.contexts)

    def _check(self, contexts: Tensor) -> None:
        """Say effective rank and variance of the contexts, and collapse where there is one."""
        width = self.preset.shape.context
        spread = phase1.variance(contexts)
        if not math.isfinite(spread):  # a single NaN is enough; contexts may lie on disk, so that nothing copies them
            raise NotFiniteError("after phase 1 the contexts are not finite numbers")
        rank = phase1.effective_rank(contexts)
        line: dict[str, Any] = {
            "phase": 1,
            "effective_rank": rank,
            "effective_rank_share": rank / width,
            "variance": spread,
        }
        trials = 1 if self.preset.reset else self.preset.phase1.trials
        history, verdict, found = phase1.forgetting(self.network, self.tapes[1], trials)
        if not torch.isfinite(found).all():
            raise NotFiniteError("after phase 1 the contexts of the validation set are not finite numbers")
        exact = phase1.effective_rank(found)  # without the noise of the passes
        line |= {"validation_effective_rank": exact}
        if history:
            line |= {"forgetting": history, "verdict": verdict}
        if len(found) >= width:
            rank, spread = min(rank, exact), min(spread, phase1.variance(found))
        self._say(line | {"collapsed": spread < COLLAPSED or rank <= COLLAPSED_RANK})
        self.clock.lap("phase 1")

    def _phase2(self, tensors: dict[str, Tensor], said: dict[str, Any]) -> phase2.State:
        settings = self.preset.phase2.sized(self.data.train.tokens)
        state = phase2.begin(self.network, settings, self.seed)
        if tensors:
            checkpoint.to_optimiser(state.optimiser, tensors)
            state.generator.set_state(tensors["generator"])
            for name in COUNTED:
                setattr(state, name, said[name])
            state.weights = {n.removeprefix("best."): t for n, t in tensors.items() if n.startswith("best.")}
            state.scores = phase2.Scores(tensors["nats"], tensors["right"])
        contexts = None
        if not settings.live:
            contexts = self._contexts(0), self._contexts(1)
            if not tensors:
                self._say({"phase": 2, "contexts": contexts[0].report.said()})
        self.clock.lap("phase 2")
        rows, before = len(self.tapes[0]) - 1, state.step

        def tell(done: phase2.Evaluation, state: phase2.State) -> None:
            nonlocal before
            seen, before = settings.seen(done.step, rows) - settings.seen(before, rows), done.step
            self.clock.lap("phase 2")
            self._say(done.record() | {"tokens_per_s": seen / done.seconds})
            kept = checkpoint.of_optimiser(state.optimiser) | {"generator": state.generator.get_state()}
            kept |= {f"best.{name}": t for name, t in state.weights.items()}
            if state.scores is not None:
                kept |= {"nats": state.scores.nats, "right": state.scores.right}
            self._save(kept, {"phase": 2} | {name: getattr(state, name) for name in COUNTED})

        phase2.run(self.network, self.tapes[0], self.tapes[1], settings, state, contexts, tell)
        return state

    def _contexts(self, which: int) -> Contexts:
        folder = self.folder / f".contexts-{which}"
        folder.mkdir(exist_ok=True)
        return Contexts.of(self.network, self.tapes[which], folder)

    def _finish(self, state: phase2.State) -> dict[str, Any]:
        """Score the test set, write weights, scores and, last, the record."""
        if self.preset.validation is not None:  # the validation set is the reported one: the best epoch's scores
            scores, stream = state.scores, self.data.validation
        else:
            scores, stream = phase2.evaluate(self.network, self.tapes[2]), self.data.test
        if scores is None:
            raise NotFiniteError("phase 2 made no step: the budget holds no target")
        self.clock.lap("test")
        if not torch.isfinite(scores.nats).all():
            raise NotFiniteError(f"after step {state.step} the loss on the test set is not a finite number")
        weights = {name: t.detach().cpu().contiguous() for name, t in self.network.state_dict().items()}
        checkpoint.save(self.folder / "weights.safetensors", weights, {"shape": asdict(self.network.shape)})
        record = {
            **reported(scores.nats.cpu().numpy(), scores.right.cpu().numpy(), stream),
            "kind": (CVFP if self.preset.phase1.passes else RANDOM_BLOCK).name,
            "tokens": self.data.train.tokens,
            "conversations": len(self.data.train),
            "seed": self.seed,
            "steps": state.step,
            "evaluations": state.evaluations,
            "best_evaluation": state.best_evaluation,
            "validation_loss": state.best,
            **self._contexts_said(),
            "parameters": self.network.parameter_counts(),
            "seconds": self.clock.seconds,
            "tokens_per_s": self.data.train.tokens / sum(self.clock.seconds.values()),
            "threads": torch.get_num_threads(),
            "device": self.device,
            "torch": torch.__version__,
            "identity": self.identity,
            **self.said,
        }
        write(self.folder, record, self.lines, scores.nats.cpu().numpy(), stream)
        for path in (self.checkpoint, checkpoint.aside(self.checkpoint)):
            path.unlink(missing_ok=True)
        for which in range(2):
            shutil.rmtree(self.folder / f".contexts-{which}", ignore_errors=True)
        return record

    def _contexts_said(self) -> dict[str, Any]:
        """What the metrics say of phase 1, for the record."""
        passes = [line for line in self.lines if line["phase"] == 1 and "converged" in line]
        checked = next((line for line in self.lines if "effective_rank" in line), {})
        how = [line[key] for line in self.lines for key in ("how", "contexts") if key in line]
        return {
            "passes": passes[-1]["pass"] if passes else 0,
            "converged": passes[-1]["converged"] if passes else None,
            "effective_rank_share": checked.get("effective_rank_share"),
            "variance": checked.get("variance"),
            "collapsed": checked.get("collapsed"),
            "contexts": how,
        }
