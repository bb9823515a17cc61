"""Rows of JSON Lines, plain or compressed, or of a JSON array. A line that is not JSON is an `Unreadable` row."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from pipeline.sources.rows import Piece, Row, SourceError, Unreadable
from stages import readers

BATCH_BYTES = 1 << 20
"""Target size of a batch of lines in bytes."""


def rows(path: Path, label: str) -> Iterator[Row]:
    """Rows of a file."""
    return _rows(readers.lines(path, BATCH_BYTES), label)


def piece_rows(piece: Piece) -> Iterator[Row]:
    """Rows of a piece of JSON Lines."""
    return _rows(readers.block_lines(Path(piece.path), piece.first, piece.begin, piece.rows, BATCH_BYTES), piece.file)


def _rows(batches: Iterator[tuple[int, list[bytes]]], label: str) -> Iterator[Row]:
    try:
        for first, lines in batches:
            for number, line in enumerate(lines, first):
                if not line.isspace():
                    yield _row(label, number, line)
    except readers.UnreadableFileError as error:
        raise SourceError(f"{label} {error}: convert, repair or remove the file") from error


def _row(label: str, number: int, line: bytes) -> Row:
    try:
        return Row(label, number, orjson.loads(line))
    except (
        orjson.JSONDecodeError
    ):  # not UTF-8, a lone surrogate, the mark of a file that was appended, or not JSON at all
        text = line.decode("utf-8", "replace").removeprefix("\ufeff")
    try:
        value, replaced = _valid(readers.loads(text))
    except (ValueError, RecursionError) as error:
        return Row(label, number, Unreadable(f"the line is not JSON ({readers.json_fault(error)})", text))
    return Row(label, number, value, replaced or text.count("\ufffd") > line.count("\ufffd".encode()))


def _valid(record: Any) -> tuple[Any, bool]:  # noqa: ANN401  any JSON
    """The record with U+FFFD for lone surrogates, and whether there were any."""
    text = json.dumps(record, ensure_ascii=False)
    valid = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    return (record, False) if valid == text else (json.loads(valid), True)
