"""An earlier corpus, read from whatever files it comes in: the text of each conversation, and what it is called."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from stages.packed import opened, suffix
from stages.stage import MissingModelError, StageParameterError

ENDINGS = (".parquet", ".jsonl", ".ndjson", ".json")
NAMES = ("id", "source_id", "prompt_id")
"""Columns that name a conversation, the first that is there."""

_LISTS = {"messages": "content", "conversations": "value"}  # of messages, and the field that holds what is said
_ROWS = 20_000  # read at a time


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
        try:
            frame = _frame(path)
            schema = frame.collect_schema()
            names = [pl.col(name).cast(pl.String) for name in NAMES if name in schema]
            chosen = frame.select(text=_text(path, schema), name=pl.coalesce(pl.lit(None, pl.String), *names))
            chosen = chosen.with_row_index("row", 1)
            named = chosen.select("text", pl.coalesce("name", pl.format("{}:{}", pl.lit(path.name), "row")))
            yield from named.collect_batches(chunk_size=_ROWS, maintain_order=True)
        except (pl.exceptions.PolarsError, OSError, ValueError) as error:
            if isinstance(error, StageParameterError):
                raise
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise StageParameterError(f"corpus {str(path)!r} cannot be read: {said}") from error


def _frame(path: Path) -> pl.LazyFrame:
    """The columns of a file that are needed. Of JSON the types are given, not guessed: an id may be a number."""
    if suffix(path) == ".parquet":
        return pl.scan_parquet(path)
    with opened(path) as file:
        start = next((line.strip() for line in file if line.strip()), b"{}").removeprefix(b"\xef\xbb\xbf")
    if start.startswith(b"["):
        with opened(path) as file:
            records = json.loads(file.read().decode("utf-8-sig", "replace"))
        return pl.DataFrame(records, schema=_schema(records[:1]), strict=False).lazy()
    return pl.scan_ndjson(path, schema=_schema([json.loads(start)]))


def _schema(first: list[object]) -> pl.Schema:
    """The types of the columns of a record that are needed."""
    there = first[0] if first and isinstance(first[0], dict) else {}
    kinds: dict[str, pl.DataType] = dict.fromkeys((*NAMES, "text"), pl.String())
    kinds |= {name: pl.List(pl.Struct({field: pl.String()})) for name, field in _LISTS.items()}
    kinds["data"] = pl.List(pl.String())
    return pl.Schema({name: kind for name, kind in kinds.items() if name in there})


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
