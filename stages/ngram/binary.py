"""Models in KenLM's binary format, "probing": hash tables that kenlm maps into memory as they are.

Processes that map the same file share its memory, and nothing is parsed. Layout: kenlm, lm/binary_format.cc,
lm/vocab.cc, lm/search_hashed.hh.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.files import save, zeros
from stages.ngram.counts import LOOPS, slices
from stages.ngram.kneser_ney import Section

_MAGIC = b"mmap lm http://kheafield.com/code format version 5\n\0\0"
_PROBING, _VERSION = 0, 0
_MULTIPLIER = np.float32(1.5)  # buckets per entry, kenlm's default
_SIGN = np.uint32(1 << 31)
Bits = NDArray[np.uint32]


def write(sections: Sequence[Section], vocabulary: pl.Series, hashes: NDArray[np.uint64], out: Path) -> None:
    """Write a model, about 24 bytes per n-gram; `hashes` are those of the words, by id.

    The words themselves follow the tables, as `build_binary` writes them.
    """
    sizes = [len(section) for section in sections]
    header = np.frombuffer(_header(sizes) + struct.pack("<2I", _VERSION, sizes[0]), np.uint32)
    shapes = [(_buckets(sizes[0]), 3), (sizes[0] + 1, 2)]  # the table of words; a row more for an <unk> without n-gram
    shapes += [(_buckets(size), 4) for size in sizes[1:-1]] + [(_buckets(size), 3) for size in sizes[1:][-1:]]

    def into(aside: Path) -> None:
        content = zeros(aside, np.uint32, len(header) + sum(rows * width for rows, width in shapes))
        content[: len(header)] = header
        parts = np.split(content[len(header) :], np.cumsum([rows * width for rows, width in shapes])[:-1])
        words, unigrams, *tables = (part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
        ids = np.arange(sizes[0], dtype=np.uint32)
        LOOPS.call("insert", hashes[1:], ids[1:, np.newaxis].copy(), words)  # kenlm finds no <unk>
        unigrams[:-1] = _values(sections[0], slice(None))
        for section, table in zip(sections[1:], tables, strict=True):
            for part in slices(len(section)):
                values = _values(section, part, longest=section is sections[-1])  # its backoffs, if any, are 0
                LOOPS.call("insert", section.keys[part], values, table)
        with aside.open("ab") as file:
            file.write("".join(f"{word}\0" for word in vocabulary).encode())

    save(out, into)


def _values(section: Section, part: slice, *, longest: bool = False) -> Bits:
    """Probabilities and, below the highest order, backoffs of n-grams as kenlm stores them, [n, 1 or 2].

    The sign bit of a probability is clear if a longer n-gram ends in this one; that of a backoff of 0 is clear if a
    longer one begins with it (kenlm, lm/value_build.hh, lm/weights.hh).
    """
    probs = section.probs[part].view(np.uint32) | _SIGN
    if section.backoffs is None or longest:
        return probs[:, np.newaxis]
    backoffs = section.backoffs[part].view(np.uint32)
    backoffs = np.where(backoffs & ~_SIGN, backoffs, np.where(section.is_context[part], np.uint32(0), _SIGN))
    return np.column_stack((np.where(section.is_suffix[part], probs ^ _SIGN, probs), backoffs))


def _header(sizes: Sequence[int]) -> bytes:
    """Sanity, FixedWidthParameters and counts (kenlm, lm/binary_format.cc)."""
    sanity = _MAGIC.ljust(-(-len(_MAGIC) // 8) * 8, b"\0") + struct.pack("<3f3IQ", 0, 1, -0.5, 1, 0xFFFFFFFF, 0, 1)
    fixed = struct.pack("<B3xfIB3xI", len(sizes), _MULTIPLIER, _PROBING, 1, _VERSION)
    header = sanity + fixed + struct.pack(f"<{len(sizes)}Q", *sizes)
    return header.ljust(-(-len(header) // 8) * 8, b"\0")


def _buckets(entries: int) -> int:
    """Buckets of a table, in 32-bit arithmetic (kenlm, util/probing_hash_table.hh)."""
    return max(entries + 1, int(_MULTIPLIER * np.float32(entries)))
