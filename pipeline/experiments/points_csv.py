"""The points of a scaling law as a user writes them down: a CSV file, each cell of it checked."""

from __future__ import annotations

import csv
from itertools import islice
from pathlib import Path

import polars as pl

from trainer.scaling import Points, ScalingError
from trainer.scaling.points import RANGE

NEEDED = ("tokens", "ppl")
MOST = 100_000
"""Rows; a row is one training, so that more of them are another kind of file."""

Corpora = dict[str | None, Points]


def read(file: Path) -> Corpora:
    """The points of a CSV file by corpus, in order of appearance; None names the only one where no column does.

    Raises:
        ScalingError: Naming file, row (the header is row 1) and column, what was found and what was expected.
    """
    frame = _frame(file)
    names = frame["corpus"].unique(maintain_order=True).to_list() if "corpus" in frame.columns else [None]
    made: Corpora = {}
    for name in names:
        part = frame if name is None else frame.filter(pl.col("corpus") == name)
        seed = part["seed"] if "seed" in part.columns and part["seed"].null_count() < len(part) else None
        if seed is not None and seed.null_count():
            row = part.filter(pl.col("seed").is_null())["row"][0]
            raise ScalingError(f"{file}, row {row}, column seed: it is empty; name the seed of every point, or of none")
        try:
            seeds = None if seed is None else seed.to_numpy()
            made[name] = Points(part["tokens"].to_numpy(), part["ppl"].to_numpy(), seeds)
        except ScalingError as error:
            raise ScalingError(f"{file}{_of(name)}: {error}") from None
    return made


def _frame(file: Path) -> pl.DataFrame:
    """The checked columns, and `row`, the number of each row in the file."""
    if not file.is_file():
        raise ScalingError(f"{file} is not a file: name a CSV file with the columns tokens and ppl")
    try:
        lines = pl.read_csv(file, has_header=False, infer_schema=False, n_rows=MOST + 2)
    except pl.exceptions.NoDataError:
        raise ScalingError(f"{file} is empty: give a CSV file with the columns tokens and ppl") from None
    except pl.exceptions.PolarsError as error:
        raise ScalingError(
            f"{file}{_long_row(file)} cannot be read as CSV ({str(error).splitlines()[0][:100]}): "
            "give comma-separated columns tokens and ppl, with as many fields in each row as in the first"
        ) from None
    lines = lines.select(pl.int_range(1, pl.len() + 1).alias("row"), pl.all().str.strip_chars().replace("", None))
    header = _header(file, [cell for cell in lines.row(0)[1:] if cell is not None])
    if len(lines) > MOST + 1:
        raise ScalingError(f"{file} has more than {MOST:,} rows: give one row a training")
    cells = lines.slice(1).filter(~pl.all_horizontal(pl.exclude("row").is_null()))
    if cells.is_empty():
        raise ScalingError(f"{file} has a header and no rows: give one row a training")
    at = {name: lines.row(0).index(name) for name in (*NEEDED, "seed", "corpus") if name in header}
    frame = cells.select("row", *(pl.nth(i).alias(name) for name, i in at.items()))
    return frame.select(_checked(file, frame, name) for name in frame.columns)


def _long_row(file: Path) -> str:
    """Which row has more fields than the first, where that is what is wrong; polars does not say."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            rows = islice(csv.reader(opened), MOST)
            fields = len(next(rows))
            return next((f", row {i}" for i, row in enumerate(rows, 2) if len(row) > fields), "")
    except (UnicodeDecodeError, csv.Error, StopIteration):
        return ""


def _header(file: Path, header: list[str]) -> list[str]:
    for name in (*NEEDED, "seed", "corpus"):
        if header.count(name) > 1:
            raise ScalingError(f"{file} has {header.count(name)} columns named {name}: leave one")
    for name in NEEDED:
        if name not in header:
            found = ", ".join(header[:20])[:200] or "none"
            raise ScalingError(
                f"{file} has no column {name} in its first row (found: {found}): "
                "give comma-separated columns tokens and ppl, and corpus and seed where there are any"
            )
    return header


def _checked(file: Path, frame: pl.DataFrame, name: str) -> pl.Series:
    """A column as numbers (corpus: as text), or the sentence about its first cell that is none."""
    column = frame[name]
    if name == "row":
        return column
    kind = {"corpus": pl.String, "seed": pl.Int64}.get(name, pl.Float64)
    made = column.cast(kind, strict=False)
    wrong = made.is_null() & column.is_not_null() if name == "seed" else made.is_null()
    if name in NEEDED:
        wrong = wrong | ~made.is_between(*RANGE[name]).fill_null(value=False)
    first = wrong.arg_true()
    if len(first):
        cell, row = column[first[0]], frame["row"][first[0]]
        found = "it is empty" if cell is None else f"{cell[:60]!r} is not a {_WHAT[name]}"
        raise ScalingError(f"{file}, row {row}, column {name}: {found}; {_DO[name]}")
    return made


_WHAT = {name: f"number from {low:g} to {high:g}" for name, (low, high) in RANGE.items()}
_WHAT |= {"seed": "whole number", "corpus": "name"}
_DO = {
    "tokens": "give training tokens, such as 100000",
    "ppl": "give a perplexity, such as 123.4",
    "seed": "give a whole number, or leave the column out",
    "corpus": "name the corpus of every point, or leave the column out",
}


def _of(name: str | None) -> str:
    return "" if name is None else f", corpus {name}"
