"""Texts as lines of tokens, and the half of the corpus that a text belongs to."""

import functools
import hashlib
import sys

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.ppl.tokens_kernel import ALONE, LETTER, MARK, WORD
from stages.text.compiled import Kernels
from stages.text.shingles import Part, utf8_buffers

LOOPS = Kernels(
    "stages.ppl.tokens_kernel", {"tokenise": "u1* i8* u4* u1* i8* u4* u4*", "letters": "u1* i8* u4* u1* i8*"}
)

_SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
"""Scripts without spaces between words. Each letter is a token; otherwise a sentence would be one unknown word."""

_KINDS = {ALONE: rf"[{_SPACELESS}]", WORD: rf"[\w--[{_SPACELESS}]]", MARK: r"[^\w\s\p{Cc}]"}
"""Patterns of the characters that a token is made of: a word, or a punctuation mark. Control characters are neither:
kenlm stops at NUL."""

_LETTER = r"[\p{L}\p{M}\p{N}]"

_ASSIGNED = (range(0xD800), range(0xE000, 0x40000), range(0xE0000, 0xE1000))
"""Code points that the table looks at. All others are unassigned or private, which are marks."""


def tokenise(text: pl.Series) -> pl.DataFrame:
    """Sentences of texts: the lines that have a token, as in CCNet (cc_net/perplexity.py, DocLM).

    Columns, in order: `at`, the row of the text (UInt32); `line`, its tokens in lower case, with 0 for each digit,
    joined by spaces; `n`, the number of tokens, the end of the sentence included (UInt32).
    """
    data, offsets = _ready(text)
    most = len(text) + int(np.count_nonzero(data[offsets[0] : offsets[-1]] == ord("\n")))
    out = np.empty(2 * (offsets[-1] - offsets[0]), np.uint8)
    ends, rows, sizes = np.empty(most + 1, np.int64), np.empty(most, np.uint32), np.empty(most, np.uint32)
    count = LOOPS.call("tokenise", data, offsets, _table(), out, ends, rows, sizes)
    return pl.DataFrame({"at": rows[:count], "line": _strings(out, ends[: count + 1]), "n": sizes[:count]})


def halves(texts: pl.Series, sizes: NDArray[np.integer] | None = None) -> NDArray[np.uint8]:
    """0 or 1 for each text, by a hash of its letters and digits.

    It ignores case, spaces, punctuation and the values of digits, so that copies and trivial variants stay together.
    With `sizes`, each result is of as many consecutive `texts`, such as the messages of a conversation, as one text.
    """
    data, offsets = _ready(texts)
    out, ends = np.empty(2 * (offsets[-1] - offsets[0]), np.uint8), np.empty(len(offsets), np.int64)
    LOOPS.call("letters", data, offsets, _table(), out, ends)
    rows = np.arange(len(offsets)) if sizes is None else np.cumsum(np.append(0, sizes), dtype=np.int64)
    bare, cuts, sides = memoryview(out.data), ends[rows].tolist(), np.empty(len(rows) - 1, np.uint8)
    # A loop, because the hash of polars may change between versions, and the halves must never change.
    for row in range(len(sides)):
        some = bare[cuts[row] : cuts[row + 1]] or "\n".join(texts[int(rows[row]) : int(rows[row + 1])]).encode()
        sides[row] = hashlib.blake2b(some, digest_size=1).digest()[0] & 1
    return sides


def _ready(text: pl.Series) -> Part:
    """Buffers of texts; those with "Σ" or "İ" in lower case, which for these is no matter of single characters."""
    odd = text.str.contains_any(["Σ", "İ"])
    if odd.any():
        rows = odd.arg_true()
        text = text.scatter(rows, text.gather(rows).str.to_lowercase())
    return utf8_buffers(text)


def _strings(data: NDArray[np.uint8], ends: NDArray[np.int64]) -> pl.Series:
    """Texts from their UTF-8 bytes, and where each begins and the last one ends."""
    import pyarrow as pa

    array = pa.LargeStringArray.from_buffers(len(ends) - 1, pa.py_buffer(ends), pa.py_buffer(data[: ends[-1]]))
    return pl.Series(array, dtype=pl.String)


@functools.cache
def _table() -> NDArray[np.uint32]:
    """For each code point, the entry that `stages.ppl.tokens_kernel` describes, by the rules of polars.

    One text of all characters is searched, which takes a tenth of the time that a column of characters would.
    """
    codes = np.concatenate([np.array(some, np.uint32) for some in _ASSIGNED])
    characters = codes.astype("<u4").tobytes().decode("utf-32-le").replace("Σ", "\0").replace("İ", "\0")
    lower = pl.Series([characters]).str.to_lowercase().str.replace_all(r"\d", "0")
    entries = _codes(lower)
    for flag, pattern in (*_KINDS.items(), (LETTER, _LETTER)):
        matches = _codes(lower.str.replace_all(pattern, "\n")) != _codes(lower)
        entries[matches] |= flag
    table = np.arange(sys.maxunicode + 1, dtype=np.uint32) | MARK
    table[codes] = entries
    return table


def _codes(text: pl.Series) -> NDArray[np.uint32]:
    return np.frombuffer(text.item().encode("utf-32-le"), "<u4").copy()
