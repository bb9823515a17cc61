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

Place = tuple[int, int]
"""Stamp and mask of a hash table."""
U64 = np.uint64
_SHORTEST = 3  # characters of a name
_COMMA, _BLANK, _NEWLINE, _A = (U64(ord(sign)) for sign in ", \nA")
_LETTERS, _HALF, _LOW, _SEVEN, _NO_ASCII = U64(26), U64(32), U64(63), U64(127), U64(128)
_FIRST_LONG = U64(0xC3)  # first byte of the first letter beyond ASCII that has a lower case


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


def _is_after_part(data: Bytes, start: int, at: int, properties: Bytes) -> bool:
    """Whether there is a letter or a number just before; the text begins at `start`."""
    before = at - 1
    while before > start and data[before] & 0xC0 == 0x80:  # noqa: PLR2004  a byte inside a character
        before -= 1
    return before >= start and _is_part(data, before, properties)


def _follows(data: Bytes, start: int, at: int, properties: Bytes) -> bool:
    """Whether a word that begins here follows another in one sentence: only a blank or ", " is between them."""
    return _is_after_part(data, start, at - 1 - (at - 2 >= start and data[at - 2] == _COMMA), properties)


def _next_name(  # noqa: PLR0917  the same
    data: Bytes, start: int, at: int, stop: int, properties: Bytes, lower: NDArray[np.int32]
) -> int:
    """Where the next word of two characters begins that has a capital and follows another in one sentence, or `stop`.

    The text begins at `start`; the word is after `at`. Of most bytes, one condition is tested: masks take the place of
    several, since a mispredicted branch per word would take longer than all the rest.
    """
    before = U64(0)
    for i in range(U64(at), U64(max(at, stop - 1))):
        byte = U64(data[i])
        capital = U64(byte - _A < _LETTERS) | U64(byte >= _FIRST_LONG)
        if capital & U64(before == _BLANK):
            here = int(np.int64(i))
            code, after = character(data, here)
            part = _is_capital(code, lower) and after < stop and _is_part(data, after, properties)
            if part and _follows(data, start, here, properties):
                return here
        before = byte
    return stop


def _is_lowered(data: Bytes, bounds: tuple[int, int], properties: Bytes, lower: NDArray[np.int32]) -> bool:
    """Whether a text ends with a mark and has capitals, but none inside a sentence except in words of one letter."""
    at, stop = bounds
    end = stop
    while end > at and data[end - 1] <= _BLANK:
        end -= 1
    if end == at or _is_after_part(data, at, end, properties):
        return False
    if _next_name(data, at, at, stop, properties, lower) < stop:
        return False
    while at < stop:
        code, at = character(data, at)
        if _is_capital(code, lower):
            return True
    return False


def _title_end(  # noqa: PLR0917  the same
    data: Bytes, start: int, at: int, stop: int, properties: Bytes, lower: NDArray[np.int32]
) -> int:
    """The end of the line that is here; minus it if at most half of the words begin with a capital: it is no title."""
    words = capitals = 0
    outside = True
    while at > start and data[at - 1] != _NEWLINE:
        at -= 1
    while at < stop and data[at] != _NEWLINE:
        code, at = character(data, at)
        inside = properties[code] & (LETTER | NUMBER) > 0
        if inside and outside:
            words += 1
            capitals += _is_capital(code, lower)
        outside = not inside
    return at if capitals * 2 > words else -at


def _letter(code: int, lower: NDArray[np.int32]) -> np.uint64:
    """A bit that stands for the lower case of a character, and for others with it."""
    return np.uint64(1) << np.uint64((lower[code] if code < len(lower) else code) & 63)


def _note_names(  # noqa: PLR0917  the same
    data: Bytes, bounds: tuple[int, int], properties: Bytes, lower: NDArray[np.int32], table: HashTable, place: Place
) -> np.uint64:
    """Put the words that a text writes with a capital inside a sentence into the table; return their first letters."""
    start, stop = bounds
    letters, line, title = np.uint64(0), start, False
    at = _next_name(data, start, start, stop, properties, lower)
    while at < stop:
        if at >= line:
            end = _title_end(data, start, at, stop, properties, lower)
            line, title = abs(end), end > 0
        word = _next_word(data, at, stop, properties, lower)
        if not title and word.length >= _SHORTEST:
            slot_of(table, place[0], place[1], word.hashed)
            letters |= _letter(character(data, at)[0], lower)
        at = _next_name(data, start, line - 1 if title else at, stop, properties, lower)
    return letters


def _find(table: HashTable, place: Place, key: np.uint64) -> int:
    """The slot of a key, or -1 if the table does not have it."""
    slot = int(np.int64((key ^ (key >> _HALF)) & np.uint64(place[1])))
    while table.stamps[slot] == place[0]:
        if table.keys[slot] == key:
            return slot
        slot = (slot + 1) & place[1]
    return -1


def _next_of(  # noqa: PLR0917  the same
    data: Bytes, start: int, at: int, stop: int, properties: Bytes, lower: NDArray[np.int32], letters: np.uint64
) -> int:
    """Where the next word with one of these first letters begins, at or after `at`, or `stop`.

    The text begins at `start`. See `_next_name` for the masks.
    """
    before = U64(0)
    for i in range(U64(at), U64(max(at, stop))):
        byte = U64(data[i])
        ascii_letter = (letters >> ((byte | _BLANK) & _LOW)) & U64(byte < _NO_ASCII)
        if (ascii_letter | U64(byte >= _FIRST_LONG)) & (before ^ U64(1)):
            here = int(np.int64(i))
            known = letters & _letter(character(data, here)[0], lower) > 0
            if known and _is_part(data, here, properties) and not _is_after_part(data, start, here, properties):
                return here
        before = U64(byte < _NO_ASCII) & U64(properties[byte & _SEVEN] & (LETTER | NUMBER) > 0)
    return stop


def _count_names(  # noqa: PLR0917  the same
    data: Bytes,
    bounds: tuple[int, int],
    properties: Bytes,
    lower: NDArray[np.int32],
    table: HashTable,
    place: Place,
    letters: np.uint64,
    mark: int,
) -> int:
    """Number of different names of the table that a text writes without a capital; the count has a mark of its own."""
    count = 0
    at = _next_of(data, bounds[0], bounds[0], bounds[1], properties, lower, letters)
    while at < bounds[1]:
        word = _next_word(data, at, bounds[1], properties, lower)
        if word.length >= _SHORTEST and not word.capital:
            slot = _find(table, place, word.hashed)
            if slot >= 0 and table.values[slot] == 0 and table.firsts[slot] != mark:
                table.firsts[slot] = mark
                count += 1
        at = _next_of(data, bounds[0], word.after, bounds[1], properties, lower, letters)
    return count


def _strike_common(  # noqa: PLR0917  the same
    data: Bytes,
    bounds: tuple[int, int],
    properties: Bytes,
    lower: NDArray[np.int32],
    table: HashTable,
    place: Place,
    letters: np.uint64,
) -> int:
    """Mark the words of the table that a text also writes without a first capital: they are no names."""
    at = _next_of(data, bounds[0], bounds[0], bounds[1], properties, lower, letters)
    while at < bounds[1]:
        word = _next_word(data, at, bounds[1], properties, lower)
        if word.length >= _SHORTEST and not word.initial:
            slot = _find(table, place, word.hashed)
            if slot >= 0:
                table.values[slot] = 1
        at = _next_of(data, bounds[0], word.after, bounds[1], properties, lower, letters)
    return at


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

    `first` is the first message of each conversation, and one past the last; `counts`, int64 [messages], is 0 if the
    reply has a capital inside a sentence or ends without a mark. A name has at least three characters, has a capital
    inside a sentence of a line that is no title, and is never without one. Scratch space: `hashes`, [`slots` of the
    words of the longest conversation], and `numbers`, [3, the same], the first row zeros.
    """
    table = HashTable(hashes, numbers[0], numbers[1], numbers[2])
    for conversation in range(len(first) - 1):
        begin, end = first[conversation], first[conversation + 1]
        letters, noted, struck = np.uint64(0), False, False
        place = (conversation + 1, slots((offsets[end] - offsets[begin]) // 2 + 1) - 1)
        for message in range(begin, end):
            counts[message] = 0
            bounds = (offsets[message], offsets[message + 1])
            nameless = noted and letters == 0
            if nameless or roles[message] != ASSISTANT or not _is_lowered(data, bounds, properties, lower):
                continue
            for other in range(begin, begin if noted else end):
                if roles[other] < ASSISTANT:
                    span = (offsets[other], offsets[other + 1])
                    letters |= _note_names(data, span, properties, lower, table, place)
            noted = True
            found = _count_names(data, bounds, properties, lower, table, place, letters, message) if letters else 0
            if found and not struck:
                for other in range(begin, end):
                    if roles[other] < ASSISTANT:
                        span = (offsets[other], offsets[other + 1])
                        _strike_common(data, span, properties, lower, table, place, letters)
                struck = True
                found = _count_names(data, bounds, properties, lower, table, place, letters, -2 - message)
            counts[message] = found
    return len(first) - 1
