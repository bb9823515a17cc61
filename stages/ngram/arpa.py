"""ARPA files: the text form of an n-gram model that every toolkit reads."""

import io
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from stages.files import save

LOWEST = -99.0
"""The log10 of probability 0."""


def log10(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """log10, and `LOWEST` for 0."""
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
    with file.open("ab") as out:  # polars' own error on a full disk has no error number
        out.write(text.getbuffer())


def join(sections: Sequence[Path], sizes: Sequence[int], out: Path) -> None:
    """Join the sections of all orders into one ARPA file."""

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
    """Number of n-grams of each order, from the header of the file."""
    counts: list[int] = []
    with path.open("rb") as file:
        for line in file:
            if line.startswith(b"ngram "):
                counts.append(int(line.partition(b"=")[2]))
            elif counts and not line.strip():
                break
    return tuple(counts)
