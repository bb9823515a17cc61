"""Compiled loops over UTF-8 text: words, repetition within a text, overlap between the turns of a conversation.

A 64-bit hash stands for a word and for an n-gram; a collision is less likely than a memory error.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.text.characters_kernel import HASH_SEED, IN_WORD, LETTER, SPACE, SYLLABLE, add
from stages.text.hashes_kernel import runs
from stages.text.shingles_kernel import character

Bytes = NDArray[np.uint8]
Longs = NDArray[np.int64]
Hashes = NDArray[np.uint64]
Floats = NDArray[np.float64]

FIRST_ORDER, DUPLICATE_ORDER, LAST_ORDER = 2, 5, 10
"""Orders of n-grams: of 2 to 4 words the most frequent one is measured, of 5 to 10 all copies (Gopher)."""

WIDTH = 7 + LAST_ORDER - FIRST_ORDER + 1
"""Number of columns of `text_statistics`: characters, words, characters in words, white-space separated tokens, tokens
with a letter, stop words, longest token; then one per repetition order."""

OVERLAP_ORDER = 5
USER, ASSISTANT = 1, 2

U64 = np.uint64
ZERO, ONE, NO_ASCII = U64(0), U64(1), U64(0x80)
_MIX, _PRIME = np.uint64(0x9E3779B97F4A7C15), np.uint64(1099511628211)
_SHIFT, _HALF = np.uint64(29), np.uint64(32)


class HashTable(NamedTuple):
    """An open-addressed hash table. A slot is filled if its stamp is the current one, so the table is never cleared."""

    keys: Hashes
    stamps: Longs
    values: Longs
    firsts: Longs


def _combine(left: np.uint64, right: np.uint64) -> np.uint64:
    mixed = (left ^ (left >> _SHIFT)) * _MIX + right
    return (mixed ^ (mixed >> _SHIFT)) * _PRIME


def _joins(data: Bytes, code: np.uint64, at: np.uint64, stop: np.uint64, properties: Bytes) -> bool:
    """Whether a character joins its neighbours to one word: one of ' . - between two characters of a word."""
    if at < stop and (code == 0x27 or code == 0x2E or code == 0x2D or code == 0x2019):  # noqa: PLR1714, PLR2004
        return bool(properties[character(data, np.int64(at))[0]] & IN_WORD > 0)
    return False


def read_words(data: Bytes, bounds: tuple[int, int], properties: Bytes, hashes: Hashes, lengths: Longs) -> int:
    """Write the hashes of the words between the bounds and their lengths in characters; return their number.

    Every character writes the word so far, the end of a word only advances the position, and masks take the place of
    conditions: a mispredicted branch per word would take as long as all the rest. There is room for one word more.
    """
    at, stop = U64(bounds[0]), U64(bounds[1])
    count, length, hashed = ZERO, ZERO, HASH_SEED
    while at < stop:
        code = U64(data[at])
        at += ONE
        if code >= NO_ASCII:
            decoded, after = character(data, np.int64(at) - 1)
            code, at = U64(decoded), U64(after)
        kind = properties[code]
        inside = U64(kind & IN_WORD > 0)
        if kind == 0 and length > ZERO:
            inside = U64(_joins(data, code, at, stop, properties))
        hashes[count], lengths[count] = hashed, length
        count += (ONE - inside) & U64(length > ZERO)
        mask = ZERO - inside
        hashed = HASH_SEED ^ ((HASH_SEED ^ add(hashed, code)) & mask)
        length = (length + ONE) & mask
        if kind & SYLLABLE:
            hashes[count], lengths[count] = add(HASH_SEED, code), 1
            count += ONE
    hashes[count], lengths[count] = hashed, length
    return int(count + U64(length > ZERO))


def _tokens(data: Bytes, bounds: tuple[int, int], properties: Bytes) -> tuple[int, int, int, int]:
    """Numbers of characters, of white-space separated tokens, of those with a letter, characters of the longest."""
    at, stop = U64(bounds[0]), U64(bounds[1])
    characters, tokens, alphabetic, longest, token, seen = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
    while at < stop:
        code = U64(data[at])
        at += ONE
        if code >= NO_ASCII:
            decoded, after = character(data, np.int64(at) - 1)
            code, at = U64(decoded), U64(after)
        space, letter = U64(properties[code] & SPACE > 0), U64(properties[code] & LETTER > 0)
        characters += ONE
        token = (token + ONE) & (space - ONE)
        longest = max(longest, token)
        tokens += U64(token == ONE)
        alphabetic += letter & ~seen
        seen = (seen | letter) & ~space
    return int(characters), int(tokens), int(alphabetic), int(longest)


def slots(count: int) -> int:
    """Slots of a hash table of at most `count` keys: a power of two."""
    size = 16
    while size < 2 * count:
        size *= 2
    return size


def slot_of(table: HashTable, stamp: int, mask: int, key: np.uint64) -> tuple[int, bool]:
    """The slot of a key, and whether the key was in the table; a new key is inserted with value 0."""
    slot = int(np.int64((key ^ (key >> _HALF)) & np.uint64(mask)))
    while table.stamps[slot] == stamp and table.keys[slot] != key:
        slot = (slot + 1) & mask
    known = bool(table.stamps[slot] == stamp)
    if not known:
        table.stamps[slot] = stamp
        table.keys[slot] = key
        table.values[slot] = 0
        table.firsts[slot] = -1
    return slot, known


def _stop_words(hashes: Hashes, stop_words: Hashes) -> int:
    count = 0
    for word in stop_words:
        for value in hashes:
            if value == word:
                count += 1
                break
    return count


def _top_characters(found: Longs, places: Longs, lengths: Longs, order: int, table: HashTable) -> int:
    """Characters of all occurrences of the most frequent n-gram (the first of equals); 0 if none repeats."""
    best, first = 1, 0
    for i in range(len(found)):
        if table.values[found[i]] > best:
            best, first = table.values[found[i]], places[i]
    return 0 if best == 1 else (lengths[first : first + order].sum() + order - 1) * best


def _duplicate_characters(found: Longs, places: Longs, lengths: Longs, order: int, table: HashTable) -> int:
    """Characters in n-grams that occur earlier, each counted once: after a copy, the scan continues at its end."""
    characters = following = 0
    for i in range(len(found)):
        if places[i] >= following:
            if table.firsts[found[i]] >= 0:
                characters += lengths[places[i] : places[i] + order].sum()
                following = places[i] + order
            else:
                table.firsts[found[i]] = places[i]
    return characters


def _repetition(  # noqa: PLR0917  compiled: arguments by position
    words: Hashes, lengths: Longs, grams: Hashes, places: Longs, found: Longs, table: HashTable, stamp: int, row: Floats
) -> int:
    """Write the characters in repeated n-grams of each order; return the last stamp.

    An n-gram can repeat only where the one of a lower order does, so that few `places` are left for high orders.
    `found` are the slots of their n-grams.
    """
    left = len(words)
    for i in range(left):
        grams[i], places[i] = words[i], i
    for order in range(FIRST_ORDER, min(LAST_ORDER, len(words)) + 1):
        while left > 0 and places[left - 1] > len(words) - order:
            left -= 1
        stamp += 1
        mask = slots(left) - 1
        for i in range(left):
            grams[places[i]] = _combine(grams[places[i]], words[places[i] + order - 1])
            found[i], _ = slot_of(table, stamp, mask, grams[places[i]])
            table.values[found[i]] += 1
        if order < DUPLICATE_ORDER:
            row[order - FIRST_ORDER] = _top_characters(found[:left], places, lengths, order, table)
        else:
            row[order - FIRST_ORDER] = _duplicate_characters(found[:left], places, lengths, order, table)
        kept = 0
        for i in range(left):
            places[kept] = places[i]
            kept += table.values[found[i]] > 1
        left = kept
    return stamp


def text_statistics(  # noqa: PLR0917  the same
    data: Bytes, offsets: Longs, properties: Bytes, stop_words: Hashes, hashes: Hashes, numbers: Longs, out: Floats
) -> int:
    """Word and repetition statistics of each text, [texts, `WIDTH`]; repetition is a share of the text's characters.

    `properties` are those of `stages.text.characters`. Scratch space: `hashes`, [3, `slots` of the words of the longest
    text], and `numbers`, [6, the same], the first row zeros.
    """
    table = HashTable(hashes[2], numbers[0], numbers[1], numbers[2])
    stamp = 0
    for text in range(len(offsets) - 1):
        bounds, row = (offsets[text], offsets[text + 1]), out[text]
        count = read_words(data, bounds, properties, hashes[0], numbers[3])
        characters, row[3], row[4], row[6] = _tokens(data, bounds, properties)
        words, lengths = hashes[0][:count], numbers[3][:count]
        row[0], row[1], row[2], row[5] = characters, count, lengths.sum(), _stop_words(words, stop_words)
        row[7:] = 0
        stamp = _repetition(words, lengths, hashes[1], numbers[4], numbers[5], table, stamp, row[7:])
        for i in range(7, WIDTH):
            row[i] = min(1.0, row[i] / characters) if row[i] > 0 else 0.0
    return stamp


def token_counts(data: Bytes, offsets: Longs, properties: Bytes, out: Longs) -> int:
    """Number of white-space separated tokens of each text."""
    for text in range(len(offsets) - 1):
        _, out[text], _, _ = _tokens(data, (offsets[text], offsets[text + 1]), properties)
    return len(out)


def turn_overlap(  # noqa: PLR0917  the same
    data: Bytes,
    offsets: Longs,
    first: Longs,
    roles: Bytes,
    properties: Bytes,
    hashes: Hashes,
    numbers: Longs,
    out: Floats,
) -> int:
    """How much the assistant repeats itself and the user, by word 5-grams.

    `first` is the first message of each conversation, and one past the last; `roles` are `USER`, `ASSISTANT`, or 0.
    Columns of `out`, [conversations, 5]: the assistant's 5-grams; those that an earlier reply had; those of replies
    after the first; those that an earlier turn of the user had; the characters of replies in 5-grams that the same
    reply had before. Scratch space: `hashes`, [3, `slots` of the words of the longest conversation], and `numbers`, [6,
    the same], the first row zeros.
    """
    words, grams, lengths, places, found = hashes[0], hashes[1], numbers[3], numbers[4], numbers[5]
    table = HashTable(hashes[2], numbers[0], numbers[1], numbers[2])
    for i in range(len(places)):
        places[i] = i
    for conversation in range(len(first) - 1):
        row = out[conversation]
        row[:] = 0
        mask = slots((offsets[first[conversation + 1]] - offsets[first[conversation]]) // 2 + 1) - 1
        for message in range(first[conversation], first[conversation + 1]):
            if roles[message] == 0:
                continue
            count = read_words(data, (offsets[message], offsets[message + 1]), properties, words, lengths)
            count = runs(words, count, OVERLAP_ORDER, grams)
            replied = row[0] > 0
            for i in range(count):
                slot, _ = slot_of(table, conversation + 1, mask, grams[i])
                found[i] = slot
                table.firsts[slot] = -1
                if roles[message] == ASSISTANT:
                    row[1] += (table.values[slot] & ASSISTANT) > 0
                    row[3] += (table.values[slot] & USER) > 0
            if roles[message] == ASSISTANT:
                row[0] += count
                row[2] += count if replied else 0
                row[4] += _duplicate_characters(found[:count], places, lengths, OVERLAP_ORDER, table)
            for i in range(count):  # only now: a reply does not repeat an earlier one by repeating itself
                table.values[found[i]] |= roles[message]
    return len(first) - 1
