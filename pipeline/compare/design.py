"""What a comparison trains: budgets, seeds and baselines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.experiment.jobs import Job, arm_jobs
from trainer.experiment.kinds import BASELINES, CHEAP_BASELINES, CVFP, KINDS
from trainer.prepare.arms import Arms, ArmsError
from trainer.presets import Preset

SIZES, DECADES, SEEDS = 5, 1.5, 3
"""The least from which anything is concluded: budgets, log10 of the largest over the smallest, seeds."""
QUICK_SIZES, QUICK_SEEDS = 3, 1
PART = 3.2
"""A default budget is the preset's over this: two corpora with baselines take less than half an hour on two cores."""


@dataclass(frozen=True)
class Design:
    """Which trainings there are.

    Attributes:
        budgets: training tokens, ascending.
        seeds: trainings of a budget.
        kinds: baselines, of one seed.
        quick: asked for with --quick, which never concludes.
    """

    budgets: tuple[int, ...]
    seeds: int
    kinds: tuple[str, ...] = BASELINES
    quick: bool = False

    @property
    def decades(self) -> float:
        """Log10 of the largest budget over the smallest."""
        return math.log10(self.budgets[-1] / self.budgets[0])

    def lacks(self) -> str:
        """Why nothing may be concluded from it, as a part of a sentence; empty where something may."""
        short = []
        if len(self.budgets) < SIZES:
            short.append(f"{len(self.budgets)} budgets where {SIZES} are needed")
        if self.decades < DECADES - 1e-9:
            short.append(f"{self.decades:.2f} decades of tokens where {DECADES} are needed")
        if self.seeds < SEEDS:
            short.append(f"{self.seeds} seed{'s' * (self.seeds > 1)} where {SEEDS} are needed")
        if self.quick:
            return "--quick trains too few budgets and seeds" if short else "--quick never concludes: leave it away"
        return "there are " + " and ".join(short) if short else ""

    def jobs(self, arms: Arms, names: Sequence[str], device: str) -> dict[tuple[str, str], list[Job]]:
        """The trainings by kind and arm: networks of all seeds, counts of both arms, other baselines of the first."""
        found = {
            (CVFP.name, name): [
                job for seed in range(self.seeds) for job in arm_jobs(arms, CVFP.name, name, self.budgets, seed, device)
            ]
            for name in names
        }
        for kind in self.kinds:
            for name in names if KINDS[kind].cheap else names[:1]:
                found[kind, name] = arm_jobs(arms, kind, name, self.budgets, 0, device)
        return found


def design(arms: Arms, asked: list[int] | None, seeds: int | None, *, quick: bool) -> Design:
    """The trainings that were asked for, where all arms' pools hold them.

    Raises:
        ArmsError: a budget is larger than a pool, or too few of the default ones fit; the message proposes others.
    """
    largest, preset = arms.largest(), arms.preset
    if asked is not None:
        budgets = tuple(sorted(set(asked)))
        if budgets[-1] > largest:
            raise ArmsError(
                f"a budget of {budgets[-1]:,} tokens was asked for, and {_smallest(arms)}: {proposal(largest)}"
            )
    elif quick:
        budgets = default(preset)[:QUICK_SIZES]
        if budgets[-1] > largest:
            raise ArmsError(
                f"the corpus is too small for the budgets of --quick ({', '.join(f'{one:,}' for one in budgets)}): "
                f"{_smallest(arms)}; {proposal(largest)}"
            )
    else:
        budgets = tuple(count for count in default(preset) if count <= largest)
        spanned = math.log10(budgets[-1] / budgets[0]) if budgets else 0.0
        if len(budgets) < SIZES or spanned < DECADES:
            raise ArmsError(
                f"the corpus is too small for the default budgets ({_listed(preset)}): "
                f"{_smallest(arms)}; {proposal(largest)}"
            )
    if quick:
        return Design(budgets, seeds or QUICK_SEEDS, CHEAP_BASELINES, quick=True)
    return Design(budgets, seeds or SEEDS)


def proposal(largest: int) -> str:
    """The largest budgets that a pool holds, as a user would say them: six of them, each twice the one before."""
    unit = 10 ** max(len(str(largest)) - 2, 0)  # two digits are enough for a budget
    top = largest // unit * unit
    counts = [max(top // 2**i, 2) for i in range(5, -1, -1)]
    if counts[0] < 100:  # noqa: PLR2004  a conversation or two
        return "take a larger corpus"
    return f"take a larger corpus, or --budgets {','.join(map(str, counts))}"


def _smallest(arms: Arms) -> str:
    name = min(arms.pools, key=arms.tokens)
    return f"the training pool of {name} has {arms.tokens(name):,} tokens"


def _listed(preset: Preset) -> str:
    return ", ".join(f"{count:,}" for count in default(preset))


def default(preset: Preset) -> tuple[int, ...]:
    """The budgets of a comparison where none are asked for."""
    return tuple(round(count / PART) for count in preset.budgets)
