"""Reading files of others: which ones, decompression, and records of any format.

What reads a file raises `UnreadableFileError` if it cannot be read to its end, or is not what it should be.
"""

from stages.readers.json_lines import (
    block_lines,
    envelope,
    fields,
    json_fault,
    line_blocks,
    lines,
    loads,
    parse,
    text_lines,
)
from stages.readers.listing import CSV, JSON, RECORDS, RUN_KEYS, TEXT, Listing, ending, is_run, list_files
from stages.readers.opening import AS_IS, PACKINGS, UnreadableFileError, open_text, read_text
from stages.readers.tables import arrow_batches, check_parquet, csv_rows, frames, open_arrow, open_csv, schema

__all__ = [
    "AS_IS",
    "CSV",
    "JSON",
    "PACKINGS",
    "RECORDS",
    "RUN_KEYS",
    "TEXT",
    "Listing",
    "UnreadableFileError",
    "arrow_batches",
    "block_lines",
    "check_parquet",
    "csv_rows",
    "ending",
    "envelope",
    "fields",
    "frames",
    "is_run",
    "json_fault",
    "line_blocks",
    "lines",
    "list_files",
    "loads",
    "open_arrow",
    "open_csv",
    "open_text",
    "parse",
    "read_text",
    "schema",
    "text_lines",
]
