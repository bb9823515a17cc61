"""The options and the data of a comparison's training runs, and the check that no test conversation leaks."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl

from pipeline.experiments import corpus as corpora
from pipeline.experiments.train import EXPERIMENTS, check_device, preparation
from pipeline.ownership import check_experiment, experiment_claimed
from pipeline.store import RunFolderError, read_json
from pipeline.terminal import say
from stages.files import save_json
from stages.stage import require
from trainer import TrainerError, presets
from trainer.experiment.kinds import CVFP, NetworkError, networks
from trainer.prepare import arms as arming
from trainer.prepare.arms import Arms, ArmsError, Leaks, Union
from trainer.prepare.choices import Choices, load_vocabulary, outside
from trainer.presets import Preset


class LeakError(TrainerError):
    """A near-duplicate of a test conversation is in the training data, so nothing is trained."""


TEST_TOKENS = 300_000
"""Tokens of the test set. How much placebo rules differ depends on the test conversations: on 100,000 tokens of the
embedded corpus, their spread is twice as large (tests/bench/README.md, Goals)."""


@dataclass(frozen=True)
class TrainingOptions:
    """Options of training in `refine compare` and `refine ablate`; their help describes each option."""

    preset: str = "house"
    choices: Choices = field(default_factory=lambda: Choices(test_tokens=TEST_TOKENS))
    budgets: tuple[int, ...] | None = None
    seeds: int | None = None
    screen: bool = False
    device: str = "cpu"
    workers: int = 0
    work: Path | None = None
    force: bool = False
    worth_knowing: float = 0.005
    network: str = CVFP.name
    loss: str = "all"
    precision: str = "float32"

    def check(self) -> Preset:
        """The preset, after checking everything that is known before a corpus is read.

        Raises:
            TrainerError: there is no such network, preset, device, tokenizer or embeddings, or they do not suit a
                comparison.
            RunFolderError: --work is a folder of something else.
        """
        if networks(self.network) != (CVFP.name,) and self.screen:
            raise NetworkError(f"--network is {self.network}, and --screen trains no network: omit one of them")
        if self.precision != "float32" and self.screen:
            raise NetworkError(f"--precision is {self.precision}, and --screen trains no network: omit one of them")
        if self.loss != "all" and self.screen:
            raise NetworkError(
                f"--loss is {self.loss}, and the n-gram models of --screen learn all tokens: omit one of them"
            )
        require("--seeds", self.seeds, self.seeds is None or self.seeds >= 1, "at least 1")
        require("--workers", self.workers, self.workers >= 0, "at least 0")
        require("--worth-knowing", self.worth_knowing, 0 <= self.worth_knowing <= 1, "a share from 0 to 1")
        preset = presets.find(self.preset).trained_on(self.loss).computed_in(self.precision)
        arming.check(preset)
        if self.budgets is not None and len(set(self.budgets)) < 2:  # noqa: PLR2004  a line needs two points
            raise ArmsError("--budgets names one size, and a law needs 2 or more, a conclusion 5: name more")
        load_vocabulary(preset, self.choices)
        if not self.screen:
            check_device(self.device)
            outside(preset, self.choices)
        if self.work is not None:
            check_experiment(self.work, "--work")
        return preset

    @contextmanager
    def folder(self, name: str, digests: Sequence[str]) -> Iterator[Path]:
        """Lock and yield the folder of the training runs on corpora of these digests, in any order.

        Raises:
            RunFolderError: it is in use, or belongs to other corpora or to something else.
        """
        digest = hashlib.blake2b(str(sorted(digests)).encode(), digest_size=8).hexdigest()
        state = hashlib.blake2b(f"{sorted(digests)}{self.preset}{self.choices}".encode(), digest_size=4)
        out = self.work or EXPERIMENTS / f"{folder_word(name)}-{self.preset}-{state.hexdigest()}"
        with experiment_claimed(out, {"corpus": name, "digest": digest}, "--work") as folder:
            yield folder


def folder_word(name: str) -> str:
    """A name as a part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:60] or "corpora"


def arms(union: Union, options: TrainingOptions, folder: Path) -> Arms:
    """Make or load the split, the vocabulary, the embeddings and the streams of all arms, and check for leaks.

    The data of a screen have a folder of their own, without embeddings.

    Raises:
        LeakError: a test conversation has a near-duplicate in the training pool or the validation set.
        ArmsError, SplitError, VocabularyError, EmbeddingsError: a corpus or an option does not serve.
    """
    preset, networks = options.check(), not options.screen
    given = outside(preset, options.choices) if networks else None
    place = folder / ("data" if networks else "screen")
    with preparation(networks=networks):
        made = arming.prepare(union, preset, options.choices, place, given, networks=networks)
    texts = union.frame[preset.text.column]
    record = place / "leaks.json"
    if not record.exists():
        trained = texts.gather(np.concatenate([made.split.pool, made.split.validation]))
        save_json(record, asdict(leaks(trained, texts.gather(made.split.test))))
    try:
        counts = Leaks(**read_json(record))
    except TypeError as error:
        raise RunFolderError(f"{record} is damaged ({error}): remove it, and start the same command again") from None
    if counts.leaks:
        raise LeakError(
            f"{counts.leaks:,} of {counts.tested:,} test conversations have a near-duplicate in the training data, "
            "which happens if thousands are alike: remove near-duplicates first (`refine run` with the stage dedup)"
        )
    for line in made.common.record.lines(networks=networks):
        say(line)
    return replace(made, leaks=counts)


def leaks(trained: pl.Series, tested: pl.Series) -> Leaks:
    """Count test texts with a near-duplicate in the training data, by a new search that does not use the split."""
    groups = corpora.groups(pl.concat([tested, trained]))
    alike = np.isin(groups[: len(tested)], groups[len(tested) :])
    return Leaks(int(alike.sum()), len(tested), len(trained), corpora.ALIKE)
