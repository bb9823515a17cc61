r"""What a word is: the lower-cased `\w+` of Python's `re`, as a table that a compiled loop can read."""

import functools
import re
import sys

import numpy as np
import polars as pl
from numpy.typing import NDArray

SPACE = 1
"""Table entry of white space (what `str.strip` strips); every other character outside words is 0."""
LETTERS = 0x40000
"""First code point after all letters, digits and white space (Unicode 16)."""
ALONE = 1 << 31
"""Bit of a table entry: the character is a word by itself."""

SPACELESS = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Myanmar
    "\u1780-\u17ff"  # Khmer
    "\u3005-\u3007\u3021-\u3029\u3031-\u303c\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # kana and ideographic signs
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Han
    "\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
r"""Scripts written without spaces, as the inside of a regular expression's character class.

In them `\w+` matches a whole clause, and one changed character would change five of a text's few shingles. So each
character of these scripts is a word by itself.
"""


def ready(texts: pl.Series) -> pl.Series:
    """Texts as `stages.text.shingles_kernel` takes them: those with "Σ" or "İ" in lower case.

    The lower case of "Σ" depends on its place in the word, and that of "İ" is two characters; all other characters are
    lower-cased by table.
    """
    odd = texts.str.contains_any(["Σ", "İ"]).fill_null(value=False)
    if odd.any():
        # a loop over a handful of texts: only Python's own rule for a final sigma agrees with Python's
        rows = odd.arg_true()
        texts = texts.scatter(rows, [text.lower() for text in texts.gather(rows)])
    return texts


@functools.cache
def table() -> NDArray[np.uint32]:
    """For each code point: 0 outside words, `SPACE`, or its lower case, with `ALONE` if it is a word by itself.

    Built from this Python's own `re` and `str.lower`, so that the Unicode version is the same.
    """
    codes = np.concatenate([np.arange(0xD800), np.arange(0xE000, LETTERS)])
    characters = codes.astype("<u4").tobytes().decode("utf-32-le")
    lower = characters.replace("Σ", "\u03c3").replace("İ", "i").lower()
    entries = np.zeros(len(codes), np.uint32)
    for run in re.finditer(r"\w+", characters):
        entries[run.start() : run.end()] = 1
    entries *= np.frombuffer(lower.encode("utf-32-le"), "<u4")
    for run in re.finditer(rf"[{SPACELESS}]+", characters):
        chosen = entries[run.start() : run.end()]
        chosen[chosen > 0] |= ALONE
    for run in re.finditer(r"\s+", characters):
        entries[run.start() : run.end()] = SPACE
    whole = np.zeros(sys.maxunicode + 1, np.uint32)
    whole[codes] = entries
    return whole
