"""The points of a scaling law, checked: what was trained on how many tokens, and the perplexity it reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from trainer import TrainerError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

Kind = Literal["power", "saturating"]
Space = Literal["log", "linear"]
PARAMETERS: dict[Kind, int] = {"power": 2, "saturating": 3}

RANGE = {"tokens": (1.0, 1e18), "ppl": (1.0, 1e15)}
"""What can be: no text has a perplexity below 1, and beyond the upper ends a number is a slip."""
NEAR = 1.1
"""Budgets whose tokens differ by less than this factor are the same: conversations do not end at round numbers."""


class ScalingError(TrainerError):
    """Points, or a wish, that no scaling law can serve; the message is the sentence that a user needs."""


@dataclass(frozen=True, eq=False)
class Points:
    """Perplexities at token budgets; what can be converted to arrays is, and checked.

    Args:
        tokens: [n] training tokens, 1 or more.
        ppl: [n] perplexity on the test set, 1 or more.
        seed: [n] whole numbers, or None where each point is a training of its own. The points of one seed are prefixes
            of one order of the conversations: they share noise and are never taken as independent.
        resampled: [n, B] ln PPL of each point on the same B bootstrap resamples of the test conversations; column b is
            the same resample for all points, and for all corpora that are compared. None where there is none.

    Raises:
        ScalingError: lengths that differ, a value outside `RANGE`, a budget twice for a seed.
    """

    tokens: Floats
    ppl: Floats
    seed: Ints | None = None
    resampled: Floats | None = None

    def __post_init__(self) -> None:
        tokens, ppl = _numbers(self.tokens, "tokens"), _numbers(self.ppl, "ppl")
        if len(tokens) != len(ppl):
            raise ScalingError(f"there are {len(tokens)} tokens and {len(ppl)} ppl: give one of each a point")
        object.__setattr__(self, "tokens", tokens)
        object.__setattr__(self, "ppl", ppl)
        if self.seed is not None:
            object.__setattr__(self, "seed", _seeds(self.seed, tokens))
        if self.resampled is not None:
            object.__setattr__(self, "resampled", _resampled(self.resampled, len(tokens)))

    @property
    def x(self) -> Floats:
        """Ln tokens [n]."""
        return np.log(self.tokens)

    @property
    def steps(self) -> Floats:
        """Ln tokens [n], equal where tokens are but for rounding."""
        return np.round(self.x, 6)

    @property
    def y(self) -> Floats:
        """Ln PPL [n]."""
        return np.log(self.ppl)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, ascending; empty where none are known."""
        return () if self.seed is None else tuple(int(seed) for seed in np.unique(self.seed))

    def ladder(self) -> npt.NDArray[np.intp]:
        """Indices [S, T] of the points, by seed and ascending budget; one row where there is no seed, or one.

        Raises:
            ScalingError: A seed lacks a budget that another one has. Its law would be one of other budgets: where the
                points bend, the seeds would differ for that reason alone.
        """
        if len(self.seeds) < 2:  # noqa: PLR2004  nothing to compare
            return np.argsort(self.tokens, kind="stable")[None]
        rows = [np.flatnonzero(self.seed == seed) for seed in self.seeds]
        rows = [row[np.argsort(self.tokens[row])] for row in rows]
        full = max(rows, key=len)
        for seed, row in zip(self.seeds, rows, strict=True):
            have = self.tokens[row]
            lacks = [t for t in self.tokens[full] if not np.any(np.maximum(have / t, t / have) < NEAR)]
            if lacks or len(row) != len(full):
                what = ", ".join(f"{t:,.0f}" for t in lacks) or f"{len(full)} budgets (it has {len(row)})"
                raise ScalingError(
                    f"seed {seed} has no point at {what} tokens, which another seed has: "
                    "give every seed the same budgets, or leave out what not every seed has"
                )
        return np.stack(rows)

    def budgets(self) -> int:
        """How many different budgets there are."""
        return self.ladder().shape[1] if len(self.seeds) > 1 else len(np.unique(self.steps))

    def without_largest(self) -> tuple[Self, Self]:
        """The points without the largest budget, and the points of that budget."""
        ladder = self.ladder()
        held = ladder[:, -1] if len(ladder) > 1 else np.flatnonzero(self.steps == self.steps.max())
        return self._only(np.setdiff1d(np.arange(len(self.tokens)), held)), self._only(held)

    def _only(self, which: npt.NDArray[np.intp]) -> Self:
        seed = None if self.seed is None else self.seed[which]
        moved = None if self.resampled is None else self.resampled[which]
        return type(self)(self.tokens[which], self.ppl[which], seed, moved)


def _numbers(given: npt.ArrayLike, name: str) -> Floats:
    try:
        made = np.array(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ScalingError(f"{name} are not all numbers ({error}): give one number a point") from None
    if made.ndim != 1 or not len(made):
        raise ScalingError(f"{name} have shape {made.shape}: give one number a point, at least one")
    low, high = RANGE[name]
    wrong = np.flatnonzero(~((made >= low) & (made <= high)))
    if len(wrong):
        raise ScalingError(
            f"{name} of point {wrong[0] + 1} is {made[wrong[0]]:g}: give a number from {low:g} to {high:g}"
        )
    return made


def _seeds(given: npt.ArrayLike, tokens: Floats) -> Ints:
    made = np.asarray(given)
    if made.shape != tokens.shape:
        raise ScalingError(f"there are {len(tokens)} points, and seeds of shape {made.shape}: give one seed a point")
    if not np.issubdtype(made.dtype, np.integer):
        raise ScalingError(f"seeds are {made.dtype}: give whole numbers, or none")
    pairs, counts = np.unique(np.stack([made, tokens], axis=1), axis=0, return_counts=True)
    if counts.max() > 1:
        seed, twice = pairs[counts.argmax()]
        raise ScalingError(f"seed {seed:.0f} has {counts.max()} points at {twice:,.0f} tokens: give one point a budget")
    return made.astype(np.int64)


def _resampled(given: npt.ArrayLike, n: int) -> Floats:
    made = np.array(given, dtype=np.float64)
    if made.ndim != 2 or made.shape[0] != n or made.shape[1] < 2:  # noqa: PLR2004  a variance needs two
        raise ScalingError(f"resampled has shape {made.shape}: give ({n} points, at least 2 resamples)")
    if not np.isfinite(made).all():
        raise ScalingError("resampled holds values that are not finite: give ln PPL of every point on every resample")
    return made
