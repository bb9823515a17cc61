"""A compiled loop over the lines and paragraphs of UTF-8 texts.

A 64-bit hash stands for a line and for a paragraph; a collision is less likely than a memory error.
"""

from typing import NamedTuple

import numpy as np

from stages.heuristics.words_kernel import Bytes, Floats, Hashes, HashTable, Longs, slot_of, slots
from stages.text.characters_kernel import HASH_SEED, SPACE, add
from stages.text.hashes_kernel import mix64
from stages.text.shingles_kernel import character

COLUMNS = (
    *("n_lines", "punct_lines", "ellipsis_lines", "no_punct_lines", "bullet_lines", "few_word_lines"),
    *("javascript_lines", "policy_lines", "c4_lines", "short_lines", "long_lines", "dup_lines", "line_copies"),
    *("c4_sentences", "paragraphs", "dup_paras", "para_copies", "newlines", "hashes", "ellipses"),
    *("lorem_ipsum", "curly_bracket"),
)
"""Columns of `line_statistics`: numbers of lines, of characters in copies (`line_copies`, `para_copies`), of signs, and
whether there is a phrase or a sign."""

PHRASES = (
    *("javascript", "lorem ipsum", "terms of use", "privacy policy", "cookie policy", "uses cookies"),
    *("use of cookies", "use cookies"),
)
"""Phrases that are looked for, in any case; from the third on they are C4's (tensorflow_datasets c4_utils.py)."""

LONG_LINE, SHORT_LINE = 200, 30  # characters; mC4's paragraph, FineWeb
FEW_WORDS, LONG_WORD = 3, 1001  # C4; characters of a word

_NEWLINE, _DOT, _ELLIPSIS, _A, _Z, _A_SMALL, _K, _S, _LONG_S, _KELVIN = map(ord, "\n.…AZaks\u017f\u212a")
_TERMINAL = tuple(map(ord, ".!?\"'”’…。！？」』।॥؟۔።"))  # noqa: RUF001 - end marks of other scripts are meant
_BULLETS = tuple(map(ord, "•‣◦·*-"))
_CLOSERS = tuple(map(ord, "\"'”’)]"))  # noqa: RUF001 - typographic quotes are meant
_MARK, _CURLY, _HASH = 1, 2, 4
_SIGNS = np.zeros(256, np.uint8)  # bits of bytes: may be a part of an ellipsis or the end of a sentence, "{", "#"
_SIGNS[[*b".!?", "…".encode()[0]]] = _MARK
_SIGNS[ord("{")], _SIGNS[ord("#")] = _CURLY, _HASH
_LETTERS = np.frombuffer("".join(PHRASES).encode(), np.uint8)
_ENDS = np.cumsum([0, *map(len, PHRASES)])
_INITIALS = np.isin(np.arange(256), [ord(letter) for text in PHRASES for letter in (text[0], text[0].upper())])


class Span(NamedTuple):
    """A line without the white space around it: bytes, and its first and last characters."""

    start: int
    stop: int
    first: int
    last: int


def _lines(data: Bytes, start: int, stop: int) -> int:
    """Number of lines that are not empty: at most half of the bytes, rounded up."""
    count, before = 0, _NEWLINE
    for byte in data[start:stop]:
        count += before == _NEWLINE and byte != _NEWLINE
        before = byte
    return count


def _bare(data: Bytes, start: int, stop: int, properties: Bytes) -> Span:
    first, last, at = 0, 0, start
    while at < stop:
        first, after = character(data, at)
        if properties[first] & SPACE == 0:
            break
        at = after
    while stop > at:
        before = stop - 1
        while data[before] & 0xC0 == 0x80:  # noqa: PLR2004  a byte inside a character
            before -= 1
        last, _ = character(data, before)
        if properties[last] & SPACE == 0:
            break
        stop = before
    return Span(at, stop, first, last)


def _has_words(data: Bytes, span: Span, properties: Bytes) -> bool:
    """Whether a line has as many white-space separated words as C4 requires."""
    at, words, outside = span.start, 0, True
    while at < span.stop and words < FEW_WORDS:
        code, at = character(data, at)
        space = properties[code] & SPACE > 0
        words += outside and not space
        outside = space
    return words >= FEW_WORDS


def _has_long_word(data: Bytes, span: Span, properties: Bytes) -> bool:
    at, length = span.start, 0
    while at < span.stop and length < LONG_WORD:
        code, at = character(data, at)
        length = 0 if properties[code] & SPACE else length + 1
    return length >= LONG_WORD


def _marks(data: Bytes, span: Span, properties: Bytes) -> tuple[int, int, int]:
    """Number of ellipses, of sentences, and of dots at the end."""
    at, ellipses, sentences, dots, ended = span.start, 0, 0, 0, False
    while at < span.stop:
        if not ended and dots == 0 and _SIGNS[data[at]] & _MARK == 0:
            at += 1
            continue
        code, at = character(data, at)
        dots = dots + 1 if code == _DOT else 0
        ellipses += code == _ELLIPSIS or (dots > 0 and dots % 3 == 0)
        if ended and properties[code] & SPACE:
            sentences, ended = sentences + 1, False
        else:
            ended = code in (0x2E, 0x21, 0x3F) or (ended and code in _CLOSERS)  # . ! ?
    return ellipses, sentences + ended, dots


def _is_phrase(data: Bytes, at: int, stop: int, phrase: int) -> bool:
    """Whether a phrase begins here, in any case: U+017F is an "s", and the Kelvin sign is a "k"."""
    for letter in _LETTERS[_ENDS[phrase] : _ENDS[phrase + 1]]:
        if at >= stop:
            return False
        code, at = character(data, at)
        code = _S if code == _LONG_S else _K if code == _KELVIN else code
        if code + (_A_SMALL - _A if _A <= code <= _Z else 0) != letter:
            return False
    return True


def _phrases(data: Bytes, start: int, stop: int) -> int:
    """Bits of the phrases between two positions."""
    bits = 0
    for at in range(start, stop):
        if _INITIALS[data[at]]:
            for phrase in range(len(_ENDS) - 1):
                if _is_phrase(data, at, stop, phrase):
                    bits |= 1 << phrase
    return bits


def _count(  # noqa: PLR0917  compiled: arguments by position
    data: Bytes, bounds: tuple[int, int, int], signs: int, phrased: bool, properties: Bytes, row: Floats
) -> bool:
    """Add a line, its bounds and length, to the counts of its text, unless it is blank; return whether it counts."""
    span = _bare(data, bounds[0], bounds[1], properties)
    if span.start == span.stop:
        return False
    ellipses, sentences, dots = _marks(data, span, properties) if signs & _MARK else (0, 0, 0)
    phrases = _phrases(data, span.start, span.stop) if phrased else 0
    terminal, ellipsis = span.last in _TERMINAL, dots >= 3 or span.last == _ELLIPSIS  # noqa: PLR2004
    few, javascript, policy = not _has_words(data, span, properties), phrases & 1 > 0, phrases >= 4  # noqa: PLR2004
    kept = terminal and not (ellipsis or few or javascript or policy)
    if kept and bounds[2] >= LONG_WORD:
        kept = not _has_long_word(data, span, properties)
    row[0] += 1
    row[1] += terminal
    row[2] += ellipsis
    row[3] += ellipsis or not terminal
    row[4] += span.first in _BULLETS
    row[5] += few
    row[6] += javascript
    row[7] += policy
    row[8] += kept
    row[9] += bounds[2] <= SHORT_LINE
    row[10] += bounds[2] >= LONG_LINE
    row[13] += max(1, sentences) if kept else 0
    row[19] += ellipses
    row[20] += phrases & 2 > 0
    row[21] += signs & _CURLY > 0
    if signs & _HASH:
        for byte in data[bounds[0] : bounds[1]]:
            row[18] += byte == 0x23  # noqa: PLR2004  "#"
    return True


def line_statistics(  # noqa: PLR0917  the same
    data: Bytes, offsets: Longs, phrased: Bytes, properties: Bytes, keys: Hashes, numbers: Longs, out: Floats
) -> int:
    """Counts over the lines that are not blank, and over paragraphs, of each text: float64 [texts, `COLUMNS`].

    A paragraph is a run of lines of at least one character. `phrased` are the texts in which phrases are looked for.
    Scratch space: `keys`, `slots` of twice the lines that are not empty, of the text with most of them, and `numbers`,
    [3, the same], the first row zeros.
    """
    table = HashTable(keys, numbers[0], numbers[1], numbers[2])
    for text in range(len(offsets) - 1):
        at, stop, row = offsets[text], offsets[text + 1], out[text]
        row[:] = 0
        mask = slots(2 * _lines(data, at, stop)) - 1
        paragraph, characters, blank = HASH_SEED, 0, True
        while at <= stop:
            start, length, hashed, signs = at, 0, HASH_SEED, 0
            while at < stop and data[at] != _NEWLINE:
                hashed = add(hashed, data[at])
                length += data[at] & 0xC0 != 0x80  # noqa: PLR2004
                signs |= _SIGNS[data[at]]
                at += 1
            row[17] += at < stop
            if length > 0:
                paragraph = mix64(add(paragraph, 1) + hashed)
                characters += length + (characters > 0)
                if _count(data, (start, at, length), signs, phrased[text] > 0, properties, row):
                    blank = False
                    _, known = slot_of(table, text + 1, mask, mix64(hashed))
                    row[11] += known
                    row[12] += length if known else 0
            at += 1
            if length == 0 or at > stop:
                if not blank:
                    _, known = slot_of(table, text + 1, mask, paragraph)
                    row[14] += 1
                    row[15] += known
                    row[16] += characters if known else 0
                paragraph, characters, blank = HASH_SEED, 0, True
    return len(offsets) - 1
