"""The design of a comparison: budgets, seeds, networks, baselines, and when it may stop."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.experiment.jobs import Job, arm_jobs
from trainer.experiment.kinds import CVFP, KINDS, baselines
from trainer.experiment.screen import Screen
from trainer.prepare.arms import Arms, ArmsError
from trainer.presets import Preset

MIN_BUDGETS, MIN_DECADES, MIN_PAIRS = 5, 1.5, 8
"""Minimum design of a conclusion: budgets, log10 of the largest over the smallest budget, pairs of training runs."""
PAIRS = (2, 3, 6, 3, 1, 1)
"""Pairs of training runs by budget, ascending.

At the third budget a training step tells most about the level: below it runs differ more between orders and take as
many steps, above it they take more.
"""
LEVEL = 0.95
"""The level of the intervals of a design that does not look at its results before it is complete."""
LOOK = 0.001
"""The chance of a false conclusion that each look before the last one spends (Haybittle 1971; Peto et al. 1976)."""
SEEDS = 3
"""Pairs per budget if the budgets are not the default ones."""
BUDGET_DIVISOR = 1.6
"""Divisor of the preset's budgets, so that two corpora with baselines take about half an hour on two cores."""


@dataclass(frozen=True)
class Design:
    """The training runs of each arm: budgets in tokens, ascending, and seeds per budget; baselines have one seed.

    The verdict is about the first of the `networks`; `level` is that of the intervals.
    """

    budgets: tuple[int, ...]
    seeds: tuple[int, ...]
    baselines: tuple[str, ...] = baselines((CVFP.name,))
    networks: tuple[str, ...] = (CVFP.name,)
    level: float = LEVEL

    @property
    def decades(self) -> float:
        """Log10 of the largest budget over the smallest."""
        return math.log10(self.budgets[-1] / self.budgets[0])

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Budget and seed of each training run of an arm; each pair of runs has an order of its own."""
        return [(budget, seed) for budget, count in zip(self.budgets, self.seeds, strict=True) for seed in range(count)]

    def lacks(self) -> str:
        """Why the design allows no conclusion, as a clause; empty if it allows one."""
        short = []
        if len(self.budgets) < MIN_BUDGETS:
            short.append(f"{len(self.budgets)} budgets where {MIN_BUDGETS} are needed")
        if self.decades < MIN_DECADES - 1e-9:
            short.append(f"{self.decades:.2f} decades of tokens where {MIN_DECADES} are needed")
        if len(self.pairs) < MIN_PAIRS:
            short.append(f"{len(self.pairs)} pairs of training runs where {MIN_PAIRS} are needed")
        return "there are " + " and ".join(short) if short else ""

    def looks(self) -> list[Design]:
        """The parts after which the experiment may stop, ascending, and the whole: with 2, 4, 8 ... seeds at most.

        A look before the last has intervals at the level of 1 - `LOOK`, and what is left of 5 % is for the last, so all
        together conclude falsely in 5 % of the cases at most.
        """
        most = [2**i for i in range(1, max(self.seeds).bit_length()) if 2**i < max(self.seeds)]
        parts = [replace(self, seeds=tuple(min(count, top) for count in self.seeds), level=1 - LOOK) for top in most]
        early = [part for part in parts if not part.lacks()]
        return [*early, replace(self, level=LEVEL + LOOK * len(early))]

    def jobs(self, arms: Arms, names: Sequence[str], device: str) -> dict[tuple[str, str], list[Job]]:
        """The training runs by kind and arm: networks with all seeds, counts of all arms, others of the first arm.

        Baselines that are trained skip the two largest of the default budgets, which would take longer than all others.
        """
        jobs = {
            (kind, name): arm_jobs(arms, kind, name, self.pairs, device) for kind in self.networks for name in names
        }
        for kind in self.baselines:
            cheap = KINDS[kind].cheap
            budgets = self.budgets if cheap or len(self.budgets) < len(PAIRS) else self.budgets[:-2]
            for name in names if cheap else names[:1]:
                jobs[kind, name] = arm_jobs(arms, kind, name, [(budget, 0) for budget in budgets], device)
        return jobs


@dataclass(frozen=True, eq=False)
class Experiment:
    """The training runs of a design on prepared arms, by kind and arm; `folder` has data/ and trainings/.

    `screen` has n-gram models of the streams of all training runs, and of many other orders.
    """

    arms: Arms
    design: Design
    jobs: Mapping[tuple[str, str], Sequence[Job]]
    folder: Path
    screen: Screen

    @property
    def runs(self) -> Path:
        """Parent of the runs' folders."""
        return self.folder / "trainings"

    def at(self, look: Design) -> Experiment:
        """The part of the experiment until a look."""
        pairs = set(look.pairs)
        rows = [i for i, pair in enumerate(self.design.pairs) if pair in pairs]
        networks = self.design.networks
        jobs = {key: [each[i] for i in rows] if key[0] in networks else each for key, each in self.jobs.items()}
        own = {name: scores[rows] for name, scores in self.screen.own.items()}
        return replace(self, design=look, jobs=jobs, screen=replace(self.screen, own=own))

    def every(self) -> list[Job]:
        """All runs; one that several arms share is there once for each."""
        return [job for jobs in self.jobs.values() for job in jobs]

    def count(self) -> int:
        """Number of distinct runs."""
        return len({job.name for job in self.every()})


def design(
    arms: Arms, requested: Sequence[int] | None, seeds: int | None, networks: tuple[str, ...] = (CVFP.name,)
) -> Design:
    """The design for some arms: the requested budgets, or the default ones that all pools hold.

    Raises:
        ArmsError: a budget exceeds a pool, or too few default budgets fit; the message proposes budgets.
    """
    largest, budgets = arms.largest(), default_budgets(arms.preset)
    if requested is not None:
        budgets = tuple(sorted(set(requested)))
        if budgets[-1] > largest:
            raise ArmsError(f"--budgets has {budgets[-1]:,} tokens, and {_smallest(arms)}: {proposal(largest)}")
    else:
        fitting = tuple(count for count in budgets if count <= largest)
        if len(fitting) < MIN_BUDGETS or math.log10(fitting[-1] / fitting[0]) < MIN_DECADES:
            raise _too_small("the default budgets", budgets, arms)
        budgets = fitting
    default = PAIRS if requested is None else (SEEDS,) * len(budgets)
    counts = default[: len(budgets)] if seeds is None else (seeds,) * len(budgets)
    return Design(budgets, counts, baselines(networks), networks)


def proposal(largest: int) -> str:
    """Advice for a pool of `largest` tokens: six budgets that it holds, each twice the one before."""
    unit = 10 ** max(len(str(largest)) - 2, 0)  # two digits are enough for a budget
    top = largest // unit * unit
    counts = [max(top // 2**i, 2) for i in range(5, -1, -1)]
    if counts[0] < 100:  # noqa: PLR2004  a conversation or two
        return "take a larger corpus"
    return f"take a larger corpus, or --budgets {','.join(map(str, counts))}"


def _smallest(arms: Arms) -> str:
    name = min(arms.pools, key=arms.tokens)
    return f"the training pool of {name} has {arms.tokens(name):,} tokens"


def _too_small(what: str, budgets: Sequence[int], arms: Arms) -> ArmsError:
    counts = ", ".join(f"{count:,}" for count in budgets)
    return ArmsError(f"the corpus is too small for {what} ({counts}): {_smallest(arms)}; {proposal(arms.largest())}")


def default_budgets(preset: Preset) -> tuple[int, ...]:
    """The budgets of a comparison if none are requested."""
    return tuple(round(count / BUDGET_DIVISOR) for count in preset.budgets)
