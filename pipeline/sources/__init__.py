"""Where conversations come from: the embedded default, files, a saved `Dataset`, the hub. Records as they come.

What cannot be found or read is a `SourceError`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from pipeline.ownership import run_at
from pipeline.sources import lines, pieces, shapes
from pipeline.sources.hub import Hub
from pipeline.sources.rows import Hashes, Piece, Row, Source, SourceError, Unreadable, row_id, valid_text
from pipeline.sources.saved_dataset import SavedDataset, is_saved_dataset
from pipeline.store.bucket import Bucket, url_of
from stages import readers
from stages.readers import RECORDS, Listing, is_run
from stages.stage import RAW, StageParameterError

__all__ = ["DEFAULT", "Files", "Row", "Source", "SourceError", "Unreadable", "find", "record_files"]

DEFAULT = "chitchat"
"""The name of the embedded default: 7,168 human dialogues of the package chitchat-dataset (MIT)."""

PLANTED = "chitchat-planted"
"""The name of the embedded default with damage planted into it."""


@dataclass(frozen=True)
class Files(Source):
    """Files of records, one or a folder of them, in the order of their names."""

    name: str
    members: tuple[Path, ...]
    root: Path
    listing: Listing | None = None
    """What else is in the folder."""
    _hashes: Hashes = field(default_factory=Hashes, compare=False, repr=False)

    def label(self, path: Path) -> str:
        """A file's name in messages and in quarantine."""
        return valid_text(path.relative_to(self.root).as_posix() if path != self.root else path.name)

    def note(self, out: Path) -> str:
        return self.listing.note(out) if self.listing else ""

    def paths(self) -> Sequence[Path]:
        return self.members

    def digest(self) -> str:
        return self._hashes.digest(self.members)

    def files(self) -> list[dict[str, Any]]:
        return [self._hashes.describe(path, self.label(path)) for path in self.members]

    def rows(self) -> Iterator[Row]:
        from pipeline.sources import tables

        readers_of = {**dict.fromkeys(readers.JSON, lines.rows), **dict.fromkeys(readers.CSV, tables.text_rows)}
        for path in self.members:
            yield from readers_of.get(readers.ending(path), tables.rows)(path, self.label(path))

    def pieces(self, rows: int) -> list[Piece] | None:
        return pieces.cut([(path, self.label(path)) for path in self.members], rows)


class EmbeddedSource(Files):
    """The embedded default in UltraChat's schema: the first speaker becomes the user, the other the assistant."""

    def __init__(self, name: str = DEFAULT, *more: Path) -> None:
        import chitchat_dataset

        path = Path(chitchat_dataset.__file__).with_name("dataset.json")
        super().__init__(name, (path, *more), path.parent)

    def pieces(self, rows: int) -> None:
        del rows

    def rows(self) -> Iterator[Row]:
        path = self.members[0]
        for number, (key, dialogue) in enumerate(orjson.loads(path.read_bytes()).items(), 1):
            turns = [(turn[0]["sender"], "\n".join(one["text"] for one in turn)) for turn in dialogue["messages"]]
            first = turns[0][0] if turns else ""
            messages = [{"role": "user" if who == first else "assistant", "content": text} for who, text in turns]
            yield Row(path.name, number, {"id": key, "prompt_id": key, "messages": messages, "source": DEFAULT})


class PlantedSource(EmbeddedSource):
    """The embedded default with known damage: the rows that `refine plant chitchat` writes."""

    def __init__(self) -> None:
        from stages.toxicity.words import comments_file

        super().__init__(PLANTED, comments_file())

    def label(self, path: Path) -> str:
        return path.name

    def digest(self) -> str:
        from pipeline import plant

        return self._hashes.digest(self.members, salt=f"{plant.RECIPE} {plant.PlantOptions()}")

    def rows(self) -> Iterator[Row]:
        from pipeline import plant

        digest, name = EmbeddedSource().digest(), self.label(self.members[0])
        raw = []
        for number, row in enumerate(super().rows()):
            read = shapes.read(row.value, "ultrachat")
            text = "\n".join(message["content"] for message in read.messages)
            raw.append((row_id(digest, number), *read[:4], text, *read[4:]))  # as ingest writes it
        damaged = plant.plant(pl.DataFrame(raw, schema=RAW, orient="row"), plant.PlantOptions())
        for number, record in enumerate(damaged.rows.iter_rows(named=True), 1):
            yield Row(name, number, record)


def find(
    word: str | None, *, split: str | None = None, config: str | None = None, revision: str | None = None
) -> Source:
    """The source that a word on the command line names."""
    options = {"--split": split, "--config": config, "--revision": revision}
    if word is None or word == DEFAULT:
        _refuse(options, DEFAULT, "the embedded default")
        return EmbeddedSource()
    if word == PLANTED:
        _refuse(options, PLANTED, "an embedded corpus")
        return PlantedSource()
    if not word.strip():
        raise SourceError("SOURCE is empty, expected a file, a folder or a hub id; omit it for chitchat")
    name, path = valid_text(word), _copied(word) if url_of(word) else Path(word).expanduser()
    if path.is_dir() and is_saved_dataset(path):
        _refuse({**options, "--split": None}, name, "a saved Dataset")
        return SavedDataset(name, path, split)
    if path.exists() or path.is_symlink():
        _refuse(options, name, "a folder of files" if path.is_dir() else "a file")
        listing = record_files(path)
        return Files(name, listing.paths, path if path.is_dir() else path.parent, listing)
    is_hub_id = word.count("/") == 1 and not word.startswith((".", "~", "/")) and readers.ending(path) not in RECORDS
    if not is_hub_id:
        raise SourceError(
            f"no such source: {name!r} is neither a file, nor a folder, nor a hub id like HuggingFaceH4/ultrachat_200k"
        )
    return Hub(name, split, config, revision)


def _copied(url: str) -> Path:
    """The file or folder of this machine's cache with the objects at a URL."""
    whole, last = url_of(url) or url, url.rstrip("/").rpartition("/")[2]
    if readers.ending(Path(last)) not in RECORDS:
        bucket = Bucket(whole)
        bucket.pull()
        if not bucket.sizes():
            raise SourceError(f"there is nothing at {whole}: check the name")
        return bucket.folder
    bucket = Bucket(whole.rpartition("/")[0])
    try:
        bucket.fetch(bucket.folder / last)
    except FileNotFoundError:
        raise SourceError(f"there is no object {whole}: check the name") from None
    return bucket.folder / last


def _refuse(options: Mapping[str, str | None], name: str, kind: str) -> None:
    """Refuse an option that would have no effect."""
    for option, value in options.items():
        if value is not None:
            raise SourceError(f"{option} is {value!r}, but it does not apply to {name}, {kind}: omit {option}")


def record_files(path: Path) -> Listing:
    """A file of records, or those in a folder, at any depth; a run folder stands for its refined conversations.

    `list_files` and `Listing.one_corpus` say what is left out.

    Raises:
        SourceError: there is no such file, or the folder cannot be listed.
        RunFolderError: the run is not complete.
    """
    name = valid_text(str(path))
    if not path.is_dir():
        return _one_file(path, name)
    run = path if is_run(path) else path.resolve().parent
    if is_run(run):
        run_at(run)
    if (path / "dataset_info.json").exists() and not is_saved_dataset(path) and any(path.glob("*.arrow")):
        raise SourceError(f"{name} is not a whole saved Dataset, which has a state.json too: save it again")
    try:
        listing = readers.list_files(path / "refined" if run == path else path, RECORDS).one_corpus()
    except StageParameterError as error:
        raise SourceError(str(error)) from error
    if not listing.paths:
        note = f" ({note})" if (note := listing.note()) else ""
        raise SourceError(f"{name}: no file in this folder ends in {', '.join(RECORDS)}; nothing to refine{note}")
    return listing


def _one_file(path: Path, name: str) -> Listing:
    listing = readers.list_files(path, RECORDS)
    if path.exists() and not path.is_file():
        raise SourceError(
            f"{name} is no regular file, and it is read more than once: write its content to a file first"
        )
    if path.is_symlink() and not path.exists():
        raise SourceError(f"{name} is a link to {valid_text(str(path.readlink()))}, which is not there: repair it")
    if not path.exists():
        raise SourceError(f"{name}: expected an existing file or folder, ending in {', '.join(RECORDS)}")
    if not listing.paths:
        raise SourceError(
            f"{name}: expected a file ending in {', '.join(RECORDS)} (JSON and tables of text also with "
            f"{', '.join(readers.PACKINGS)}); convert it, or choose another one"
        )
    return listing
