"""Compiled kernels that train the toxicity word model; the features are those of `toxicity_kernel`."""
# ruff: noqa: ANN401, PLR0917 - numba infers the types, and compiled functions take numbers and arrays by position

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from stages.toxicity.words_kernel import ROOM, features, join_spaced, logit_of, split_words, window_end, word_slot


@njit(cache=True, nogil=True)
def count_words(data: Any, offsets: Any, counts: Any) -> None:
    """Add to `counts` (int64, 2**BITS) how often each word stands in the texts."""
    longest = 0
    for d in range(len(offsets) - 1):
        longest = max(longest, offsets[d + 1] - offsets[d])
    text, table = np.empty(longest + 1, np.uint8), np.empty((longest // 2 + 2, 6), np.int64)
    for d in range(len(offsets) - 1):
        for i in range(split_words(data, offsets[d], offsets[d + 1], text, table)):
            counts[word_slot(text, table[i, 0], table[i, 1])] += 1


@njit(cache=True)
def _step(weights: Any, squares: Any, slots: Any, values: Any, count: Any, gradient: Any, rate: Any) -> None:
    for i in range(count):
        slot = slots[i]
        here = gradient * values[i]
        squares[slot] += here * here
        weights[slot] -= rate * here / math.sqrt(squares[slot])


@njit(cache=True, nogil=True)
def train(
    data: Any, offsets: Any, labels: Any, order: Any, weights: Any, squares: Any, bias: Any, rate: Any, worst: Any
) -> None:
    """One epoch of logistic regression with AdaGrad (Duchi et al. 2011), one text a step, in place.

    Args:
        data: uint8, the texts' bytes.
        offsets: int64, n + 1.
        labels: uint8, n, 1 is toxic.
        order: int64, texts in the order they are seen.
        weights: float32, 2**BITS.
        squares: float32, 2**BITS, sums of squared gradients.
        bias: float64, 1.
        rate: float.
        worst: a step learns from the text's worst window alone (multiple-instance learning), else from all.
    """
    longest = 0
    for d in order:
        longest = max(longest, offsets[d + 1] - offsets[d])
    text, table = np.empty(longest + 1, np.uint8), np.empty((longest // 2 + 2, 6), np.int64)
    slots, values = np.empty(ROOM, np.int64), np.empty(ROOM, np.float32)
    for d in order:
        count = join_spaced(table, split_words(data, offsets[d], offsets[d + 1], text, table))
        begin, chosen, highest = 0, 0, -np.inf
        while begin < count:
            end = window_end(table, begin, count)
            held = features(text, table, begin, end, slots, values)
            logit, norm = logit_of(weights, bias[0], slots, values, held)
            if not worst:
                gradient = (1 / (1 + math.exp(-logit)) - labels[d]) * (end - begin) / count
                _step(weights, squares, slots, values, held, gradient / math.sqrt(norm), rate)
                bias[0] -= 0.01 * gradient
            elif logit > highest:
                chosen, highest = begin, logit
            begin = end
        if worst and count:
            end = window_end(table, chosen, count)
            held = features(text, table, chosen, end, slots, values)
            logit, norm = logit_of(weights, bias[0], slots, values, held)
            gradient = 1 / (1 + math.exp(-logit)) - labels[d]
            _step(weights, squares, slots, values, held, gradient / math.sqrt(norm), rate)
            bias[0] -= 0.01 * gradient
