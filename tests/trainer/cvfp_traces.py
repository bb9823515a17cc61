"""Traces of the original research code (../shared/data/cvfp): its weights under our names, and what it was run with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.cvfp.model import Network
from trainer.cvfp.scan import Tape
from trainer.cvfp.settings import Phase1, Phase2, Shape

VARIANTS = ("11-27_untied", "11-27_untied_earlystop", "v1_n2_tied", "v2_nocache", "v2_cached")

PARAMETER_NAMES = {
    "token_embedding": "embedding",
    "context_block": "context",
    "token_block": "token",
    "fnn.0": "linear",
    "context_norm": "norm",
    "token_norm": "norm",
    "residual_proj": "residual",
    "token_output": "head",
}


def renamed(name: str) -> str:
    """A tensor's name in the original -> ours."""
    for theirs, ours in PARAMETER_NAMES.items():
        name = name.replace(theirs, ours)
    return name


@dataclass(frozen=True)
class Trace:
    """One run of the original, with noise 0."""

    folder: Path
    result: dict[str, Any]

    @classmethod
    def read(cls, shared: Path, variant: str) -> Trace:
        folder = shared / "cvfp" / variant
        return cls(folder, json.loads((folder / "result.json").read_text()))

    def array(self, file: str, name: str) -> np.ndarray:
        with np.load(self.folder / f"{file}.npz") as arrays:
            return np.asarray(arrays[name])

    def text(self, which: str) -> Tape:
        ids = torch.from_numpy(self.array("phase1", f"{which}_ids"))
        return Tape(ids, torch.zeros(1, dtype=torch.int64), wraps=True)

    def network(self) -> Network:
        r = self.result
        reduced = self.folder.name.startswith("v2")
        shape = Shape(
            vocabulary=r["vocab"],
            embedding=r["embed_dim"],
            context=r["context_dim"],
            layers=r["layers"],
            inputs=r["n_input"],
            widths="reduced" if reduced else "constant",
            tied=r["tying"],
        )
        network = Network(shape, None)
        with np.load(self.folder / "init_weights.npz") as arrays:
            state = {renamed(name): torch.from_numpy(arrays[name]) for name in arrays.files}
        if shape.tied:
            state.pop("head.weight")
        network.load_state_dict(state)
        return network

    def phase1(self) -> Phase1:
        c = self.result["config"]
        whole = self.folder.name.startswith("11-27")
        return Phase1(
            passes=c["phase1_max_iterations"],
            least=c["phase1_min_iterations"],
            chunk=0 if whole else c["phase1_batch_size"],
            weight=c["dist_reg_weight"],
            noise=0.0,
            rate=c["phase1_learning_rate"],
            clip=c["phase1_gradient_clip"],
            threshold=c["phase1_convergence_threshold"],
            share=c["phase1_min_converged_ratio"],
            trials=c["val_convergence_trials"],
        )

    def phase2(self) -> Phase2:
        c = self.result["config"]
        return Phase2(
            live=self.folder.name != "v2_cached",
            epochs=c["phase2_epochs"],
            patience=c["phase2_patience"],
            batch=c["phase2_batch_used"],
            rate=c["phase2_learning_rate"],
            clip=c["phase2_gradient_clip"],
        )
