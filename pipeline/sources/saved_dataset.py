"""Rows of a folder written by `Dataset.save_to_disk`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.sources.hub import one_split
from pipeline.sources.rows import Hashes, Row, SourceError, shown, why


def is_saved(folder: Path) -> bool:
    """Whether this is the folder of a saved Dataset or DatasetDict."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


@dataclass(frozen=True)
class Saved:
    """A folder written by `Dataset.save_to_disk`, one split or a `DatasetDict`."""

    name: str
    folder: Path
    split: str | None
    _hashes: Hashes = field(default_factory=Hashes, compare=False, repr=False)

    def paths(self) -> Sequence[Path]:
        return (self.folder,)

    def again(self, _before: Mapping[str, Any]) -> Saved:
        return self

    def origin(self) -> dict[str, Any]:
        return {}

    def digest(self) -> str:
        return self._hashes.digest(self._files(), self.split or "")

    def files(self) -> list[dict[str, Any]]:
        found = self._files()
        return [self._hashes.described(path, shown(path.relative_to(self.folder).as_posix())) for path in found]

    def rows(self) -> Iterator[Row]:
        """Its rows.

        Raises:
            SourceError: a file of it is broken.
        """
        import datasets

        number = 0
        try:
            found = datasets.load_from_disk(str(self._part())).with_format(None)
            for number, record in enumerate(found, 1):
                yield Row(self.name, number, record)
        except SourceError:
            raise
        except Exception as error:  # what a broken file raises depends on where it is broken
            raise SourceError(
                f"{self.name} is not a whole saved Dataset: it cannot be read after row {number} "
                f"({type(error).__name__}: {why(error)}): save it again"
            ) from error

    def _part(self) -> Path:
        """The folder of the split that is meant."""
        if (self.folder / "dataset_dict.json").is_file():
            there = self._said(self.folder / "dataset_dict.json", "splits")["splits"]
            return self.folder / one_split(self.name, [str(split) for split in there], self.split)
        has = self._said(self.folder / "state.json", "_data_files").get("_split")
        if self.split not in {None, has}:
            raise SourceError(
                f"{self.name} is one saved Dataset{f' of the split {has}' if has else ''}, and there is no split "
                f"{self.split!r} in it: leave --split away"
            )
        return self.folder

    def _files(self) -> list[Path]:
        """The files of the split that is meant; others in the folder are caches."""
        part = self._part()
        files = self._said(part / "state.json", "_data_files")["_data_files"]
        return [part / str(file["filename"]) for file in files if "filename" in file]

    def _said(self, path: Path, key: str) -> dict[str, Any]:
        """What a JSON file of the folder says, in which `key` must be a list."""
        try:
            said = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            fault: str = why(error)
        else:
            if isinstance(said, dict) and isinstance(said.get(key), list):
                return said
            fault = f"it has no list {key!r}"
        raise SourceError(f"{self.name} is not a whole saved Dataset: {path.name} cannot be read ({fault}): save again")
