"""A row of a source, as it was found."""

from __future__ import annotations

import re
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
