"""The texts of a corpus in files, such as an earlier corpus or a reference to train on."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from stages import readers
from stages.readers import RECORDS, TEXT, Listing, UnreadableFileError
from stages.stage import MissingModelError, StageParameterError, reason

TEXTS = ("content", "value")
"""Fields of a message that hold its text; the first one that is not null counts."""
ID_COLUMNS = ("id", "source_id", "prompt_id")
"""Columns that name a conversation; the first one present counts."""
BATCH_BYTES = 1 << 24
"""Target size of a batch in bytes."""

_LISTS = ("messages", "conversations")  # columns of messages
_TYPES: dict[str, pl.DataType] = {
    **dict.fromkeys((*ID_COLUMNS, "text"), pl.String()),  # an id may be a number
    **dict.fromkeys(_LISTS, pl.List(pl.Struct(dict.fromkeys(TEXTS, pl.String())))),
    "data": pl.List(pl.String()),
}


@dataclass(frozen=True)
class Corpus:
    """A corpus that a stage's parameter names."""

    path: str  # a file, a folder of files, or a run folder, of which the refined conversations are read; empty for none
    name: str = "corpus"  # what messages call it
    endings: tuple[str, ...] = RECORDS  # of the files that are read; each line of plain text is a text

    def files(self) -> tuple[Path, ...]:
        """The files in order of their names; none for an empty path."""
        return self.listing().paths if self.path else ()

    def notes(self) -> tuple[str, ...]:
        """What is left out of a folder, if anything is; see `Listing.note`."""
        note = self.listing().note() if self.path else ""
        return (note,) if note else ()

    def listing(self) -> Listing:
        """The files to read; `MissingModelError` if there is none, or the run is not complete."""
        path = Path(self.path).expanduser()
        if readers.is_run(path):
            if not (path / "manifest.json").exists():
                raise MissingModelError(
                    f"{self.path!r} is a run that is not complete: finish it, or name another {self.name}"
                )
            path /= "refined"
        listing = readers.list_files(path, self.endings).one_corpus()
        if not listing.paths:
            raise MissingModelError(
                f"no {self.name} at {self.path!r}: expected a run folder, a file, or a folder of files ending in "
                f"{', '.join(self.endings)} (text and JSON also with "
                f"{', '.join(readers.PACKINGS)})"
            )
        return listing

    def batches(self) -> Iterator[pl.DataFrame]:
        """Conversations in batches: `text` (messages joined by a newline, never null) and `name`.

        The name is the id, else the prompt's id, else the file and the row, counted from 1. `StageParameterError` if a
        file cannot be read, or has no column with text.
        """
        for path in self.files():
            row = 1
            try:
                for frame in self._frames(path):
                    names = [pl.col(name).cast(pl.String) for name in ID_COLUMNS if name in frame.columns]
                    rows = pl.format("{}:{}", pl.lit(path.name), pl.int_range(row, row + pl.len()))
                    yield frame.select(text=self._text(path, frame), name=pl.coalesce(*names, rows))
                    row += frame.height
            except UnreadableFileError as error:
                raise StageParameterError(f"{self.name} {str(path)!r} {error}") from error
            except (pl.exceptions.PolarsError, OSError) as error:
                raise StageParameterError(
                    f"{self.name} {str(path)!r} cannot be read near row {row} ({reason(error)})"
                ) from error

    def _frames(self, path: Path) -> Iterator[pl.DataFrame]:
        """The columns of a file that matter, or all of them if none does."""
        if readers.ending(path) in TEXT:
            for lines in readers.text_lines(path, BATCH_BYTES):
                text = b"".join(lines).decode("utf-8", "replace")
                yield pl.DataFrame({"text": text.removesuffix("\n").split("\n")})
        elif columns := readers.schema(path):
            if readers.ending(path) in readers.JSON:
                columns = pl.Schema({name: _TYPES.get(name, pl.String()) for name in columns})
            known = {name: kind for name, kind in columns.items() if name in _TYPES}
            yield from readers.frames(path, pl.Schema(known or columns), BATCH_BYTES)

    def _text(self, path: Path, frame: pl.DataFrame) -> pl.Expr:
        schema = frame.schema
        for name in _LISTS:
            turn = schema[name].inner if isinstance(schema.get(name), pl.List) else None  # type: ignore[attr-defined]
            fields = turn.fields if isinstance(turn, pl.Struct) else []
            if has := [each.name for each in fields if each.name in TEXTS]:
                contents = [pl.element().struct.field(field).cast(pl.String) for field in has]
                texts = pl.col(name).list.eval(pl.coalesce(*contents))
                if not frame.select(texts.list.drop_nulls().list.len().sum()).item() and frame[name].list.len().sum():
                    break  # all texts would be empty, and nothing is near to one
                return texts.list.eval(pl.element().fill_null("")).list.join("\n").fill_null("")
        if schema.get("data") == pl.List(pl.String):
            return pl.col("data").list.eval(pl.element().fill_null("")).list.join("\n").fill_null("")
        if schema.get("text") == pl.String:
            return pl.col("text").fill_null("")
        raise StageParameterError(
            f"{self.name} {str(path)!r} has the columns {', '.join(schema) or 'none'}: expected `messages` or "
            "`conversations`, whose messages have content or value, `data` (texts) or `text`; name another file or "
            "convert it"
        )
