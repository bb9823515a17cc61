"""Rows of tables: Parquet, Arrow, text; in batches of bounded bytes. One that cannot be read is a `SourceError`."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sources.messages import as_json
from pipeline.sources.rows import Row, SourceError, Unreadable, why
from stages import readers

BATCH_ROWS = 1_000
"""Maximum number of rows of a batch."""
BATCH_BYTES = 1 << 26
"""Target size of a batch in bytes, as the footer of its row group counts them. A batch has at least one row."""


def rows(path: Path, label: str, begin: int = 0, most: int = sys.maxsize) -> Iterator[Row]:
    """Rows of a Parquet or Arrow file. All columns are read: those that a shape does not name are kept in `extra`.

    Of Parquet, at most so many rows are read, from row `begin` on, which counts from 0.
    """
    number = begin
    try:
        parquet = readers.ending(path) == ".parquet"
        batches = _parquet(path, begin, most) if parquet else readers.arrow_batches(path, BATCH_BYTES, BATCH_ROWS)
        for batch in batches:
            for value in _records(batch):
                number += 1
                yield Row(label, number, value)
    except readers.UnreadableFileError as error:
        raise SourceError(f"{label} {error}: convert, repair or remove the file") from error
    except (pa.ArrowException, OSError, ValueError) as error:
        raise SourceError(
            f"{label} cannot be read after row {number} ({why(error)}): repair or remove the file"
        ) from error


def text_rows(path: Path, label: str) -> Iterator[Row]:
    """Rows of a table of text. The header is row 1, as a spreadsheet counts."""
    try:
        numbered = enumerate(readers.csv_rows(path), 1)
        header = next(numbered, (1, []))[1]
        for number, row in numbered:
            if row and len(row) != len(header):
                fault = f"the row has {len(row)} fields and the header {len(header)}"
                yield Row(label, number, Unreadable(fault, as_json(row)))
            elif row:
                record = dict(zip(header, row, strict=True))
                yield Row(label, number, record, replaced=any("\ufffd" in field for field in row))
    except readers.UnreadableFileError as error:
        raise SourceError(f"{label} {error}: convert, repair or remove the file") from error


def parquet_sizes(path: Path) -> tuple[int, int]:
    """Number of rows of a Parquet file, and of its largest row group."""
    readers.check_parquet(path)
    try:
        with path.open("rb") as binary, pq.ParquetFile(binary) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    except pa.ArrowException as error:
        raise readers.UnreadableFileError(f"cannot be read ({why(error)})") from error
    return sum(sizes), max(sizes, default=0)


def _parquet(path: Path, begin: int, most: int) -> Iterator[pa.RecordBatch]:
    """Batches of the rows from `begin` on, at most so many."""
    readers.check_parquet(path)
    with path.open("rb") as binary, pq.ParquetFile(binary) as file:  # it accepts only paths in UTF-8
        at, end = 0, begin + most
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            if at + group.num_rows <= begin or at >= end:
                at += group.num_rows
                continue
            for batch in file.iter_batches(_size(group), row_groups=[number]):
                first = max(begin - at, 0)
                if (part := batch.slice(first, max(end - at - first, 0))).num_rows:
                    yield part
                at += batch.num_rows
                if at >= end:
                    return


def _size(group: pq.RowGroupMetaData) -> int:
    return max(1, min(BATCH_ROWS, BATCH_BYTES * int(group.num_rows) // max(int(group.total_byte_size), 1)))


def _records(batch: pa.RecordBatch) -> Iterator[Any]:
    try:
        yield from batch.to_pylist()
    except Exception:  # noqa: BLE001  depends on the type of the value at fault; the other rows are kept
        for i in range(batch.num_rows):
            yield _record(batch.slice(i, 1))


def _record(row: pa.RecordBatch) -> Any:  # noqa: ANN401  any JSON
    """A batch of one row as a record. Parquet checks neither texts nor dates."""
    values, faults = {}, []
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            values[name] = _value(column)
        except UnicodeDecodeError as error:
            faults.append(f"the record's text is not UTF-8 ({error.reason})")
            values[name] = repr(error.object[:1000])
        except Exception as error:  # noqa: BLE001  the same
            faults.append(f"{name} cannot be read ({why(error)})")
            values[name] = _as_text(column)
    return Unreadable(faults[0], as_json(values)) if faults else values


def _as_text(column: pa.Array) -> str:
    """A value that Python cannot hold, as Arrow prints it."""
    try:
        return str(column)
    except Exception as error:  # noqa: BLE001  the same
        return why(error)


def _value(column: pa.Array) -> Any:  # noqa: ANN401  any JSON
    """The only value of a column; the number and type of a date or time span that Python cannot hold."""
    try:
        return column[0].as_py()
    except (OverflowError, ValueError):
        if not pa.types.is_temporal(column.type):
            raise
        return f"{column.cast(pa.int64() if column.type.bit_width > 32 else pa.int32())[0].as_py()} {column.type}"  # noqa: PLR2004
