"""Rows of a dataset of the hub, streamed; what cannot be reached or found is a `SourceError`."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.sources.rows import Row, Source, SourceError, why

TRIES = 5
"""Maximum number of attempts in a row that yield no row."""
WAIT = 1.0
"""Seconds before the second attempt; each later one waits twice as long."""
_PERMANENT = (ValueError, TypeError, LookupError, ImportError, FileNotFoundError, NotImplementedError)
"""Errors that another attempt does not cure if they come before the first row."""


@dataclass(frozen=True)
class Hub(Source):
    """A dataset of the hub, streamed: only the raw shards are kept on disk."""

    name: str
    split: str | None = None
    config: str | None = None
    revision: str | None = None
    _pinned: dict[str, str] = field(default_factory=dict, compare=False)

    def _options(self) -> dict[str, Any]:
        return {"hub": self.name, "split": self.split, "config": self.config, "revision": self.revision}

    def again(self, before: Mapping[str, Any]) -> Hub:
        """Pinned to the commit of an earlier run with the same options, so that no network is needed."""
        commit = before.get("commit")
        same = all(before.get(key) == value for key, value in self._options().items())
        return replace(self, _pinned={"sha": commit}) if same and isinstance(commit, str) else self

    def pinned(self) -> str:
        """The commit that the revision names now; it keeps ids and resumed runs stable."""
        if "sha" not in self._pinned:
            from huggingface_hub import HfApi

            try:
                self._pinned["sha"] = str(HfApi().dataset_info(self.name, revision=self.revision).sha)
            except Exception as error:
                raise SourceError(
                    f"no file or folder {self.name!r} here, and the hub returned no dataset of that name "
                    f"({type(error).__name__}: {why(error)}): check the spelling, or the network"
                ) from error
        return self._pinned["sha"]

    def origin(self) -> dict[str, Any]:
        return {**self._options(), "commit": self.pinned()}

    def digest(self) -> str:
        identity = json.dumps([self.name, self.pinned(), self.config, self.split])
        return hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()

    def files(self) -> list[dict[str, Any]]:
        return [{"hub": self.name, "revision": self.pinned(), "config": self.config, "split": self.split}]

    def rows(self) -> Iterator[Row]:
        return self.rows_after(0)

    def rows_after(self, count: int) -> Iterator[Row]:
        """Its rows. A stream that breaks off is resumed at the row that it had reached."""
        number, lost, first = count, 0, count
        while True:
            try:
                for record in self._stream(number):
                    number, lost = number + 1, 0
                    yield Row(self.name, number, record)
            except SourceError:
                raise
            except Exception as error:
                lost += 1
                if lost == TRIES or (number == first and isinstance(error, _PERMANENT)):
                    raise SourceError(
                        f"{self.name}: the hub's data cannot be streamed past row {number:,} "
                        f"({type(error).__name__}: {why(error)}): check the network and start again with the same --out"
                    ) from error
                time.sleep(WAIT * 2 ** (lost - 1))
            else:
                return

    def _stream(self, start: int) -> Iterator[Any]:
        import datasets

        streams = datasets.load_dataset(self.name, self.config, revision=self.pinned(), streaming=True)
        stream = streams[one_split(self.name, list(streams), self.split)]
        return iter(stream.skip(start) if start else stream)


def one_split(name: str, splits: list[str], split: str | None) -> str:
    """The split of this name, or the only one."""
    if split is None and len(splits) == 1:
        return splits[0]
    if split not in splits:
        fault = "no split is named" if split is None else f"there is no split {split!r}"
        raise SourceError(f"{name} has the splits {', '.join(splits)}, but {fault}: name one with --split")
    return str(split)
