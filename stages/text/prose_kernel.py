"""A compiled loop that takes code out of UTF-8 texts: fenced blocks, then lines that look like code."""
# ruff: noqa: ANN401, PLR0917, PLR2004 - numba infers the types, compiled functions take arrays by position, and the
# numbers are those of UTF-8

from typing import Any

import numpy as np

from stages.text.characters_kernel import SPACE, WORD
from stages.text.shingles_kernel import character

KEYWORDS = (
    *("def", "class", "import", "from", "return", "public", "private", "static", "void", "const", "let", "var"),
    *("function", "func", "fn", "struct", "package", "using", "namespace", "SELECT", "INSERT", "UPDATE", "DELETE"),
    *("CREATE", "FROM", "WHERE"),
)
"""First words of a line of code that has more words and does not end like a sentence."""
BLOCKS = ("if", "for", "while", "elif", "else", "try", "except", "switch")
"""First words of a line of code that ends with a colon or a curly bracket."""

_WORDS = (*KEYWORDS, *BLOCKS, "#include")
_LETTERS = np.frombuffer("".join(_WORDS).encode(), np.uint8)
_ENDS = np.cumsum([0, *map(len, _WORDS)])
_INITIALS = np.isin(np.arange(256), _LETTERS[_ENDS[:-1]])
_KEYWORD_END = np.isin(np.arange(256), [*b";:{(,)="])
_TICK, _NEWLINE, _BLANK, _TAB, _COLON, _SEMICOLON, _CURLY, _CURLY_END = map(ord, "`\n \t:;{}")
_OPEN, _CLOSE, _EQUALS, _PLUS, _MINUS, _LESS, _MORE, _SLASH, _AT, _DOT = map(ord, "()=+-<>/@.")
_SQUARE, _SQUARE_END = map(ord, "[]")


def _byte(text: Any, at: Any, stop: Any) -> Any:
    """The byte at a position, 0 at the end."""
    return np.int64(text[at]) if at < stop else 0


def _is_word(text: Any, at: Any, stop: Any, properties: Any) -> Any:
    return at < stop and properties[character(text, at)[0]] & WORD != 0


def _line_end(text: Any, at: Any, stop: Any) -> Any:
    while at < stop and text[at] != _NEWLINE:
        at += 1
    return at


def _first_word(text: Any, at: Any, stop: Any) -> Any:
    """Which of `_WORDS` a line begins with, or -1; a keyword is followed by a blank."""
    if not _INITIALS[text[at]]:
        return -1
    for word in range(len(_ENDS) - 1):
        begin, length = _ENDS[word], _ENDS[word + 1] - _ENDS[word]
        if _LETTERS[begin] == text[at] and at + length <= stop:
            same = 1
            while same < length and _LETTERS[begin + same] == text[at + same]:
                same += 1
            if same == length and (word >= len(KEYWORDS) or _byte(text, at + length, stop) == _BLANK):
                return word
    return -1


def _is_statement(text: Any, at: Any, last: Any, stop: Any, properties: Any) -> Any:
    """Whether a line begins with a word of a programming language and ends as the line of such a word does."""
    word = _first_word(text, at, stop)
    if word < 0 or word == len(_WORDS) - 1:
        return word >= 0
    after = at + _ENDS[word + 1] - _ENDS[word]
    if word >= len(KEYWORDS):
        ends = text[last] in (_COLON, _CURLY)
        return last >= after and ends and not _is_word(text, after, stop, properties)
    first = last
    while text[first] & 0xC0 == 0x80:
        first -= 1
    return last > after and (_KEYWORD_END[text[last]] or _is_word(text, first, stop, properties))


def _arrow(text: Any, at: Any, stop: Any, properties: Any) -> Any:
    """The position of "=>" or "->" after any white space, or -1."""
    while at < stop:
        code, after = character(text, at)
        if properties[code] & SPACE == 0:
            return at if code in (_EQUALS, _MINUS) and _byte(text, after, stop) == _MORE else -1
        at = after
    return -1


def _value(text: Any, at: Any, stop: Any) -> Any:
    """The position of the value of an assignment whose sign is here, or -1; the value may be on the next line."""
    at += text[at] == _BLANK
    sign = _byte(text, at, stop)
    if sign in (_PLUS, _MINUS, _COLON):
        at += 1
    if _byte(text, at, stop) != _EQUALS:
        return -1
    at += 1 + (_byte(text, at + 1, stop) == _BLANK)
    return at if at < stop and text[at] != _BLANK else -1


def _tag(text: Any, at: Any, stop: Any, properties: Any) -> Any:
    """The position of a name in a tag that begins here, or -1."""
    if text[at] != _LESS:
        return -1
    at += 1 + (_byte(text, at + 1, stop) == _SLASH)
    return at if _is_word(text, at, stop, properties) else -1


def _named_end(text: Any, at: Any, end: Any, stop: Any, properties: Any) -> Any:
    """Where a name with a value or with arguments ends, or -1; `at` and `end` as for `_inside`."""
    name = _name_end(text, at, end, properties, False)  # noqa: FBT003
    item = _name_end(text, name, end, properties, True)  # noqa: FBT003
    value = _value(text, item, stop) if at < item < end else -1
    if value >= 0:
        return _line_end(text, value + 1, stop)
    return end if at < name < end - 1 and text[name] == _OPEN and text[end - 1] == _CLOSE else -1


def _inside(text: Any, at: Any, end: Any, stop: Any, more: Any, equals: Any, properties: Any) -> Any:
    """Where code with an arrow, a value, arguments or a tag ends, or -1.

    `at` is the first character of a line that is not blank, and `end` is after the last one. The last ">" of the text
    is at `more`, and `equals` is whether it has an equals sign.
    """
    arrow = np.int64(-1)
    for i in range(at, end if more > at else at):
        if text[i] == _CLOSE:
            arrow = max(arrow, _arrow(text, i + 1, stop, properties))
    if arrow >= 0:
        return _line_end(text, arrow, stop)
    named = _named_end(text, at, end, stop, properties) if equals or text[end - 1] == _CLOSE else -1
    if named >= 0:
        return named
    tag = _tag(text, at, stop, properties)
    if 0 <= tag < more:
        while text[tag] != _MORE:
            tag += 1
        return _line_end(text, tag, stop)
    return -1


def _name_end(text: Any, at: Any, end: Any, properties: Any, brackets: Any) -> Any:
    """Where a run of word characters and dots ends, and of square brackets if they are allowed."""
    while at < end:
        code, after = character(text, at)
        if properties[code] & WORD == 0 and code != _DOT and not (brackets and code in (_SQUARE, _SQUARE_END)):
            break
        at = after
    return at


def _code_end(text: Any, at: Any, end: Any, stop: Any, more: Any, equals: Any, properties: Any) -> Any:
    """Where the code that begins with a line ends, or -1; the kinds of code are in order.

    The line is from `at` to `end`. Code may go on in the next lines: after an arrow, a value, in a tag.
    """
    last = end - 1
    while at < end and text[at] in (_BLANK, _TAB):
        at += 1
    if at == end:
        return -1
    while text[last] in (_BLANK, _TAB):
        last -= 1
    if text[last] in (_SEMICOLON, _CURLY, _CURLY_END) or _is_statement(text, at, last, stop, properties):
        return end
    inside = _inside(text, at, last + 1, stop, more, equals, properties)
    if inside >= 0:
        return max(inside, end)
    comment = text[at] == _SLASH and _byte(text, at + 1, stop) == _SLASH
    return end if comment or (text[at] == _AT and _is_word(text, at + 1, stop, properties)) else -1


def _count(text: Any, start: Any, stop: Any, sign: Any) -> Any:
    """How often a byte occurs; such a loop takes many bytes at a time."""
    count = 0
    for byte in text[start:stop]:
        count += byte == sign
    return count


def _is_fence(data: Any, at: Any, stop: Any) -> Any:
    return at + 2 < stop and data[at] == _TICK and data[at + 1] == _TICK and data[at + 2] == _TICK


def _without_fences(data: Any, at: Any, stop: Any, text: Any, filled: Any) -> Any:
    """Write a text without fenced blocks; an open fence extends to the end. Returns where it ends in `text`."""
    if _count(data, at, stop, _TICK) < 3:
        for i in range(at, stop):
            text[filled + i - at] = data[i]
        return filled + stop - at
    while at < stop:
        if _is_fence(data, at, stop):
            at += 3
            while at < stop and not _is_fence(data, at, stop):
                at += 1
            at = min(at + 3, stop)
        else:
            text[filled] = data[at]
            filled, at = filled + 1, at + 1
    return filled


def _without_code_lines(text: Any, start: Any, stop: Any, properties: Any) -> Any:
    """Remove lines that look like code from a text in place; their newlines stay. Returns where it ends then."""
    more, at, filled = stop - 1 if _count(text, start, stop, _MORE) else start - 1, start, start
    equals = _count(text, start, stop, _EQUALS) > 0
    while more >= start and text[more] != _MORE:
        more -= 1
    while at < stop:
        end = _line_end(text, at, stop)
        code = _code_end(text, at, end, stop, more, equals, properties)
        if code < 0:
            for i in range(at, end if filled < at else at):
                text[filled + i - at] = text[i]
            filled += end - at
        at = max(code, end)
        if at < stop:
            text[filled] = _NEWLINE
            filled, at = filled + 1, at + 1
    return filled


def _characters(text: Any, start: Any, stop: Any) -> Any:
    count = 0
    for byte in text[start:stop]:
        count += byte & 0xC0 != 0x80
    return count


def _shorter(before: Any, text: Any, start: Any, stop: Any, size: Any) -> Any:
    """Number of characters of what is left of `size` bytes with `before` characters."""
    return before if stop - start == size else _characters(text, start, stop)


def prose(data: Any, offsets: Any, properties: Any, text: Any, ends: Any, lengths: Any) -> Any:
    """Write texts without fenced blocks, and then without lines that look like code, one after the other.

    Array of bytes `text`, as long as `data`; `ends`, int64 [n + 1], as `offsets`; `lengths`, int64 [n, 3], characters
    before, without fenced blocks, without any code.
    """
    ends[0] = 0
    for row in range(len(offsets) - 1):
        start, stop, begin = offsets[row], offsets[row + 1], ends[row]
        end = _without_fences(data, start, stop, text, begin)
        lengths[row, 0] = _characters(data, start, stop)
        lengths[row, 1] = _shorter(lengths[row, 0], text, begin, end, stop - start)
        ends[row + 1] = _without_code_lines(text, begin, end, properties)
        lengths[row, 2] = _shorter(lengths[row, 1], text, begin, ends[row + 1], end - begin)
    return ends[len(offsets) - 1]
