"""Texts of a reference corpus: what a language model is trained on instead of the corpus itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl

from stages.stage import MissingModelError, StageParameterError

_SCANS: dict[str, Callable[[Path], pl.LazyFrame]] = {
    ".txt": pl.scan_lines,
    ".text": pl.scan_lines,
    ".jsonl": pl.scan_ndjson,
    ".ndjson": pl.scan_ndjson,
    ".parquet": pl.scan_parquet,
}
_PACKED = (".gz", ".zst")
_ROWS = 50_000  # read at a time


def files(reference: str) -> tuple[Path, ...]:
    """The files of a reference, in order of name; none for an empty string.

    Raises:
        MissingModelError: there is no such file, or the folder has none that can be read.
    """
    if not reference:
        return ()
    path = Path(reference).expanduser()
    found = sorted(one for one in ([path] if path.is_file() else path.rglob("*")) if _kind(one) in _SCANS)
    if not found:
        raise MissingModelError(
            f"no reference corpus at {reference!r}: expected a file, or a folder of files, that ends in "
            f"{', '.join(_SCANS)} (text and JSONL also with {' or '.join(_PACKED)})"
        )
    return tuple(found)


def batches(reference: str) -> Iterator[pl.Series]:
    """Texts of a reference, some at a time.

    Raises:
        StageParameterError: a file cannot be read, or has neither a column `text` nor one `messages` with `content`.
    """
    for path in files(reference):
        try:
            scan = _SCANS[_kind(path)](path)
            texts = scan.select(_column(path, scan.collect_schema()))
            for batch in texts.collect_batches(chunk_size=_ROWS, maintain_order=True):
                yield batch.to_series()
        except (pl.exceptions.PolarsError, OSError) as error:
            said = str(error).strip().splitlines()[:1]
            raise StageParameterError(f"reference {str(path)!r} cannot be read: {' '.join(said)}") from error


def _kind(path: Path) -> str:
    endings = [ending for ending in path.suffixes if ending not in _PACKED]
    return endings[-1] if endings else ""


def _column(path: Path, schema: pl.Schema) -> pl.Expr:
    if _SCANS[_kind(path)] is pl.scan_lines:
        return pl.col("line")
    if schema.get("text") == pl.String:
        return pl.col("text").fill_null("")
    messages = schema.get("messages")
    turn = messages.inner if isinstance(messages, pl.List) else None
    if isinstance(turn, pl.Struct) and any(field.name == "content" for field in turn.fields):
        contents = pl.col("messages").list.eval(pl.element().struct.field("content").cast(pl.String).fill_null(""))
        return contents.list.join("\n").fill_null("")
    raise StageParameterError(
        f"reference {str(path)!r} has the columns {', '.join(schema)}: expected `text` (strings) or `messages` (role, "
        f"content); name another file or convert it"
    )
