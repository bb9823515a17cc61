"""Rows of a folder written by `Dataset.save_to_disk`."""

import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.sources.hub import one_split
from pipeline.sources.rows import Hashes, Row, Source, SourceError, valid_text, why
from stages import readers


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` of a Dataset or a DatasetDict wrote this folder."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


@dataclass(frozen=True)
class SavedDataset(Source):
    """A folder written by `Dataset.save_to_disk`, one split or a `DatasetDict`."""

    name: str
    folder: Path
    split: str | None
    _hashes: Hashes = field(default_factory=Hashes, compare=False, repr=False)

    def paths(self) -> Sequence[Path]:
        return (self.folder,)

    def origin(self) -> dict[str, Any]:
        return {"split": self.split} if self.split else {}

    def digest(self) -> str:
        return self._hashes.digest(self._files(), self.split or "")

    def files(self) -> list[dict[str, Any]]:
        return [
            self._hashes.describe(path, valid_text(path.relative_to(self.folder).as_posix())) for path in self._files()
        ]

    def rows(self) -> Iterator[Row]:
        """Its rows; raises `SourceError` if one of its files is damaged."""
        import datasets

        number = 0
        try:
            for path in self._files():  # `datasets` trusts a damaged file
                with readers.open_arrow(path) as (_, batches):
                    deque(batches, 0)
            dataset = datasets.load_from_disk(str(self._part())).with_format(None)
            for number, record in enumerate(dataset, 1):
                yield Row(self.name, number, record)
        except SourceError:
            raise
        except Exception as error:  # depends on where the file is damaged
            raise SourceError(
                f"{self.name} is not a whole saved Dataset: it cannot be read after row {number} "
                f"({type(error).__name__}: {why(error)}): save it again"
            ) from error

    def save(self, numbers: Sequence[int], folder: Path) -> None:
        """Save the rows with these numbers, counted from 1, as a Dataset with the same features."""
        import datasets

        dataset = datasets.load_from_disk(str(self._part())).with_format(None)
        dataset.select([number - 1 for number in numbers]).save_to_disk(str(folder))

    def _part(self) -> Path:
        """The folder of the split."""
        if (self.folder / "dataset_dict.json").is_file():
            splits = self._parsed(self.folder / "dataset_dict.json", "splits")["splits"]
            return self.folder / one_split(self.name, [str(split) for split in splits], self.split)
        split = self._parsed(self.folder / "state.json", "_data_files").get("_split")
        if self.split not in {None, split}:
            raise SourceError(
                f"{self.name} is one saved Dataset{f' of the split {split}' if split else ''}, without a split "
                f"{self.split!r}: omit --split"
            )
        return self.folder

    def _files(self) -> list[Path]:
        """The files of the split; other files in the folder are caches."""
        part = self._part()
        files = self._parsed(part / "state.json", "_data_files")["_data_files"]
        return [part / str(file["filename"]) for file in files if "filename" in file]

    def _parsed(self, path: Path, key: str) -> dict[str, Any]:
        """A JSON file of the folder, in which `key` must be a list."""
        try:
            value = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            fault: str = why(error)
        else:
            if isinstance(value, dict) and isinstance(value.get(key), list):
                return value
            fault = f"it has no list {key!r}"
        raise SourceError(f"{self.name} is not a whole saved Dataset: {path.name} cannot be read ({fault}): save again")
