r"""Bits of `stages.text.characters.properties`, and functions over characters that other kernels share."""

from typing import Any

import numpy as np

SPACE, IN_WORD, SYLLABLE, LETTER, NUMBER, DIGIT, DENSE, WORD = 1, 2, 4, 8, 16, 32, 64, 128
r"""`\s`; a letter, mark, number or "_" that is no SYLLABLE; a letter that is a word by itself (Han, kana, Thai ...);
`\p{L}`; `\p{N}`; `\d`; a character that says as much as three letters (Han, kana, Hangul); `\w`."""

HASH_SEED, HASH_FACTOR = np.uint64(14695981039346656037), np.uint64(1099511628211)
"""Of FNV-1a, here over code points; of ASCII text the usual one over bytes."""


def add(hashed: Any, code: Any) -> Any:  # noqa: ANN401  numba infers the types
    """The hash of a text after one more character."""
    return (hashed ^ np.uint64(code)) * HASH_FACTOR
