"""Scaling laws of perplexity in training tokens, with intervals that hold for few seeds. Pure: arrays in, numbers out.

There are two laws: PPL = A tokens^alpha (least squares of ln PPL on ln tokens), and PPL = P_inf + A tokens^alpha.
`held_out` tells which of them predicts the largest budget better; `difference` compares two corpora.

Several seeds. The ln PPL of a training run is level + slope * ln tokens + rest, and the seed (order of conversations,
initial weights) changes all three. The points of one seed are nested prefixes of one order, so their rests are
correlated, and ten points of one seed are not ten independent runs. The unit is therefore the seed. Each seed has its
own alpha (exact for the power law, by one linear step for the saturating law, which equals the cluster-robust variance
with S / (S - 1)), and the interval is t with S - 1 degrees of freedom. All seeds share one finite test set, whose part
of the variance does not show between seeds. Bootstrap resamples of the test conversations give it, as the covariance of
different seeds, and the half widths of the two parts are added in quadrature.

One seed. The interval is t with n - p degrees of freedom, from the scatter around the law. It takes the points as
independent and does not know how seeds differ. If seeds differ in slope, or points are nested, it covers less than its
level; tests/bench/scaling_coverage.py measures how much less.

Points that bend. No corpus follows a power law exactly. `alpha` is then the slope of the closest line over the measured
budgets, and with several seeds its interval is for that slope at the same budgets; three seeds that agree make it
narrow however much the points bend. So read `relative_error`, `held_out` and the saturating law beside it, and compare
two corpora at the same budgets. With one seed the bend is part of the scatter and widens the interval.

The intervals of the saturating law come from the same linear step. If the points do not distinguish a floor from a
smaller exponent, the intervals are wide and extend to the limits (alpha 0, P_inf 0).
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
