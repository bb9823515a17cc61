"""The paths of a run, and the lock on its folder."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class RunFolderError(Exception):
    """A run folder is not what was expected: it belongs to another source, is in use, or is no run at all."""


@dataclass(frozen=True)
class Store:
    """Where the files of one run lie. A file that exists is complete."""

    folder: Path

    @property
    def source(self) -> Path:
        """What this folder was started for; written before any shard."""
        return self.folder / "source.json"

    @property
    def shard_list(self) -> Path:
        """The names of the raw shards with their rows; written when ingest is complete."""
        return self.folder / "raw" / "shards.json"

    @property
    def plan(self) -> Path:
        """The plan that the decisions lying here were made by."""
        return self.folder / "plan.toml"

    @property
    def decisions(self) -> Path:
        """One row a conversation: id, keep, reason, duplicate_of, jaccard, one boolean a rule."""
        return self.folder / "decisions.parquet"

    @property
    def manifest(self) -> Path:
        """Written last: where it exists, the run is complete."""
        return self.folder / "manifest.json"

    @property
    def card(self) -> Path:
        """The dataset card."""
        return self.folder / "README.md"

    def raw(self, shard: str) -> Path:
        """A shard as it came in."""
        return self.folder / "raw" / shard

    def refined(self, shard: str) -> Path:
        """The survivors of a shard."""
        return self.folder / "refined" / shard

    def rejected(self, shard: str) -> Path:
        """The dropped conversations of a shard, with the reason."""
        return self.folder / "rejected" / shard

    def quarantine(self, shard: str) -> Path:
        """Rows that could not be read."""
        return self.folder / "quarantine" / shard

    def stage(self, key: str) -> Path:
        """The folder of a stage, `key` being "<stage>-<digest>"."""
        return self.folder / "signals" / key

    def shards(self) -> list[str]:
        """Names of the raw shards, in order.

        Raises:
            RunFolderError: the shard list is damaged.
        """
        names = [str(shard["name"]) for shard in read_json(self.shard_list)["shards"]]
        if strange := [name for name in names if not re.fullmatch(r"\d{5,}\.parquet", name)]:
            raise RunFolderError(f"{self.shard_list} names a shard {strange[0]!r}: remove it and start the run again")
        return names


PARTS = ("raw", "signals", "refined", "rejected", "quarantine")
"""The folders of a run."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of the run.

    Raises:
        RunFolderError: it is not JSON.
    """
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunFolderError(f"{path} is not valid JSON ({error}): remove it and start the run again") from error
    return value
