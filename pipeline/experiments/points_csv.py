"""The points of a scaling law from a CSV file, each cell checked."""

import csv
import io
from itertools import islice
from pathlib import Path

import polars as pl

from stages import readers
from stages.readers import UnreadableFileError
from stages.stage import reason
from trainer.scaling import Points, ScalingError
from trainer.scaling.points import RANGE

REQUIRED = ("tokens", "ppl")
"""Columns that the file must have."""
ADVICE = {
    "tokens": "give training tokens, such as 100000",
    "ppl": "give a perplexity, such as 123.4",
    "seed": "give a whole number, or omit the column",
    "corpus": "name the corpus of every point, or omit the column",
}
"""What to do about a wrong cell, for each column that is read."""
GROUPS = {
    "tokens": r"^\d{1,3}([,_'\x{2019}\s]\d{3})+(\.\d+)?$",
    "ppl": r"^\d{1,3}(([_'\x{2019}\s]\d{3})+(\.\d+)?|(,\d{3}){2,}(\.\d+)?|(,\d{3})+\.\d+)$",
}
"""Numbers with thousands separators. The "1,234" of a perplexity may also be 1.234, but tokens are whole."""
MAX_ROWS = 100_000
"""Maximum number of rows; each row is one training run."""
_EXPECTED_TABLE = "give comma-separated columns tokens and ppl, and optionally corpus and seed"

Corpora = dict[str | None, Points]


def read(file: Path) -> Corpora:
    """The points of a CSV file by corpus, in order of appearance. Without a column `corpus` the only key is None.

    Raises:
        ScalingError: the file is not such a table; the message names row (the header is row 1) and column.
    """
    corpora: Corpora = {}
    for name, part in _parts(file):
        seed = part["seed"] if "seed" in part.columns and part["seed"].null_count() < len(part) else None
        if seed is not None and seed.null_count():
            row = part.filter(pl.col("seed").is_null())["row"][0]
            raise ScalingError(f"{file}, row {row}, column seed: it is empty; name the seed of every point, or of none")
        try:
            seeds = None if seed is None else seed.to_numpy()
            corpora[name] = Points(part["tokens"].to_numpy(), part["ppl"].to_numpy(), seeds)
        except ScalingError as error:
            raise ScalingError(f"{file}{'' if name is None else f', corpus {name}'}: {error}") from None
    return corpora


def row_numbers(file: Path) -> dict[str | None, list[int]]:
    """The row of each point in the file, by corpus, as `read` gives the points."""
    return {name: part["row"].to_list() for name, part in _parts(file)}


def _parts(file: Path) -> list[tuple[str | None, pl.DataFrame]]:
    frame = _frame(file)
    if "corpus" not in frame.columns:
        return [(None, frame)]
    return [(name, part) for (name,), part in frame.group_by("corpus", maintain_order=True)]


def _frame(file: Path) -> pl.DataFrame:
    """The checked columns, and `row`, the number of each row in the file."""
    if not file.is_file():
        raise ScalingError(f"{file} is not a file: name a CSV file with the columns tokens and ppl")
    try:
        with readers.open_text(file) as binary:
            text = b"".join(islice(binary, MAX_ROWS + 2)).decode()
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=_separator(text), strict=True))
    except (UnreadableFileError, UnicodeDecodeError, csv.Error) as error:
        raise ScalingError(f"{file} cannot be read as CSV ({reason(error)[:100]}): {_EXPECTED_TABLE}") from None
    if not rows:
        raise ScalingError(f"{file} is empty: {_EXPECTED_TABLE}")
    if len(rows) > MAX_ROWS + 1:
        raise ScalingError(f"{file} has more than {MAX_ROWS:,} rows: give one row per training run")
    numbered = [(number, row) for number, row in enumerate(rows, 1) if "".join(row).strip()]
    header = _take_header(file, numbered)
    numbered = [(number, row) for number, row in numbered if not _is_comment(row)]
    if long := next((number for number, row in numbered if len(row) > len(header)), None):
        raise ScalingError(
            f"{file}, row {long} has more fields than the header, {len(header)}: write a number that holds a separator "
            "in quotes"
        )
    at = {name: header.index(name) for name in ADVICE if name in header}
    padded = [(number, [*row, *[""] * len(header)]) for number, row in numbered]
    if not padded:
        raise ScalingError(f"{file} has a header and no rows: give one row per training run")
    cells = [(number, *(row[i].strip() or None for i in at.values())) for number, row in padded]
    frame = pl.DataFrame(cells, {"row": pl.Int64, **dict.fromkeys(at, pl.String)}, orient="row")
    return frame.select("row", *(_column(file, frame, name) for name in at))


def _separator(text: str) -> str:
    """Comma, semicolon or tab: the most frequent one in the first line that names a column."""
    header = next((line for line in text.splitlines() if REQUIRED[0] in line.lower()), "")
    return max(",;\t", key=header.count)


def _is_comment(row: list[str]) -> bool:
    return row[0].lstrip().startswith("#")


def _take_header(file: Path, rows: list[tuple[int, list[str]]]) -> list[str]:
    """Names of the columns in lower case, from the first row that is no comment, or a comment with these names.

    This row and those before it are removed from `rows`.
    """
    while rows:
        number, row = rows.pop(0)
        header = [cell.strip().lstrip("# ").lower() for cell in row]
        if not _is_comment(row) or set(REQUIRED) <= set(header):
            break
    else:
        raise ScalingError(f"{file} has no header: {_EXPECTED_TABLE}")
    for name in ADVICE:
        if header.count(name) > 1:
            raise ScalingError(f"{file} has {header.count(name)} columns named {name}: keep one")
    for name in REQUIRED:
        if name not in header:
            there = ", ".join(filter(None, header[:20]))[:200] or "none"
            raise ScalingError(f"{file} has no column {name} in row {number} (found: {there}): {_EXPECTED_TABLE}")
    return header


def _column(file: Path, frame: pl.DataFrame, name: str) -> pl.Series:
    """A column as numbers (corpus: as text); raises `ScalingError` if a cell is empty, or is not such a value."""
    column = frame[name]
    kind = {"corpus": pl.String, "seed": pl.Int64}.get(name, pl.Float64)
    if name in GROUPS:
        cell = pl.col(name)
        ungrouped = pl.when(cell.str.contains(GROUPS[name])).then(cell.str.replace_all(r"[,_'\x{2019}\s]", ""))
        column = frame.select(ungrouped.otherwise(cell).alias(name))[name]
    values = column.cast(kind, strict=False)
    wrong = values.is_null() & column.is_not_null() if name == "seed" else values.is_null()
    expected = "whole number"
    if name in REQUIRED:
        low, high = RANGE[name]
        expected = f"number from {low:g} to {high:g}"
        wrong = wrong | ~values.is_between(low, high).fill_null(value=False)
    first = wrong.arg_true()
    if len(first):
        cell, row = frame[name][first[0]], frame["row"][first[0]]
        fault = "it is empty" if cell is None else f"{cell[:60]!r} is not a {expected}"
        raise ScalingError(f"{file}, row {row}, column {name}: {fault}; {ADVICE[name]}")
    return values
