"""Compiled kernels that train the toxicity word model; the features are those of `words_kernel`."""
# ruff: noqa: ANN401, PLR0917 - numba infers the types, and compiled functions take numbers and arrays by position

import math
from typing import Any

import numpy as np

from stages.toxicity.words_kernel import features, join_spaced, logit_of, split_words, window_end, word_slot


def count_words(data: Any, offsets: Any, text: Any, table: Any, counts: Any) -> Any:
    """Add each word's number of occurrences to `counts` (int64 [2**BITS]); `text` and `table` are those of `score`."""
    for d in range(len(offsets) - 1):
        for i in range(split_words(data, offsets[d], offsets[d + 1], text, table)):
            counts[word_slot(text, table[i, 0], table[i, 1])] += 1
    return len(offsets) - 1


def _step(weights: Any, squares: Any, slots: Any, values: Any, count: Any, gradient: Any, rate: Any) -> None:
    for i in range(count):
        slot = slots[i]
        here = gradient * values[i]
        squares[slot] += here * here
        weights[slot] -= rate * here / math.sqrt(squares[slot])


def train(
    data: Any, offsets: Any, labels: Any, order: Any, weights: Any, squares: Any, bias: Any, rate: Any, worst: Any,
    text: Any, table: Any, slots: Any, values: Any,
) -> Any:  # fmt: skip
    """One epoch of logistic regression with AdaGrad (Duchi et al. 2011), one text a step in this order, in place.

    `labels` are 1 for toxic texts; `squares`, [2**BITS], are sums of squared gradients; `worst` is whether a step
    learns from the text's worst window alone (multiple-instance learning), else from all. See `score` for the others.
    """
    for d in order:
        count = join_spaced(table, split_words(data, offsets[d], offsets[d + 1], text, table))
        begin, chosen, highest = 0, 0, -np.inf
        while begin < count:
            end = window_end(table, begin, count)
            filled = features(text, table, begin, end, slots, values)
            logit, norm = logit_of(weights, bias[0], slots, values, filled)
            if not worst:
                gradient = (1 / (1 + math.exp(-logit)) - labels[d]) * (end - begin) / count
                _step(weights, squares, slots, values, filled, gradient / math.sqrt(norm), rate)
                bias[0] -= 0.01 * gradient
            elif logit > highest:
                chosen, highest = begin, logit
            begin = end
        if worst and count:
            end = window_end(table, chosen, count)
            filled = features(text, table, chosen, end, slots, values)
            logit, norm = logit_of(weights, bias[0], slots, values, filled)
            gradient = 1 / (1 + math.exp(-logit)) - labels[d]
            _step(weights, squares, slots, values, filled, gradient / math.sqrt(norm), rate)
            bias[0] -= 0.01 * gradient
    return len(order)
