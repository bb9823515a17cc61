"""Discounts of modified Kneser-Ney: the closed form of Chen and Goodman (1998), equation 26, as lmplz computes it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FALLBACK = (0.5, 1.0, 1.5)
"""What lmplz takes with `--discount_fallback` where counts of counts are degenerate (lm/builder/lmplz_main.cc)."""


@dataclass(frozen=True)
class Discounts:
    """What is taken from an adjusted count of 1, 2, and 3 or more.

    Attributes:
        values: D1, D2, D3+, as 32-bit floats hold them.
        fallback: the closed form did not hold for these counts, so `values` is FALLBACK.
    """

    values: tuple[float, float, float]
    fallback: bool

    def of(self, counts: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
        """The discount of each count; a count of 0 has none."""
        taken: npt.NDArray[np.float32] = np.array((0.0, *self.values), np.float32)[np.minimum(counts, 3)]
        return taken


def closed_form(n: npt.NDArray[np.int64]) -> Discounts:
    """Discounts from counts of counts: `n[j]` n-grams have the adjusted count j, for j from 1 to 4.

    lmplz refuses where an n1, n2 or n3 is 0 or a discount leaves [0, j], unless it is given a fallback; so here.
    """
    if not all(n[1:4]):
        return Discounts(FALLBACK, fallback=True)
    one = np.float32(1)
    y = np.float32(n[1]) / np.float32(n[1] + 2.0 * n[2])
    values = [np.float32(j) - (np.float32(j) + one) * y * np.float32(n[j + 1]) / np.float32(n[j]) for j in (1, 2, 3)]
    if any(not 0 <= value <= j for j, value in enumerate(values, 1)):
        return Discounts(FALLBACK, fallback=True)
    return Discounts((float(values[0]), float(values[1]), float(values[2])), fallback=False)
