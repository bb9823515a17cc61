r"""Properties of characters, in tables that compiled loops read: the classes of polars' regular expressions.

They are those of Unicode 16, in a file of the package, and so the same in every version of Python and of polars. When
polars moves to a newer Unicode, `python -m stages.text.characters` makes the file again, and the version of each stage
that reads it is raised.
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.text.characters_kernel import DENSE, DIGIT, IN_WORD, LETTER, NUMBER, SPACE, SYLLABLE, WORD

FILE = Path(__file__).with_name("characters.npz")
CASED = 0x20000
"""First code point after all that have a lower case (Unicode 16)."""
SPECIAL_CASED = ("Σ", "İ")
"""Characters whose lower case depends on their neighbours, or is two characters."""

_SYLLABLES = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}&&\p{L}]"
_PATTERNS = {
    SPACE: r"\s",
    IN_WORD: rf"[[\p{{L}}\p{{M}}\p{{N}}_]--{_SYLLABLES}]",
    SYLLABLE: _SYLLABLES,
    LETTER: r"\p{L}",
    NUMBER: r"\p{N}",
    DIGIT: r"\d",
    DENSE: r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]",
    WORD: r"\w",
}


@cache
def properties() -> NDArray[np.uint8]:
    """The bits of every code point, uint8 [0x110000]; see `characters_kernel`."""
    with np.load(FILE) as file:
        return np.asarray(file["properties"], np.uint8)


@cache
def lower_case() -> NDArray[np.int32]:
    """The lower case of the code points below `CASED`, int32; not that of `SPECIAL_CASED`."""
    with np.load(FILE) as file:
        return np.asarray(file["lower_case"] + np.arange(CASED), np.int32)


def generate() -> dict[str, Any]:
    """What `FILE` holds, by the tables of the installed polars: `properties`, and the distance of each lower case."""
    codes = np.r_[0:0xD800, 0xE000:0x110000]
    characters = pl.Series(map(chr, codes.tolist()))
    bits = np.zeros(0x110000, np.uint8)
    for bit, pattern in _PATTERNS.items():
        bits[codes[characters.str.contains(f"^{pattern}$").to_numpy()]] |= np.uint8(bit)
    shifts = np.zeros(CASED, np.int32)
    cased = codes[codes < CASED]
    for code, text in zip(cased.tolist(), characters[: len(cased)].str.to_lowercase(), strict=True):
        if chr(code) not in SPECIAL_CASED:
            shifts[code] = ord(text) - code
    return {"properties": bits, "lower_case": shifts}


if __name__ == "__main__":
    np.savez_compressed(FILE, **generate())
