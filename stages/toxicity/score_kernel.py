"""Compiled kernel of the toxicity stage: the logit of every window under the word model and under the student.

A word is looked up in a cache that lasts for one call, so that its character n-grams are summed and its word pieces
matched once. Weights are small integers, and so are their sums, which are exact in any order: a window's logits depend
on nothing but the window.
"""
# ruff: noqa: ANN401, PLR0917 - numba infers the types, and compiled functions take numbers and arrays by position

import math
from typing import Any

import numpy as np

from stages.toxicity.words_kernel import (
    CHAR,
    MAX_WORD_BYTES,
    WORD,
    characters,
    join_spaced,
    mix,
    pair_slot,
    skip_slot,
    split_words,
    window_end,
    word_hash,
    word_slot,
)

CACHE = 1 << 14
"""Number of words in the cache."""
MAX_PIECES = 6
"""Maximum number of word pieces of a word that are read."""
MAX_GRAMS = 128
"""Maximum number of character n-grams of a word: three sizes, at most 42 places."""
FACTS = 5
"""Numbers in the cache before the pieces of a word."""
_PIECE, _CONTINUATION = np.uint64(21), np.uint64(22)  # initial states of a piece that begins a word, or continues it

_SPACE, _LETTERS, _SIGN = range(3)
_KIND = np.full(256, _SIGN, np.uint8)
_KIND[:33] = _SPACE
_KIND[ord("a") : ord("z") + 1] = _LETTERS
_KIND[ord("0") : ord("9") + 1] = _LETTERS
_KIND[128:] = _LETTERS
_KIND[[0xC2, 0xE2, 0xF0]] = _SIGN
_LENGTH = np.ones(256, np.int64)
_LENGTH[[0xC2, 0xE2, 0xF0]] = 2, 3, 4  # first bytes of the signs of Latin-1, of punctuation and symbols, of emoji


def _find(state: Any, keys: Any, rows: Any) -> Any:
    """The row of a piece in a hash table with open addressing, or -1."""
    at = np.int64(state >> np.uint64(20)) & (len(keys) - 1)
    while rows[at] >= 0 and keys[at] != state:
        at = (at + 1) & (len(keys) - 1)
    return np.int64(rows[at])


def index_pieces(data: Any, offsets: Any, keys: Any, rows: Any) -> Any:
    """Fill the hash table of pieces, `keys` and `rows` (-1 if free); a piece that continues a word begins with ##."""
    mark = ord("#")
    for i in range(len(offsets) - 1):
        start, end = offsets[i], offsets[i + 1]
        state = _PIECE
        if end - start > 2 and data[start] == mark and data[start + 1] == mark:  # noqa: PLR2004
            state, start = _CONTINUATION, start + 2
        for q in range(start, end):
            state = mix(state, data[q])
        at = np.int64(state >> np.uint64(20)) & (len(keys) - 1)
        while rows[at] >= 0:
            at = (at + 1) & (len(keys) - 1)
        keys[at], rows[at] = state, i
    return len(offsets) - 1


def _match(text: Any, start: Any, end: Any, keys: Any, rows: Any, out: Any) -> Any:
    """Split a word into the longest known pieces, from its start (WordPiece); return their number, 0 if it fails."""
    count, begin = 0, start
    while begin < end and count < MAX_PIECES:
        state = _CONTINUATION if count else _PIECE
        longest, row = begin, np.int64(-1)
        for q in range(begin, end):
            state = mix(state, text[q])
            found = _find(state, keys, rows)
            if found >= 0:
                longest, row = q + 1, found
        if row < 0:
            return 0
        out[count] = row
        count += 1
        begin = longest
    return count


def _word(
    text: Any, start: Any, end: Any, weights: Any, vocabulary: Any, keys: Any, rows: Any, cached: Any, facts: Any,
    grams: Any,
) -> Any:  # fmt: skip
    """The row of a word in `facts`: weights of word and n-grams, number of n-grams, whether it is known, its pieces."""
    word = word_hash(text, start, end)
    at = np.int64(word >> np.uint64(20)) & (CACHE - 1)
    if cached[at] != word:
        cached[at] = word
        own = word_slot(word)
        count = characters(text, start, end, grams, 0)
        total = 0
        for i in range(count):
            total += weights[grams[i]]
        facts[at, 0], facts[at, 1], facts[at, 2], facts[at, 3] = weights[own], total, count, vocabulary[own]
        facts[at, 4] = _match(text, start, end, keys, rows, facts[at, FACTS:])
    return at


def _add(table: Any, row: Any, side: Any, hidden: Any) -> Any:
    width = hidden.shape[1]
    for k in range(width):
        hidden[side, k] += table[row, side * width + k]
    return 0


def sum_words(
    text: Any, table: Any, begin: Any, end: Any, weights: Any, vocabulary: Any, keys: Any, rows: Any, units: Any,
    cached: Any, facts: Any, grams: Any, hidden: Any, sums: Any,
) -> Any:  # fmt: skip
    """Sum up the features of a window's words.

    `sums` gets the weights and the number of features of words, both of n-grams, words, known words without tags, and
    pieces.
    """
    before = before_that = np.uint64(0)
    for i in range(begin, end):
        word = word_hash(text, table[i, 0], table[i, 1])
        at = _word(text, table[i, 0], table[i, 1], weights, vocabulary, keys, rows, cached, facts, grams)
        sums[0] += facts[at, 0] + weights[pair_slot(before, word)]
        sums[1] += 2
        if i > begin + 1:
            sums[0] += weights[skip_slot(before_that, word)]
            sums[1] += 1
        sums[2] += facts[at, 1]
        sums[3] += facts[at, 2]
        if not table[i, 5]:
            sums[4] += 1
            sums[5] += facts[at, 3]
        for j in range(facts[at, 4]):
            _add(units, facts[at, FACTS + j], 0, hidden)
        sums[6] += facts[at, 4]
        before_that, before = before, word
    return 0


def sum_written(
    data: Any, start: Any, stop: Any, weights: Any, vocabulary: Any, keys: Any, rows: Any, units: Any, cached: Any,
    facts: Any, grams: Any, hidden: Any,
) -> Any:  # fmt: skip
    """Sum up the pieces of a window as it is written, punctuation included; return their number."""
    i, pieces = start, 0
    while i < stop:
        kind, end = _KIND[data[i]], min(i + _LENGTH[data[i]], stop)
        if kind == _LETTERS:
            while end < stop and end - i < MAX_WORD_BYTES and _KIND[data[end]] == _LETTERS:
                end += 1
        if kind != _SPACE:
            at = _word(data, i, end, weights, vocabulary, keys, rows, cached, facts, grams)
            for j in range(facts[at, 4]):
                _add(units, facts[at, FACTS + j], 1, hidden)
            pieces += facts[at, 4]
        i = end
    return pieces


def _student(hidden: Any, counts: Any, offset: Any, output: Any, scale: Any) -> Any:
    """The logit of a network with one hidden layer over two means of piece vectors; `output` ends with its bias."""
    width = hidden.shape[1]
    total = output[width]
    for k in range(width):
        inner = offset[k] + scale * (hidden[0, k] / max(counts[0], 1) + hidden[1, k] / max(counts[1], 1))
        total += output[k] * max(inner, 0.0)
    return total


def score(
    data: Any, offsets: Any, weights: Any, scale: Any, bias: Any, vocabulary: Any, keys: Any, rows: Any, units: Any,
    unit: Any, offset: Any, output: Any, text: Any, words: Any, cached: Any, facts: Any, grams: Any, hidden: Any,
    sums: Any, where: Any, logits: Any, known: Any,
) -> Any:  # fmt: skip
    """Score every window of every text; return the number of windows.

    `where` gets a window's text, its first byte, the byte after its last, and its number of words; `logits` those of
    the word model and of the student; `known` the share of known words, without tags and names.
    """
    made = 0
    for d in range(len(offsets) - 1):
        count = join_spaced(words, split_words(data, offsets[d], offsets[d + 1], text, words))
        begin = 0
        while begin < count:
            end = window_end(words, begin, count)
            # A window includes the punctuation that follows it.
            start = words[begin, 2] if begin else offsets[d]
            stop = words[end, 2] if end < count else offsets[d + 1]
            sums[:] = 0
            hidden[:, :] = 0
            sum_words(
                text, words, begin, end, weights, vocabulary, keys, rows, units, cached, facts, grams, hidden, sums
            )  # fmt: skip
            sums[7] = sum_written(
                data, start, stop, weights, vocabulary, keys, rows, units, cached, facts, grams, hidden
            )  # fmt: skip
            norm = math.sqrt(WORD * WORD * sums[1] + CHAR * CHAR * sums[3])
            logits[made, 0] = bias + scale * (WORD * sums[0] + CHAR * sums[2]) / norm
            logits[made, 1] = _student(hidden, sums[6:], offset, output, unit)
            known[made] = sums[5] / sums[4] if sums[4] else 1.0
            where[made, 0], where[made, 1] = d, start
            where[made, 2], where[made, 3] = stop, end - begin
            made += 1
            begin = end
    return made
