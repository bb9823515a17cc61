"""The data of a comparison in the folder of its trainings, made once, and the proof that no test conversation leaks."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from pipeline import corpus as corpora
from pipeline.store import RunFolderError, read_json, save_json
from pipeline.training import CLAIM, HOME, say
from trainer import arms as arming
from trainer import prepared as preparing
from trainer import presets
from trainer.arms import Arms, Union
from trainer.prepared import Wanted
from trainer.presets import Preset, PresetError


class LeakError(AssertionError):
    """A near-duplicate of a test conversation would be trained on; a fault of refine, never of the user."""


@dataclass(frozen=True)
class How:
    """How arms are trained, as said on the command line.

    Attributes:
        preset: its name.
        wanted: tokenizer, embeddings and sizes of the sets.
        budgets: training tokens; half of the preset's by default.
        seeds: trainings of a budget.
        quick: fewer of both, and no conclusion.
        device: where.
        workers: trainings at a time; 0 for one a core.
        work: where trainings lie; by default a folder for these corpora and options, so that the same command goes on.
    """

    preset: str = "house"
    wanted: Wanted = field(default_factory=Wanted)
    budgets: tuple[int, ...] | None = None
    seeds: int | None = None
    quick: bool = False
    device: str = "cpu"
    workers: int = 0
    work: Path | None = None

    def checked(self) -> Preset:
        """The preset, when the device is there.

        Raises:
            PresetError: there is no such preset or device.
        """
        import torch

        found = presets.find(self.preset)
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            said = str(error).splitlines()[0]
            raise PresetError(
                f"--device {self.device} is not there ({said}): take cpu, or install torch for it"
            ) from error
        return found

    def folder(self, name: str, digests: Sequence[str]) -> Path:
        """The folder of the trainings, claimed.

        Raises:
            RunFolderError: it is a folder of something else.
        """
        state = hashlib.blake2b(f"{sorted(digests)}{self.preset}{self.wanted}".encode(), digest_size=4)
        out = self.work or HOME / f"{word(name)}-{self.preset}-{state.hexdigest()}"
        if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / CLAIM).is_file())):
            raise RunFolderError(f"{out} is not an experiment's folder: choose another --work")
        out.mkdir(parents=True, exist_ok=True)
        save_json(out / CLAIM, {"corpora": name, "digests": list(digests), "preset": self.preset})
        return out


def word(name: str) -> str:
    """A name as a part of a folder's."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:60] or "corpora"


def arms(union: Union, how: How, folder: Path) -> Arms:
    """Split, tokenizer, embeddings and streams of all arms, made or found, and looked through for leaks.

    Raises:
        LeakError: a test conversation has a near-duplicate among those that are trained on.
        ArmsError, SplitError, VocabularyError, EmbeddingsError: a corpus or an option does not serve.
    """
    preset = how.checked()
    given = preparing.outside(preset, how.wanted)
    made = arming.prepare(union, preset, how.wanted, folder / "data", given)
    texts = union.frame[preset.text.column]
    said = folder / "data" / "leaks.json"
    if not said.exists():
        trained = texts.gather(np.concatenate([made.split.pool, made.split.validation]))
        save_json(said, leaks(trained, texts.gather(made.split.test)))
    found = read_json(said)
    if found["leaks"]:
        raise LeakError(f"{found['leaks']:,} of {found['tested']:,} test conversations leak into training")
    made.common.said["leaks"] = found
    for line in preparing.told(made.common.said):
        say(line)
    return made


def leaks(trained: pl.Series, tested: pl.Series) -> dict[str, float]:
    """How many test conversations have a near-duplicate among those that are trained on, looked for in the texts.

    The split is not asked: clusters are found anew in what was taken, tested texts first.
    """
    groups = corpora.groups(pl.concat([tested, trained]))
    alike = np.isin(groups[: len(tested)], groups[len(tested) :])
    return {"leaks": int(alike.sum()), "tested": len(tested), "trained": len(trained), "jaccard": corpora.ALIKE}
