"""Compiled loops over Arrow string buffers: sentences as tokens, and the letters of texts."""
# ruff: noqa: ANN401, PLR0917 - numba infers the types, compiled functions take numbers and arrays by position,
# and the numbers are those of UTF-8

from typing import Any

import numpy as np

from stages.text.shingles_kernel import character

U8, U32 = np.uint8, np.uint32
CODE, KIND = U32(0x1FFFFF), U32(3 << 21)
"""Bits of a table's entry: the character in lower case, digits as 0, and its kind."""
MARK, WORD, ALONE = U32(1 << 21), U32(2 << 21), U32(3 << 21)
"""Kinds: a token by itself that is no word, part of a word, a word by itself; 0 is part of no token."""
LETTER = U32(1 << 24)
"""Bit of an entry: a letter, a mark on one, or a number."""
NEWLINE, BLANK = U8(10), U8(32)


def _write(entry: Any, out: Any, at: Any) -> Any:
    """Write an entry's character in UTF-8; return the position after it."""
    code = entry & CODE
    if code < U32(0x80):
        out[at] = U8(code)
        return at + 1
    if code < U32(0x800):
        out[at] = U8(U32(0xC0) | (code >> U32(6)))
    else:
        if code < U32(0x10000):
            out[at] = U8(U32(0xE0) | (code >> U32(12)))
        else:
            out[at] = U8(U32(0xF0) | (code >> U32(18)))
            at += 1
            out[at] = U8(U32(0x80) | ((code >> U32(12)) & U32(0x3F)))
        at += 1
        out[at] = U8(U32(0x80) | ((code >> U32(6)) & U32(0x3F)))
    out[at + 1] = U8(U32(0x80) | (code & U32(0x3F)))
    return at + 2


def tokenise(text: Any, offsets: Any, table: Any, out: Any, ends: Any, rows: Any, sizes: Any) -> Any:
    """Write the lines of texts that have a token, tokens joined by spaces; return how many.

    `offsets`, [n + 1], are where texts begin. `out` has room for two bytes per byte of the texts; `ends`, [lines + 1],
    are where lines begin in it, `rows` the text of each, `sizes` its number of tokens, one for its end included.
    """
    lines = filled = 0
    ends[0] = 0
    for row in range(len(offsets) - 1):
        at, stop, tokens, inside = offsets[row], offsets[row + 1], 0, False
        while at <= stop:
            end = at == stop or text[at] == NEWLINE
            if end:
                at += 1
                inside = False
                if tokens:
                    ends[lines + 1], rows[lines], sizes[lines] = filled, U32(row), U32(tokens + 1)
                    lines, tokens = lines + 1, 0
                continue
            code, at = character(text, at)
            entry = table[code]
            kind = entry & KIND
            if kind and not (inside and kind == WORD):
                if tokens:
                    out[filled] = BLANK
                    filled += 1
                tokens += 1
            inside = kind == WORD
            if kind:
                filled = _write(entry, out, filled)
    return lines


def letters(text: Any, offsets: Any, table: Any, out: Any, ends: Any) -> Any:
    """Write the letters and digits of texts, in the form of `tokenise`; return the number of bytes."""
    filled = 0
    ends[0] = 0
    for row in range(len(offsets) - 1):
        at = offsets[row]
        while at < offsets[row + 1]:
            code, at = character(text, at)
            if table[code] & LETTER:
                filled = _write(table[code], out, filled)
        ends[row + 1] = filled
    return filled
