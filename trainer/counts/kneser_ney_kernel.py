"""Loops of `trainer.counts.kneser_ney`: counting the n-grams of a text token by token, and scoring another text."""

import math

import numpy as np
from numpy.typing import NDArray


def learn(  # noqa: PLR0917  compiled: arguments by position
    ids: NDArray[np.int32],
    first: NDArray[np.int64],
    events: NDArray[np.int64],
    depth: NDArray[np.int64],
    counts: NDArray[np.int32],
    contexts: NDArray[np.int32],
    classes: NDArray[np.int64],
) -> int:
    """Add the tokens of some spans to the counts.

    An n-gram's adjusted count is the number of distinct tokens to its left; of the longest n-grams, and of those that
    begin a sentence, it is the number of occurrences. So a new n-gram adds one to its suffix, and a known one does not.

    Args:
        ids: [orders, positions]; the n-gram of each order that ends at a position.
        first: [spans]; the position of a span's first token.
        events: [spans]; its number of tokens.
        depth: [spans]; the number of tokens between its first token and the beginning of the sentence.
        counts: [n-grams]; adjusted counts.
        contexts: [tested n-grams + 1, 4]; of the n-grams that continue a context: the sum of the adjusted counts, and
            how many have a count of 1, of 2, and of 3 or more. The last row is the empty context; contexts that no test
            conversation holds have none.
        classes: [orders, 5]; how many n-grams of an order have an adjusted count of 1 to 4.
    """
    orders, empty = len(ids), len(contexts) - 1
    for i in range(len(first)):
        for k in range(events[i]):
            position = first[i] + k
            n = min(orders - 1, depth[i] + k + 1)
            while n >= 0:
                gram = ids[n, position]
                context = ids[n - 1, position - 1] if n > 0 else empty
                count = counts[gram]
                counts[gram] = count + 1
                if n == 0 or context < empty:
                    contexts[context, 0] += 1
                    if count < 3:  # noqa: PLR2004  the last class
                        contexts[context, count + 1] += 1
                        if count > 0:
                            contexts[context, count] -= 1
                if count < 4:  # noqa: PLR2004
                    classes[n, count + 1] += 1
                if 0 < count < 5:  # noqa: PLR2004
                    classes[n, count] -= 1
                n = -1 if count > 0 else n - 1
    return 0


def score(  # noqa: PLR0917  compiled: arguments by position
    ids: NDArray[np.int32],
    first: NDArray[np.int64],
    events: NDArray[np.int64],
    classes: NDArray[np.uint8],
    counts: NDArray[np.int32],
    contexts: NDArray[np.int32],
    discounts: NDArray[np.float64],
    uniform: float,
    nats: NDArray[np.float64],
) -> int:
    """Add the nats of each sentence's tokens of a class other than 0, which are the scored ones.

    Args:
        ids: [orders, positions]; the n-gram of each order that ends at a position.
        first: [sentences]; the position of a sentence's first token, which the beginning of the sentence precedes.
        events: [sentences]; its number of tokens.
        classes: [tokens of all sentences]; the class of each.
        counts: [n-grams]; see `learn`.
        contexts: [tested n-grams + 1, 4]; see `learn`.
        discounts: [orders, 4]; the discount of an adjusted count of 0, 1, 2, and 3 or more.
        uniform: probability of each token under the distribution that the lowest order is interpolated with.
        nats: [classes, sentences], added to.
    """
    orders, empty, token = len(ids), len(contexts) - 1, 0
    for i in range(len(first)):
        for k in range(events[i]):
            position, of = first[i] + k, classes[token]
            token += 1
            if of == 0:
                continue
            probability = uniform
            for n in range(min(orders, k + 2)):
                context = ids[n - 1, position - 1] if n > 0 else empty
                whole = contexts[context, 0]
                if whole == 0:
                    break  # an unseen context is part of every longer one
                count = counts[ids[n, position]]
                left = (
                    discounts[n, 1] * contexts[context, 1]
                    + discounts[n, 2] * contexts[context, 2]
                    + discounts[n, 3] * contexts[context, 3]
                )
                probability = (count - discounts[n, min(count, 3)] + left * probability) / whole
            nats[of, i] -= math.log(probability)
    return 0
