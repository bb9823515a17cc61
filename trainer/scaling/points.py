"""The points of a scaling law: training tokens and perplexities, validated."""

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from trainer import TrainerError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

Kind = Literal["power", "saturating"]
PARAMETERS: dict[Kind, int] = {"power": 2, "saturating": 3}

RANGE = {"tokens": (1.0, 1e18), "ppl": (1.0, 1e15)}
"""Valid ranges. PPL is at least 1, and a number above the upper limits is a mistake."""
NEAR = 1.1
"""Factor below which two numbers of tokens are the same budget, because conversations do not end at round numbers."""


class ScalingError(TrainerError):
    """Points or parameters that no law can be fitted to."""


@dataclass(frozen=True, eq=False)
class Points:
    """Perplexities [n] at token budgets [n], converted to arrays; a ScalingError if they are no valid points.

    `seed` [n] is None if every point is an independent training run; points of one seed never are. `resampled` [n, B]
    is ln PPL on B bootstrap resamples of the test conversations; column b is the same resample for all points, and for
    all corpora that are compared.
    """

    tokens: Floats
    ppl: Floats
    seed: Ints | None = None
    resampled: Floats | None = None

    def __post_init__(self) -> None:
        tokens, ppl = _numbers(self.tokens, "tokens"), _numbers(self.ppl, "ppl")
        if len(tokens) != len(ppl):
            raise ScalingError(f"there are {len(tokens)} tokens and {len(ppl)} ppl: give one of each per point")
        object.__setattr__(self, "tokens", tokens)
        object.__setattr__(self, "ppl", ppl)
        if self.seed is not None:
            object.__setattr__(self, "seed", _seeds(self.seed, tokens))
        if self.resampled is not None:
            object.__setattr__(self, "resampled", _resamples(self.resampled, len(tokens)))

    @property
    def x(self) -> Floats:
        """Ln tokens [n]."""
        return np.log(self.tokens)

    @property
    def steps(self) -> Floats:
        """Ln tokens [n], rounded so that equal budgets are equal."""
        return np.round(self.x, 6)

    @property
    def y(self) -> Floats:
        """Ln PPL [n]."""
        return np.log(self.ppl)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, ascending; empty if none are given."""
        return () if self.seed is None else tuple(int(seed) for seed in np.unique(self.seed))

    def ladder(self) -> npt.NDArray[np.intp]:
        """Indices [S, T] of the points by seed and ascending budget; one row for no seed or one.

        A ScalingError if a seed lacks a budget: if the points bend, the seeds' laws would differ for that alone.
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
                what = f"no point at {', '.join(f'{t:,.0f}' for t in lacks)} tokens, which another seed has"
                count = f"{len(row)} points and another seed has {len(full)}"
                raise ScalingError(f"seed {seed} has {what if lacks else count}: give every seed the same budgets")
        return np.stack(rows)

    def budgets(self) -> int:
        """The number of different budgets."""
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
        numbers = np.array(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ScalingError(f"{name} are not all numbers ({error}): give one number per point") from None
    if numbers.ndim != 1 or not len(numbers):
        raise ScalingError(f"{name} have shape {numbers.shape}: give one number per point, at least one")
    low, high = RANGE[name]
    wrong = np.flatnonzero(~((numbers >= low) & (numbers <= high)))
    if len(wrong):
        raise ScalingError(
            f"{name} of point {wrong[0] + 1} is {numbers[wrong[0]]:g}: give a number from {low:g} to {high:g}"
        )
    return numbers


def _seeds(given: npt.ArrayLike, tokens: Floats) -> Ints:
    seeds = np.asarray(given)
    if seeds.shape != tokens.shape:
        raise ScalingError(f"there are {len(tokens)} points and seeds of shape {seeds.shape}: give one seed per point")
    if not np.issubdtype(seeds.dtype, np.integer):
        raise ScalingError(f"seeds are {seeds.dtype}: give whole numbers, or none")
    pairs, counts = np.unique(np.stack([seeds, tokens], axis=1), axis=0, return_counts=True)
    if counts.max() > 1:
        seed, twice = pairs[counts.argmax()]
        raise ScalingError(
            f"seed {seed:.0f} has {counts.max()} points at {twice:,.0f} tokens: give one point per budget"
        )
    return seeds.astype(np.int64)


def _resamples(given: npt.ArrayLike, n: int) -> Floats:
    resampled = np.array(given, dtype=np.float64)
    if resampled.ndim != 2 or resampled.shape[0] != n or resampled.shape[1] < 2:  # noqa: PLR2004  for a variance
        raise ScalingError(f"resampled has shape {resampled.shape}: give ({n} points, at least 2 resamples)")
    if not np.isfinite(resampled).all():
        raise ScalingError("resampled has values that are not finite: give ln PPL of every point on every resample")
    return resampled
