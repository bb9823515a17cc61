"""Whose folder this is, how far its run is, and who may write in it.

What a folder is not, or what keeps a process from writing in it, is a `RunFolderError` that says what to do.
"""

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

from pipeline.store import PARTS, SHARD, RunFolderError, Store, read_json
from stages.files import exists, remove, save_json, sizes_in
from stages.readers import RUN_KEYS, is_run

RUNS = Path("data/runs")
"""Where runs are made by default, relative to the current folder."""
CLAIM = "experiment.json"
"""File that names the corpus of an experiment's folder."""
LOCK = ".lock"
"""File that a process locks while it writes in a folder, and that holds its number."""
WAITS = (0.0, 0.02, 0.1)
"""Seconds before each attempt to lock a folder."""
HALF_CLAIM = re.compile(r"\.(source|experiment)\.json\.\w+\.tmp")
"""Temporary file of the first file of a run or an experiment; see `stages.files.save`."""


class RunState(IntEnum):
    """How far the run in a folder is."""

    ABSENT = 0
    """There is no such folder."""
    FOREIGN = 1
    """The folder holds something else."""
    BEGUN = 2
    """Ingest is not complete."""
    INGESTED = 3
    """Raw shards are complete; signals or decisions are not."""
    COMPLETE = 4


def state(folder: Path) -> RunState:
    """How far the run in a folder is; files are looked for, not read."""
    store = Store(folder)
    if not folder.exists():
        return RunState.ABSENT
    if not is_run(folder):
        return RunState.FOREIGN
    if not store.shard_list.is_file():
        return RunState.BEGUN
    return RunState.COMPLETE if store.manifest.is_file() else RunState.INGESTED


def check_is_run(folder: Path) -> RunState:
    """How far the run in a folder is, which may be in use."""
    far = state(folder)
    if far is RunState.ABSENT:
        raise RunFolderError(f"there is no folder {folder}: name the folder of a run; `refine status` lists runs")
    if far is RunState.FOREIGN:
        raise RunFolderError(
            f"{folder} is not a run folder: it holds no source.json of a run; `refine run --out DIR` makes one"
        )
    return far


def any_run_at(place: Path) -> Store:
    """The run in a folder or a bucket, however far it is, which may be in use."""
    if (store := Store.at(place)).bucket:
        store.bucket.refresh()
        if not exists(store.mount().source):
            raise RunFolderError(f"{store.name} holds no run: name the URL of one; `refine run --out URL` makes one")
    else:
        check_is_run(place)
    return store


def run_at(folder: Path, least: RunState = RunState.COMPLETE) -> Store:
    """The run in a folder, which must be at least this far, and which no other process may be writing."""
    if (store := Store.at(folder)).bucket:
        return _pulled(store, least)
    far = check_is_run(folder)
    if in_use(Store(folder)):
        raise RunFolderError(f"{folder} is in use by another refine process{_owner(folder)}: wait for it to end")
    if far < least:
        what = "holds no complete ingest" if far is RunState.BEGUN else "is not a complete run"
        raise RunFolderError(f"{folder} {what}: start `refine run` again with its source and --out {folder}")
    return Store(folder)


def _pulled(store: Store, least: RunState) -> Store:
    """The run in a bucket, whose files are copied to this machine's cache."""
    assert store.bucket  # noqa: S101  asked by the caller
    store.bucket.pull()
    if (far := state(store.folder)) < max(least, RunState.BEGUN):
        what = "is not a complete run" if far >= RunState.BEGUN else "holds no run"
        raise RunFolderError(f"{store.name} {what}: start `refine run` with its source and --out {store.name}")
    return store.mount()


def run_folders() -> list[Path]:
    """Folders of runs in data/runs/ and in the current folder, by name; and the current folder, if it is a run."""
    places = (*sorted(RUNS.glob("*/source.json")), *sorted(Path().glob("*/source.json")), Path("source.json"))
    return [path.parent for path in places if is_run(path.parent)]


def in_use(store: Store) -> bool:
    """Whether a process is writing in a run now."""
    if store.bucket:
        from pipeline.store.lease import is_held

        return is_held(store.bucket)
    try:
        with (store.folder / LOCK).open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextlib.contextmanager
def locked(folder: Path, option: str) -> Iterator[None]:
    """Make a folder, if it does not exist, and be the only one to write in it; messages name the folder's `option`."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        if not _take(lock):
            raise RunFolderError(
                f"{folder} is in use by another refine process{_owner(folder)}: wait for it, or choose another {option}"
            )
        os.ftruncate(lock, 0)
        os.write(lock, str(os.getpid()).encode())
        yield
        os.ftruncate(lock, 0)
    finally:
        os.close(lock)


def _take(lock: int) -> bool:
    """Lock a file, unless another process writes in its folder. One that asks `in_use` locks it for an instant."""
    for wait in WAITS:
        time.sleep(wait)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False


def _owner(folder: Path) -> str:
    """The number of the process that is writing in a folder, in brackets; empty in the instant before it is written."""
    number = (folder / LOCK).read_bytes()
    return f" ({int(number)})" if number.isdigit() else ""


def check_run(store: Store) -> None:
    """Refuse a folder or URL in which a run must not write."""
    folder = store.folder
    if store.bucket:
        names = sorted(sizes_in(store.mount().folder))
        if names and not exists(store.source):
            raise RunFolderError(f"{store.name} is not a run: it holds {', '.join(names[:3])}; choose another --out")
        return
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"{folder} is a file, expected a folder for the run: choose another --out")
    others = _others(folder)  # before the look at source.json, which another process may be about to write
    if others and not store.source.is_file():
        raise RunFolderError(f"{folder} is not a run folder: it holds {', '.join(others[:3])}; choose another --out")
    if links := [part for part in PARTS if (folder / part).is_symlink()]:
        raise RunFolderError(f"{folder / links[0]} is a link, and a run writes only below its own folder")


def _others(folder: Path) -> list[str]:
    """The names of everything in a folder, if there is one, but its lock and a claim that is half-written."""
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    return [name for name in names if name != LOCK and not HALF_CLAIM.fullmatch(name)]


@contextlib.contextmanager
def lock_run(store: Store) -> Iterator[Callable[[], None]]:
    """Be the only one to write in a run's folder, and remove what an interrupted run left half-written.

    Gives a function that raises `LeaseLostError` if another process writes there by now.
    """
    if store.bucket:
        from pipeline.store.lease import leased

        store.bucket.check()
        store.bucket.tidy()
        check_run(store)
        with leased(store.bucket) as lease:
            store.bucket.tidy()  # what another process wrote before it ended
            yield lease.check
        return
    check_run(store)
    with locked(store.folder, "--out"):
        for scratch in store.folder.glob("signals/**/.*.scratch"):
            shutil.rmtree(scratch)
        for pattern in (".*.tmp", *(f"{part}/**/.*.tmp" for part in PARTS)):
            for leftover in store.folder.glob(pattern):
                leftover.unlink(missing_ok=True)
        yield lambda: None


def read_origin(store: Store) -> dict[str, Any]:
    """The run's source.json; empty in a new folder. Raises `RunFolderError` if it is damaged, or not one of ours."""
    if not exists(store.source):
        return {}
    origin = read_json(store.source)
    if not (isinstance(origin, dict) and origin.keys() >= RUN_KEYS):
        raise RunFolderError(
            f"{store.source} does not say what this run was started for: remove {store.folder}, or choose another --out"
        )
    return origin


def read_shard_list(store: Store) -> dict[str, Any] | None:
    """The shard list of a complete ingest; None if it is missing, damaged, or lacks a quarantine shard."""
    try:
        done = read_json(store.shard_list)
        whole = all(
            SHARD.fullmatch(shard["name"]) and (not shard["quarantined"] or exists(store.quarantine(shard["name"])))
            for shard in done["shards"]
        )
        total = sum(shard["rows"] + shard["quarantined"] for shard in done["shards"])
        has_all = {"source", "digest", "shape", "files", "rows", "quarantined", "replaced"} <= done.keys()
        return done if whole and has_all and total == done["rows"] else None
    except (FileNotFoundError, RunFolderError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def changes(store: Store, origin: Mapping[str, Any], before: Mapping[str, Any], *, complete: bool) -> list[str]:
    """The keys of source.json by which a folder was made for something else than `origin`.

    `before` is the source.json of the folder, which is empty in a new one. A RunFolderError if the folder must be kept.
    """
    keys = sorted({*RUN_KEYS, "map", "sample"} - {"source"})  # its path may change
    changed = [key for key in keys if before.get(key) != origin.get(key)]
    if complete and changed:
        key = changed[0]
        raise RunFolderError(
            f"{store.folder} belongs to another run: its {key} is {before.get(key)!r} and this one's is "
            f"{origin.get(key)!r}; choose another --out, or repeat that run's source and options"
        )
    if store.bucket and before and changed:
        raise RunFolderError(f"{store.name} was begun with another {changed[0]}: choose another --out, or remove it")
    return changed


def claim(store: Store, changed: Sequence[str], *, goes_on: bool = False) -> None:
    """Make a folder ready for an ingest: incomplete raw shards are removed, and everything made from another source.

    `changed` is from `changes`. An ingest that `goes_on` keeps its raw shards.
    """
    for path in (store.manifest, *((store.card, store.plan) if changed else ())):
        remove(path)
    for part in PARTS if changed else () if goes_on else ("raw", "quarantine"):
        for name in sizes_in(store.folder / part):
            remove(store.folder / part / name)
        if (store.folder / part).exists():
            shutil.rmtree(store.folder / part)


def sweep(store: Store, shards: Sequence[Mapping[str, Any]]) -> None:
    """Remove shards that are not in the shard list; another ingest left them."""
    names = {shard["name"] for shard in shards}
    quarantined = {shard["name"] for shard in shards if shard["quarantined"]}
    if exists(store.folder / "decisions.parquet"):  # of a version that kept all decisions in one file
        remove(store.folder / "decisions.parquet")
    for part in ("raw", "repaired", "decisions", "refined", "rejected", "quarantine"):
        for name in sizes_in(store.folder / part):
            if name.endswith(".parquet") and name not in (quarantined if part == "quarantine" else names):
                remove(store.folder / part / name)


def check_experiment(folder: Path, option: str) -> None:
    """Refuse a folder in which an experiment must not write."""
    others = folder.is_dir() and _others(folder)  # before the look at the claim, as in `check_run`
    if folder.exists() and (not folder.is_dir() or others) and not (folder / CLAIM).is_file():
        raise RunFolderError(f"{folder} is not an experiment's folder: choose another {option}")


@contextlib.contextmanager
def experiment_claimed(folder: Path, origin: Mapping[str, Any], option: str) -> Iterator[Path]:
    """Make a folder an experiment's, and be the only one to write in it.

    `origin` is its experiment.json: "corpus" is a name and "digest" the content of the texts.
    """
    check_experiment(folder, option)
    with locked(folder, option):
        if (folder / CLAIM).exists() and (before := read_json(folder / CLAIM)).get("digest") != origin["digest"]:
            raise RunFolderError(
                f"{folder} is the experiment of another corpus ({before.get('corpus')}): choose another {option}"
            )
        save_json(folder / CLAIM, origin)
        yield folder
