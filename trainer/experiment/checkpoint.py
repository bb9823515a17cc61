"""Checkpoints: one safetensors file with everything a training run needs to resume, written aside and renamed.

Nothing in it can execute: it holds tensors, and a JSON text in the header.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stages import files
from trainer import TrainerError
from trainer.cvfp import phase1, phase2

NUMBERS = {1: ("number", "converged"), 2: ("step", "evaluations", "best", "best_evaluation", "worse")}
"""Fields of a phase's state that are plain numbers."""


class CheckpointError(TrainerError):
    """A checkpoint is damaged; the message names the file."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint: tensors, no two of which share memory, and JSON values."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with `prefix.`, without it."""
        start = f"{prefix}."
        return {name.removeprefix(start): t for name, t in self.tensors.items() if name.startswith(start)}


def save(path: Path, content: Checkpoint) -> None:
    """Write a checkpoint; a reader sees either the previous file or the whole new one."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in content.tensors.items()}

    def write(aside: Path) -> None:
        aside.touch()
        mode = aside.stat().st_mode & 0o777  # the mode that the umask gives; safetensors would leave 0600
        save_file(tensors, aside, {"said": json.dumps(content.values), "digest": _digest(tensors)})
        aside.chmod(mode)

    files.save(path, write)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint, or raise a CheckpointError."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            values = json.loads(header["said"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
            whole = header["digest"] == _digest(tensors)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): remove it to restart the training run") from error
    if not whole:
        raise CheckpointError(f"{path} is damaged (bytes have changed): remove it to restart the training run")
    return Checkpoint(tensors, values)


def _digest(tensors: dict[str, Tensor]) -> str:
    """32 hex digits of all names and bytes, because safetensors does not notice a flipped bit."""
    state = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        state.update(name.encode())
        state.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def of_state(state: phase1.State | phase2.State) -> Checkpoint:
    """The state of a phase after a pass or an evaluation."""
    tensors = of_optimiser(state.optimiser) | {"generator": state.generator.get_state()}
    if isinstance(state, phase1.State):
        phase, tensors["contexts"] = 1, state.contexts
    else:
        phase, best = 2, {f"best.{name}": t for name, t in state.weights.items()}
        tensors |= best | (vars(state.scores) if state.scores else {})
    return Checkpoint(tensors, {"phase": phase} | {name: getattr(state, name) for name in NUMBERS[phase]})


def to_state(content: Checkpoint, state: phase1.State | phase2.State) -> None:
    """Put the content of `of_state` into a fresh state; contexts are removed from the content."""
    to_optimiser(content, state.optimiser)
    state.generator.set_state(content.tensors["generator"])
    for name in NUMBERS[content.values["phase"]]:
        setattr(state, name, content.values[name])
    if isinstance(state, phase1.State):
        state.contexts.copy_(content.tensors.pop("contexts"))
    else:
        state.weights = content.part("best")
        state.scores = phase2.Scores(content.tensors["nats"], content.tensors["right"])


def of_optimiser(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors of an optimiser's state."""
    state = optimiser.state_dict()["state"]
    return {f"optimiser.{i}.{key}": torch.as_tensor(value) for i, each in state.items() for key, value in each.items()}


def to_optimiser(content: Checkpoint, optimiser: torch.optim.Optimizer) -> None:
    """Put the tensors of `of_optimiser` into a fresh optimiser of the same parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in content.part("optimiser").items():
        number, key = name.split(".")
        state.setdefault(int(number), {})[key] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
