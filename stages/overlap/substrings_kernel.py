"""Compiled loops over words: anchors of windows (winnowing), windows that share one, and what repeated windows cover.

A window is a run of `width` words. Its anchor is the least hash of the runs of `width // 2` words inside it. Equal
windows have equal anchors, and neighbouring windows mostly share theirs, so a text has about one anchor per `width / 4`
words. Source: Schleimer, Wilkerson, Aiken 2003, "Winnowing".

Texts are given as hashes of `words`, text by text, and `ends`, [n + 1]: where the words of each begin, and where those
of the last one end. Sorted `keys` are found through `key_starts` and `shift`: see `stages.text.repeats.prefix_index`.
"""
# ruff: noqa: ANN401, PLR0917 - numba infers the types, and compiled functions take numbers and arrays by position

from typing import Any

import numpy as np

from stages.text.hashes_kernel import position, runs, sort_distinct


def _least(hashes: Any, count: Any, width: Any, least: Any) -> Any:
    """Write the least hash of each run of `width`; return the number of runs. Only when it falls out is it searched."""
    at = -1
    for i in range(count):
        if at <= i - width:
            at = i - width + 1
            for k in range(at + 1, i + 1):
                if hashes[k] <= hashes[at]:
                    at = k
        elif hashes[i] <= hashes[at]:
            at = i
        if i >= width - 1:
            least[i - width + 1] = hashes[at]
    return max(0, count - width + 1)


def _anchors(words: Any, count: Any, width: Any, hashes: Any, least: Any) -> Any:
    """Write the anchor of each window of a text; return the number of windows."""
    short = width // 2
    return _least(hashes, runs(words, count, short, hashes), width - short + 1, least)


def anchors(words: Any, ends: Any, width: Any, found: Any, found_ends: Any, scratch: Any, starts: Any) -> Any:
    """Write the distinct anchors of each text, sorted, one text after the other; `found` is as long as `words`.

    Scratch space: uint64 [3, words of the longest text], and `starts`, int64 [twice as many and three].
    """
    hashes, least, spare = scratch[0], scratch[1], scratch[2]
    filled = 0
    found_ends[0] = 0
    for row in range(len(ends) - 1):
        windows = _anchors(words[ends[row] :], ends[row + 1] - ends[row], width, hashes, least)
        count, own = 0, found[filled:]
        for i in range(windows):
            if i == 0 or least[i] != least[i - 1]:
                own[count] = least[i]
                count += 1
        filled += sort_distinct(own, count, spare, starts)
        found_ends[row + 1] = filled
    return filled


def windows(
    words: Any, ends: Any, width: Any, keys: Any, key_starts: Any, shift: Any, found: Any, found_ends: Any,
    scratch: Any, starts: Any,
) -> Any:  # fmt: skip
    """Write the distinct windows of each text whose anchor is among the keys; all else is as in `anchors`."""
    hashes, least, spare = scratch[0], scratch[1], scratch[2]
    filled = 0
    found_ends[0] = 0
    for row in range(len(ends) - 1):
        own, size = words[ends[row] :], ends[row + 1] - ends[row]
        windows = _anchors(own, size, width, hashes, least)
        runs(own, size, width, hashes)
        count, chosen, inside = 0, found[filled:], False
        for i in range(windows):
            if i == 0 or least[i] != least[i - 1]:
                inside = position(keys, key_starts, shift, least[i]) >= 0
            if inside:
                chosen[count] = hashes[i]
                count += 1
        filled += sort_distinct(chosen, count, spare, starts)
        found_ends[row + 1] = filled
    return filled


def cover(
    words: Any, ends: Any, width: Any, keys: Any, key_starts: Any, shift: Any, counts: Any, firsts: Any, rows: Any,
    out: Any, hashes: Any,
) -> Any:  # fmt: skip
    """What windows that more than one text has (`keys`, with the number and the first of these texts) cover of each.

    Texts have the numbers `rows`. Columns of `out`, [n, 5]: words covered; words covered by windows that an earlier
    text has; words of the longest stretch covered; largest number of texts that have one window (at least 1); the first
    text that has the beginning of the longest stretch that earlier texts have, or -1. `hashes` is scratch space, uint64
    [words of the longest text].
    """
    for row in range(len(ends) - 1):
        count = runs(words[ends[row] :], ends[row + 1] - ends[row], width, hashes)
        out[row, 0] = out[row, 1] = out[row, 2] = 0
        out[row, 3], out[row, 4] = 1, -1
        end, begun, earlier_end, earlier_begun, earlier_longest, source = 0, 0, 0, 0, 0, np.int64(-1)
        for i in range(count):
            at = position(keys, key_starts, shift, hashes[i])
            if at < 0:
                continue
            if i + width - 1 != end:
                begun = i
            out[row, 0] += i + width - max(i, end)
            end = i + width
            out[row, 2] = max(out[row, 2], end - begun)
            out[row, 3] = max(out[row, 3], np.int64(counts[at]))
            if np.int64(firsts[at]) < rows[row]:
                if i + width - 1 != earlier_end:
                    earlier_begun, source = i, np.int64(firsts[at])
                out[row, 1] += i + width - max(i, earlier_end)
                earlier_end = i + width
                if earlier_end - earlier_begun > earlier_longest:
                    earlier_longest = earlier_end - earlier_begun
                    out[row, 4] = source
    return len(ends) - 1
