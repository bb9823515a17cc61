"""The folder of an experiment: whose it is, and that one process at a time works in it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.store import RunFolderError, read_json, save_json

HOME = Path("data/experiments")
"""Where experiments lie by default, in the folder that refine is started in."""
CLAIM = "experiment.json"
"""The file that says whose folder it is."""
LOCK = ".lock"


def check(folder: Path, option: str) -> None:
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
def claimed(folder: Path, said: Mapping[str, Any], option: str) -> Iterator[Path]:
    """Hold the folder alone; it is made where there is none.

    Args:
        folder: where the experiment lies.
        said: what it is of; its "corpus" is a name and its "digest" the texts'.
        option: of the command line that names it, for messages.

    Raises:
        RunFolderError: another process holds it, it is of another corpus, or a folder of something else.
    """
    check(folder, option)
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
