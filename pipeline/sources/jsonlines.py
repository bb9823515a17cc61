"""Rows of JSON Lines, plain or compressed, and of a JSON array; a file that cannot be read is a `SourceError`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from pipeline.sources.rows import Row, SourceError, Unreadable
from stages import readers
from stages.readers import UnreadableFileError, json_fault

BATCH_BYTES = 1 << 20
"""Target size of a batch of lines in bytes."""


def rows(path: Path, label: str) -> Iterator[Row]:
    """Rows of a file. A line that is not JSON is an `Unreadable` row."""
    try:
        for first, lines in readers.lines(path, BATCH_BYTES):
            for number, line in enumerate(lines, first):
                if not line.isspace():
                    yield _row(label, number, line)
    except UnreadableFileError as error:
        raise SourceError(f"{label} {error}: repair or remove the file") from error


def _row(label: str, number: int, line: bytes) -> Row:
    try:
        return Row(label, number, orjson.loads(line))
    except orjson.JSONDecodeError:  # not UTF-8, a lone surrogate, or not JSON at all
        text = line.decode("utf-8", "replace")
    try:
        value, replaced = _valid(json.loads(text))
    except (ValueError, RecursionError) as error:
        return Row(label, number, Unreadable(f"the line is not JSON ({json_fault(error)})", text))
    return Row(label, number, value, replaced or "\ufffd" in text)


def _valid(record: Any) -> tuple[Any, bool]:  # noqa: ANN401  any JSON
    """The record with U+FFFD for lone surrogates, and whether there were any."""
    text = json.dumps(record, ensure_ascii=False)
    valid = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    return (record, False) if valid == text else (json.loads(valid), True)
