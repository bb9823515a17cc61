"""Reading text files: which ones, decompression, byte-order marks, and one JSON record per line.

What reads a file raises `UnreadableFileError` if it cannot be read to its end, or is not what it should be.
"""

import codecs
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from stages.stage import reason

PACKINGS = (".gz", ".zst")
"""Endings of compressed files."""
RECORDS = (".parquet", ".jsonl", ".ndjson", ".json")
"""Endings of files of records; JSON may be compressed."""
TEXT = (".txt", ".text")
"""Endings of plain text, which may be compressed."""
BATCH_BYTES = 1 << 24
"""Target size of a batch of lines in bytes."""
SAMPLE = 1000
"""Number of records read to discover the fields of a file."""


class UnreadableFileError(Exception):
    """A text file cannot be read; the message is a predicate that follows its name, "is not JSON on line 3 (...)"."""


def ending(path: Path) -> str:
    """The ending that names a file's format, in lower case and without `.gz` or `.zst`."""
    name = path.name.lower()
    packing = next((packing for packing in PACKINGS if name.endswith(packing)), "")
    plain = Path(name.removesuffix(packing)).suffix
    return plain + packing if plain == ".parquet" else plain  # Parquet compresses its own pages


def files(path: Path, endings: Sequence[str], skip: Callable[[Path], bool] = lambda _path: False) -> list[Path]:
    """Files with one of these endings: `path` itself, or those at any depth of the folder `path`, sorted.

    Hidden files and folders are omitted, and those for which `skip` is true.
    """
    if path.is_file():
        return [path] if ending(path) in endings else []
    matches = []
    for folder, below, names in os.walk(path):
        inside = [Path(folder, name) for name in (*below, *names) if not name.startswith(".")]
        inside = [each for each in inside if not skip(each)]
        below[:] = [each.name for each in inside if each.name in below]
        matches += [each for each in inside if ending(each) in endings and each.is_file()]
    return sorted(matches)


@contextmanager
def open_text(path: Path) -> Iterator[io.BufferedReader]:
    """Open a text file for reading bytes, decompressed and without the UTF-8 byte-order mark."""
    try:
        with path.open("rb") as packed, _unpack(path, packed) as file:
            mark = file.peek(len(codecs.BOM_UTF8))
            if mark.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise UnreadableFileError("is UTF-16 text, expected UTF-8")
            if mark.startswith(codecs.BOM_UTF8):
                file.read(len(codecs.BOM_UTF8))
            yield file
    except (OSError, EOFError, zlib.error) as error:
        raise UnreadableFileError(f"cannot be read ({reason(error)})") from error


def _unpack(path: Path, file: io.BufferedReader) -> io.BufferedReader:
    packing = path.suffix.lower()
    if packing == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=file))
    if packing == ".zst":
        import pyarrow as pa

        # zstandard's own reader takes a truncated file for a complete one
        return io.BufferedReader(pa.input_stream(file, compression="zstd"))
    return file


def read_text(path: Path) -> str:
    """The text of a file; bytes that are not UTF-8 become U+FFFD."""
    with open_text(path) as file:
        return file.read().decode("utf-8", "replace")


def lines(path: Path, size: int = BATCH_BYTES) -> Iterator[tuple[int, list[bytes]]]:
    """Batches of lines of about `size` bytes, each with the number of its first line, counted from 1.

    A `.json` file that begins with "[" is one array: its records are given one per line. It is read whole and takes
    about ten times its size in memory. An error names the last complete line.
    """
    first, batch, room = 1, list[bytes](), size
    try:
        with open_text(path) as file:
            array = ending(path) == ".json" and file.peek(64).lstrip().startswith(b"[")
            for line in _array(file.read()) if array else file:
                batch.append(line)
                room -= len(line)
                if room <= 0:
                    yield first, batch
                    first, batch, room = first + len(batch), [], size
    except UnreadableFileError as error:
        if isinstance(error.__cause__, OSError | EOFError | zlib.error):
            place = f"cannot be read after line {first + len(batch) - 1} ({reason(error.__cause__)})"
            raise UnreadableFileError(place) from error
        raise
    if batch:
        yield first, batch


def _array(data: bytes) -> Iterator[bytes]:
    try:
        for record in json.loads(data.decode("utf-8", "replace")):
            yield json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
    except (ValueError, RecursionError) as error:
        raise UnreadableFileError(f"begins like a JSON array and is not one ({json_fault(error)})") from error


def json_fault(error: BaseException) -> str:
    """Describe the first fault of a text that is not JSON."""
    return "nested too deeply" if isinstance(error, RecursionError) else reason(error)


def parse(line: bytes, number: int) -> Any:  # noqa: ANN401  any JSON
    """The JSON value on a line; bytes that are not UTF-8 become U+FFFD."""
    try:
        return json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        raise UnreadableFileError(f"is not JSON on line {number} ({json_fault(error)})") from error


def _record(line: bytes, number: int) -> dict[str, Any]:
    record = parse(line, number)
    if not isinstance(record, dict):
        raise UnreadableFileError(f"has {type(record).__name__} on line {number}, expected a JSON object on each line")
    return record


def fields(path: Path) -> list[str]:
    """Names of the fields of the first `SAMPLE` records of a JSON file, in order of appearance."""
    numbered = ((number, line) for first, batch in lines(path, 1 << 16) for number, line in enumerate(batch, first))
    records = (_record(line, number) for number, line in numbered if not line.isspace())
    return list(dict.fromkeys(name for record in islice(records, SAMPLE) for name in record))


def frames(path: Path, schema: pl.Schema | None = None, size: int = BATCH_BYTES) -> Iterator[pl.DataFrame]:
    """Records of a JSON file as frames from about `size` bytes each. A field that a record lacks is null.

    The fields and their types are those of `schema`, by default all, with types inferred per frame.
    """
    for first, batch in lines(path, size):
        if text := b"".join(line for line in batch if not line.isspace()):
            try:
                yield pl.read_ndjson(text, schema=schema, infer_schema_length=None)
            except pl.exceptions.PolarsError:  # a line is not JSON or not UTF-8
                yield _repair(batch, first, schema)


def _repair(batch: Iterable[bytes], first: int, schema: pl.Schema | None) -> pl.DataFrame:
    """A batch parsed line by line, with U+FFFD for what is not text."""
    records = [_record(line, number) for number, line in enumerate(batch, first) if not line.isspace()]
    if schema is not None:
        records = [{name: record.get(name) for name in schema} for record in records]
    joined = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    text = joined.encode("utf-8", "surrogatepass").decode("utf-8", "replace").encode()
    try:
        return pl.read_ndjson(text, schema=schema, infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        raise UnreadableFileError(f"cannot be read near line {first} ({reason(error)})") from error
