"""The data of a comparison in the folder of its trainings, made once, and the proof that no test conversation leaks."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl

from pipeline.experiments import corpus as corpora
from pipeline.experiments.train import EXPERIMENTS, device
from pipeline.ownership import check_experiment, experiment_claimed
from pipeline.store import read_json, save_json
from pipeline.terminal import say
from trainer import TrainerError, presets
from trainer.prepare import arms as arming
from trainer.prepare.arms import Arms, ArmsError, Leaks, Union
from trainer.prepare.choices import Choices, named, outside
from trainer.presets import Preset


class LeakError(TrainerError):
    """A near-duplicate of a test conversation would be trained on, so nothing is trained."""


@dataclass(frozen=True)
class TrainingOptions:
    """How arms are trained, as said on the command line.

    Attributes:
        preset: its name.
        wanted: tokenizer, embeddings and sizes of the sets.
        budgets: training tokens; the preset's over `PART` by default.
        seeds: trainings of a budget.
        quick: fewer of both, and no conclusion.
        device: where.
        workers: trainings at a time; 0 for one a core.
        work: where trainings lie; by default a folder for these corpora and options, so that the same command goes on.
    """

    preset: str = "house"
    wanted: Choices = field(default_factory=Choices)
    budgets: tuple[int, ...] | None = None
    seeds: int | None = None
    quick: bool = False
    device: str = "cpu"
    workers: int = 0
    work: Path | None = None

    def checked(self) -> Preset:
        """The preset, when all that is known before a corpus is read allows a comparison.

        Raises:
            PresetError: there is no such preset or device.
            ArmsError: the preset or the budgets are not for a comparison.
            EmbeddingsError: embeddings from outside the corpus are missing.
            VocabularyError: there is no such tokenizer.
            RunFolderError: the folder of the trainings is of something else.
        """
        found = presets.find(self.preset)
        device(self.device)
        arming.check(found, self.wanted)
        if self.budgets is not None and len(set(self.budgets)) < 2:  # noqa: PLR2004  a line needs two points
            raise ArmsError("--budgets names one size, and a law needs 2 or more, a conclusion 5: name more")
        outside(found, self.wanted)
        named(found, self.wanted)
        if self.work is not None:
            check_experiment(self.work, "--work")
        return found

    @contextmanager
    def folder(self, name: str, digests: Sequence[str]) -> Iterator[Path]:
        """The folder of the trainings, held alone.

        Raises:
            RunFolderError: it is another process's, of other corpora, or of something else.
        """
        digest = hashlib.blake2b(str(sorted(digests)).encode(), digest_size=8).hexdigest()
        state = hashlib.blake2b(f"{sorted(digests)}{self.preset}{self.wanted}".encode(), digest_size=4)
        out = self.work or EXPERIMENTS / f"{word(name)}-{self.preset}-{state.hexdigest()}"
        with experiment_claimed(out, {"corpus": name, "digest": digest}, "--work") as folder:
            yield folder


def word(name: str) -> str:
    """A name as a part of a folder's."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:60] or "corpora"


def arms(union: Union, how: TrainingOptions, folder: Path) -> Arms:
    """Split, tokenizer, embeddings and streams of all arms, made or found, and looked through for leaks.

    Raises:
        LeakError: a test conversation has a near-duplicate among those that are trained on.
        ArmsError, SplitError, VocabularyError, EmbeddingsError: a corpus or an option does not serve.
    """
    preset = how.checked()
    given = outside(preset, how.wanted)
    made = arming.prepare(union, preset, how.wanted, folder / "data", given)
    texts = union.frame[preset.text.column]
    path = folder / "data" / "leaks.json"
    if not path.exists():
        trained = texts.gather(np.concatenate([made.split.pool, made.split.validation]))
        save_json(path, asdict(leaks(trained, texts.gather(made.split.test))))
    found = Leaks(**read_json(path))
    if found.leaks:
        many = f"{found.leaks:,} of {found.tested:,} test conversations"
        raise LeakError(
            f"{many} have a near-duplicate among those that would be trained on, as happens where thousands are alike: "
            "remove near-duplicates first (`refine run` with the stage dedup)"
        )
    for line in made.common.record.lines():
        say(line)
    return replace(made, leaks=found)


def leaks(trained: pl.Series, tested: pl.Series) -> Leaks:
    """How many test conversations have a near-duplicate among those that are trained on, looked for in the texts.

    The split is not asked: clusters are found anew in what was taken, tested texts first.
    """
    groups = corpora.groups(pl.concat([tested, trained]))
    alike = np.isin(groups[: len(tested)], groups[len(tested) :])
    return Leaks(int(alike.sum()), len(tested), len(trained), corpora.ALIKE)
