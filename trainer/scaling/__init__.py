"""Scaling laws of perplexity in training tokens, with intervals that hold for few seeds. Pure: arrays in, numbers out.

There are two laws: PPL = A tokens^alpha (least squares of ln PPL on ln tokens), and PPL = P_inf + A tokens^alpha.
`held_out` tells which of them predicts the largest budget better; `difference` compares two corpora.

The seed is the statistical unit (trainer/README.md). Each seed has its own alpha: exact for the power law, by one
linear step for the saturating law, which equals the cluster-robust variance with S / (S - 1). All seeds share one
finite test set, whose part of the variance does not show between seeds; bootstrap resamples of the test conversations
give it, as the covariance of different seeds.

One seed. The interval is t with n - p degrees of freedom, from the scatter around the law. If seeds differ in slope, or
points are nested, it covers less than its level; tests/bench/scaling_coverage.py measures how much less.

The intervals of the saturating law come from the same linear step. If the points do not distinguish a floor from a
smaller exponent, the intervals are wide and extend to the limits (alpha 0, P_inf 0).
"""

from trainer.scaling.contradiction import Contradiction, contradiction
from trainer.scaling.difference import Difference, difference
from trainer.scaling.law import HeldOut, Law, Prediction, fit, held_out
from trainer.scaling.paired import Control, paired_difference, smallest_found
from trainer.scaling.points import Kind, Points, ScalingError

__all__ = ["Contradiction", "Control", "Difference", "HeldOut", "Kind", "Law", "Points", "Prediction", "ScalingError"]
__all__ += ["contradiction", "difference", "fit", "held_out", "paired_difference", "smallest_found"]
