"""A compiled loop that cuts messages into pieces of plain words, of which a model names the language."""
# ruff: noqa: ANN401, PLR0917, PLR2004 - numba infers the types, compiled functions take arrays by position, and the
# numbers are those of UTF-8

from typing import Any, NamedTuple

import numpy as np

from stages.text.characters_kernel import DENSE, DIGIT, LETTER, SPACE, WORD
from stages.text.shingles_kernel import character

PIECE = 1000
"""Maximum number of characters of a piece."""

_SPECIAL, _MAYBE, _URL = 1, 2, 4
_BITS = np.zeros(128, np.uint8)
"""What a run of characters must have so that something in it is no language: a special one, or a "w" and a dot."""
_BITS[[*range(0x20), *b"_|=#*<>{}[]\\/@"]], _BITS[ord("w")], _BITS[ord(".")] = _SPECIAL, _MAYBE, _URL
_ODD, _ALPHABETIC, _MARK, _WHITE = range(4)
_KINDS = np.full(256, _ODD, np.uint8)  # of bytes; an odd one is no ASCII, a digit, or may be no language
_KINDS[:128] = np.where(_BITS & _SPECIAL, _ODD, _MARK)
_KINDS[[*range(0x41, 0x5B), *range(0x61, 0x7B)]] = _ALPHABETIC
_KINDS[[*range(0x30, 0x3A), 0x7F]] = _ODD
_KINDS[[*b" \t\n\v\f\r"]] = _WHITE
_SIGNS = np.isin(np.arange(128), [*b"_|=#*<>{}[]\\/"])
_URLS = np.frombuffer(b"https://http://www.", np.uint8)
_URL_ENDS = np.array([0, 8, 15, 19])
_REPLACEMENT = 0xFFFD
_BLANK, _AT, _LESS, _MORE, _SLASH, _DOT, _W = map(ord, " @<>/.w")


class Run(NamedTuple):
    """A run of characters without white space: its end, its last "@" that is not its last character, its last digit.

    `letters` counts Han, kana and Hangul as three; `clean` is whether all of it is language.
    """

    end: Any
    sign: Any
    digit: Any
    letters: Any
    clean: bool


def _weight(kind: Any) -> Any:
    return np.int64((kind & LETTER) // LETTER) + 2 * np.int64((kind & DENSE) // DENSE)


def _run(data: Any, start: Any, stop: Any, properties: Any) -> Any:
    """The run that begins here; it is read again for its signs and digits if it is not clean."""
    at, letters, bits, kinds = start, np.int64(0), np.uint8(0), np.uint8(0)
    while at < stop:
        code, after = character(data, at)
        kind = properties[code]
        if kind & SPACE:
            break
        kinds |= kind
        bits |= _BITS[code] if code < len(_BITS) else np.uint8(code == _REPLACEMENT)
        letters += _weight(kind)
        at = after
    sign, last, digit, end = np.int64(-1), np.int64(-1), np.int64(-1), at
    if bits & _SPECIAL == 0 and bits != _MAYBE | _URL and kinds & DIGIT == 0:
        return Run(end, sign, digit, letters, True)  # noqa: FBT003
    at = start
    while at < end:
        code, after = character(data, at)
        sign, last = max(sign, last), at if code == _AT else np.int64(-1)
        digit = at if properties[code] & DIGIT else digit
        at = after
    return Run(end, sign, digit, letters, False)  # noqa: FBT003


def _is_url(data: Any, at: Any, end: Any) -> Any:
    """Whether a URL begins here: a protocol or "www.", and at least one more character of the run, which has an end."""
    for which in range(len(_URL_ENDS) - 1):
        begin, length = _URL_ENDS[which], _URL_ENDS[which + 1] - _URL_ENDS[which]
        if at + length < end:
            same = 0
            while same < length and data[at + same] == _URLS[begin + same]:
                same += 1
            if same == length:
                return True
    return False


def _tag_end(data: Any, at: Any, tags: Any, properties: Any) -> Any:
    """Where a tag that begins here ends, or -1; `tags` is the last ">" of the text."""
    name = at + 1
    if name < tags and data[name] == _SLASH:
        name += 1
    if data[at] != _LESS or name >= tags or properties[character(data, name)[0]] & WORD == 0:
        return -1
    while data[name] != _MORE:
        name += 1
    return name + 1


def _wordless_end(data: Any, at: Any, run: Run, tags: Any, properties: Any) -> Any:
    """Where what is no language and begins here ends, or -1.

    It is the first of: address, tag, token with a digit, URL, control character, signs.
    """
    if run.sign > at:
        return run.end
    end = _tag_end(data, at, tags, properties)
    if end < 0:
        code, after = character(data, at)
        if run.digit >= at or _is_url(data, at, run.end):
            end = run.end
        elif code == _REPLACEMENT or code < 0x20:
            end = after
        elif code < len(_SIGNS) and _SIGNS[code]:
            end = after
            while end < run.end and data[end] < len(_SIGNS) and _SIGNS[data[end]]:
                end += 1
    return end


def _copy(data: Any, start: Any, stop: Any, text: Any, filled: Any, blank: Any) -> Any:
    """Copy ASCII text from the beginning of a token up to the first token that may be no language.

    `blank` is 1 after a blank, else 0. Returns where that token begins, where it goes in `text`, the number of letters.
    """
    at, letters = start, np.int64(0)
    while at < stop:
        kind = _KINDS[data[at]]
        if kind == _ODD or (data[at] == _DOT and at > start and data[at - 1] == _W):
            while at > start and _KINDS[data[at - 1]] != _WHITE:
                at, filled, letters = at - 1, filled - 1, letters - (_KINDS[data[at - 1]] == _ALPHABETIC)
            break
        white = np.int64(kind == _WHITE)
        text[filled] = _BLANK if white else data[at]
        filled += 1 - (white & blank)
        letters += kind == _ALPHABETIC
        blank, at = white, at + 1
    return at, filled, letters


def _plain(data: Any, at: Any, stop: Any, properties: Any, text: Any, filled: Any) -> Any:
    """Write a text with one blank in the place of white space and of what is no language.

    Returns where it ends and its number of letters.
    """
    begin, tags, letters = filled, stop - 1, np.int64(0)
    run = _run(data, at, at, properties)
    while tags >= at and data[tags] != _MORE:
        tags -= 1
    while at < stop:
        if at >= run.end:
            at, filled, some = _copy(
                data, at, stop, text, filled, np.int64(filled > begin and text[filled - 1] == _BLANK)
            )
            letters += some
            run = _run(data, at, stop, properties)
        if at == stop:
            break
        after, blank = run.end, run.end == at
        if not blank and not run.clean:
            after = _wordless_end(data, at, run, tags, properties)
            blank = after >= 0
        if blank:
            at = after if after > at else character(data, at)[1]
            if filled == begin or text[filled - 1] != _BLANK:
                text[filled] = _BLANK
                filled += 1
            continue
        if run.clean:
            letters += run.letters
        else:
            code, after = character(data, at)
            letters += _weight(properties[code])
        for i in range(at, after):
            text[filled + i - at] = data[i]
        filled += after - at
        at = after
    return filled, letters


def _cut(text: Any, span: Any, letters: Any, minimum: Any, properties: Any, pieces: Any) -> Any:
    """Write begin, end and letters of the pieces of a text that have enough letters; return their number."""
    count, (at, stop) = 0, span
    if stop - at <= PIECE:
        pieces[0, 0], pieces[0, 1], pieces[0, 2] = at, stop, letters
        return np.int64(at < stop and letters >= minimum)
    while at < stop:
        begin, characters, letters = at, 0, np.int64(0)
        while at < stop and characters < PIECE:
            code, at = character(text, at)
            letters += _weight(properties[code])
            characters += 1
        if letters >= minimum:
            pieces[count, 0], pieces[count, 1], pieces[count, 2] = begin, at, letters
            count += 1
    return count


def pieces(
    data: Any, offsets: Any, rows: Any, minimum: Any, properties: Any, text: Any, spans: Any, letters: Any, out: Any
) -> Any:
    """Write messages as plain words to `text`, and cut those with enough letters; return the number of pieces.

    Messages with fewer letters than `minimum` are joined per conversation, `rows`, by blanks. `out`, int64 [pieces, 5],
    has begin and end in `text`, letters, row, and message, or -1 if it is joined. Scratch space: `spans`, int64
    [messages + 1], and `letters`, int64 [messages]. `text` has room for twice the messages and a blank for each.
    """
    count, spans[0] = np.int64(0), 0
    for turn in range(len(rows)):
        spans[turn + 1], letters[turn] = _plain(data, offsets[turn], offsets[turn + 1], properties, text, spans[turn])
        if letters[turn] >= minimum:
            span, begin = (spans[turn], spans[turn + 1]), count
            count += _cut(text, span, letters[turn], minimum, properties, out[begin:])
            out[begin:count, 3], out[begin:count, 4] = rows[turn], turn
    turn, filled = 0, spans[len(rows)]
    while turn < len(rows):
        row, begin, total, joined = rows[turn], filled, np.int64(0), 0
        while turn < len(rows) and rows[turn] == row:
            if letters[turn] < minimum:
                if joined > 0:
                    text[filled] = _BLANK
                    filled += 1
                for i in range(spans[turn], spans[turn + 1]):
                    text[filled] = text[i]
                    filled += 1
                total, joined = total + letters[turn], joined + 1
            turn += 1
        if total >= minimum:
            first = count
            count += _cut(text, (begin, filled), total, minimum, properties, out[first:])
            out[first:count, 3], out[first:count, 4] = row, -1
    return count
