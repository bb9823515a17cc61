"""Digests of files' content, each file read once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.sources.rows import SourceError, shown


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
