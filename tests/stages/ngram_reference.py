"""Interpolated modified Kneser-Ney written for reading, with dictionaries, from Chen and Goodman (1998) alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np

Gram = tuple[str, ...]
Discount = Callable[[Sequence[int]], tuple[float, float, float]]
Entry = tuple[float, float]  # probability, weight of backing off


def lmplz_discounts(n: Sequence[int]) -> tuple[float, float, float]:
    """Those of lmplz with `--discount_fallback 0.5 1 1.5`; `n[j]` n-grams have adjusted count j."""
    if 0 in n[1:4]:
        return 0.5, 1.0, 1.5
    single = np.float32  # as lmplz: at the edge of [0, j] the rounding decides
    y = single(n[1]) / single(n[1] + 2 * n[2])
    d = tuple(float(single(j) - single(j + 1) * y * single(n[j + 1]) / single(n[j])) for j in (1, 2, 3))
    return d if all(0 <= v <= j for j, v in enumerate(d, 1)) else (0.5, 1.0, 1.5)  # type: ignore[return-value]


def mitlm_discounts(n: Sequence[int]) -> tuple[float, float, float]:
    """Those of mitlm: the closed form whatever the counts are, a missing ratio is 0, a discount is never negative."""
    y = n[1] / (n[1] + 2 * n[2]) if n[1] else 0.0
    return tuple(max(0.0, j - ((j + 1) * y * n[j + 1] / n[j] if n[j] else 0.0)) for j in (1, 2, 3))  # type: ignore[return-value]


def counted(sentences: Sequence[str], order: int) -> list[Counter[Gram]]:
    """Occurrences of the n-grams of each order; <s> is no event of order 1."""
    found: list[Counter[Gram]] = [Counter() for _ in range(order)]
    for sentence in sentences:
        words = ("<s>", *sentence.split(), "</s>")
        for n in range(1, order + 1):
            found[n - 1].update(words[i : i + n] for i in range(n == 1, len(words) - n + 1))
    return found


def model(
    sentences: Sequence[str], order: int, prune: Sequence[int], discounts: Discount, *, unknown: bool, quirk: bool
) -> dict[Gram, Entry]:
    """Every n-gram's probability and backoff weight.

    Args:
        sentences: tokens with spaces between.
        order: words in the longest n-gram.
        prune: a threshold for each order.
        discounts: from counts of counts, 0 to 5.
        unknown: give <unk> its uniform share, as lmplz does.
        quirk: count the last n-gram in suffix order by its occurrences, as lmplz does.
    """
    raw = [table for table in counted(sentences, order) if table]
    order = len(raw)
    adjusted = [Counter[Gram]() for _ in range(order)]
    adjusted[-1] = raw[-1]
    for n in range(order - 1):
        adjusted[n].update(gram[1:] for gram in raw[n + 1])
        adjusted[n].update({gram: times for gram, times in raw[n].items() if gram[0] == "<s>"})
    words = {gram[0] for gram in raw[0]}
    uniform = 1 / (len(words) + unknown)
    ids = {word: i for i, word in enumerate(dict.fromkeys(("<s>", "</s>", *" ".join(sentences).split())))}
    ends = {gram for table in raw for gram in table if len(gram) == order or (gram[0] == "<s>" and len(gram) > 1)}
    last = max(ends, key=lambda gram: [ids[word] for word in reversed(gram)])
    result: dict[Gram, Entry] = {("<s>",): (1.0, 1.0)}
    for n in range(order):
        of_counts = Counter(adjusted[n].values())
        if quirk and n < min(len(last), order - 1):
            of_counts[adjusted[n][last[-1 - n :]]] -= 1
            of_counts[raw[n][last[-1 - n :]]] += 1
        d = (0.0, *discounts([of_counts[j] for j in range(6)]))
        following: dict[Gram, list[Gram]] = defaultdict(list)
        for gram in adjusted[n]:
            following[gram[:-1]].append(gram)
        for context, grams in following.items():
            total = sum(adjusted[n][gram] for gram in grams)
            kept = [gram for gram in grams if raw[n][gram] > prune[n]]
            freed = sum(d[min(adjusted[n][gram], 3)] for gram in kept)
            freed += sum(adjusted[n][gram] for gram in grams if raw[n][gram] <= prune[n])
            weight = freed / total
            if n and context in result:
                result[context] = (result[context][0], weight)
            for gram in kept:
                lower = result[gram[1:]][0] if n else uniform
                own = (adjusted[n][gram] - d[min(adjusted[n][gram], 3)]) / total
                result[gram] = (own + weight * lower, 1.0)
            if not n and unknown:
                result[("<unk>",)] = (weight * uniform, 1.0)
    return result
