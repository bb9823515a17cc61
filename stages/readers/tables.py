"""Files of records as frames: Parquet, Arrow, tables of text, JSON."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from stages.readers.json_lines import BATCH_BYTES, fields, json_frames
from stages.readers.listing import CSV, JSON, ending
from stages.readers.opening import AS_IS, UnreadableFileError, check_start, open_text
from stages.stage import reason

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET, ARROW = b"PAR1", b"ARROW1"
"""First bytes of a Parquet file, which are its last ones, too, and of an Arrow file; an Arrow stream has no mark."""
BATCH_ROWS = 1000
"""Number of rows of the first batch of a table, before the size of a row is known."""


def schema(path: Path) -> pl.Schema:
    """The columns of a file of records: of JSON, the fields of its first records, of type Unknown."""
    if ending(path) in JSON:
        return pl.Schema(dict.fromkeys(fields(path), pl.Unknown()))
    if ending(path) in CSV:
        return pl.Schema(dict.fromkeys(next(csv_rows(path), []), pl.String()))
    if ending(path) == ".parquet":
        check_parquet(path)
        return pl.scan_parquet(path, glob=False).collect_schema()
    with open_arrow(path) as (columns, _):
        return pl.DataFrame(columns.empty_table()).schema


def frames(path: Path, schema: pl.Schema | None = None, size: int = BATCH_BYTES) -> Iterator[pl.DataFrame]:
    """Records of a file as frames of about `size` bytes each.

    The columns and their types are those of `schema`, by default all; types of JSON are inferred per frame. A field
    that a JSON record lacks is null; a column that a table lacks is an `UnreadableFileError`.
    """
    if ending(path) in JSON:
        yield from json_frames(path, schema, size)
        return
    if not (columns := _columns(path)):
        return
    if missing := [name for name in schema or () if name not in columns]:
        raise UnreadableFileError(f"has no column {missing[0]!r} (there are {', '.join(columns) or 'none'})")
    for frame in _table(path, list(schema or columns), size):
        yield frame if schema is None else frame.cast(pl.Schema(schema))


_columns = schema  # a parameter of `frames` has its name


def _table(path: Path, columns: Sequence[str], size: int) -> Iterator[pl.DataFrame]:
    if ending(path) == ".parquet":
        yield from _parquet(path, columns, size)
    elif ending(path) in CSV:
        yield from _csv(path, columns, size)
    else:
        yield from (pl.DataFrame(batch.select(columns)) for batch in arrow_batches(path, size))


def check_parquet(path: Path) -> None:
    """Raise `UnreadableFileError` if a file does not begin and end as Parquet does."""
    with path.open("rb") as file:
        start, size = file.read(32), path.stat().st_size
        file.seek(max(0, size - len(PARQUET)))
        end = file.read()
    check_start(start, but=PARQUET)
    if not start.startswith(PARQUET):
        raise UnreadableFileError("is empty" if not size else "is no Parquet file, in spite of its name")
    if end not in {PARQUET, b"PARE"}:
        raise UnreadableFileError("is cut short: it does not end as Parquet does")


def _parquet(path: Path, columns: Sequence[str], size: int) -> Iterator[pl.DataFrame]:
    """Slices of rows: only the pages of a slice are decoded."""
    rows, begin, table = BATCH_ROWS, 0, pl.scan_parquet(path, glob=False).select(columns)
    while len(part := table.slice(begin, rows).collect()):
        yield part
        begin += len(part)
        rows = max(1, min(100 * BATCH_ROWS, int(size * len(part) / max(1, part.estimated_size()))))


@contextmanager
def open_arrow(path: Path) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    """The schema and the batches of an Arrow file or stream."""
    import pyarrow as pa

    try:
        with path.open("rb") as file:
            start = file.peek(32)
            check_start(start, but=ARROW)
            if not start or start.startswith(b"FEA1"):
                raise UnreadableFileError("is Feather of version 1, expected version 2" if start else "is empty")
            if start.startswith(ARROW):
                random = pa.ipc.open_file(file)
                yield random.schema, _valid_batches(map(random.get_batch, range(random.num_record_batches)))
            else:
                stream = pa.ipc.open_stream(file)
                yield stream.schema, _valid_batches(stream)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UnreadableFileError(f"is no Arrow file, or is damaged or cut short ({reason(error)})") from error


def _valid_batches(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield batches, and raise `ArrowInvalid` at the first one with invalid offsets, which would crash the process.

    Text that is not UTF-8 is harmless, and is let through.
    """
    import pyarrow as pa

    try:
        for batch in batches:
            for column in batch.columns:
                _check(column)
            yield batch
    except MemoryError as error:
        raise pa.ArrowInvalid("it has a batch that is larger than the memory") from error


def _check(column: pa.Array) -> None:
    import pyarrow as pa

    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise


def arrow_batches(path: Path, size: int, rows: int = 100 * BATCH_ROWS) -> Iterator[pa.RecordBatch]:
    """Rows of an Arrow file or stream in batches of about `size` bytes and at most `rows` rows."""
    with open_arrow(path) as (_, batches):
        for batch in batches:
            step = max(1, min(rows, size * batch.num_rows // max(batch.nbytes, 1)))
            yield from (batch.slice(begin, step) for begin in range(0, batch.num_rows, step))


@contextmanager
def open_csv(path: Path) -> Iterator[tuple[str, Iterator[list[str]]]]:
    """The separator of a table of text, and its rows as they are, the header first; a blank line is an empty row.

    Fields are separated by tabs in a .tsv file, else by whichever of comma, semicolon and tab is most frequent in the
    header. Rows are read one by one, because a quoted field may have line breaks and be as long as a conversation.
    Bytes that are not UTF-8 are decoded `AS_IS`.
    """
    csv.field_size_limit(sys.maxsize)
    with open_text(path) as binary, io.TextIOWrapper(binary, "utf-8", AS_IS, newline="") as text:
        first = text.readline()
        separator = "\t" if ending(path) == ".tsv" else max(",;\t", key=first.count)
        yield separator, csv.reader(chain([first], text), delimiter=separator, strict=True)


def csv_rows(path: Path) -> Iterator[list[str]]:
    """Rows of a table of text as `open_csv` gives them, with a name for each column. Not UTF-8 becomes U+FFFD."""
    number = 0
    try:
        with open_csv(path) as (_, rows):
            for number, row in enumerate(rows, 1):
                if number == 1:
                    row = [name.strip() or f"column {place}" for place, name in enumerate(row, 1)]  # noqa: PLW2901
                    if twice := next((name for name in row if row.count(name) > 1), None):
                        raise UnreadableFileError(f"has {row.count(twice)} columns named {twice!r}, expected one")
                yield _valid(row)
    except csv.Error as error:
        fault = "a quote is not closed" if str(error) == "unexpected end of data" else reason(error)
        raise UnreadableFileError(f"cannot be read as a table after row {number} ({fault})") from error


def _valid(row: list[str]) -> list[str]:
    """A row with U+FFFD for bytes that are not UTF-8."""
    try:
        "".join(row).encode()
    except UnicodeEncodeError:
        return [field.encode("utf-8", AS_IS).decode("utf-8", "replace") for field in row]
    return row


def _csv(path: Path, columns: Sequence[str], size: int) -> Iterator[pl.DataFrame]:
    numbered = enumerate(csv_rows(path), 1)
    _, header = next(numbered)
    at, rows, room = [header.index(name) for name in columns], list[list[str]](), size
    for number, row in numbered:
        if row and len(row) != len(header):
            raise UnreadableFileError(f"has {len(row)} fields in row {number}, and its header has {len(header)}")
        rows += [[row[i] for i in at]] if row else []
        room -= sum(map(len, row))
        if room <= 0:
            yield _text_frame(columns, rows)
            rows, room = [], size
    if rows:
        yield _text_frame(columns, rows)


def _text_frame(columns: Sequence[str], rows: list[list[str]]) -> pl.DataFrame:
    return pl.DataFrame(rows, dict.fromkeys(columns, pl.String), orient="row")
