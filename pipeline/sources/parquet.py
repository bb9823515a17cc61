"""Rows of Parquet files, in batches of bounded bytes; a file that cannot be read is a `SourceError`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sources.messages import as_json
from pipeline.sources.rows import Row, SourceError, Unreadable, why

BATCH_ROWS = 1_000
"""Maximum number of rows of a batch."""
BATCH_BYTES = 1 << 26
"""Target size of a batch in bytes, as the footer of its row group counts them. A batch has at least one row."""


def rows(path: Path, label: str) -> Iterator[Row]:
    """Rows of a file. All columns are read: those that a shape does not name are kept in `extra`."""
    number = 0
    try:
        with path.open("rb") as binary, pq.ParquetFile(binary) as file:  # it accepts only paths in UTF-8
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(_size(file.metadata.row_group(group)), row_groups=[group]):
                    for value in _records(batch):
                        number += 1
                        yield Row(label, number, value)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise SourceError(
            f"{label} cannot be read after row {number} ({why(error)}): repair or remove the file"
        ) from error


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
