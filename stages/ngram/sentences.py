"""A training corpus as word ids, numbered as its lines come in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.files import mapped
from stages.ngram.counts import LOOPS, Column
from stages.ngram.ngram_kernel import NONE
from stages.text.shingles import utf8_buffers

SPECIAL = ("<unk>", "<s>", "</s>")
"""Tokens that a model reserves."""
PART_BYTES = 1 << 22
"""Bytes of lines that are numbered at once; a longer line is one part."""

_SLOTS = 1 << 15  # of the first table of words


class NgramError(ValueError):
    """No model can be trained on these lines with these parameters."""


class NoLineError(NgramError):
    """There is no line to train on."""

    def __init__(self) -> None:
        super().__init__("there is no line to train a language model on: it needs at least one")


class Sentences:
    """The sentences of a corpus as ids in a file: <s> w ... </s>, words numbered by first appearance.

    Two words are the same if their MurmurHash64A is the same, as for kenlm. Memory: 32 to 64 bytes per different word,
    its text, and what the numbering of `PART_BYTES` needs.
    """

    def __init__(self, path: Path) -> None:
        self.count = 0  # of sentences
        self._path = path
        self._path.write_bytes(b"")
        text, offsets = utf8_buffers(pl.Series(SPECIAL))
        self._hashes = np.empty(len(SPECIAL), np.uint64)
        LOOPS.call("hash_words", text, offsets, self._hashes)
        self._known = np.array([len(SPECIAL), 0, 0])  # words, special tokens in the lines, lines read
        self._words = [pl.Series(SPECIAL)]
        self._keys, self._ids = np.empty(0, np.uint64), np.empty(0, np.uint32)
        self._grow(_SLOTS)

    def add(self, lines: pl.Series) -> None:
        """Add sentences (String): tokens, any text without spaces, joined by spaces."""
        text, offsets = utf8_buffers(lines)
        begin = 0
        with self._path.open("ab") as file:
            while begin < len(lines):
                end = max(begin + 1, int(np.searchsorted(offsets, offsets[begin] + PART_BYTES)) - 1)
                file.write(self._number(text, offsets[begin : end + 1]).data)
                if not self._known[2]:
                    self._grow(2 * len(self._keys))
                begin += int(self._known[2])
        self.count += len(lines)

    def _number(self, text: NDArray[np.uint8], offsets: NDArray[np.int64]) -> Column:
        """The ids of as many lines as the table has room for."""
        known = int(self._known[0])
        places = np.empty((len(self._hashes) - known, 2), np.int64)
        words = np.empty(int(offsets[-1] - offsets[0]) // 2 + 3 * len(offsets), np.uint32)
        filled = LOOPS.call("number", text, offsets, self._keys, self._ids, self._hashes, self._known, places, words)
        # A loop over the words that are new.
        new = [bytes(text[first:last]).decode() for first, last in places[: self._known[0] - known].tolist()]
        self._words.append(pl.Series(new, dtype=pl.String))
        return words[:filled]

    def _grow(self, slots: int) -> None:
        """Move the words to a table with as many slots, half of which can be filled."""
        known = int(self._known[0])
        self._hashes = np.concatenate([self._hashes[:known], np.empty(slots // 2 - known, np.uint64)])
        self._keys, self._ids = np.empty(slots, np.uint64), np.full(slots, NONE, np.uint32)
        LOOPS.call("fill", self._hashes, known, self._keys, self._ids)

    def ids(self) -> Column:
        """All ids, mapped from the file. `NoLineError` if there are none; `NgramError` if the corpus is invalid."""
        if not self.count:
            raise NoLineError
        if self._known[1]:
            raise NgramError(
                f"{self._known[1]} tokens are one of {', '.join(SPECIAL)}, which a model reserves: replace them"
            )
        words = mapped(self._path, np.uint32)
        if len(words) >= int(NONE):
            raise NgramError(f"{len(words):,} tokens, expected fewer than {int(NONE):,}: train on a part of the corpus")
        return words

    def vocabulary(self) -> pl.Series:
        """The words by id (String): `SPECIAL`, then those of the corpus."""
        return pl.concat(self._words, rechunk=True)

    def hashes(self) -> NDArray[np.uint64]:
        """The hash of each word by id."""
        return self._hashes[: self._known[0]]
