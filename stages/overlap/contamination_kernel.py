"""Compiled loops over words: n-grams of evaluation items, and those of them that conversations have.

A text of fewer words than an n-gram is one short gram, all its words. It is found by its first words, its head. Texts
are given as hashes of `words`, text by text, and `ends`, [texts + 1], where the words of each begin.
"""
# ruff: noqa: ANN401, PLR0917 - numba infers the types, and compiled functions take numbers and arrays by position

from typing import Any, NamedTuple

import numpy as np

from stages.text.hashes_kernel import ROLL, U64, mix64, position, power

LENGTH = U64(0x9E3779B97F4A7C15)


def _finish(rolled: Any, length: Any) -> Any:
    """Finish the hash of a run of words; it includes their number."""
    return mix64(rolled ^ (U64(length) * LENGTH))


def _gram(words: Any, begin: Any, length: Any) -> Any:
    rolled = U64(0)
    for i in range(begin, begin + length):
        rolled = rolled * ROLL + words[i]
    return _finish(rolled, length)


def grams(words: Any, ends: Any, n: Any, shortest: Any, found: Any, found_ends: Any, heads: Any, lengths: Any) -> Any:
    """Write the grams of each text, in order, and the head and the words of a text that is a short gram (else 0).

    A text of fewer than `shortest` words has none; as many words are a head. `found` is as long as `words`.
    """
    filled = 0
    found_ends[0] = 0
    for row in range(len(ends) - 1):
        begin, count = ends[row], ends[row + 1] - ends[row]
        heads[row], lengths[row] = U64(0), 0
        if count >= n:
            for i in range(begin, begin + count - n + 1):
                found[filled] = _gram(words, i, n)
                filled += 1
        elif count >= shortest:
            found[filled] = _gram(words, begin, count)
            heads[row], lengths[row] = _gram(words, begin, shortest), count
            filled += 1
        found_ends[row + 1] = filled
    return filled


class _Index(NamedTuple):
    """The grams of the evaluation items, as `overlap` takes them."""

    keys: Any  # sorted grams of all parts of items, found through `starts` and `shift`
    starts: Any
    shift: Any
    heads: Any  # sorted heads of short grams, found through `head_starts` and `head_shift`
    lengths: Any  # for each head a bit for each length that a short gram with this head has
    head_starts: Any
    head_shift: Any
    posts: Any  # where each gram's parts begin in `parts`, and where the last one's end
    parts: Any  # the parts that have the gram
    sizes: Any  # grams of each part


class _TextState(NamedTuple):
    """The last text that had each gram and each part, and the number of grams of each part in the current text."""

    grams: Any
    parts: Any
    tally: Any


def _count(index: Any, seen: Any, turn: Any, gram: Any, best: Any) -> Any:
    """Count a gram of a text, once; return the new best part, its share, its tally, and whether the gram is new.

    The best part is the one with the largest share, then the most grams, then the lowest number.
    """
    part, share, most, distinct = best
    if seen.grams[gram] == turn:
        return best
    seen.grams[gram] = turn
    for at in range(index.posts[gram], index.posts[gram + 1]):
        here = index.parts[at]
        if seen.parts[here] != turn:
            seen.parts[here], seen.tally[here] = turn, 0
        seen.tally[here] += 1
        count = seen.tally[here]
        its = count / index.sizes[here]
        if its > share or (its == share and (count > most or (count == most and here < part))):
            part, share, most = here, its, count
    return part, share, most, distinct + 1


def _matches(words: Any, n: Any, shortest: Any, index: Any, seen: Any, turn: Any) -> Any:
    """The best part of a text's grams and the rest that `_count` returns."""
    top, head_top = power(n), power(shortest)
    rolled, head = U64(0), U64(0)
    best = (np.int64(-1), 0.0, np.int64(0), np.int64(0))
    for i in range(len(words)):
        rolled, head = rolled * ROLL + words[i], head * ROLL + words[i]
        if i >= n:
            rolled -= words[i - n] * top
        if i >= shortest:
            head -= words[i - shortest] * head_top
        if i >= n - 1:
            at = position(index.keys, index.starts, index.shift, _finish(rolled, n))
            if at >= 0:
                best = _count(index, seen, turn, at, best)
        if i >= shortest - 1 and len(index.heads):
            at = position(index.heads, index.head_starts, index.head_shift, _finish(head, shortest))
            first = i - shortest + 1
            for length in range(shortest, min(n, len(words) - first + 1) if at >= 0 else 0):
                if index.lengths[at] >> U64(length) & U64(1):
                    gram = position(index.keys, index.starts, index.shift, _gram(words, first, length))
                    if gram >= 0:
                        best = _count(index, seen, turn, gram, best)
    return best


def overlap(
    words: Any, ends: Any, n: Any, shortest: Any, keys: Any, starts: Any, shift: Any, heads: Any, lengths: Any,
    head_starts: Any, head_shift: Any, posts: Any, parts: Any, sizes: Any, seen: Any, tally: Any, before: Any,
    counts: Any, shares: Any, worst: Any,
) -> Any:  # fmt: skip
    """Write for each text its distinct grams, the largest share of a part's grams that it has, and that part, or -1.

    `keys` to `sizes` are those of `_Index`. `seen`, int64 [grams + parts], zeros at first, is kept from call to call,
    `before` is the number of texts of earlier calls, and `tally`, int64 [parts], is scratch space.
    """
    index = _Index(keys, starts, shift, heads, lengths, head_starts, head_shift, posts, parts, sizes)
    state = _TextState(seen[: len(keys)], seen[len(keys) :], tally)
    for row in range(len(ends) - 1):
        worst[row], shares[row], _, counts[row] = _matches(
            words[ends[row] : ends[row + 1]], n, shortest, index, state, before + row + 1
        )
    return len(ends) - 1
