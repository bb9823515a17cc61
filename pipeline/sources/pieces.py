"""Pieces of files that several processes read at the same time: lines of JSON Lines, row groups of Parquet."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.sources import lines
from pipeline.sources.rows import Piece, Row
from stages import readers

MAX_GROUP = 4
"""Maximum number of pieces in a row group, since each of them decodes the group up to its own end."""


def cut(files: Sequence[tuple[Path, str]], rows: int) -> list[Piece] | None:
    """The rows of files, each with its label, in pieces; None if one can only be read in order, or not at all.

    A piece ends with its file, and after each `rows` rows, counted from the first file on.
    """
    pieces, total = list[Piece](), 0
    for path, label in files:
        try:
            blocks = _blocks(path, rows - total % rows, rows)
        except (readers.UnreadableFileError, OSError):  # whoever reads it in order says what is wrong
            return None
        if blocks is None:
            return None
        pieces += [Piece(str(path), label, *block) for block in blocks]
        total += sum(rows for *_, rows in blocks)
    return pieces


def _blocks(path: Path, room: int, rows: int) -> list[tuple[int, int, int]] | None:
    """(first, begin, rows) of the pieces of a file, of which the first one has at most `room` rows."""
    if readers.ending(path) in readers.JSON:
        return readers.line_blocks(path, room, rows)
    if readers.ending(path) != ".parquet":
        return None
    from pipeline.sources import tables

    total, longest = tables.parquet_sizes(path)
    if longest > MAX_GROUP * rows:
        return None
    begins = [0, *range(room, total, rows)]
    return [(begin + 1, 0, end - begin) for begin, end in zip(begins, [*begins[1:], total], strict=True) if end > begin]


def rows_of(piece: Piece) -> Iterator[Row]:
    """The rows of a piece."""
    if readers.ending(Path(piece.path)) in readers.JSON:
        return lines.piece_rows(piece)
    from pipeline.sources import tables

    return tables.rows(Path(piece.path), piece.file, piece.first - 1, piece.rows)
