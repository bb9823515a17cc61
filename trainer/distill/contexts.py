"""The start of a CVFP student: embeddings and contexts, which it learns from the texts without a teacher."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.cvfp import phase1
from trainer.cvfp.scan import Tape
from trainer.distill import training
from trainer.distill.student import CVFP_PRESET
from trainer.experiment import checkpoint
from trainer.experiment.checkpoint import Checkpoint
from trainer.prepare import ppmi

FILE = "contexts.safetensors"


def begin(
    model: Any,  # noqa: ANN401  transformers has no types
    texts: training.Texts,
    settings: training.Settings,
    place: Path,
    tell: Callable[[dict[str, Any]], None],
) -> list[dict[str, Any]]:
    """Give a CVFP its PPMI embeddings and train its context block (phase 1) on the texts of `settings.tokens`.

    The weights are kept in `place`, and read from there if they are; returns a line for each pass.
    """
    path = place / FILE
    if not path.exists():
        place.mkdir(parents=True, exist_ok=True)
        lines = _learn(model.network, _tape(texts, settings, model.device), settings.seed, place, tell)
        checkpoint.save(path, Checkpoint(model.network.state_dict(), {"lines": lines}))
    found = checkpoint.load(path)
    model.network.load_state_dict(found.tensors)
    return [*found.values["lines"]]


def _tape(texts: training.Texts, settings: training.Settings, device: torch.device) -> Tape:
    """The texts that training reads, once each, in the order of the corpus."""
    steps = training.plan([len(piece) for piece in texts.train], settings)
    pieces = [texts.train[i] for i in np.unique(np.concatenate(steps))]
    starts = np.cumsum([0, *(len(piece) for piece in pieces[:-1])])
    return Tape(torch.cat(pieces).to(device), torch.from_numpy(starts).to(device))


def _learn(
    network: Any,  # noqa: ANN401
    tape: Tape,
    seed: int,
    place: Path,
    tell: Callable[[dict[str, Any]], None],
) -> list[dict[str, Any]]:
    """The lines of phase 1."""
    size, width = network.embedding.weight.shape
    ids, starts = tape.ids.cpu().numpy().astype(np.int32), tape.starts.cpu().numpy()
    network.set_embedding(torch.from_numpy(ppmi.ppmi_svd(ids, starts, size, width, seed=seed).table))
    lines = list[dict[str, Any]]()

    def say(done: phase1.Pass, _: phase1.State) -> None:
        lines.append({"training": "contexts", **done.record()})
        tell(lines[-1])

    settings, aside = CVFP_PRESET.phase1, place / ".contexts"
    for p in network.context.parameters():
        p.requires_grad_()
    state, _ = phase1.begin(network, tape, settings, seed, folder=aside)
    phase1.run(network, tape, settings, state, say)
    rank, spread = phase1.effective_rank(state.contexts), phase1.variance(state.contexts)
    lines.append({"training": "contexts", "phase": 1, "effective_rank": rank, "variance": spread})
    shutil.rmtree(aside, ignore_errors=True)
    return lines
