"""Whose run folder this is, and what of it may stay when ingest begins."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.sources import RUN
from pipeline.store import PARTS, RunFolderError, Store, read_json

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
    if not (isinstance(said, dict) and said.keys() >= RUN):
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
    other = [key for key in sorted(RUN - {"source"}) if before.get(key) != said[key]]  # it may lie elsewhere now
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
