"""Where conversations come from: the embedded default, files, a saved `Dataset`, the hub. Records as they come."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import orjson

from pipeline.ownership import is_run, run_at
from pipeline.sources.hub import Hub
from pipeline.sources.rows import Hashes, Row, SourceError, Unreadable, shown
from pipeline.sources.saved_dataset import Saved, is_saved

__all__ = ["DEFAULT", "ENDINGS", "Embedded", "Files", "Row", "Source", "SourceError", "Unreadable", "find"]

DEFAULT = "chitchat"
"""The name of the embedded default: 7,168 human dialogues of the package chitchat-dataset (MIT)."""

ENDINGS = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson", ".json", ".json.gz", ".json.zst")

ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json")
"""Files of `datasets` that tell of the data beside them, and hold none."""


class Source(Protocol):
    """Something that records come from, always in the same order."""

    @property
    def name(self) -> str:
        """How a user would say it."""

    def paths(self) -> Sequence[Path]:
        """Files and folders that are read."""

    def again(self, before: Mapping[str, Any]) -> Source:
        """This source as a run read it whose source.json is `before`."""

    def origin(self) -> dict[str, Any]:
        """What source.json must say of it for `again`, besides its name and digest."""

    def digest(self) -> str:
        """16 hex digits of its content; ids begin with them."""

    def files(self) -> list[dict[str, Any]]:
        """What it is made of, for the manifest."""

    def rows(self) -> Iterator[Row]:
        """Its rows."""


@dataclass(frozen=True)
class Embedded:
    """The embedded default, read into UltraChat's schema: a dialogue's two speakers become user and assistant."""

    name: str = DEFAULT

    @staticmethod
    def path() -> Path:
        """The data file inside the installed package."""
        import chitchat_dataset

        return Path(chitchat_dataset.__file__).with_name("dataset.json")

    def paths(self) -> Sequence[Path]:
        return (self.path(),)

    def again(self, _before: Mapping[str, Any]) -> Embedded:
        return self

    def origin(self) -> dict[str, Any]:
        return {}

    def digest(self) -> str:
        return Hashes().digest([self.path()])

    def files(self) -> list[dict[str, Any]]:
        return [Hashes().described(self.path(), self.path().name)]

    def rows(self) -> Iterator[Row]:
        dialogues = orjson.loads(self.path().read_bytes())
        for number, (key, dialogue) in enumerate(dialogues.items(), 1):
            turns = [(turn[0]["sender"], "\n".join(said["text"] for said in turn)) for turn in dialogue["messages"]]
            first = turns[0][0] if turns else ""
            messages = [{"role": "user" if who == first else "assistant", "content": text} for who, text in turns]
            yield Row(
                self.path().name, number, {"id": key, "prompt_id": key, "messages": messages, "source": self.name}
            )


@dataclass(frozen=True)
class Files:
    """Parquet and JSON Lines files, one or a folder of them, in the order of their names."""

    name: str
    found: tuple[Path, ...]
    root: Path
    _hashes: Hashes = field(default_factory=Hashes, compare=False, repr=False)

    def label(self, path: Path) -> str:
        """A file's name as messages and quarantine show it."""
        return shown(path.relative_to(self.root).as_posix() if path != self.root else path.name)

    def paths(self) -> Sequence[Path]:
        return self.found

    def again(self, _before: Mapping[str, Any]) -> Files:
        return self

    def origin(self) -> dict[str, Any]:
        return {}

    def digest(self) -> str:
        return self._hashes.digest(self.found)

    def files(self) -> list[dict[str, Any]]:
        return [self._hashes.described(path, self.label(path)) for path in self.found]

    def rows(self) -> Iterator[Row]:
        from pipeline.sources import jsonlines, parquet

        for path in self.found:
            reader = parquet if path.name.endswith(".parquet") else jsonlines
            yield from reader.rows(path, self.label(path))


def find(
    said: str | None, *, split: str | None = None, config: str | None = None, revision: str | None = None
) -> Source:
    """The source that a user means by a word on the command line.

    Raises:
        SourceError: there is no such source, it holds no file that can be read, or an option has no meaning for it.
    """
    options = {"--split": split, "--config": config, "--revision": revision}
    if said is None or said == DEFAULT:
        _refuse(options, DEFAULT, "the embedded default")
        return Embedded()
    if not said.strip():
        raise SourceError("SOURCE is an empty text, expected a file, a folder or a hub id; leave it away for chitchat")
    name, path = shown(said), Path(said).expanduser()
    if path.is_file():
        if not path.name.endswith(ENDINGS):
            raise SourceError(
                f"{name}: expected a file ending in {', '.join(ENDINGS)}; convert it, or choose another one"
            )
        _refuse(options, name, "a file")
        return Files(name, (path,), path.parent)
    if path.is_dir():
        return _folder(name, path, options)
    if path.is_absolute() or said.startswith((".", "~")) or said.count("/") != 1 or said.endswith(ENDINGS):
        raise SourceError(
            f"no such source: {name!r} is neither a file, nor a folder, nor a hub id like HuggingFaceH4/ultrachat_200k"
        )
    return Hub(name, split, config, revision)


def _refuse(options: Mapping[str, str | None], name: str, kind: str) -> None:
    """Refuse an option that would have no effect."""
    for option, value in options.items():
        if value is not None:
            raise SourceError(f"{option} is {value!r}, and {name} is {kind}, which has none: leave {option} away")


def _folder(name: str, path: Path, options: dict[str, str | None]) -> Source:
    if is_saved(path):
        _refuse({**options, "--split": None}, name, "a saved Dataset")
        return Saved(name, path, options["--split"])
    _refuse(options, name, "a folder of files")
    root = path
    run = path if is_run(path) else path.resolve().parent
    if is_run(run):
        run_at(run)
    if run == path:
        path = path / "refined"  # a run of ours stands for its refined corpus
    found = tuple(sorted(_listed(path)))
    if not found:
        about = " (a saved Dataset has a state.json too)" if (path / "dataset_info.json").exists() else ""
        raise SourceError(f"{name}: no file in this folder ends in {', '.join(ENDINGS)}; nothing to refine{about}")
    return Files(name, found, root)


def _listed(root: Path) -> Iterator[Path]:
    """Files to read at any depth; hidden ones are not, nor are runs of ours, which may lie inside their own source."""
    for folder, below, names in os.walk(root, followlinks=False):
        here = Path(folder)
        below[:] = [one for one in below if not one.startswith(".") and not is_run(here / one)]
        about = (*ABOUT, "shards.json") if is_run(here.parent) else ABOUT
        for one in names:
            if one.endswith(ENDINGS) and not one.startswith(".") and one not in about and (here / one).is_file():
                yield here / one
