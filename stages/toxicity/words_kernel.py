"""Compiled kernels of the toxicity word model: text to windows of words, to hashed features, to logits; training.

Texts are Arrow buffers (UTF-8 bytes and offsets), lower-cased and decomposed; no Python object is made for a word. A
window is one sentence or a few short ones: an abusive sentence is detected within a long answer, and the scores of a
long inoffensive answer do not add up.
"""
# ruff: noqa: ANN401, PLR0917 - numba infers the types, and compiled functions take numbers and arrays by position

import math
from typing import Any

import numpy as np

BITS = 20
"""Base-2 logarithm of the number of weights that features are hashed to (Weinberger et al. 2009)."""
WINDOW_MIN, WINDOW_MAX = 20, 50
"""Words of a window: it ends at the first sentence end after the minimum, and at the maximum in any case."""

_WORD, _CHAR = np.float32(1.0), np.float32(0.6)  # weight of a word feature and of one of the many character n-grams
_NGRAM_MIN, _NGRAM_MAX = 3, 5
_MAX_WORD_BYTES = 40  # bytes of a word; longer ones (base64, URLs) are cut
MAX_FEATURES = 1 << 13
"""Maximum number of features of a window; WINDOW_MAX * (3 + 3 * (_MAX_WORD_BYTES + 2)) fit."""

_SEPARATOR, _LETTER, _DIGIT, _SYMBOL, _STOP, _APOSTROPHE, _MARK = range(7)
_KIND = np.zeros(256, np.uint8)
_KIND[ord("a") : ord("z") + 1] = _LETTER
_KIND[128:] = _LETTER
_KIND[ord("0") : ord("9") + 1] = _DIGIT
_KIND[list(b"@$*|")] = _SYMBOL
_KIND[list(b".?\n")] = _STOP
_KIND[ord("'")] = _APOSTROPHE
_KIND[ord("!")] = _MARK  # a sentence end, or an i inside a word
_STAR, _BAR, _AT, _HASH = ord("*"), ord("|"), ord("@"), ord("#")
_LEET = np.zeros(256, np.uint8)
for _written, _meant in zip(b"013457@$!|", b"oieastasii", strict=True):
    _LEET[_written] = _meant

_ODD1, _ODD2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)
_SHIFT, _TOP = np.uint64(29), np.uint64(64 - BITS)


def _mix(state: Any, value: Any) -> Any:
    state = (state ^ np.uint64(value)) * _ODD1
    return state ^ (state >> _SHIFT)


def _slot(state: Any) -> Any:
    return np.int64((state * _ODD2) >> _TOP)


def _run(data: Any, start: Any, stop: Any) -> Any:
    """Where the word that begins at `start` ends, and whether it mixes letters with signs that replace letters."""
    letters = signs = 0
    end = start
    while end < stop and end - start < _MAX_WORD_BYTES:
        kind = _KIND[data[end]]
        inside = kind == _MARK and end + 1 < stop and _KIND[data[end + 1]] == _LETTER
        if kind == _LETTER:
            letters += 1
        elif inside or kind in (_DIGIT, _SYMBOL):
            signs += 1
        elif kind != _APOSTROPHE:
            break
        end += 1
    return end, letters > 0 and signs > 0


def _write(data: Any, start: Any, stop: Any, disguised: Any, text: Any, at: Any) -> Any:
    """Write a normalised word: signs as the letters that they replace, digits as 0, a letter at most twice in a row."""
    last = repeats = 0
    for i in range(start, stop):
        byte = data[i]
        kind = _KIND[byte]
        if kind == _APOSTROPHE:
            continue
        if disguised and kind != _LETTER and _LEET[byte] != 0:
            byte = _LEET[byte]
        elif kind == _DIGIT:
            byte = np.uint8(48)
        elif kind not in (_LETTER, _DIGIT):
            byte = np.uint8(42)
        repeats = repeats + 1 if byte == last else 0
        last = byte
        if repeats < 2:  # noqa: PLR2004 - a letter at most twice in a row
            text[at] = byte
            at += 1
    return at


def split_words(data: Any, start: Any, stop: Any, text: Any, table: Any) -> Any:
    """Split bytes into words; return their number.

    A row of `table` is a word: start and end in `text`, start and end in `data`, whether it ends a sentence, whether it
    is a #tag or @name.
    """
    count = at = 0
    i = start
    while i < stop:
        kind = _KIND[data[i]]
        if kind in (_STOP, _MARK):
            if count:
                table[count - 1, 4] = 1
            i += 1
        elif kind in (_SEPARATOR, _APOSTROPHE) or data[i] in (_STAR, _BAR):
            i += 1
        else:
            end, disguised = _run(data, i, stop)
            last = end
            if i > start and data[i - 1] == _STAR:  # *emphasis* disguises no word, f*** does
                while data[last - 1] == _STAR:
                    last -= 1
            begin = at
            at = _write(data, i, last, disguised, text, at)
            table[count, 0], table[count, 1], table[count, 2], table[count, 3], table[count, 4] = begin, at, i, end, 0
            table[count, 5] = data[i] == _AT or (i > start and data[i - 1] == _HASH)
            count += 1
            i = end
    return count


def join_spaced(table: Any, count: Any) -> Any:
    """Join three or more single letters in a row, a word written with spaces ("i d i o t"); return the new number."""
    kept = i = 0
    while i < count:
        j = i
        while j < count and table[j, 1] - table[j, 0] == 1:
            j += 1
        if j - i >= 3:  # noqa: PLR2004 - "a b" is no word, "a b c" may be
            table[kept, 0], table[kept, 2] = table[i, 0], table[i, 2]
            table[kept, 1], table[kept, 3], table[kept, 4] = table[j - 1, 1], table[j - 1, 3], table[j - 1, 4]
            i = j
        else:
            for column in range(table.shape[1]):
                table[kept, column] = table[i, column]
            i += 1
        kept += 1
    return kept


def window_end(table: Any, begin: Any, count: Any) -> Any:
    for i in range(begin, count):
        words = i + 1 - begin
        if words >= WINDOW_MAX:
            return i + 1
        rest = count - i - 1
        if table[i, 4] == 1 and words >= WINDOW_MIN and (rest >= WINDOW_MIN // 2 or words + rest > WINDOW_MAX):
            return i + 1
    return count


def _characters(text: Any, start: Any, end: Any, slots: Any, values: Any, at: Any) -> Any:
    """Write the character n-grams of a word and its borders; return the new number of features."""
    length = end - start + 2
    for size in range(_NGRAM_MIN, _NGRAM_MAX + 1):
        for q in range(length - size + 1):
            state = np.uint64(11 + size)
            for r in range(q, q + size):
                state = _mix(state, 32 if r in (0, length - 1) else text[start + r - 1])
            slots[at], values[at] = _slot(_mix(state, 5)), _CHAR
            at += 1
    return at


def features(text: Any, table: Any, begin: Any, end: Any, slots: Any, values: Any) -> Any:
    """Write the features of words `begin` to `end`: words, pairs, pairs with one word between, character n-grams."""
    at = 0
    before = before_that = np.uint64(0)
    for i in range(begin, end):
        if at + 3 + 3 * (table[i, 1] - table[i, 0] + 2) > MAX_FEATURES:
            break
        word = np.uint64(7)
        for q in range(table[i, 0], table[i, 1]):
            word = _mix(word, text[q])
        slots[at], slots[at + 1] = _slot(_mix(word, 1)), _slot(_mix(_mix(before, word), 2))
        values[at] = values[at + 1] = _WORD
        at += 2
        if i > begin + 1:
            slots[at], values[at] = _slot(_mix(_mix(before_that, word), 4)), _WORD
            at += 1
        at = _characters(text, table[i, 0], table[i, 1], slots, values, at)
        before_that, before = before, word
    return at


def word_slot(text: Any, start: Any, end: Any) -> Any:
    """The feature of a single word."""
    word = np.uint64(7)
    for q in range(start, end):
        word = _mix(word, text[q])
    return _slot(_mix(word, 1))


def _known(text: Any, table: Any, begin: Any, end: Any, vocabulary: Any) -> Any:
    """Share of known words; tags and names do not count."""
    found = counted = 0
    for i in range(begin, end):
        if table[i, 5]:
            continue
        counted += 1
        found += vocabulary[word_slot(text, table[i, 0], table[i, 1])]
    return found / counted if counted else 1.0


def logit_of(weights: Any, bias: Any, slots: Any, values: Any, count: Any) -> Any:
    total = norm = 0.0
    for i in range(count):
        total += weights[slots[i]] * values[i]
        norm += values[i] * values[i]
    return bias + total / math.sqrt(max(norm, 1e-9)), norm


def score(
    data: Any, offsets: Any, weights: Any, bias: Any, vocabulary: Any, text: Any, table: Any, slots: Any, values: Any,
    where: Any, logits: Any, known: Any,
) -> Any:  # fmt: skip
    """Score every window of every text; return the number of windows.

    `weights` and `vocabulary`, 1 where a word is known, are [2**BITS]. Scratch space: `text`, [bytes of the longest
    text + 1], `table`, [half of them + 2, 6], `slots` and `values`, [MAX_FEATURES]. `where` gets a window's text, its
    first byte, and the byte after its last; `known` its share of known words.
    """
    made = 0
    for d in range(len(offsets) - 1):
        count = join_spaced(table, split_words(data, offsets[d], offsets[d + 1], text, table))
        begin = 0
        while begin < count:
            end = window_end(table, begin, count)
            filled = features(text, table, begin, end, slots, values)
            logits[made] = logit_of(weights, bias, slots, values, filled)[0]
            known[made] = _known(text, table, begin, end, vocabulary)
            # A window includes the punctuation that follows it.
            where[made, 0], where[made, 1] = d, table[begin, 2] if begin else offsets[d]
            where[made, 2] = table[end, 2] if end < count else offsets[d + 1]
            made += 1
            begin = end
    return made


def count_words(data: Any, offsets: Any, text: Any, table: Any, counts: Any) -> Any:
    """Add each word's number of occurrences to `counts` (int64 [2**BITS]); `text` and `table` are those of `score`."""
    for d in range(len(offsets) - 1):
        for i in range(split_words(data, offsets[d], offsets[d + 1], text, table)):
            counts[word_slot(text, table[i, 0], table[i, 1])] += 1
    return len(offsets) - 1


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
        while worst and begin < count:
            end = window_end(table, begin, count)
            logit, _ = logit_of(weights, bias[0], slots, values, features(text, table, begin, end, slots, values))
            if logit > highest:
                chosen, highest = begin, logit
            begin = end
        begin = chosen
        while begin < count:
            end = window_end(table, begin, count)
            filled = features(text, table, begin, end, slots, values)
            logit, norm = logit_of(weights, bias[0], slots, values, filled)
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
