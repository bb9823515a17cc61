"""Rows of JSON Lines, plain or compressed, and of a JSON array."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from pipeline.sources.rows import Row, SourceError, Unreadable, why


def rows(path: Path, label: str) -> Iterator[Row]:
    """Rows of a file: a record a line, read as a stream; or, where a .json file begins with "[", one array.

    An array is read whole: it takes some ten times its size in memory, where lines take that of the longest one.

    Raises:
        SourceError: the file cannot be read, or begins like an array and is none.
    """
    number = 0
    try:
        with _opened(path) as file:
            if ".json" in path.suffixes and _is_array(file):
                yield from _array(file, label)
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _line(label, number, line)
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(
            f"{label} cannot be read after line {number} ({why(error)}): mend or remove the file"
        ) from error


def _opened(path: Path) -> io.BufferedIOBase:
    if path.name.endswith(".gz"):
        return gzip.open(path, "rb")
    if path.name.endswith(".zst"):
        import pyarrow as pa

        file = path.open("rb")  # pyarrow takes no path that is not UTF-8
        return io.BufferedReader(pa.input_stream(file, compression="zstd"))  # zstandard's takes a cut for the end
    return path.open("rb")


def _is_array(file: io.BufferedIOBase) -> bool:
    """Whether a .json file is one array, as ShareGPT's are, and not a record a line."""
    start = file.peek(64) if isinstance(file, io.BufferedReader | gzip.GzipFile) else b""
    return start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def _array(file: io.BufferedIOBase, label: str) -> Iterator[Row]:
    data = file.read().removeprefix(b"\xef\xbb\xbf")
    try:
        records = json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        raise SourceError(
            f"{label} begins like a JSON array and is not one ({_fault(error)}): mend or remove the file"
        ) from error
    for number, record in enumerate(records, 1):
        yield _clean(label, number, record)


def _line(label: str, number: int, line: bytes) -> Row:
    if number == 1:
        line = line.removeprefix(b"\xef\xbb\xbf")
    try:
        return Row(label, number, orjson.loads(line))
    except orjson.JSONDecodeError:  # invalid UTF-8 and lone surrogates, which are replaced, or no JSON at all
        text = line.decode("utf-8", "replace")
    try:
        row = _clean(label, number, json.loads(text))
    except (ValueError, RecursionError) as error:
        return Row(label, number, Unreadable(f"the line is not JSON ({_fault(error)})", text))
    return row._replace(replaced=row.replaced or "\ufffd" in text)


def _fault(error: BaseException) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else why(error)


def _clean(label: str, number: int, record: Any) -> Row:  # noqa: ANN401  any JSON
    """A row whose texts are all valid, with U+FFFD for what was not."""
    try:
        text = json.dumps(record, ensure_ascii=False)
    except RecursionError:
        return Row(label, number, Unreadable("the record is nested too deeply", ""))
    clean = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    return Row(label, number, record) if clean == text else Row(label, number, json.loads(clean), replaced=True)
