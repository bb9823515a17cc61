"""Whose run folder this is, and what of it may stay when ingest begins."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.store import PARTS, RunFolderError, Store, read_json
from stages.files import save_json

SHARD = re.compile(r"\d{5,}\.parquet")
"""A shard's file name."""


def claimed(store: Store) -> dict[str, Any]:
    """What the run's source.json says; nothing in a new folder.

    Raises:
        RunFolderError: it is not one of ours, or damaged.
    """
    if not store.source.exists():
        return {}
    said = read_json(store.source)
    if not (isinstance(said, dict) and said.keys() >= RUN_KEYS):
        raise RunFolderError(
            f"{store.source} does not say what this run was started for: remove {store.folder}, or choose another --out"
        )
    return said


def listed(store: Store) -> dict[str, Any] | None:
    """The shard list of a complete ingest; None where it is missing, damaged, or lacks a quarantine shard."""
    try:
        done = read_json(store.shard_list)
        whole = all(
            SHARD.fullmatch(shard["name"]) and (not shard["quarantined"] or store.quarantine(shard["name"]).is_file())
            for shard in done["shards"]
        )
        total = sum(shard["rows"] + shard["quarantined"] for shard in done["shards"])
        kept = {"source", "digest", "shape", "files", "rows", "quarantined", "replaced"} <= done.keys()
        return done if whole and kept and total == done["rows"] else None
    except (FileNotFoundError, RunFolderError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def claim(store: Store, said: Mapping[str, Any], before: Mapping[str, Any], *, complete: bool) -> None:
    """Make the folder ready for this source: raw shards that are not complete go, and all that came of another source.

    Args:
        store: the run.
        said: what source.json will say.
        before: what it says now; empty in a new folder.
        complete: whether all raw shards are there.

    Raises:
        RunFolderError: the folder holds a complete ingest of something else.
    """
    other = [key for key in sorted(RUN_KEYS - {"source"}) if before.get(key) != said[key]]  # it may lie elsewhere now
    if complete and other:
        key = other[0]
        raise RunFolderError(
            f"{store.folder} belongs to another run: its {key} is {before.get(key)!r} and this one's is "
            f"{said[key]!r}; choose another --out, or start it as it was"
        )
    if complete:
        return
    for path in (store.manifest, *((store.decisions, store.card, store.plan) if other else ())):
        path.unlink(missing_ok=True)
    for part in PARTS if other else ("raw", "quarantine"):
        if (store.folder / part).exists():
            shutil.rmtree(store.folder / part)


def sweep(store: Store, shards: Sequence[Mapping[str, Any]]) -> None:
    """Remove raw and quarantine shards that are not in the list."""
    raw = {shard["name"] for shard in shards}
    aside = {shard["name"] for shard in shards if shard["quarantined"]}
    for folder, names in ((store.raw(""), raw), (store.quarantine(""), aside)):
        for path in folder.glob("*.parquet"):
            if path.name not in names:
                path.unlink()


RUN_KEYS = frozenset({"source", "digest", "rows", "characters", "limit", "shape"})
"""What the source.json of a run says at least."""


def is_run(folder: Path) -> bool:
    """Whether this is the folder of a run of ours, complete or not."""
    try:
        said = json.loads((folder / "source.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(said, dict) and said.keys() >= RUN_KEYS


RUNS = Path("data/runs")
"""Where runs are made by default, relative to the current folder."""


def run_folders() -> list[Path]:
    """Folders of runs in data/runs/ and directly in the current folder, by name."""
    places = (*sorted(RUNS.glob("*/source.json")), *sorted(Path().glob("*/source.json")))
    return [path.parent for path in places if is_run(path.parent)]


CLAIM = "experiment.json"
"""The file that says whose folder it is."""


LOCK = ".lock"


def check_experiment(folder: Path, option: str) -> None:
    """Refuse a folder that cannot be an experiment's.

    Args:
        folder: where it would lie.
        option: of the command line that names it, for the message.

    Raises:
        RunFolderError: it is a file, or a folder of something else.
    """
    if not folder.exists():
        return
    others = not folder.is_dir() or any(path.name != LOCK for path in folder.iterdir())
    if others and not (folder / CLAIM).is_file():
        raise RunFolderError(f"{folder} is not an experiment's folder: choose another {option}")


@contextmanager
def experiment_claimed(folder: Path, said: Mapping[str, Any], option: str) -> Iterator[Path]:
    """Hold the folder alone; it is made where there is none.

    Args:
        folder: where the experiment lies.
        said: what it is of; its "corpus" is a name and its "digest" the texts'.
        option: of the command line that names it, for messages.

    Raises:
        RunFolderError: another process holds it, it is of another corpus, or a folder of something else.
    """
    check_experiment(folder, option)
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFolderError(
                f"{folder} is in use by another refine process: wait for it, or choose another {option}"
            ) from None
        if (folder / CLAIM).exists() and (there := read_json(folder / CLAIM)).get("digest") != said["digest"]:
            raise RunFolderError(
                f"{folder} is the experiment of another corpus ({there.get('corpus')}): choose another {option}"
            )
        save_json(folder / CLAIM, said)
        yield folder
    finally:
        os.close(lock)
