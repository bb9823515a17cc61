"""A row of a source, as it was found."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple


class SourceError(Exception):
    """A source is not there, cannot be read, or holds no conversations; the message says what to do."""


class Unreadable(NamedTuple):
    """A row that could not be read."""

    reason: str
    record: str


class Row(NamedTuple):
    """A row of a source. `number` counts from 1 in its file, as a line of JSONL does."""

    file: str
    number: int
    value: Any
    replaced: bool = False


_SURROGATES = re.compile(r"[\ud800-\udfff]")


def shown(name: str) -> str:
    """A text that Parquet and JSON can hold: in the name of a file each byte that is not UTF-8 becomes U+FFFD."""
    return _SURROGATES.sub("\ufffd", name)


def why(error: BaseException) -> str:
    """The first line of an error's message, or the error's name."""
    return shown((str(error).splitlines() or [""])[0].strip() or type(error).__name__)


class Hashes(dict[Path, bytes]):
    """The content digest of each file that was asked for."""

    def __missing__(self, path: Path) -> bytes:
        try:
            with path.open("rb") as file:
                self[path] = hashlib.file_digest(file, "blake2b").digest()
        except OSError as error:
            raise SourceError(f"{shown(str(path))} cannot be read: {error.strerror}") from error
        return self[path]

    def digest(self, paths: Sequence[Path], salt: str = "") -> str:
        """16 hex digits of the content of files, in order; their names do not count.

        Raises:
            SourceError: a file cannot be read.
        """
        state = hashlib.blake2b(salt.encode("utf-8", "replace"), digest_size=8)
        for path in paths:
            state.update(self[path])
        return state.hexdigest()

    def described(self, path: Path, name: str) -> dict[str, Any]:
        """A file for the manifest: name, bytes, content digest."""
        return {"name": name, "bytes": path.stat().st_size, "blake2b": self.digest([path])}
