"""Columns of a Parquet or JSON Lines file, or of a folder of them, in parts of bounded memory."""

from __future__ import annotations

import contextlib
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import polars as pl

from pipeline.sources import ENDINGS, SourceError

BYTES = 1 << 25
"""Of a part, about."""
ROWS = 1000
"""Of a first part, before it is known how long rows are."""
SEEN = 1000
"""Lines of JSON whose fields are the columns that there are."""


@dataclass(frozen=True)
class Columns:
    """The rows of some files, numbered through."""

    name: str
    paths: tuple[Path, ...]

    @classmethod
    def of(cls, path: Path) -> Columns:
        """The files that a user means.

        Raises:
            SourceError: there are none.
        """
        if path.is_dir():
            found = tuple(sorted(one for one in path.iterdir() if one.name.endswith(ENDINGS)))
        else:
            found = (path,) if path.is_file() and path.name.endswith(ENDINGS) else ()
        if not found:
            there = "no file in this folder ends" if path.is_dir() else "expected a file that is there and ends"
            raise SourceError(f"{path}: {there} in {', '.join(ENDINGS)}")
        return cls(str(path), found)

    def schema(self) -> pl.Schema:
        """Columns of the first file; those of JSON as far as its first lines have them, all of type Unknown.

        Raises:
            SourceError: it cannot be read.
        """
        path = self.paths[0]
        if path.suffix == ".parquet":
            with _named(path):
                return pl.scan_parquet(path).collect_schema()
        names: dict[str, None] = {}
        with _opened(path) as file:
            for number, line in enumerate(islice(file, SEEN), 1):
                if line.strip():
                    names |= dict.fromkeys(_record(path, number, line))
        return pl.Schema(dict.fromkeys(names, pl.Unknown()))

    def whole_schema(self) -> pl.Schema:
        """Columns with their types; those of JSON Lines are found by reading all of them.

        Raises:
            SourceError: a file cannot be read.
        """
        if all(path.suffix == ".parquet" for path in self.paths):
            return self.schema()
        found = pl.DataFrame()
        for path in self.paths:
            for _, lines in _chunks(path):
                with _named(path):
                    here = pl.read_ndjson(b"".join(lines), infer_schema_length=None).clear()
                found = pl.concat([found, here], how="diagonal_relaxed")
        return found.schema

    def parts(self, schema: pl.Schema) -> Iterator[pl.DataFrame]:
        """Some columns of all rows, as types given; what a line of JSON lacks is null.

        Raises:
            SourceError: a file cannot be read, or lacks a column.
        """
        for path in self.paths:
            yield from (_parquet if path.suffix == ".parquet" else _json_lines)(path, schema)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of reading name the file."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError, EOFError, zlib.error) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SourceError(f"{path} cannot be read ({why}): mend it, or choose another file") from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with _named(path), contextlib.ExitStack() as stack:
        file = stack.enter_context(path.open("rb"))
        if path.suffix == ".gz":
            import gzip

            yield stack.enter_context(io.BufferedReader(gzip.GzipFile(fileobj=file)))
        elif path.suffix == ".zst":
            import pyarrow as pa

            yield io.BufferedReader(pa.input_stream(file, compression="zstd"))  # zstandard's takes a cut for the end
        else:
            yield file


def _parquet(path: Path, schema: pl.Schema) -> Iterator[pl.DataFrame]:
    """Slices of rows: Parquet is only decoded where a slice is, a page at a time."""
    rows, begin = ROWS, 0
    with _named(path):
        table = pl.scan_parquet(path)
        if missing := [name for name in schema if name not in table.collect_schema()]:
            raise SourceError(f"{path} has no column {missing[0]!r}, as the first file has")
        table = table.select(pl.col(name).cast(kind) for name, kind in schema.items())
        while len(part := table.slice(begin, rows).collect()):
            yield part
            begin += len(part)
            rows = max(1, min(100 * ROWS, int(BYTES * len(part) / max(1, part.estimated_size()))))


def _json_lines(path: Path, schema: pl.Schema) -> Iterator[pl.DataFrame]:
    for number, lines in _chunks(path):
        yield _records(path, number, lines, schema)


def _chunks(path: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Lines of about `BYTES` together, with the number of the first; blank ones are empty."""
    number = 1
    with _opened(path) as file:
        while lines := file.readlines(BYTES):
            if number == 1:
                lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
            yield number, [line if line.strip() else b"" for line in lines]
            number += len(lines)


def _records(path: Path, number: int, lines: Sequence[bytes], schema: pl.Schema) -> pl.DataFrame:
    if not any(lines):
        return pl.DataFrame(schema=schema)
    try:
        return pl.read_ndjson(b"".join(lines), schema=schema)
    except pl.exceptions.PolarsError:  # a line of it is no JSON, or not UTF-8
        records = [_record(path, number + i, line) for i, line in enumerate(lines) if line]
        clean = "\n".join(json.dumps({name: record.get(name) for name in schema}) for record in records)
        with _named(path):
            return pl.read_ndjson(io.BytesIO(clean.encode()), schema=schema)


def _record(path: Path, number: int, line: bytes) -> dict[str, object]:
    """A line that stays JSON when what is not UTF-8 in it is replaced."""
    try:
        found = json.loads(line.decode("utf-8-sig", "replace"))
    except ValueError as error:
        raise SourceError(f"{path}, line {number}: not JSON ({error}); expected one record a line") from error
    if not isinstance(found, dict):
        raise SourceError(f"{path}, line {number}: {type(found).__name__}, expected a JSON object a line")
    return found
