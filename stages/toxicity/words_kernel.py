"""Compiled functions that turn text into windows of words, and words into hashed features.

Texts are Arrow buffers (UTF-8 bytes and offsets), lower-cased and decomposed; no Python object is made for a word. A
window is one sentence or a few short ones: an abusive sentence is detected within a long answer, and the scores of a
long inoffensive answer do not add up.
"""
# ruff: noqa: ANN401, PLR0917 - numba infers the types, and compiled functions take numbers and arrays by position

from typing import Any

import numpy as np

BITS = 20
"""Base-2 logarithm of the number of weights that features are hashed to (Weinberger et al. 2009)."""
WINDOW_MIN, WINDOW_MAX = 20, 50
"""Words of a window: it ends at the first sentence end after the minimum, and at the maximum in any case."""

WORD, CHAR = 1.0, 0.6
"""Value of a feature of words, and of one of the many character n-grams."""
_NGRAM_MIN, _NGRAM_MAX = 3, 5
MAX_WORD_BYTES = 40
"""Maximum number of bytes of a word; longer ones (base64, URLs) are cut."""
MAX_FEATURES = 1 << 13
"""Maximum number of features of a window; WINDOW_MAX * (3 + 3 * (MAX_WORD_BYTES + 2)) fit."""

_SEPARATOR, _LETTER, _DIGIT, _SYMBOL, _STOP, _APOSTROPHE, _MARK = range(7)
_KIND = np.zeros(256, np.uint8)
_KIND[ord("a") : ord("z") + 1] = _LETTER
_KIND[128:] = _LETTER
_KIND[[0xC2, 0xE2, 0xF0]] = _SEPARATOR
_LENGTH = np.ones(256, np.int64)
_LENGTH[[0xC2, 0xE2, 0xF0]] = 2, 3, 4  # first bytes of the signs of Latin-1, of punctuation and symbols, of emoji
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


def mix(state: Any, value: Any) -> Any:
    state = (state ^ np.uint64(value)) * _ODD1
    return state ^ (state >> _SHIFT)


def slot(state: Any) -> Any:
    return np.int64((state * _ODD2) >> _TOP)


def _run(data: Any, start: Any, stop: Any) -> Any:
    """Where the word that begins at `start` ends, and whether it mixes letters with signs that replace letters."""
    letters = signs = 0
    end = start
    while end < stop and end - start < MAX_WORD_BYTES:
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
            i += _LENGTH[data[i]]
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
        while j < count and j - i < MAX_WORD_BYTES and table[j, 1] - table[j, 0] == 1:
            j += 1
        if j - i >= 3:  # noqa: PLR2004 - "a b" is no word, "a b c" may be
            table[kept, 0], table[kept, 2], table[kept, 5] = table[i, 0], table[i, 2], table[i, 5]
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


def word_hash(text: Any, start: Any, end: Any) -> Any:
    state = np.uint64(7)
    for q in range(start, end):
        state = mix(state, text[q])
    return state


def word_slot(word: Any) -> Any:
    return slot(mix(word, 1))


def pair_slot(before: Any, word: Any) -> Any:
    return slot(mix(mix(before, word), 2))


def skip_slot(before_that: Any, word: Any) -> Any:
    """The feature of two words with one word between."""
    return slot(mix(mix(before_that, word), 4))


def characters(text: Any, start: Any, end: Any, slots: Any, at: Any) -> Any:
    """Write the slots of the character n-grams of a word and its borders; return the new number of slots."""
    length = end - start + 2
    for size in range(_NGRAM_MIN, _NGRAM_MAX + 1):
        for q in range(length - size + 1):
            state = np.uint64(11 + size)
            for r in range(q, q + size):
                state = mix(state, 32 if r in (0, length - 1) else text[start + r - 1])
            slots[at] = slot(mix(state, 5))
            at += 1
    return at
