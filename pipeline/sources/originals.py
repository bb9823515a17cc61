"""The kept records as they came, in files of the same names, formats and schemas as the source's."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import shutil
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pipeline.sources import EmbeddedSource, Files, Source, SourceError, find
from pipeline.sources.rows import Row
from pipeline.sources.saved_dataset import SavedDataset
from stages import readers
from stages.files import scratch


def is_asked(word: str | None) -> bool:
    """Whether `--as` asks for the records as they came; raises `SourceError` if it asks for anything else."""
    if word not in {None, "source"}:
        raise SourceError(f"--as is {word!r}, expected source: omit it for the output of a run alone")
    return word is not None


def check(source: Source) -> None:
    """Raise `SourceError` for a source whose records cannot be written as they came."""
    if isinstance(source, EmbeddedSource) or not isinstance(source, Files | SavedDataset):
        raise SourceError(
            f"--as source writes files and saved Datasets, and {source.name} is neither: omit --as, or name a file"
        )


def find_again(origin: Mapping[str, Any]) -> Source:
    """The source of a run with this source.json; raises `SourceError` if it is not where it was, or has changed."""
    name = str(origin["source"])
    if "hub" in origin:
        raise SourceError(f"--as source writes files and saved Datasets, and {name} is neither: omit --as")
    source = find(name, split=origin.get("split"))
    check(source)
    if source.digest() != origin["digest"]:
        raise SourceError(f"{name} has changed since the run read it: start `refine run` with --as source")
    return source


def write(source: Source, rows: Iterable[Row], kept: Collection[int], folder: Path) -> None:
    """Replace `folder` by the kept records of a source.

    `rows` are the rows that became conversations, `kept` the positions of the kept ones, from 0. The record of a JSON
    line is the same line, that of a JSON array an equal value, a table of text has the fields of the source's, and a
    Parquet or Arrow file its schema.
    """
    chosen: dict[str, set[int]] = defaultdict(set)
    for position, row in enumerate(rows):
        if position in kept:
            chosen[row.file].update(row.parts or (row.number,))
    with scratch(folder.parent, folder.name) as aside:
        if isinstance(source, SavedDataset):
            source.save(sorted(chosen[source.name]), aside)
        elif isinstance(source, Files):
            for path in source.members:
                _write(path, chosen[source.label(path)], aside / _below(path, source.root))
        if folder.exists():
            shutil.rmtree(folder)
        aside.replace(folder)


def _below(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path != root else Path(path.name)


def _write(path: Path, numbers: Collection[int], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    writers = {".parquet": _write_parquet, **dict.fromkeys(readers.CSV, _write_csv)}
    writers |= dict.fromkeys(readers.JSON, _write_json)
    writers.get(readers.ending(path), _write_arrow)(path, numbers, target)


def _write_json(path: Path, numbers: Collection[int], target: Path) -> None:
    around = readers.envelope(path)
    lines = (line.rstrip(b"\r\n") for line in _lines(path, numbers))
    with _pack(target) as out:
        if around is None:
            out.writelines(line + b"\n" for line in lines)
        else:
            out.write(around[0])
            out.writelines((b",\n" if i else b"") + line for i, line in enumerate(lines))
            out.write(around[1])


def _write_csv(path: Path, numbers: Collection[int], target: Path) -> None:
    with (
        readers.open_csv(path) as (separator, rows),
        _pack(target) as packed,
        io.TextIOWrapper(packed, "utf-8", readers.AS_IS, newline="") as out,
    ):
        chosen = (row for number, row in enumerate(rows, 1) if number == 1 or number in numbers)
        csv.writer(out, delimiter=separator, lineterminator="\n").writerows(chosen)


def _write_arrow(path: Path, numbers: Collection[int], target: Path) -> None:
    import pyarrow as pa

    with path.open("rb") as file:
        new = pa.ipc.new_file if file.read(6) == b"ARROW1" else pa.ipc.new_stream
    start = 1
    with readers.open_arrow(path) as (schema, batches), target.open("wb") as sink, new(sink, schema) as out:
        for batch in batches:
            chosen = [number in numbers for number in range(start, start + batch.num_rows)]
            out.write_batch(batch.filter(pa.array(chosen)))
            start += batch.num_rows


def _lines(path: Path, numbers: Collection[int]) -> Iterator[bytes]:
    for first, lines in readers.lines(path):
        yield from (line for number, line in enumerate(lines, first) if number in numbers)


@contextmanager
def _pack(target: Path) -> Iterator[IO[bytes]]:
    """A new file, compressed as its name says; the same bytes each time."""
    ending = target.suffix.lower()
    if ending == ".zst":
        import pyarrow as pa

        with pa.output_stream(str(target), compression="zstd") as out:
            yield out
    elif ending == ".gz":
        with target.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
            yield packed  # type: ignore[misc]  # it is written to like any other
    elif ending in {".bz2", ".xz"}:
        with bz2.open(target, "wb") if ending == ".bz2" else lzma.open(target, "wb") as packed:
            yield packed
    else:
        with target.open("wb") as plain:
            yield plain


def _write_parquet(path: Path, numbers: Collection[int], target: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    start = 1
    with (
        path.open("rb") as binary,
        pq.ParquetFile(binary) as file,
        pq.ParquetWriter(target, file.schema_arrow, compression="zstd", use_compliant_nested_type=False) as out,
    ):
        groups = range(file.num_row_groups)  # a batch must not span two: Arrow cannot join some nested types
        for batch in (batch for group in groups for batch in file.iter_batches(1_000, row_groups=[group])):
            chosen = [number in numbers for number in range(start, start + batch.num_rows)]
            if any(chosen):  # `datasets` cannot read a row group without rows
                out.write_batch(batch.filter(pa.array(chosen)))
            start += batch.num_rows
