"""What an experiment can find, known before it trains anything: its ceiling, its smallest effect, and its design."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass

import numpy as np

from pipeline.compare.design import Experiment
from pipeline.compare.scored import TRAINING_VARIANCE
from pipeline.compare.screen import Screened
from pipeline.experiments.formats import share
from pipeline.store import RunFolderError, read_json
from pipeline.terminal import say
from stages.files import save_json
from trainer.prepare.arms import ArmsError
from trainer.scaling import smallest_found

POWER = 0.8


@dataclass(frozen=True)
class Forecast:
    """What an experiment finds with a power of 80 %, by n-gram models of its streams.

    Attributes:
        level: the smallest relative difference of PPL.
        alpha: the smallest difference of the exponents.
        ceiling: the largest relative fall of PPL if what the second corpus drops is worth nothing; None if it drops
            nothing.
    """

    level: float
    alpha: float
    ceiling: float | None

    @property
    def sentence(self) -> str:
        """The forecast for a reader."""
        text = f"this experiment finds differences from {share(self.level)} of PPL and {self.alpha:.4f} of alpha on "
        text += f"in {POWER:.0%} of the cases"
        if self.ceiling is None:
            return text
        return f"{text}; if what was dropped is worth nothing, PPL falls by {share(self.ceiling)} at most"


def forecast(experiment: Experiment, screened: Screened, times: int = 1) -> Forecast:
    """What the experiment can find, from the spread of n-gram models between orders, test sets and placebo rules.

    With `times`, what an experiment with that many times the seeds could find.
    """
    design = experiment.design
    budgets = np.array([budget for budget, _ in design.pairs])
    mask = screened.primary_test.mask
    control = experiment.screen.control(screened.names, mask, budgets)
    moved = [points.resampled for points in screened.primary.points.values()]
    of_test = 0.0
    if moved[0] is not None and moved[1] is not None:
        of_test = float((moved[1] - moved[0]).mean(axis=0).var(ddof=1))
    spread = max((one.variance + one.error for one in screened.primary.placebos.values()), default=0.0)
    x, variance = np.log(budgets.astype(float)), control.variance + TRAINING_VARIANCE
    found = np.tile(x, times), np.tile(variance, times), of_test + spread
    level, alpha = smallest_found(*found, design.looks()[-1].level, POWER)
    ceiling = screened.ceiling if screened.primary.differences else None
    return Forecast(math.expm1(level), alpha, ceiling)


def register(experiment: Experiment, screened: Screened, *, worth_knowing: float, force: bool) -> Forecast:
    """Say what the experiment can find, and write its design to `design-<digest>.json`, before anything is trained.

    Raises:
        ArmsError: even text that is worth nothing would make less of a difference than the experiment can find.
        RunFolderError: a design on disk was changed after it was written.
    """
    found = forecast(experiment, screened)
    say(found.sentence)
    if found.ceiling is not None and found.ceiling < found.level and not force:
        raise ArmsError(
            f"nothing is trained, because {found.sentence}: compare more different corpora, take more seeds (--seeds), "
            "see what n-gram models find (--screen), or train anyway (--force)"
        )
    design = {
        "budgets": list(experiment.design.budgets),
        "seeds": list(experiment.design.seeds),
        "networks": list(experiment.design.networks),
        "corpora": list(screened.names),
        "primary": (
            f"ln of the PPL ratio on {screened.primary_test.scope} of {screened.primary_test.name}, weighted mean over "
            "all pairs, less the mean of placebo rules"
        ),
        "secondary": ["delta alpha", "per corpus"],
        "loss": experiment.arms.preset.phase2.loss,
        "precision": experiment.arms.preset.phase2.precision,
        "worth_knowing": worth_knowing,
        "looks": [[sum(look.seeds), look.level] for look in experiment.design.looks()],
        "evaluated": experiment.arms.evaluated,
        "forecast": asdict(found),
    }
    digest = hashlib.blake2b(json.dumps(design, sort_keys=True).encode(), digest_size=8).hexdigest()
    path = experiment.folder / f"design-{digest}.json"
    if path.exists() and read_json(path) != design:
        raise RunFolderError(f"{path} was changed after it was written: remove it, or take another --work folder")
    save_json(path, design)
    return found
