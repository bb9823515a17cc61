"""The paths of a run, and the lock on its folder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
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
            RunFolderError: ingest is not complete.
        """
        if not self.shard_list.exists():
            raise RunFolderError(f"{self.folder} holds no complete ingest: start `refine run` with --out {self.folder}")
        names = [str(shard["name"]) for shard in read_json(self.shard_list)["shards"]]
        if strange := [name for name in names if not re.fullmatch(r"\d{5,}\.parquet", name)]:
            raise RunFolderError(f"{self.shard_list} names a shard {strange[0]!r}: remove it and start the run again")
        return names

    def claimed(self) -> bool:
        """Whether this is a run folder of ours."""
        return self.source.is_file()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold this folder alone, and clear what an interrupted run left half-written.

        Raises:
            RunFolderError: another process holds it, or it is a folder of something else; nothing is touched then.
        """
        self.check()
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise RunFolderError(
                f"{self.folder} is in use by another refine process: wait for it, or choose another --out"
            ) from error
        try:
            for part in PARTS:
                for leftover in self.folder.glob(f"{part}/**/.*.tmp"):
                    leftover.unlink(missing_ok=True)
            for scratch in self.folder.glob("signals/**/.*.scratch"):
                shutil.rmtree(scratch)
            for leftover in self.folder.glob(".*.tmp"):
                leftover.unlink(missing_ok=True)
            yield
        finally:
            os.close(lock)

    def check(self) -> None:
        """Refuse a folder that cannot be a run's.

        Raises:
            RunFolderError: it is a file, or a folder of something else.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise RunFolderError(f"{self.folder} is a file, expected a folder for the run: choose another --out")
        if not self.folder.exists() or self.claimed():
            links = [part for part in PARTS if (self.folder / part).is_symlink()]
            if links:
                raise RunFolderError(f"{self.folder / links[0]} is a link, and a run writes only below its own folder")
            return
        others = sorted(path.name for path in self.folder.iterdir() if path.name != ".lock")
        if others:
            raise RunFolderError(
                f"{self.folder} is not a run folder: it holds {', '.join(others[:3])}; choose another --out"
            )

    def in_use(self) -> bool:
        """Whether a process holds this folder now."""
        try:
            with (self.folder / ".lock").open("r") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False


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
