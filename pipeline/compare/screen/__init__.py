"""`refine compare --screen`: the verdict in a minute, by n-gram models in the place of networks."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import polars as pl

from pipeline.compare import data
from pipeline.compare import scored as scoring
from pipeline.compare.corpora import Pair
from pipeline.compare.data import TrainingOptions
from pipeline.compare.scored import Scored, TestSet
from pipeline.terminal import ProgressReporter, say
from trainer.experiment import screen as screening
from trainer.experiment.kinds import KNESER_NEY
from trainer.experiment.screen import Screen, UsedUp
from trainer.prepare.arms import Arms, ArmsError, Union
from trainer.scaling import Difference, difference

CONTROL_SEEDS = 60
"""Orders from which the mean and the variance of a control variate come."""


@dataclass(frozen=True, eq=False)
class Screened:
    """A finished screen of the arms of a comparison.

    The verdict is about the `primary_test` set: the target if there is one, else the cleaner one if one corpus contains
    the other, else all test conversations of both; replies alone are scored if there are enough of them, on the
    `tests` too. `names` are the two corpora.
    """

    arms: Arms
    screen: Screen
    folder: Path
    names: tuple[str, str]
    tests: Sequence[TestSet]
    primary_test: TestSet

    @cached_property
    def scored(self) -> Sequence[Scored]:
        """Both corpora on each test set."""
        return [self.scored_on(test, self.names) for test in self.tests]

    @cached_property
    def primary(self) -> Scored:
        """Both corpora on the primary test set."""
        known = (one for one in self.scored if one.test is self.primary_test)
        return next(known, None) or self.scored_on(self.primary_test, self.names)

    @cached_property
    def beside(self) -> Scored | None:
        """Both corpora on all messages in the primary test set; None if the verdict is about that."""
        if self.primary_test.scope == "everything":
            return None
        return self.scored_on(replace(self.primary_test, scope="everything"), self.names)

    def scored_on(self, test: TestSet, names: tuple[str, str]) -> Scored:
        """Two arms on one test set: their laws, and the second against the first."""
        points = {name: self.screen.points(name, test.mask) for name in names}
        common = self.arms.common.test
        size = int(common.by_class(common.target_bytes())[test.mask].sum())
        rows = [
            pl.DataFrame({"arm": name, "kind": KNESER_NEY.name, "tokens": one.tokens, "seed": one.seed, "ppl": one.ppl})
            for name, one in points.items()
        ]
        frame = pl.concat(rows).with_columns(pl.col("tokens").cast(pl.Int64), nats=pl.col("ppl").log())
        frame = frame.with_columns(bits_per_byte=pl.col("nats") * test.tokens / math.log(2) / max(size, 1))
        laws = scoring.compared_laws(points)
        strict = difference(points[names[0]], points[names[1]], level=scoring.STRICT) if laws.differences else None
        notes = (*filter(None, [test.small]), *laws.notes)
        return Scored(test, frame, laws, notes, strict, self.screen.placebo(names, test.mask))

    @property
    def difference(self) -> Difference:
        """The second corpus against the first by the power law, on the primary test set."""
        return self.primary.differences["power"]

    @cached_property
    def used_up(self) -> UsedUp:
        """Both corpora read to their ends, on the primary test set."""
        return self.used_up_on(self.primary_test)

    def used_up_on(self, test: TestSet) -> UsedUp:
        """Both corpora read to their ends, on one test set."""
        return self.screen.used_up(self.names, test.mask)

    @cached_property
    def apart(self) -> Difference | None:
        """The difference if copies do not stay together; None without copies."""
        if not self.screen.apart:
            return None
        mask = self.primary_test.mask
        points = {name: self.screen.points(name, mask, apart=True) for name in self.names}
        return next(iter(scoring.compared_laws(points).differences.values()), None)

    @property
    def ceiling(self) -> float | None:
        """The largest share by which PPL can fall if what the second corpus drops of the first is worth nothing."""
        first, second = (self.screen.tokens[name] for name in self.names)
        return None if second >= first else -math.expm1(self.difference.a.alpha * math.log(first / second))


def screen(
    pair: Pair,
    union: Union,
    options: TrainingOptions,
    folder: Path,
    *,
    imitated: Sequence[tuple[str, str]],
) -> Screened:
    """Prepare the data of all arms of a union in `folder`/screen, and learn them and placebo rules.

    Raises:
        TrainerError: a corpus or an option does not serve.
    """
    arms, names = data.arms(union, options, folder), list(union.members)
    budgets = options.budgets or screening.budgets_of(arms, names)
    if max(budgets) > arms.largest():
        raise ArmsError(f"--budgets has {max(budgets):,} tokens, and a training pool has {arms.largest():,}")
    made = learn(arms, union, tuple(sorted(set(budgets))), options, imitated=imitated)
    return of_arms(pair, arms, made, folder)


def learn(
    arms: Arms,
    union: Union,
    budgets: tuple[int, ...],
    options: TrainingOptions,
    *,
    imitated: Sequence[tuple[str, str]],
    seeds: int = screening.SEEDS,
    own: Sequence[tuple[int, int]] = (),
) -> Screen:
    """Learn n-gram models of all arms of a union, and report progress on stderr."""
    names = list(union.members)
    seeds = (options.screen and options.seeds) or seeds
    say(f"n-gram models of {len(names)} corpora in {seeds} orders, and of placebo rules ...")
    with ProgressReporter("pieces") as reporter:
        reporter("n-gram models", 0, 0)
        return screening.screen(
            *(arms, union, names, budgets),
            seeds=seeds,
            imitated=imitated,
            placebos=screening.PLACEBOS if len(imitated) == 1 else screening.MIN_PLACEBOS,
            workers=options.workers or len(os.sched_getaffinity(0)),
            own=own,
            tell=lambda done, total: reporter("n-gram models", done, total),
        )


def of_arms(pair: Pair, arms: Arms, made: Screen, folder: Path) -> Screened:
    """The screen of the two corpora of a pair."""
    primary, tests = scoring.test_sets_in_scope(pair, arms)
    return Screened(arms, made, folder, pair.names, tests, primary)
