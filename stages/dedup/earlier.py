"""An earlier corpus, read from whatever files it comes in: the text of each conversation, and what it is called."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from stages.readers import opened, suffix
from stages.stage import MissingModelError, StageParameterError

ENDINGS = (".parquet", ".jsonl", ".ndjson", ".json")
NAMES = ("id", "source_id", "prompt_id")
"""Columns that name a conversation, the first that is there."""

_LISTS = {"messages": "content", "conversations": "value"}  # of messages, and the field that holds what is said
_KINDS: dict[str, pl.DataType] = {
    **dict.fromkeys((*NAMES, "text"), pl.String()),
    **{name: pl.List(pl.Struct({field: pl.String()})) for name, field in _LISTS.items()},
    "data": pl.List(pl.String()),
}
_ROWS, _BYTES = 20_000, 1 << 24  # read at a time


def files(corpus: str) -> tuple[Path, ...]:
    """The files of a corpus, in order of name; of a run folder the refined shards; none for an empty string.

    Raises:
        MissingModelError: there is no such file, the folder has none that can be read, or the run is not complete.
    """
    if not corpus:
        return ()
    path = Path(corpus).expanduser()
    if (path / "source.json").exists() and (path / "raw").is_dir():
        if not (path / "manifest.json").exists():
            raise MissingModelError(f"{corpus!r} is a run that is not complete: finish it, or name another corpus")
        path /= "refined"
    found = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())
    found = [one for one in found if suffix(one) in ENDINGS and not one.name.startswith(".")]
    if not found:
        raise MissingModelError(
            f"no corpus at {corpus!r}: expected a run folder, a file, or a folder of files, that ends in "
            f"{', '.join(ENDINGS)} (JSON also with .gz or .zst)"
        )
    return tuple(found)


def batches(corpus: str) -> Iterator[pl.DataFrame]:
    """The conversations of a corpus, some at a time: `text` (contents joined by a newline, never null) and `name`.

    The name is the id, else the prompt's id, else the file and the row counted from 1.

    Raises:
        StageParameterError: a file cannot be read, or has no column that a conversation can be read from.
    """
    for path in files(corpus):
        row = 1
        try:
            for frame in _frames(path):
                yield (named := _named(path, frame, row))
                row += named.height
        except (pl.exceptions.PolarsError, OSError, EOFError, ValueError) as error:
            if isinstance(error, StageParameterError):
                raise
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise StageParameterError(f"corpus {str(path)!r} cannot be read near row {row}: {said}") from error


def _named(path: Path, frame: pl.DataFrame, row: int) -> pl.DataFrame:
    names = [pl.col(name).cast(pl.String) for name in NAMES if name in frame.columns]
    rows = pl.format("{}:{}", pl.lit(path.name), pl.int_range(row, row + pl.len()))
    return frame.select(text=_text(path, frame.schema), name=pl.coalesce(*names, rows))


def _frames(path: Path) -> Iterator[pl.DataFrame]:
    """The columns of a file that are needed, some rows at a time."""
    if suffix(path) == ".parquet":
        scan = pl.scan_parquet(path)
        there = [name for name in _KINDS if name in scan.collect_schema()] or list(scan.collect_schema())
        yield from scan.select(there).collect_batches(chunk_size=_ROWS, maintain_order=True)
        return
    schema = None
    for lines in _lines(path):
        # The types are given, not guessed: an id may be a number. What is not UTF-8 is replaced, as ingest does.
        text = lines.decode("utf-8", "replace").removeprefix("\ufeff").strip()
        if text:
            schema = schema or _schema(text)
            yield pl.read_ndjson(text.encode(), schema=schema)


def _lines(path: Path) -> Iterator[bytes]:
    """A file as JSON Lines, whole ones of about 16 MB; of a file that is one array the records, a line each."""
    with opened(path) as file:
        while lines := file.readlines(_BYTES):
            if suffix(path) == ".json" and lines[0].removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
                text = b"".join([*lines, *file]).decode("utf-8-sig", "replace")
                records = "\n".join(json.dumps(record, ensure_ascii=False) for record in json.loads(text))
                yield records.encode("utf-8", "surrogatepass")
                return
            yield b"".join(lines)


def _schema(lines: str) -> pl.Schema:
    """The types of the columns of the first record that are needed; of all columns where none is."""
    first = json.loads(lines.partition("\n")[0])
    if not isinstance(first, dict):
        raise ValueError(f"a record is {type(first).__name__}, expected an object")  # noqa: TRY004  of the file
    there = [name for name in _KINDS if name in first]
    return pl.Schema({name: _KINDS[name] for name in there} or dict.fromkeys(first, pl.String()))


def _text(path: Path, schema: pl.Schema) -> pl.Expr:
    for name, field in _LISTS.items():
        turn = schema[name].inner if isinstance(schema.get(name), pl.List) else None  # type: ignore[attr-defined]
        if isinstance(turn, pl.Struct) and any(each.name == field for each in turn.fields):
            said = pl.element().struct.field(field).cast(pl.String).fill_null("")
            return pl.col(name).list.eval(said).list.join("\n").fill_null("")
    if schema.get("data") == pl.List(pl.String):
        return pl.col("data").list.eval(pl.element().fill_null("")).list.join("\n").fill_null("")
    if schema.get("text") == pl.String:
        return pl.col("text").fill_null("")
    raise StageParameterError(
        f"corpus {str(path)!r} has the columns {', '.join(schema) or 'none'}: expected `messages` (role, content), "
        f"`conversations` (from, value), `data` (texts) or `text`; name another file or convert it"
    )
