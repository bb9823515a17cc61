"""A compiled loop over messages: their words in lower case, and characters that no text should have."""

import numpy as np
from numpy.typing import NDArray

from stages.heuristics.words_kernel import Bytes, Hashes, Longs
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
