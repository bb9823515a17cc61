"""Rows of a dataset of the hub, streamed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.sources.rows import Row, SourceError, why

TRIES = 5
"""How often in a row a stream may be lost without giving a row."""
WAIT = 1.0
"""Seconds before the first new try; each one waits twice as long."""
_SAID = (ValueError, TypeError, LookupError, ImportError, FileNotFoundError, NotImplementedError)
"""Errors that another try does not mend, when they come before any row."""


@dataclass(frozen=True)
class Hub:
    """A dataset of the hub, streamed; nothing of it is kept on disk but the raw shards."""

    name: str
    split: str | None = None
    config: str | None = None
    revision: str | None = None
    _pinned: dict[str, str] = field(default_factory=dict, compare=False)

    def asked(self) -> dict[str, Any]:
        return {"hub": self.name, "split": self.split, "config": self.config, "revision": self.revision}

    def paths(self) -> Sequence[Path]:
        return ()

    def again(self, before: Mapping[str, Any]) -> Hub:
        """Pinned to the commit that a run began with, where that run was asked for the same: no network is needed."""
        commit = before.get("commit")
        same = all(before.get(key) == value for key, value in self.asked().items())
        return replace(self, _pinned={"sha": commit}) if same and isinstance(commit, str) else self

    def pinned(self) -> str:
        """The commit that the revision means now, so that ids and resumed runs hold.

        Raises:
            SourceError: the hub cannot be reached, or has no such dataset.
        """
        if "sha" not in self._pinned:
            from huggingface_hub import HfApi

            try:
                self._pinned["sha"] = str(HfApi().dataset_info(self.name, revision=self.revision).sha)
            except Exception as error:
                raise SourceError(
                    f"no file or folder {self.name!r} here, and the hub did not give a dataset of that name "
                    f"({type(error).__name__}: {why(error)}): check the spelling, or the network"
                ) from error
        return self._pinned["sha"]

    def origin(self) -> dict[str, Any]:
        return {**self.asked(), "commit": self.pinned()}

    def digest(self) -> str:
        said = json.dumps([self.name, self.pinned(), self.config, self.split])
        return hashlib.blake2b(said.encode(), digest_size=8).hexdigest()

    def files(self) -> list[dict[str, Any]]:
        return [{"hub": self.name, "revision": self.pinned(), "config": self.config, "split": self.split}]

    def rows(self) -> Iterator[Row]:
        """Its rows; a stream that is lost is taken up again at the row that it had reached.

        Raises:
            SourceError: there is no such split or configuration, or the stream is lost for good.
        """
        number = lost = 0
        while True:
            try:
                for record in self._stream(number):
                    number, lost = number + 1, 0
                    yield Row(self.name, number, record)
            except SourceError:
                raise
            except Exception as error:
                lost += 1
                if lost == TRIES or (number == 0 and isinstance(error, _SAID)):
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


def one_split(name: str, there: list[str], wanted: str | None) -> str:
    """The split that is meant.

    Raises:
        SourceError: there is no such split, or several and none is named.
    """
    if wanted is None and len(there) == 1:
        return there[0]
    if wanted not in there:
        found = "no split is named" if wanted is None else f"there is no split {wanted!r}"
        raise SourceError(f"{name} has the splits {', '.join(there)} and {found}: say which one with --split")
    return str(wanted)
