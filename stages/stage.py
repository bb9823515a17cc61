"""The contract of a stage: it measures conversations and writes signals beside them. It never drops anything."""

from __future__ import annotations

import hashlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import polars as pl

MESSAGES: pl.DataType = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))

DETAILS: pl.DataType = pl.List(
    pl.Struct(
        {
            "calls": pl.List(pl.Struct({"name": pl.String, "arguments": pl.String})),  # arguments as JSON, or null
            "reasoning": pl.String,  # of the field or parts of that name, or null
            "media": pl.Int64,  # parts that are no text: images, audio, files
            "fields": pl.String,  # all fields but role and content, as JSON
        }
    )
)
"""What each message of a conversation holds beside its role and content; null for a message without more."""

RAW = pl.Schema(
    {
        "id": pl.String(),  # "<content digest>-<row>": unique, stable for the same source, sorted like the rows
        "source_id": pl.String(),  # the record's own id, or null
        "prompt": pl.String(),
        "prompt_id": pl.String(),  # not unique
        "messages": MESSAGES,
        "text": pl.String(),  # contents of the messages, joined by a newline
        "source": pl.String(),  # the record's own source, else its file or hub id
        "extra": pl.String(),  # the record's other fields as JSON, or null
        "details": DETAILS,  # as many as messages, or null if no message has any
        "tools": pl.String(),  # descriptions of the tools that the assistant can call, as JSON, or null
    }
)
"""Columns of a raw shard as `stages.files.read_frame` reads it.

No text is null; a list of messages may be empty, and so may a content.

Roles are in lower case: "system", "user", "assistant", "tool", or what the record has. A plain document is one message
with the role "text"."""

PAIRS = pl.Schema({"id": pl.String(), "other": pl.String(), "jaccard": pl.Float32()})
"""Columns of a file of near-duplicates."""

COSINES = pl.Schema({"id": pl.String(), "other": pl.String(), "cosine": pl.Float32()})
"""Columns of `semantic.parquet`, the near-duplicates by meaning."""

Measure = Callable[[pl.DataFrame], pl.DataFrame]


class MissingModelError(Exception):
    """A file or package that a stage needs is missing; the message says which one and how to get it."""


class CorruptInputError(Exception):
    """A file of the run, `path`, is missing or damaged; `why` is the fault."""

    def __init__(self, path: Path, why: object) -> None:
        super().__init__(f"{path} is corrupt: {why}")
        self.path, self.why = path, str(why)

    def __reduce__(self) -> tuple[type[CorruptInputError], tuple[Path, str]]:
        return type(self), (self.path, self.why)  # workers send it to the main process


def reason(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip()


class StageParameterError(ValueError):
    """A parameter of a stage has an invalid value; the message names the parameter and what was expected."""


def require(name: str, value: object, valid: bool, expected: str) -> None:
    """Raise `StageParameterError` for a value of a parameter that is not valid."""
    if not valid:
        raise StageParameterError(f"{name} is {value}, expected {expected}")


class StageRefusedError(Exception):
    """A stage refuses to go on with a suspicious corpus; the message says why, and how to allow it."""


@dataclass(frozen=True)
class Axis:
    """The axis of a signal in a report."""

    unit: str = ""  # its title, such as "words" or "share of lines seen before"
    log: bool = False
    rank: int = 65  # place among a report's figures, lowest first; the default follows the six main built-in signals


@dataclass(frozen=True)
class Stage(ABC):
    """A measurement of conversations, a frozen dataclass whose fields are its parameters.

    A subclass sets `summary` and `writes`, and implements `measure`, or `open` if it must load a model first. Each
    parameter needs a default and a hashable value; `__post_init__` raises `StageParameterError` for one out of range.
    The class docstring documents the signals for `refine stages`.
    """

    summary: ClassVar[str]
    """One line about what it measures, for `refine stages`."""
    version: ClassVar[int] = 1
    """Increase it when the same parameters give different signals than before; signals are then measured again."""
    identity: ClassVar[str] = ""
    """"module:Class" in the digest of a built-in class that has moved; by default the current one."""
    reads: ClassVar[tuple[str, ...]] = ("text",)
    """The columns of `RAW` that it needs; no others are read from disk."""
    writes: ClassVar[pl.Schema]
    """Its signals: columns and types. An unknown value is null, never NaN."""
    axes: ClassVar[Mapping[str, Axis]] = {}
    """The numeric signals that a report draws; all of them, on a linear axis, if this is empty."""

    @property
    def uses_gpu(self) -> bool:
        """Whether it measures by a model that runs on a GPU where there is one; on a cluster, each worker gets one."""
        return False

    def models(self) -> tuple[Path, ...]:
        """Files that the signals depend on, or `MissingModelError`; their content is part of the digest."""
        return ()

    def notes(self) -> tuple[str, ...]:
        """Sentences for the user, printed before and after a run, such as a part that cannot run on this machine."""
        return ()

    def remarks(self, folder: Path) -> tuple[str, ...]:
        """Sentences for the user about the measured corpus, printed after measuring; `folder` is as for `open`."""
        del folder
        return ()

    def open(self, folder: Path) -> Measure:
        """Load what measuring needs, once per process, and return the function that measures a batch.

        `folder` is the stage's folder in the run, with the files that `fit` wrote.
        """
        del folder
        return self.measure

    def measure(self, batch: pl.DataFrame) -> pl.DataFrame:
        """Signals of a batch of the columns `reads`: the columns `writes`, one row per conversation, in the same order.

        Each row depends on its conversation only.
        """
        raise NotImplementedError(f"{type(self).__name__} implements neither measure nor open")

    def digest(self) -> str:
        """16 hex digits that identify this measurement: class, version, parameters and content of its models.

        The source file of a user's own stage counts too, because its version is rarely increased while it is developed.
        """
        state = hashlib.blake2b(digest_size=8)
        kind = type(self)
        own = kind.__module__.startswith("stages.")  # a subclass elsewhere is another measurement
        identity = kind.identity if own and kind.identity else f"{kind.__module__}:{kind.__qualname__}"
        state.update(f"{identity}:{self.version}".encode())
        for field in fields(self):
            state.update(f"\0{field.name}={getattr(self, field.name)!r}".encode())
        source = getattr(sys.modules.get(kind.__module__), "__file__", None)  # None if typed into an interpreter
        for model in (*([Path(source)] if source and not own else ()), *self.models()):
            stat = model.stat()
            state.update(b"\0" + _content(model, stat.st_size, stat.st_mtime_ns))
        return state.hexdigest()


class FittedStage(Stage):
    """A stage that must see the whole corpus, or train a model, before it measures."""

    @property
    def fits_corpus(self) -> bool:
        """Whether most of the time of `fit` goes to the raw shards.

        A run estimates such a fit on a sample of them, and does other fits before the estimate.
        """
        return True

    @property
    def fit_parts(self) -> tuple[str, ...]:
        """Names of independent parts of the fit, which a run gives to its workers before `fit`; by default none."""
        return ()

    def fit_part(self, part: str, raw: Sequence[Path], folder: Path) -> None:
        """Do a part of the fit, unless it has been done: leave files in the stage's folder from which `fit` goes on."""
        raise NotImplementedError(f"{type(self).__name__} has the parts {self.fit_parts} and no fit_part")

    @abstractmethod
    def fit(self, raw: Sequence[Path], folder: Path) -> None:
        """Write the files that `open` needs to the stage's folder in the run: the same for the same corpus.

        It does those of its `fit_parts` that have not been done.

        The raw shards are in order. Read one at a time by `stages.files.read_frame`, which gives the columns of `RAW`
        (the files have no `text`, since `messages` hold it), so that memory is bounded. Write with `stages.files.save`,
        so that no file is incomplete.
        """


class GlobalStage(Stage):
    """A stage that compares conversations across all shards: clusters, pairs, percentiles."""

    merges: ClassVar[pl.Schema]
    """Its further signals, which the merge adds to each conversation."""
    pairs: ClassVar[Mapping[str, str]] = {}
    """Kinds of duplicates that it finds, for `KeepBest`: name -> column of `merges` with the id of the first exact copy
    of each conversation (its own id if there is none). Near-duplicates among these first copies are in
    `<name>.parquet` in the stage's folder, with the columns of `PAIRS`."""
    copies: ClassVar[Mapping[str, str]] = {}
    """Kinds of duplicates that are exact copies only, in the form of `pairs`. They have no file of near-duplicates."""

    @abstractmethod
    def merge(self, raw: Sequence[Path], measured: Sequence[Path], folder: Path) -> None:
        """Write the signals that need all shards.

        They go to `folder/merged/<name of the shard>`: `id` and the columns of `merges`, same rows, same order. Each
        kind in `pairs` goes to `folder/<name>.parquet`. The measured shards have `id` and the columns of `writes`, the
        same rows as the raw ones in the same order. Memory must be bounded: work by partition.
        """


@lru_cache(maxsize=4096)
def _content(path: Path, size: int, changed: int) -> bytes:
    """The digest of a file, read again only if it has changed, since a run asks once per shard."""
    del size, changed
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()


def parameters(stage: Stage) -> dict[str, Any]:
    return {field.name: getattr(stage, field.name) for field in fields(stage)}
