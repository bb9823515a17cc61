"""Compiled loops over UTF-8 text: words, repetition within a text, overlap between the turns of a conversation.

A 64-bit hash stands for a word and for an n-gram; a collision is less likely than a memory error.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.text.shingles_kernel import character

Bytes = NDArray[np.uint8]
Longs = NDArray[np.int64]
Hashes = NDArray[np.uint64]
Floats = NDArray[np.float64]

SYMBOL, SPACE, LETTER, DIGIT, SYLLABLE, JOINER = range(6)
"""Classes of characters: a SYLLABLE is a word by itself (Han, kana, Thai ...), a JOINER connects its neighbours."""

FIRST_ORDER, DUPLICATE_ORDER, LAST_ORDER = 2, 5, 10
"""Orders of n-grams: of 2 to 4 words the most frequent one is measured, of 5 to 10 all copies (Gopher)."""

WIDTH = 7 + LAST_ORDER - FIRST_ORDER + 1
"""Number of columns of `text_statistics`: characters, words, characters in words, white-space separated tokens, tokens
with a letter, stop words, longest token; then one per repetition order."""

OVERLAP_ORDER = 5
USER, ASSISTANT = 1, 2

_FNV = np.uint64(14695981039346656037)
_PRIME = np.uint64(1099511628211)
_MIX = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)
_HALF = np.uint64(32)


class HashTable(NamedTuple):
    """An open-addressed hash table. A slot is filled if its stamp is the current one, so the table is never cleared."""

    keys: Hashes
    stamps: Longs
    values: Longs
    firsts: Longs


def word_hash(data: Bytes) -> np.uint64:
    """FNV-1a of a word's bytes."""
    value = _FNV
    for byte in data:
        value = (value ^ np.uint64(byte)) * _PRIME
    return value


def _combine(left: np.uint64, right: np.uint64) -> np.uint64:
    mixed = (left ^ (left >> _SHIFT)) * _MIX + right
    return (mixed ^ (mixed >> _SHIFT)) * _PRIME


def _characters(data: Bytes, start: int, stop: int) -> int:
    count = 0
    for byte in data[start:stop]:
        count += (byte & 0xC0) != 0x80  # noqa: PLR2004  not a byte inside a character
    return count


def _in_word(kind: int) -> bool:
    return kind in (LETTER, DIGIT)


def _word_end(data: Bytes, at: int, stop: int, classes: Bytes) -> int:
    """Where the word that begins at `at` ends; a joiner is part of it only between two of its characters."""
    while at < stop:
        code, end = character(data, at)
        if not _in_word(classes[code]):
            if classes[code] != JOINER or end >= stop:
                break
            following, _ = character(data, end)
            if not _in_word(classes[following]):
                break
        at = end
    return at


def _split(data: Bytes, bounds: tuple[int, int], classes: Bytes, hashes: Hashes, lengths: Longs) -> int:
    """Write the hashes of the words between the bounds, and their lengths in characters; return their number."""
    at, stop = bounds
    count = 0
    while at < stop:
        code, end = character(data, at)
        if _in_word(classes[code]):
            end = _word_end(data, at, stop, classes)
        if _in_word(classes[code]) or classes[code] == SYLLABLE:
            hashes[count] = word_hash(data[at:end])
            lengths[count] = _characters(data, at, end)
            count += 1
        at = end
    return count


def _tokens(data: Bytes, bounds: tuple[int, int], classes: Bytes) -> tuple[int, int, int]:
    """Number of white-space separated tokens, number with a letter, characters of the longest."""
    at, stop = bounds
    count = alphabetic = longest = length = 0
    letter = False
    while at < stop:
        code, at = character(data, at)
        kind = classes[code]
        if kind == SPACE:
            count += length > 0
            alphabetic += letter
            length = 0
            letter = False
        else:
            length += 1
            letter = letter or kind in (LETTER, SYLLABLE)
            longest = max(longest, length)
    return count + (length > 0), alphabetic + letter, longest


def slots(count: int) -> int:
    """Slots of a hash table of at most `count` keys: a power of two."""
    size = 16
    while size < 2 * count:
        size *= 2
    return size


def _slot(table: HashTable, stamp: int, mask: int, key: np.uint64) -> tuple[int, bool]:
    """The slot of a key, and whether the key was in the table; a new key is inserted with value 0."""
    slot = int(np.int64((key ^ (key >> _HALF)) & np.uint64(mask)))
    while table.stamps[slot] == stamp and table.keys[slot] != key:
        slot = (slot + 1) & mask
    known = bool(table.stamps[slot] == stamp)
    if not known:
        table.stamps[slot] = stamp
        table.keys[slot] = key
        table.values[slot] = 0
    return slot, known


def _top_characters(grams: Hashes, lengths: Longs, order: int, table: HashTable, stamp: int) -> int:
    """Characters of all occurrences of the most frequent n-gram (the first of equals); 0 if none repeats."""
    mask = slots(len(grams)) - 1
    best = first = 0
    for i in range(len(grams)):
        slot, known = _slot(table, stamp, mask, grams[i])
        if not known:
            table.firsts[slot] = i
        table.values[slot] += 1
        count = table.values[slot]
        if count > best or (count == best and table.firsts[slot] < first):
            best = count
            first = table.firsts[slot]
    return 0 if best <= 1 else (lengths[first : first + order].sum() + order - 1) * best


def _duplicate_characters(grams: Hashes, lengths: Longs, order: int, table: HashTable, stamp: int) -> int:
    """Characters in n-grams that occur earlier, each counted once: after a copy, the scan continues at its end."""
    mask = slots(len(grams)) - 1
    characters = i = 0
    while i < len(grams):
        _, known = _slot(table, stamp, mask, grams[i])
        if known:
            characters += lengths[i : i + order].sum()
        i += order if known else 1
    return characters


def _stop_words(hashes: Hashes, stop_words: Hashes) -> int:
    count = 0
    for word in stop_words:
        for value in hashes:
            if value == word:
                count += 1
                break
    return count


def text_statistics(  # noqa: PLR0917  compiled: arguments by position
    data: Bytes, offsets: Longs, classes: Bytes, stop_words: Hashes, hashes: Hashes, numbers: Longs, out: Floats
) -> int:
    """Word and repetition statistics of each text, [texts, `WIDTH`]; repetition is a share of the text's characters.

    `classes` are those of every code point. Scratch space: `hashes`, [3, `slots` of the words of the longest text], and
    `numbers`, [4, the same], the first row zeros.
    """
    words, room = hashes[0], hashes[1]
    table = HashTable(hashes[2], numbers[0], numbers[1], numbers[2])
    stamp = 0
    for text in range(len(offsets) - 1):
        bounds = (offsets[text], offsets[text + 1])
        count = _split(data, bounds, classes, words, numbers[3])
        lengths = numbers[3][:count]
        characters = _characters(data, bounds[0], bounds[1])
        tokens, alphabetic, longest_token = _tokens(data, bounds, classes)
        row = out[text]
        row[0], row[1], row[2], row[3], row[4] = characters, count, lengths.sum(), tokens, alphabetic
        row[5], row[6] = _stop_words(words[:count], stop_words), longest_token
        row[7:] = 0
        for i in range(count):
            room[i] = words[i]
        for order in range(FIRST_ORDER, min(LAST_ORDER, count) + 1):
            grams = room[: count - order + 1]
            for i in range(len(grams)):
                grams[i] = _combine(grams[i], words[i + order - 1])
            stamp += 1
            if order < DUPLICATE_ORDER:
                repeated = _top_characters(grams, lengths, order, table, stamp)
            else:
                repeated = _duplicate_characters(grams, lengths, order, table, stamp)
            row[7 + order - FIRST_ORDER] = min(1.0, repeated / characters)
    return stamp


def turn_overlap(  # noqa: PLR0917  the same
    data: Bytes, offsets: Longs, first: Longs, roles: Bytes, classes: Bytes, hashes: Hashes, numbers: Longs, out: Floats
) -> int:
    """How much the assistant repeats itself and the user, by word 5-grams.

    `first` is the first message of each conversation, and one past the last; `roles` are `USER`, `ASSISTANT`, or 0.
    Columns of `out`, [conversations, 5]: the assistant's 5-grams; those that an earlier reply had; those of replies
    after the first; those that an earlier turn of the user had; the characters of replies in 5-grams that the same
    reply had before. Scratch space: `hashes`, [3, `slots` of the words of the longest conversation], and `numbers`, [7,
    the same], the first two rows zeros.
    """
    words, lengths = hashes[0], numbers[2]
    seen = HashTable(hashes[1], numbers[0], numbers[3], numbers[4])
    inner = HashTable(hashes[2], numbers[1], numbers[5], numbers[6])
    for conversation in range(len(first) - 1):
        row = out[conversation]
        row[:] = 0
        mask = slots((offsets[first[conversation + 1]] - offsets[first[conversation]]) // 2 + 1) - 1
        replied = False
        for message in range(first[conversation], first[conversation + 1]):
            bounds = (offsets[message], offsets[message + 1])
            count = _split(data, bounds, classes, words, lengths) if roles[message] > 0 else 0
            grams = words[: max(0, count - OVERLAP_ORDER + 1)]  # each replaces its first word
            for i in range(len(grams)):
                for k in range(i + 1, i + OVERLAP_ORDER):
                    grams[i] = _combine(grams[i], words[k])
            if roles[message] == ASSISTANT and len(grams) > 0:
                for gram in grams:
                    slot, _ = _slot(seen, conversation + 1, mask, gram)
                    row[1] += (seen.values[slot] & ASSISTANT) > 0
                    row[3] += (seen.values[slot] & USER) > 0
                row[0] += len(grams)
                row[2] += len(grams) if replied else 0
                row[4] += _duplicate_characters(grams, lengths, OVERLAP_ORDER, inner, message + 1)
                replied = True
            for gram in grams:  # only now: a reply does not repeat an earlier one by repeating itself
                slot, _ = _slot(seen, conversation + 1, mask, gram)
                seen.values[slot] |= roles[message]
    return len(first) - 1
