"""Texts of a reference corpus: what a language model is trained on instead of the corpus itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from stages.stage import MESSAGES, MissingModelError, StageParameterError

_TEXT, _JSONL, _PARQUET = (".txt", ".text"), (".jsonl", ".ndjson"), (".parquet",)
_ROWS = 50_000  # of a Parquet file or JSONL at a time; lines of a text file


def files(reference: str) -> tuple[Path, ...]:
    """The files of a reference, in order of name; none for an empty string.

    Raises:
        MissingModelError: there is no such file, or the folder has none that can be read.
    """
    if not reference:
        return ()
    path = Path(reference)
    endings = (*_TEXT, *_JSONL, *_PARQUET)
    found = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.suffix in endings)
    if not found:
        raise MissingModelError(
            f"no reference corpus at {reference!r}: expected a file, or a folder of files, that ends in "
            f"{', '.join(endings)}"
        )
    return tuple(found)


def batches(reference: str) -> Iterator[pl.Series]:
    """Texts of a reference, some at a time.

    Raises:
        StageParameterError: a file has neither a column `text` of strings nor one `messages` of role and content.
    """
    for path in files(reference):
        if path.suffix in (*_JSONL, *_PARQUET):
            scan = pl.scan_parquet(path) if path.suffix in _PARQUET else pl.scan_ndjson(path)
            column = _column(path, scan.collect_schema())
            for batch in scan.select(column).collect_batches(chunk_size=_ROWS, maintain_order=True):
                yield batch.to_series()
        else:
            yield from _plain(path)


def _plain(path: Path) -> Iterator[pl.Series]:
    lines: list[str] = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            lines.append(line)
            if len(lines) == _ROWS:
                yield pl.Series(lines)
                lines = []
    yield pl.Series(lines, dtype=pl.String)


def _column(path: Path, schema: pl.Schema) -> pl.Expr:
    if schema.get("text") == pl.String:
        return pl.col("text").fill_null("")
    if schema.get("messages") == MESSAGES:
        contents = pl.col("messages").list.eval(pl.element().struct.field("content").fill_null(""))
        return contents.list.join("\n").fill_null("")
    raise StageParameterError(
        f"reference {str(path)!r} has the columns {', '.join(schema)}: expected `text` (strings) or `messages` (role, "
        f"content); name another file or convert it"
    )
