"""Compiled loops over messages: their words in lower case, bad characters, and names that lost their capitals."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.heuristics.words_kernel import ASSISTANT, Bytes, Hashes, HashTable, Longs, slot_of, slots
from stages.text.characters_kernel import HASH_SEED, LETTER, NUMBER, add
from stages.text.hashes_kernel import mix64
from stages.text.shingles_kernel import character

_REPLACEMENT = 0xFFFD
_CONTROL = np.array([code < ord(" ") and chr(code) not in "\t\n\r" for code in range(0x80)])
_START = np.uint64(32)  # a bit above all code points, at the first character of a word


def message_statistics(  # noqa: PLR0917  compiled: arguments by position
    data: Bytes, offsets: Longs, properties: Bytes, lower: NDArray[np.int32], keys: Hashes, counts: Longs
) -> int:
    """Write the key of each message's words in lower case, and its numbers of words and of bad characters.

    `counts` are int64 [messages, 2]. A word is a run of letters and numbers. Bad are control characters and U+FFFD.
    """
    for message in range(len(offsets) - 1):
        at, stop = offsets[message], offsets[message + 1]
        key, words, bad, outside = HASH_SEED, np.uint64(0), 0, np.uint64(1)
        while at < stop:
            code, at = character(data, at)
            bad += code == _REPLACEMENT or (code < len(_CONTROL) and _CONTROL[code])
            code = np.int64(lower[code]) if code < len(lower) else code
            inside = np.uint64(properties[code] & (LETTER | NUMBER) > 0)
            words += outside & inside
            key ^= (key ^ add(key, np.uint64(code) | outside << _START)) & (np.uint64(0) - inside)
            outside = np.uint64(1) - inside
        keys[message], counts[message, 0], counts[message, 1] = mix64(key), np.int64(words), bad
    return len(offsets) - 1


class Word(NamedTuple):
    """A run of letters and numbers.

    `hashed` is of its lower case; it is from `before` to `after`, in bytes; `length` is in characters, 0 if there is
    none; `initial` is whether its first character is a capital, `capital` whether any is.
    """

    hashed: np.uint64
    before: int
    after: int
    length: int
    initial: bool
    capital: bool


_HALF = np.uint64(32)
_SHORTEST = 3  # characters of a name
Place = tuple[int, int]
"""Stamp and mask of a hash table."""
_COMMA, _BLANK, _NEWLINE, _A, _Z = map(ord, ", \nAZ")
_FIRST_LONG = 0xC3  # first byte of the first letter beyond ASCII that has a lower case


def _next_word(data: Bytes, at: int, stop: int, properties: Bytes, lower: NDArray[np.int32]) -> Word:
    hashed, length, before, initial, capital = HASH_SEED, 0, at, False, False
    while at < stop:
        code, after = character(data, at)
        if properties[code] & (LETTER | NUMBER) > 0:
            small = np.int64(lower[code]) if code < len(lower) else code
            before = before if length else at
            capital = capital or small != code
            initial = initial if length else small != code
            hashed = add(hashed, np.uint64(small))
            length += 1
        elif length:
            return Word(hashed, before, at, length, initial, capital)
        at = after
    return Word(hashed, before, at, length, initial, capital)


def _is_capital(code: int, lower: NDArray[np.int32]) -> bool:
    return code < len(lower) and bool(lower[code] != code)


def _is_part(data: Bytes, at: int, properties: Bytes) -> bool:
    """Whether there is a letter or a number here."""
    return bool(properties[character(data, at)[0]] & (LETTER | NUMBER) > 0)


def _follows(data: Bytes, start: int, at: int, properties: Bytes) -> bool:
    """Whether a word that begins here follows another in one sentence: only a blank or ", " is between them."""
    at -= 1 + (at - 2 >= start and data[at - 2] == _COMMA)
    before = at - 1
    while before > start and data[before] & 0xC0 == 0x80:  # noqa: PLR2004  a byte inside a character
        before -= 1
    return before >= start and _is_part(data, before, properties)


def _next_name(  # noqa: PLR0917  the same
    data: Bytes, start: int, at: int, stop: int, properties: Bytes, lower: NDArray[np.int32]
) -> int:
    """Where the next word of two characters begins that has a capital and follows another in one sentence, or `stop`.

    The text begins at `start`; the word is after `at`. Most bytes are only compared with a blank.
    """
    for i in range(at + 1, stop - 1):
        if data[i - 1] == _BLANK and (_A <= data[i] <= _Z or data[i] >= _FIRST_LONG):
            code, after = character(data, i)
            if (
                _is_capital(code, lower)
                and after < stop
                and _is_part(data, after, properties)
                and _follows(data, start, i, properties)
            ):
                return i
    return stop


def _is_lowered(data: Bytes, bounds: tuple[int, int], properties: Bytes, lower: NDArray[np.int32]) -> bool:
    """Whether a text has capitals, but none inside a sentence other than those of words of one letter."""
    at, stop = bounds
    if _next_name(data, at, at, stop, properties, lower) < stop:
        return False
    while at < stop:
        code, at = character(data, at)
        if _is_capital(code, lower):
            return True
    return False


def _line_end(data: Bytes, at: int, stop: int) -> int:
    while at < stop and data[at] != _NEWLINE:
        at += 1
    return at


def _is_title(data: Bytes, bounds: tuple[int, int], properties: Bytes, lower: NDArray[np.int32]) -> bool:
    """Whether more than half of the words begin with a capital."""
    at, stop = bounds
    words = capitals = 0
    outside = True
    while at < stop:
        code, at = character(data, at)
        inside = properties[code] & (LETTER | NUMBER) > 0
        if inside and outside:
            words += 1
            capitals += _is_capital(code, lower)
        outside = not inside
    return capitals * 2 > words


def _note_names(  # noqa: PLR0917  the same
    data: Bytes, bounds: tuple[int, int], properties: Bytes, lower: NDArray[np.int32], table: HashTable, place: Place
) -> int:
    """Put the words that a text writes with a capital inside a sentence into the table; return their number."""
    at, stop = bounds
    count = 0
    while at < stop:
        start, line = at, _line_end(data, at, stop)
        at = _next_name(data, start, start, line, properties, lower)
        if at < line and _is_title(data, (start, line), properties, lower):
            at = line
        while at < line:
            word = _next_word(data, at, line, properties, lower)
            if word.length >= _SHORTEST:
                slot_of(table, place[0], place[1], word.hashed)
                count += 1
            at = _next_name(data, start, at, line, properties, lower)
        at = line + 1
    return count


def _find(table: HashTable, place: Place, key: np.uint64) -> int:
    """The slot of a key, or -1 if the table does not have it."""
    slot = int(np.int64((key ^ (key >> _HALF)) & np.uint64(place[1])))
    while table.stamps[slot] == place[0]:
        if table.keys[slot] == key:
            return slot
        slot = (slot + 1) & place[1]
    return -1


def _count_names(  # noqa: PLR0917  the same
    data: Bytes,
    bounds: tuple[int, int],
    properties: Bytes,
    lower: NDArray[np.int32],
    table: HashTable,
    place: Place,
    mark: int,
) -> int:
    """Number of different names of the table that a text writes without a capital; the count has a mark of its own."""
    at, stop = bounds
    count = 0
    while at < stop:
        word = _next_word(data, at, stop, properties, lower)
        if word.length >= _SHORTEST and not word.capital:
            slot = _find(table, place, word.hashed)
            if slot >= 0 and table.values[slot] == 0 and table.firsts[slot] != mark:
                table.firsts[slot] = mark
                count += 1
        at = word.after
    return count


def _strike_common(  # noqa: PLR0917  the same
    data: Bytes, bounds: tuple[int, int], properties: Bytes, lower: NDArray[np.int32], table: HashTable, place: Place
) -> int:
    """Mark the words of the table that a text also writes without a first capital: they are no names."""
    at, stop = bounds
    while at < stop:
        word = _next_word(data, at, stop, properties, lower)
        if word.length >= _SHORTEST and not word.initial:
            slot = _find(table, place, word.hashed)
            if slot >= 0:
                table.values[slot] = 1
        at = word.after
    return stop


def lowered_names(  # noqa: PLR0917  the same
    data: Bytes,
    offsets: Longs,
    first: Longs,
    roles: Bytes,
    properties: Bytes,
    lower: NDArray[np.int32],
    hashes: Hashes,
    numbers: NDArray[np.int64],
    counts: Longs,
) -> int:
    """Number of names of other messages that each reply writes in lower case, though its sentences begin with capitals.

    `first` is the first message of each conversation, and one past the last; `counts`, int64 [messages], 0 if the reply
    has a capital inside a sentence. A name has at least three characters, has a capital inside a sentence of a line
    that is no title, and is never without one. Scratch space: `hashes`, [`slots` of the words of the longest
    conversation], and `numbers`, [3, the same], the first row zeros.
    """
    table = HashTable(hashes, numbers[0], numbers[1], numbers[2])
    for conversation in range(len(first) - 1):
        begin, end = first[conversation], first[conversation + 1]
        names, struck = -1, False  # not yet looked for
        place = (conversation + 1, slots((offsets[end] - offsets[begin]) // 2 + 1) - 1)
        for message in range(begin, end):
            counts[message] = 0
            bounds = (offsets[message], offsets[message + 1])
            if names == 0 or roles[message] != ASSISTANT or not _is_lowered(data, bounds, properties, lower):
                continue
            if names < 0:
                names = 0
                for other in range(begin, end):
                    if roles[other] < ASSISTANT:
                        span = (offsets[other], offsets[other + 1])
                        names += _note_names(data, span, properties, lower, table, place)
            found = _count_names(data, bounds, properties, lower, table, place, message) if names else 0
            if found and not struck:
                for other in range(begin, end):
                    if roles[other] < ASSISTANT:
                        span = (offsets[other], offsets[other + 1])
                        _strike_common(data, span, properties, lower, table, place)
                struck = True
                found = _count_names(data, bounds, properties, lower, table, place, -2 - message)
            counts[message] = found
    return len(first) - 1
