"""The contract of a stage: it looks at conversations and writes signals beside them; it never drops anything."""

from __future__ import annotations

import hashlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import polars as pl

MESSAGES: pl.DataType = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))

RAW = pl.Schema(
    {
        "id": pl.String(),  # "<source digest>-<row>", stable for the same source; unique
        "source_id": pl.String(),  # the record's own id, null where it has none
        "prompt": pl.String(),
        "prompt_id": pl.String(),  # repeats by nature
        "messages": MESSAGES,
        "text": pl.String(),  # the messages' contents joined by a newline
        "source": pl.String(),  # the record's own, else the file or hub id it came from
        "extra": pl.String(),  # the record's other fields as JSON, null where there are none
    }
)
"""Columns of a raw shard. No text is null; a list of messages may be empty, a content may be the empty string.

Roles are lower-case: "system", "user", "assistant", "tool", others as found; a plain document is one message of role
"text"."""

PAIRS = pl.Schema({"id": pl.String(), "other": pl.String(), "jaccard": pl.Float32()})
"""Columns of a file of near-duplicates."""

Measure = Callable[[pl.DataFrame], pl.DataFrame]


class MissingModelError(Exception):
    """A model file or package that a stage needs is not there; the message says which one and how to get it."""


class CorruptInputError(Exception):
    """A file of the run that a stage reads cannot be read; `path` names it."""

    def __init__(self, path: Path, why: object) -> None:
        super().__init__(f"{path} is corrupt: {why}")
        self.path, self.why = path, str(why)

    def __reduce__(self) -> tuple[type[CorruptInputError], tuple[Path, str]]:
        return type(self), (self.path, self.why)  # it crosses from a worker process


class StageParameterError(ValueError):
    """A stage's parameter has a value it cannot take; the message names the parameter, what was found and expected."""


class StageRefusedError(Exception):
    """A stage will not go on with what it found; the message says what that is, and how to allow it."""


@dataclass(frozen=True)
class Axis:
    """How a report draws a signal.

    Attributes:
        unit: the axis title, such as "words" or "share of lines seen before".
        log: whether the axis is logarithmic.
        rank: the place among a report's figures, lowest first. The default stands after the six main built-in signals.
    """

    unit: str = ""
    log: bool = False
    rank: int = 65


@dataclass(frozen=True)
class Stage(ABC):
    """A measurement of conversations. The fields of the dataclass are its parameters.

    A stage implements `measure`, or, where something heavy must be loaded first, `open`.
    """

    summary: ClassVar[str]
    """What it measures, in one line for `refine stages`."""
    version: ClassVar[int] = 1
    """Raised by hand whenever the same parameters would give other signals than before."""
    identity: ClassVar[str] = ""
    """"module:Class" as the digest spells it, set where a class has moved; empty for where the class is now."""
    reads: ClassVar[tuple[str, ...]] = ("text",)
    """The columns of `RAW` it needs: only those are read from disk."""
    writes: ClassVar[pl.Schema]
    """The signals it writes: null where unknown, never NaN."""
    axes: ClassVar[Mapping[str, Axis]] = {}
    """The numeric signals that a report draws; all of them, on a linear axis, if this is empty."""

    def models(self) -> tuple[Path, ...]:
        """Files whose content is part of this stage's identity.

        Raises:
            MissingModelError: one that is needed is not there.
        """
        return ()

    def notes(self) -> tuple[str, ...]:
        """Sentences the user must read before and after a run, such as a second stage that cannot run here."""
        return ()

    def remarks(self, folder: Path) -> tuple[str, ...]:
        """Sentences about what measuring found that the user must read after it; `folder` is the stage's own."""
        del folder
        return ()

    def open(self, folder: Path) -> Measure:
        """Load what measuring needs, once a process, and return the function that measures a batch.

        Args:
            folder: the stage's own folder in the run; what `fit` left there is in it.
        """
        del folder
        return self.measure

    def measure(self, batch: pl.DataFrame) -> pl.DataFrame:
        """Signals of a batch: the columns of `writes`, as many rows as the batch has, in the same order.

        Args:
            batch: the columns of `reads`.
        """
        raise NotImplementedError(f"{type(self).__name__} implements neither measure nor open")

    def digest(self) -> str:
        """16 hex digits that name this measurement: class, version, parameters and the content of its models.

        The source of a user's own stage counts too, since nobody raises a version while trying things out.
        """
        state = hashlib.blake2b(digest_size=8)
        kind = type(self)
        own = kind.__module__.startswith("stages.")  # a subclass elsewhere must not pass for the class it inherits from
        identity = kind.identity if own and kind.identity else f"{kind.__module__}:{kind.__qualname__}"
        state.update(f"{identity}:{self.version}".encode())
        for field in fields(self):
            state.update(f"\0{field.name}={getattr(self, field.name)!r}".encode())
        for model in (*(() if own else _source(kind)), *self.models()):
            with model.open("rb") as file:
                state.update(b"\0" + hashlib.file_digest(file, "blake2b").digest())
        return state.hexdigest()


class FittedStage(Stage):
    """A stage that must see the corpus, or train a model, once before it measures."""

    @abstractmethod
    def fit(self, raw: Sequence[Path], folder: Path) -> None:
        """Leave in `folder` what `open` needs. The same for the same corpus, whatever the number of workers.

        Args:
            raw: the raw shards (Parquet of `RAW`), in order; read them lazily, memory is bounded.
            folder: the stage's own folder; files are written aside and renamed by whoever writes them.
        """


class GlobalStage(Stage):
    """A stage whose answer needs all shards: clusters, pairs, percentiles."""

    merges: ClassVar[pl.Schema]
    """Columns the merge adds to each conversation."""
    pairs: ClassVar[Mapping[str, str]] = {}
    """Kinds of duplicate this stage finds, for `KeepBest`: name -> the column of `merges` that holds, for each
    conversation, the id of the first one that is an exact copy of it (its own id where it is alone). Near-duplicates
    among those first ones stand in `<name>.parquet` in the stage's folder, with the columns of `PAIRS`."""
    copies: ClassVar[Mapping[str, str]] = {}
    """Kinds of duplicate that are exact copies only, as in `pairs`; there is no file of near-duplicates."""

    @abstractmethod
    def merge(self, raw: Sequence[Path], measured: Sequence[Path], folder: Path) -> None:
        """Write the answer over all shards.

        Writes `folder/merged/<name of the measured shard>` for each measured shard (`id` and the columns of `merges`,
        same rows, same order), and `folder/<name>.parquet` for each kind in `pairs`. Works by partition, so that memory
        is bounded.

        Args:
            raw: the raw shards (Parquet of `RAW`), in order; read one at a time, where signals do not suffice.
            measured: the shards that measuring wrote (`id` and the columns of `writes`): one for each raw shard, same
                rows, same order.
            folder: the stage's own folder.
        """


def _source(kind: type[Stage]) -> tuple[Path, ...]:
    """The file that a class is written in; none where it was typed in."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return (Path(file),) if file else ()


def parameters(stage: Stage) -> dict[str, Any]:
    """A stage's parameters by name, as the plan and the manifest show them."""
    return {field.name: getattr(stage, field.name) for field in fields(stage)}
