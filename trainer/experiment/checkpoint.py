"""Checkpoints: one safetensors file, written aside and renamed, that holds all that a training needs to go on.

Nothing in it can run: tensors, and a JSON text in the header.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trainer import TrainerError


class CheckpointError(TrainerError):
    """A checkpoint cannot be used; the message says which file and what to do."""


def save(path: Path, tensors: dict[str, Tensor], said: dict[str, Any]) -> None:
    """Write a checkpoint; a reader finds the one before or this one, whole.

    Args:
        path: the file.
        tensors: by name; no two share memory.
        said: what else to keep, as JSON.
    """
    new = aside(path)
    new.touch()
    mode = new.stat().st_mode & 0o777  # what this user's files have; safetensors would leave 0600
    apart = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(apart, new, {"said": json.dumps(said), "digest": _digest(apart)})
    new.chmod(mode)
    with new.open("rb") as file:
        os.fsync(file.fileno())
    new.replace(path)


def aside(path: Path) -> Path:
    """Where a checkpoint is written before it has its name."""
    return path.with_name(f".{path.name}.tmp")


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a checkpoint, and what was said beside them.

    Raises:
        CheckpointError: the file is not a checkpoint of ours, or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            said = json.loads(about["said"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
            whole = about["digest"] == _digest(tensors)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): remove it, and the training begins anew") from error
    if not whole:
        raise CheckpointError(f"{path} is damaged (bytes have changed): remove it, and the training begins anew")
    return tensors, said


def _digest(tensors: dict[str, Tensor]) -> str:
    """32 hex digits of all names and bytes: a disk may have changed some."""
    state = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        state.update(name.encode())
        state.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def of_optimiser(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimiser as tensors by name."""
    state = optimiser.state_dict()["state"]
    return {f"optimiser.{i}.{key}": torch.as_tensor(value) for i, each in state.items() for key, value in each.items()}


def to_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `of_optimiser` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimiser."):
            _, number, key = name.split(".")
            state.setdefault(int(number), {})[key] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
