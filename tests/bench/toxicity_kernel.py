"""Compiled kernels that train the models of toxicity: logistic regression, counts of words, means of piece vectors."""
# ruff: noqa: PLR0917 - numba infers the types, and compiled functions take numbers and arrays by position

import math
from typing import Any

import numpy as np

from stages.toxicity.score_kernel import sum_words, sum_written
from stages.toxicity.words_kernel import (
    CHAR,
    WORD,
    characters,
    join_spaced,
    pair_slot,
    skip_slot,
    split_words,
    window_end,
    word_hash,
    word_slot,
)

MAX_FEATURES = 1 << 13
"""Maximum number of features of a window."""


def features(text: Any, table: Any, begin: Any, end: Any, slots: Any, values: Any) -> Any:
    """Write the features of words `begin` to `end`: words, pairs, pairs with one word between, character n-grams."""
    at = 0
    before = before_that = np.uint64(0)
    for i in range(begin, end):
        word = word_hash(text, table[i, 0], table[i, 1])
        slots[at], slots[at + 1] = word_slot(word), pair_slot(before, word)
        last = at + 2
        if i > begin + 1:
            slots[last] = skip_slot(before_that, word)
            last += 1
        for j in range(at, last):
            values[j] = WORD
        at = characters(text, table[i, 0], table[i, 1], slots, last)
        for j in range(last, at):
            values[j] = CHAR
        before_that, before = before, word
    return at


def count_words(data: Any, offsets: Any, text: Any, table: Any, counts: Any) -> Any:
    """Add each word's number of occurrences to `counts`, int64 [2**BITS]."""
    for d in range(len(offsets) - 1):
        for i in range(split_words(data, offsets[d], offsets[d + 1], text, table)):
            counts[word_slot(word_hash(text, table[i, 0], table[i, 1]))] += 1
    return len(offsets) - 1


def _logit(weights: Any, bias: Any, slots: Any, values: Any, count: Any) -> Any:
    total = norm = 0.0
    for i in range(count):
        total += weights[slots[i]] * values[i]
        norm += values[i] * values[i]
    return bias + total / math.sqrt(max(norm, 1e-9)), norm


def train(
    data: Any, offsets: Any, labels: Any, order: Any, weights: Any, squares: Any, bias: Any, rate: Any, worst: Any,
    text: Any, table: Any, slots: Any, values: Any,
) -> Any:  # fmt: skip
    """One epoch of logistic regression with AdaGrad (Duchi et al. 2011), one text a step in this order, in place.

    `labels` are 1 for toxic texts; `squares`, [2**BITS], are sums of squared gradients; `worst` is whether a step
    learns from the text's worst window alone (multiple-instance learning), else from all. `text` to `values`
    are scratch space.
    """
    for d in order:
        count = join_spaced(table, split_words(data, offsets[d], offsets[d + 1], text, table))
        begin, chosen, highest = 0, 0, -np.inf
        while worst and begin < count:
            end = window_end(table, begin, count)
            logit, _ = _logit(weights, bias[0], slots, values, features(text, table, begin, end, slots, values))
            if logit > highest:
                chosen, highest = begin, logit
            begin = end
        begin = chosen
        while begin < count:
            end = window_end(table, begin, count)
            filled = features(text, table, begin, end, slots, values)
            logit, norm = _logit(weights, bias[0], slots, values, filled)
            gradient = 1 / (1 + math.exp(-logit)) - labels[d]
            if not worst:
                gradient = gradient * (end - begin) / count
            scaled = gradient / math.sqrt(norm)
            for i in range(filled):
                slot, here = slots[i], scaled * values[i]
                squares[slot] += here * here
                weights[slot] -= rate * here / math.sqrt(squares[slot])
            bias[0] -= 0.01 * gradient
            begin = count if worst else end
    return len(order)


def means(
    data: Any, offsets: Any, weights: Any, vocabulary: Any, keys: Any, rows: Any, units: Any, text: Any, words: Any,
    cached: Any, facts: Any, grams: Any, hidden: Any, sums: Any, out: Any,
) -> Any:  # fmt: skip
    """Write both means of the piece vectors of each text, a window, to `out`; see `score` for the others."""
    width = hidden.shape[1]
    for d in range(len(offsets) - 1):
        count = join_spaced(words, split_words(data, offsets[d], offsets[d + 1], text, words))
        sums[:] = 0
        hidden[:, :] = 0
        sum_words(
            text, words, 0, count, weights, vocabulary, keys, rows, units, cached, facts, grams, hidden, sums
        )  # fmt: skip
        sums[7] = sum_written(
            data, offsets[d], offsets[d + 1], weights, vocabulary, keys, rows, units, cached, facts, grams, hidden
        )  # fmt: skip
        for side in range(2):
            for k in range(width):
                out[d, side * width + k] = hidden[side, k] / max(sums[6 + side], 1)
    return len(offsets) - 1
