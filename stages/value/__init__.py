"""Signals of value: how close a conversation is to examples, or to a corpus, that the user names."""

import numpy as np
import polars as pl
from numpy.typing import NDArray


def auc(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> float:
    """Area under the ROC curve of scores [n], ties counted half; both labels must occur."""
    ranks = pl.Series(scores).rank("average").to_numpy()
    likes, others = int(labels.sum()), int((~labels).sum())
    return float((ranks[labels].sum() - likes * (likes + 1) / 2) / (likes * others))
