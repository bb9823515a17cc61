"""`refine.push`: the files of a run as a dataset on the hub, with its card."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import terminal
from pipeline.api.run import Run
from pipeline.api.tables import Display, Summary
from pipeline.ownership import run_at
from pipeline.store import Store
from pipeline.terminal import ProgressReporter
from stages.files import fetch, sizes_in
from stages.stage import reason

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""Name of a dataset on the hub."""
DATA = ("refined", "rejected")
"""Folders of a run that the card names."""
LAST = ("plan.toml", "manifest.json", "README.md")
"""Files of the last commit, with which the dataset is whole."""
COMMIT = 100
"""Maximum number of files of a commit."""


class PushError(Exception):
    """A run cannot be pushed; the message says why and what to do."""


@dataclass(frozen=True, repr=False)
class Push(Display):
    """What `push` did, or would do.

    Attributes:
        dataset: its name on the hub.
        private: whether only its owner sees it.
        files: bytes by name.
        sent: names of the files that were uploaded; None if it was a dry run.
        removed: names of shards of an earlier push that were removed.
    """

    dataset: str
    private: bool
    files: dict[str, int]
    sent: tuple[str, ...] | None = None
    removed: tuple[str, ...] = ()

    def summaries(self) -> Sequence[Summary]:
        """Return the files by folder."""
        rows: list[tuple[object, ...]] = []
        for part in (*DATA, ""):
            sizes = [size for name, size in self.files.items() if name.rpartition("/")[0] == part]
            rows.append((f"{part}/" if part else ", ".join(LAST), len(sizes), f"{sum(sizes) / 1e6:,.1f}"))
        who = "private" if self.private else "public"
        if self.sent is None:
            note = f"would push to the {who} dataset {self.dataset}; add --yes to do it"
        else:
            note = f"pushed {len(self.sent)} of {len(self.files)} files to the {who} dataset {self.dataset}"
            note += " (the others were there)" if len(self.sent) < len(self.files) else ""
            note += f"; removed {len(self.removed)} of an earlier push" if self.removed else ""
        return [Summary("", ("", "files", "MB"), rows, frozenset({1, 2}), note)]


def push(run: Run | Path | str, to: str, *, public: bool = False, yes: bool = False, progress: bool = False) -> Push:
    """Upload the refined and rejected conversations of a run, its card, plan and manifest, as `refine push` does.

    Files that are there with the same content are not sent again, so that an interrupted push continues. The card comes
    with the last commit.

    Args:
        run: a run, or its folder.
        to: name of the dataset, "organisation/name"; it is made if it does not exist.
        public: let everybody see it; by default it is private.
        yes: upload; by default nothing is sent, and the result says what would be.
        progress: show progress on stderr.

    Raises:
        RefineError: the run cannot be pushed; the message says why and what to do.
    """
    if not NAME.fullmatch(to):
        raise PushError(f"{to!r} is no name of a dataset, expected organisation/name, such as my-org/my-chats")
    store = run_at(run.path if isinstance(run, Run) else Path(run))
    planned = Push(to, not public, _files(store))
    if not yes:
        return planned
    with terminal.progress(show=progress), ProgressReporter() as tell, _explained(to):
        return _upload(store, planned, tell)


def _files(store: Store) -> dict[str, int]:
    """Bytes of the files to push, by name: data first, card last."""
    there = sizes_in(store.folder)
    data = [f"{part}/{shard}" for part in DATA for shard in store.shards()]
    return {name: there[name] for name in (*data, *LAST)}


def _upload(store: Store, planned: Push, tell: ProgressReporter) -> Push:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api, to = HfApi(endpoint=os.environ.get("HF_ENDPOINT")), planned.dataset
    api.create_repo(to, repo_type="dataset", private=planned.private, exist_ok=True)
    if planned.private and not api.dataset_info(to).private:
        raise PushError(f"{to} exists and everybody can see it: push with --public, or choose another name")
    there: dict[str, Any] = {each.path: each for each in api.list_repo_tree(to, repo_type="dataset", recursive=True)}
    sent = [name for name in planned.files if not _equal(there.get(name), store.folder / name)]
    shards = [name for name in there if re.fullmatch(rf"({'|'.join(DATA)})/\d+\.parquet", name)]
    removed = [name for name in shards if name not in planned.files]
    data = [name for name in sent if name not in LAST]
    parts = [data[at : at + COMMIT] for at in range(0, len(data), COMMIT)]
    last: list[Any] = [CommitOperationDelete(name) for name in removed]
    done = 0
    for number, part in enumerate([*parts, [name for name in sent if name in LAST]], 1):
        adds = [CommitOperationAdd(name, fetch(store.folder / name)) for name in part]
        operations = [*adds, *(last if number > len(parts) else [])]
        if operations:
            message = f"Refined conversations, part {number} of {len(parts) + 1}"
            api.create_commit(to, operations, commit_message=message, repo_type="dataset")
        done += len(part)
        tell("push", done, len(sent))
    return Push(to, planned.private, planned.files, tuple(sent), tuple(removed))


def _equal(kept: Any, path: Path) -> bool:  # noqa: ANN401  a RepoFile, a RepoFolder or None
    """Whether the hub keeps a file with this content."""
    size = getattr(kept, "size", None)
    if size is None or size != path.stat().st_size:
        return False
    with path.open("rb") as file:
        if kept.lfs:
            return bool(hashlib.file_digest(file, "sha256").hexdigest() == kept.lfs.sha256)
        blob = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)  # as git names it
        blob.update(file.read())
        return bool(blob.hexdigest() == kept.blob_id)


@contextmanager
def _explained(to: str) -> Iterator[None]:
    """Turn an error of the hub into one sentence."""
    from huggingface_hub import errors

    try:
        yield
    except (errors.HfHubHTTPError, errors.LocalTokenNotFoundError) as error:
        status = getattr(getattr(error, "response", None), "status_code", 401)
        if status == 401:  # noqa: PLR2004  Unauthorized
            raise PushError(f"the hub does not know you: set HF_TOKEN, or start `hf auth login` ({to})") from error
        if status == 403:  # noqa: PLR2004  Forbidden
            raise PushError(f"your token may not write {to}: use one that may, or choose another name") from error
        raise PushError(f"the hub refused {to} ({reason(error)}): start the same command again, to continue") from error
    except (PushError, OSError) as error:
        if isinstance(error, PushError):
            raise
        raise PushError(f"the hub cannot be reached ({reason(error)}): start the same command again") from error
