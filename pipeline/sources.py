"""Where conversations come from: the embedded default, files, a saved `Dataset`, the hub. Records as they come."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import orjson

DEFAULT = "chitchat"
"""The name of the embedded default: 7,168 human dialogues of the package chitchat-dataset (MIT)."""

BATCH = 1000
"""Rows read from Parquet at a time; only memory depends on it."""

ENDINGS = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson", ".json", ".json.gz", ".json.zst")


class SourceError(Exception):
    """A source is not there, cannot be read, or holds no conversations; the message says what to do."""


class Unreadable(NamedTuple):
    """A row that could not be read."""

    reason: str
    record: str


class Row(NamedTuple):
    """A row of a source. `number` counts from 1 in its file, as a line of JSONL does."""

    file: str
    number: int
    value: Any
    replaced: bool = False


class Source(Protocol):
    """Something that records come from, always in the same order."""

    @property
    def name(self) -> str:
        """How a user would say it."""

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

    def digest(self) -> str:
        return digest([self.path()])

    def files(self) -> list[dict[str, Any]]:
        return [described(self.path(), self.path().name)]

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
    paths: tuple[Path, ...]
    root: Path

    def label(self, path: Path) -> str:
        """A file's name as messages and quarantine show it."""
        return path.relative_to(self.root).as_posix() if path != self.root else path.name

    def digest(self) -> str:
        return digest(self.paths)

    def files(self) -> list[dict[str, Any]]:
        return [described(path, self.label(path)) for path in self.paths]

    def rows(self) -> Iterator[Row]:
        for path in self.paths:
            reader = _parquet if path.name.endswith(".parquet") else _json_lines
            yield from reader(path, self.label(path))


@dataclass(frozen=True)
class Saved:
    """A folder written by `Dataset.save_to_disk`, one split or a `DatasetDict`."""

    name: str
    folder: Path
    split: str | None

    def digest(self) -> str:
        return digest(sorted(self.folder.rglob("*.arrow")), self.split or "")

    def files(self) -> list[dict[str, Any]]:
        return [
            described(path, path.relative_to(self.folder).as_posix()) for path in sorted(self.folder.rglob("*.arrow"))
        ]

    def rows(self) -> Iterator[Row]:
        import datasets

        found = datasets.load_from_disk(str(self.folder))
        if isinstance(found, datasets.DatasetDict):
            found = found[_one_split(self.name, list(found), self.split)]
        for number, record in enumerate(found, 1):
            yield Row(self.name, number, record)


@dataclass(frozen=True)
class Hub:
    """A dataset of the hub, streamed; nothing of it is kept on disk but the raw shards."""

    name: str
    split: str | None = None
    config: str | None = None
    revision: str | None = None
    _pinned: dict[str, str] = field(default_factory=dict, compare=False)

    def pinned(self) -> str:
        """The commit that the revision means now, so that ids and resumed runs hold.

        Raises:
            SourceError: the hub cannot be reached, or has no such dataset.
        """
        if "sha" not in self._pinned:
            from huggingface_hub import HfApi

            try:
                self._pinned["sha"] = str(HfApi().dataset_info(self.name, revision=self.revision).sha)
            except Exception as error:
                raise SourceError(
                    f"no file or folder {self.name!r} here, and the hub did not give a dataset of that name "
                    f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no answer'}): "
                    "check the spelling, or the network"
                ) from error
        return self._pinned["sha"]

    def digest(self) -> str:
        said = json.dumps([self.name, self.pinned(), self.config, self.split])
        return hashlib.blake2b(said.encode(), digest_size=8).hexdigest()

    def files(self) -> list[dict[str, Any]]:
        return [{"hub": self.name, "revision": self.pinned(), "config": self.config, "split": self.split}]

    def rows(self) -> Iterator[Row]:
        import datasets

        try:
            streams = datasets.load_dataset(self.name, self.config, revision=self.pinned(), streaming=True)
            stream = streams[_one_split(self.name, list(streams), self.split)]
            for number, record in enumerate(stream, 1):
                yield Row(self.name, number, record)
        except (OSError, ValueError, RuntimeError) as error:
            raise SourceError(
                f"{self.name}: the hub's data cannot be streamed ({str(error).splitlines()[0]})"
            ) from error


def _one_split(name: str, there: list[str], wanted: str | None) -> str:
    if wanted is None and len(there) == 1:
        return there[0]
    if wanted not in there:
        found = "no split is named" if wanted is None else f"there is no split {wanted!r}"
        raise SourceError(f"{name} has the splits {', '.join(there)} and {found}: say which one with --split")
    return str(wanted)


def find(
    said: str | None, *, split: str | None = None, config: str | None = None, revision: str | None = None
) -> Source:
    """The source that a user means by a word on the command line.

    Raises:
        SourceError: there is no such source, or it holds no file that can be read.
    """
    if said is None or said == DEFAULT:
        return Embedded()
    path = Path(said).expanduser()
    if path.is_file():
        if not path.name.endswith(ENDINGS):
            raise SourceError(
                f"{said}: expected a file ending in {', '.join(ENDINGS)}; convert it, or choose another one"
            )
        return Files(said, (path,), path.parent)
    if path.is_dir():
        return _folder(said, path, split)
    if path.is_absolute() or said.startswith((".", "~")) or said.count("/") != 1 or said.endswith(ENDINGS):
        raise SourceError(
            f"no such source: {said!r} is neither a file, nor a folder, nor a hub id like HuggingFaceH4/ultrachat_200k"
        )
    return Hub(said, split, config, revision)


def _folder(said: str, path: Path, split: str | None) -> Source:
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        return Saved(said, path, split)
    root = path
    if (path / "manifest.json").exists() and (path / "refined").is_dir():
        path = path / "refined"  # a run of ours stands for its refined corpus
    found = tuple(sorted(file for file in path.rglob("*") if file.name.endswith(ENDINGS) and _visible(file, path)))
    if not found:
        raise SourceError(f"{said}: no file in this folder ends in {', '.join(ENDINGS)}; nothing to refine")
    return Files(said, found, root)


def _visible(file: Path, root: Path) -> bool:
    return file.is_file() and not any(part.startswith(".") for part in file.relative_to(root).parts)


def digest(paths: list[Path] | tuple[Path, ...], salt: str = "") -> str:
    """16 hex digits of the content of files, in order; their names do not count.

    Raises:
        SourceError: a file cannot be read.
    """
    state = hashlib.blake2b(salt.encode(), digest_size=8)
    for path in paths:
        try:
            with path.open("rb") as file:
                state.update(hashlib.file_digest(file, "blake2b").digest())
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    return state.hexdigest()


def described(path: Path, name: str) -> dict[str, Any]:
    """A file for the manifest: name, bytes, content digest."""
    return {"name": name, "bytes": path.stat().st_size, "blake2b": digest([path])}


def _parquet(path: Path, label: str) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH):
                for value in _batch(batch):
                    number += 1
                    yield Row(label, number, value)
    except (pa.ArrowException, OSError) as error:
        why = str(error).splitlines()[0]
        raise SourceError(f"{label} cannot be read after row {number} ({why}): mend or remove the file") from error


def _batch(batch: Any) -> Iterator[Any]:  # noqa: ANN401  pyarrow has no types
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:  # Parquet does not check its text; take the rows one by one
        for i in range(batch.num_rows):
            try:
                yield batch.slice(i, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield Unreadable(f"the record's text is not UTF-8 ({error.reason})", repr(error.object[:1000]))


def _opened(path: Path) -> io.BufferedIOBase:
    if path.name.endswith(".gz"):
        return gzip.open(path, "rb")
    if path.name.endswith(".zst"):
        import zstandard

        reader = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True, closefd=True)
        return io.BufferedReader(reader)
    return path.open("rb")


def _json_lines(path: Path, label: str) -> Iterator[Row]:
    import zstandard

    number = 0
    try:
        with _opened(path) as file:
            if ".json" in path.suffixes and _is_array(file):
                yield from _array(file, label)
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _line(label, number, line)
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise SourceError(f"{label} cannot be read after line {number} ({error}): mend or remove the file") from error


def _is_array(file: io.BufferedIOBase) -> bool:
    """Whether a .json file is one array, as ShareGPT's are, and not a record a line."""
    start = file.peek(64) if isinstance(file, io.BufferedReader | gzip.GzipFile) else b""
    return start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def _array(file: io.BufferedIOBase, label: str) -> Iterator[Row]:
    data = file.read().removeprefix(b"\xef\xbb\xbf")
    try:
        records = json.loads(data.decode("utf-8", "replace"))
    except ValueError as error:
        raise SourceError(
            f"{label} begins like a JSON array and is not one ({error}): mend or remove the file"
        ) from error
    for number, record in enumerate(records, 1):
        value, replaced = _without_surrogates(record)
        yield Row(label, number, value, replaced)


def _line(label: str, number: int, line: bytes) -> Row:
    if number == 1:
        line = line.removeprefix(b"\xef\xbb\xbf")
    try:
        return Row(label, number, orjson.loads(line))
    except orjson.JSONDecodeError:  # invalid UTF-8 and lone surrogates, which are replaced, or no JSON at all
        text = line.decode("utf-8", "replace")
    try:
        value, replaced = _without_surrogates(json.loads(text))
    except (ValueError, RecursionError) as error:
        return Row(label, number, Unreadable(f"the line is not JSON ({error})", text))
    return Row(label, number, value, replaced or "\ufffd" in text)


def _without_surrogates(value: Any) -> tuple[Any, bool]:  # noqa: ANN401  any JSON
    """JSON whose texts are all valid, with U+FFFD for what was not, and whether anything was."""
    text = json.dumps(value, ensure_ascii=False)
    clean = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    return (value, False) if clean == text else (json.loads(clean), True)
