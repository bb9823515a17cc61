"""ARPA files: the text form of an n-gram model that every toolkit reads."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from stages.files import save

LOWEST = -99.0
"""What stands for log10 of 0."""


def log10(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """log10, at most 0 for a probability that rounding lifted over 1, and -99 for 0."""
    with np.errstate(divide="ignore"):
        return np.maximum(np.log10(values.astype(np.float64)), LOWEST).astype(np.float32)


def write_lines(
    file: Path, probs: npt.NDArray[np.float32], grams: pl.Series, backoffs: npt.NDArray[np.float32] | None
) -> None:
    """Append n-grams to a section: log10 probability, words, log10 backoff (None at the highest order)."""
    lines = pl.DataFrame({"p": np.minimum(probs, 0), "gram": grams})
    if backoffs is not None:
        lines = lines.with_columns(b=backoffs)
    text = io.BytesIO()
    lines.write_csv(text, include_header=False, separator="\t", quote_style="never")
    with file.open("ab") as out:  # not by polars, whose error on a full disk has no number
        out.write(text.getbuffer())


def join(sections: Sequence[Path], sizes: Sequence[int], out: Path) -> None:
    """One ARPA file of the sections of all orders, written aside and renamed."""

    def into(aside: Path) -> None:
        with aside.open("wb") as file:
            file.write(b"\\data\\\n" + b"".join(b"ngram %d=%d\n" % pair for pair in enumerate(sizes, 1)))
            for order, section in enumerate(sections, 1):
                file.write(b"\n\\%d-grams:\n" % order)
                if section.exists():
                    with section.open("rb") as lines:
                        shutil.copyfileobj(lines, file, 1 << 20)
            file.write(b"\n\\end\\\n")

    save(out, into)


def sizes(path: Path) -> tuple[int, ...]:
    """n-grams of each order, as the file's head says."""
    found = []
    with path.open("rb") as file:
        for line in file:
            if line.startswith(b"ngram "):
                found.append(int(line.partition(b"=")[2]))
            elif found and not line.strip():
                break
    return tuple(found)
