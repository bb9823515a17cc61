"""Which files of a folder are read, and what is left out of it."""

import json
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn, Self

from stages.readers.opening import PACKINGS
from stages.stage import StageParameterError

TABLES = (".parquet", ".arrow", ".feather")
"""Endings of tables of typed columns. They compress their own pages."""
JSON = (".jsonl", ".ndjson", ".json")
CSV = (".csv", ".tsv")
"""Endings of tables of text."""
RECORDS = (*TABLES, *JSON, *CSV)
"""Endings of files of records; JSON and tables of text may be compressed."""
TEXT = (".txt", ".text")
"""Endings of plain text, which may be compressed."""
RUN_KEYS = frozenset({"source", "digest", "rows", "characters", "limit", "shape"})
"""Keys that the source.json of every run has."""
ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json")
"""Files that `datasets` writes beside its data; they hold no records."""
HIDDEN, RUN = "hidden", "a run of refine"
MAX_NAMES = 3
"""Maximum number of files that a note names for one reason."""


def ending(path: Path) -> str:
    """The ending that names a file's format, in lower case and without that of a compressed file."""
    name = path.name.lower()
    packing = next((packing for packing in PACKINGS if name.endswith(packing)), "")
    plain = Path(name.removesuffix(packing)).suffix
    return plain + packing if plain in TABLES else plain


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's, complete or not."""
    source = folder / "source.json"
    try:
        origin = json.loads(source.read_bytes()) if source.is_file() else None
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(origin, dict) and origin.keys() >= RUN_KEYS


@dataclass(frozen=True)
class Listing:
    """The files to read, sorted, and what else is in their folder, each with the reason why it is left out."""

    root: Path
    paths: tuple[Path, ...]
    left_out: tuple[tuple[Path, str], ...] = ()

    def note(self, out: Path | None = None) -> str:
        """One sentence that names what is left out, besides a run in `out`, and why; empty if nothing is."""
        by_reason: dict[str, list[str]] = {}
        for path, why in self.left_out:
            if out is None or why != RUN or path.resolve() != out.resolve():
                by_reason.setdefault(why, []).append(self._label(path))
        hidden = by_reason.pop(HIDDEN, [])
        parts = [f"{len(hidden)} hidden"] if hidden else []
        for why, names in by_reason.items():
            more = f" and {len(names) - MAX_NAMES:,} more" if len(names) > MAX_NAMES else ""
            parts.append(f"{', '.join(names[:MAX_NAMES])}{more} ({why})")
        return f"left out of {self._label(self.root)}: {'; '.join(parts)}" if parts else ""

    def _label(self, path: Path) -> str:
        return _text(path if path == self.root else path.relative_to(self.root))

    def one_corpus(self) -> Self:
        """The listing without tables of text beside other records: they describe these."""
        if all(ending(path) in CSV for path in self.paths):
            return self
        beside = tuple((path, "a table beside other records") for path in self.paths if ending(path) in CSV)
        paths = tuple(path for path in self.paths if ending(path) not in CSV)
        return replace(self, paths=paths, left_out=(*self.left_out, *beside))


def list_files(root: Path, endings: Sequence[str]) -> Listing:
    """Files with one of these endings: `root` itself, or those at any depth of the folder `root`.

    Left out are hidden files and folders, runs of refine, what is no regular file, and what is read already under
    another name, so that links may lead in a circle. Of a saved Dataset its data files are read, not its caches.

    Raises:
        StageParameterError: a folder cannot be listed, or a link leads nowhere.
    """
    if not root.is_dir():
        return Listing(root, (root,) if root.is_file() and ending(root) in endings else ())
    paths, left_out, seen = list[Path](), list[tuple[Path, str]](), {_identity(root.stat())}
    for folder, below, names in os.walk(root, onerror=_refuse, followlinks=True):
        data = _data_files(Path(folder)) if "state.json" in names else None
        folders = set(below)
        for name in sorted((*below, *names)):
            path = Path(folder, name)
            if why := _why_not(path, endings, data, seen):
                left_out.append((path, why))
                folders.discard(name)
            elif name not in folders:
                paths.append(path)
        below[:] = sorted(folders)
    return Listing(root, tuple(sorted(paths)), tuple(sorted(left_out)))


def _refuse(error: OSError) -> NoReturn:
    raise StageParameterError(
        f"{_text(Path(error.filename))} cannot be listed ({error.strerror}): change its permissions, or remove it"
    ) from error


def _why_not(path: Path, endings: Sequence[str], data: Sequence[str] | None, seen: set[tuple[int, int]]) -> str:
    """Why an entry of a folder is left out; empty for a folder to enter and for a file to read, which is then `seen`.

    `data` names the data files of the folder if it is a saved Dataset.
    """
    if path.name.startswith("."):
        return HIDDEN
    try:
        status = path.stat()
    except OSError as error:
        what = f"is a link to {_text(path.readlink())}, which" if path.is_symlink() else "is a file that"
        raise StageParameterError(
            f"{_text(path)} {what} cannot be opened ({error.strerror}): repair or remove it"
        ) from error
    folder = stat.S_ISDIR(status.st_mode)
    reasons = {
        RUN: is_run(path) if folder else path.name == "shards.json" and is_run(path.parent.parent),
        "no data of the saved Dataset beside it": data is not None and path.name not in data,
        "about other files": path.name in ABOUT,
        "no format of records": not folder and ending(path) not in endings,
        "no regular file": not folder and not stat.S_ISREG(status.st_mode),
        "read already under another name": _identity(status) in seen,
    }
    why = next((why for why, holds in reasons.items() if holds), "")
    if not why:
        seen.add(_identity(status))
    return why


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _data_files(folder: Path) -> list[str] | None:
    """Names of the data files of a saved Dataset; None if the folder is none."""
    try:
        files = json.loads((folder / "state.json").read_bytes())["_data_files"]
        return [file["filename"] for file in files]
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return None


def _text(path: Path) -> str:
    """A path as text on one line; a byte that is not UTF-8, and what does not print, becomes U+FFFD."""
    return "".join(c if c.isprintable() else "\ufffd" for c in os.fsencode(path).decode("utf-8", "replace"))
