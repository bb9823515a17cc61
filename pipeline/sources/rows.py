"""A row of a source, before its shape is known."""

from __future__ import annotations

import hashlib
import re
import string
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stages.stage import reason

_LETTERS = ("", *string.ascii_lowercase)


class SourceError(Exception):
    """A source is missing, cannot be read, or holds no conversations; the message says what to do."""


class Unreadable(NamedTuple):
    """A row that cannot be read."""

    reason: str
    record: str


class Row(NamedTuple):
    """A row of a source: the record, or `Unreadable`. It is `replaced` if U+FFFD stands for bytes that are not text."""

    file: str
    number: int
    """From 1; of JSON Lines it is the line."""
    value: Any
    replaced: bool = False
    parts: tuple[int, ...] = ()
    """Numbers of the rows that it was made of; none if it is a row itself."""


class Piece(NamedTuple):
    """Consecutive rows of a file, which any process can read without those before."""

    path: str
    file: str
    """What the file is called in messages."""
    first: int
    """Number of the first line of JSON Lines, or of the first row."""
    begin: int
    """Where the first line begins in the file in bytes; 0 in a table."""
    rows: int


def row_id(digest: str, number: int) -> str:
    """The id of a row of a source, from the source's digest. As texts, ids sort like numbers.

    A number has nine digits, or more and before them a letter that says how many: 999999999, a1000000000.
    """
    digits = f"{number:09d}"
    return f"{digest}-{_LETTERS[len(digits) - 9]}{digits}"


class Source(ABC):
    """A source of records, always in the same order."""

    name: str
    """What the user calls it."""

    def paths(self) -> Sequence[Path]:
        """Files and folders that are read."""
        return ()

    def note(self, out: Path) -> str:
        """What is left out of its folder, besides a run in `out`; empty if nothing is."""
        del out
        return ""

    def again(self, before: Mapping[str, Any]) -> Source:
        """This source as the run with the source.json `before` read it."""
        del before
        return self

    def origin(self) -> dict[str, Any]:
        """What source.json needs for `again`, besides name and digest."""
        return {}

    @abstractmethod
    def digest(self) -> str:
        """16 hex digits of its content; ids begin with them."""

    @abstractmethod
    def files(self) -> list[dict[str, Any]]:
        """Its files for the manifest."""

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """Its rows."""

    def rows_after(self, count: int) -> Iterator[Row] | None:
        """Its rows but the first ones; None if an interrupted ingest should read them all again."""
        del count
        return None

    def pieces(self, rows: int) -> list[Piece] | None:
        """All rows, cut where a file begins and after each `rows` rows; None if they can only be read in order."""
        del rows
        return None


_SURROGATES = re.compile(r"[\ud800-\udfff]")


def valid_text(name: str) -> str:
    """A text that Parquet and JSON can hold: each byte of a file name that is not UTF-8 becomes U+FFFD."""
    return _SURROGATES.sub("\ufffd", name)


def why(error: BaseException) -> str:
    """The first line of an error's message, as text that Parquet and JSON can hold."""
    return valid_text(reason(error))


class Hashes(dict[Path, bytes]):
    """Content digests of files, each computed once."""

    def __missing__(self, path: Path) -> bytes:
        try:
            with path.open("rb") as file:
                self[path] = hashlib.file_digest(file, "blake2b").digest()
        except OSError as error:
            raise SourceError(f"{valid_text(str(path))} cannot be read: {error.strerror}") from error
        return self[path]

    def digest(self, paths: Sequence[Path], salt: str = "") -> str:
        """16 hex digits of the content of files, in order, whatever their names."""
        state = hashlib.blake2b(salt.encode("utf-8", "replace"), digest_size=8)
        for path in paths:
            state.update(self[path])
        return state.hexdigest()

    def describe(self, path: Path, name: str) -> dict[str, Any]:
        """A file for the manifest: name, bytes, content digest."""
        return {"name": name, "bytes": path.stat().st_size, "blake2b": self.digest([path])}
