"""Scaling laws of perplexity in training tokens, with intervals that hold for few seeds. Pure: arrays in, numbers out.

Two laws: PPL = A tokens^alpha (least squares of ln PPL on ln tokens), and PPL = P_inf + A tokens^alpha. `held_out` says
which of them foretells the largest budget; `difference` compares two corpora.

What varies. A training's ln PPL is level + slope * ln tokens + rest. A seed (order of the conversations, initial
weights) moves all three. The points of one seed are nested prefixes of one order, so what is odd about that order is in
all of them: within a seed the rest is correlated, and ten points of one seed are nothing like ten trainings. So with
several seeds the seed is the unit. Each gives its own alpha, exact for the power law, by one linear step for the
saturating law (which is the cluster-robust variance with S / (S - 1)), and the interval is t with S - 1 degrees of
freedom. All of them are read on one finite test set; that shared part of the variance does not show between seeds. The
resamples of the test conversations give it, as the covariance between different seeds, and the two parts' half widths
are added in quadrature.

With one training a budget only the scatter around the law is left: t with n - p degrees of freedom. That interval takes
the points as independent. It does not know how far another seed's slope would have been: where seeds differ in slope,
or points are nested, it covers less than it says (tests/bench/scaling_coverage.py measures how much less).

What alpha is where the law does not hold. No corpus follows a power law exactly. `alpha` is then the slope of the
straight line that is closest over the budgets at hand, each budget counting once, and with several seeds the interval
is about that slope: where it would lie for other seeds and test conversations, at the same budgets. It says nothing
about the slope at other budgets, and three seeds that agree make it narrow however much the points bend. So look at
`relative_error`, at `held_out` and at the saturating law beside it; two corpora are compared at the same budgets, where
both bend alike. With one seed the bend is part of the scatter and makes the interval wider.

The intervals of the saturating law come from the same linear step. Where the points cannot tell a floor from a smaller
exponent they are wide, and reach the ends of what is possible (alpha 0, P_inf 0).
"""

from trainer.scaling.difference import Difference, difference
from trainer.scaling.held_out import HeldOut, held_out
from trainer.scaling.law import Law, Prediction, fit
from trainer.scaling.points import Kind, Points, ScalingError, Space

__all__ = [
    "Difference",
    "HeldOut",
    "Kind",
    "Law",
    "Points",
    "Prediction",
    "ScalingError",
    "Space",
    "difference",
    "fit",
    "held_out",
]
