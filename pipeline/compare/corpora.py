"""The two corpora of a comparison: which are meant, what they share, and what they consist of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline import sources
from pipeline.experiments import corpus as corpora
from pipeline.experiments.corpus import Corpus
from pipeline.ownership import is_run, run_at
from pipeline.report.text import visible
from pipeline.sources import shapes
from pipeline.sources.rows import SourceError
from pipeline.store import RunFolderError, Store, read_json
from trainer.prepare.arms import Union, distinct

RUNS = Path("data/runs")
"""Where the latest run is looked for, in the folder that refine is started in."""
PARTS = ("raw", "refined")
"""Words that name a part of the run."""
LONGEST = 40
"""Characters of an arm's name."""


@dataclass(frozen=True)
class Hub:
    """Which part of a dataset of the hub is meant, or of a saved one, and the shape of records that are no run's."""

    split: str | None = None
    config: str | None = None
    revision: str | None = None
    shape: str | None = None


@dataclass(frozen=True, eq=False)
class Pair:
    """Two corpora, the first one the one that the other is measured against.

    Attributes:
        corpora: by the arm's name.
        run: the run that both are parts of; None for any others.
        union: their conversations; each is its own group where only statistics were asked for.
        notes: sentences that a reader must have.
        grouped: whether near-duplicates were looked for.
    """

    corpora: Mapping[str, Corpus]
    run: Store | None
    union: Union
    notes: tuple[str, ...]
    grouped: bool = True

    @property
    def names(self) -> tuple[str, str]:
        """The two arms."""
        first, second = self.corpora
        return first, second

    @property
    def subset(self) -> bool:
        """Whether the second is a part of the first."""
        first, second = (self.union.members[name] for name in self.names)
        return not bool((second & ~first).any())


def latest(run: Path | None) -> Store:
    """The run that "raw" and "refined" are parts of: the one named, or the complete one that ended last.

    Raises:
        RunFolderError: there is none, or it is not complete.
    """
    if run is None:
        done = sorted(RUNS.glob("*/manifest.json"), key=lambda path: (path.stat().st_mtime, str(path)))
        if not done:
            raise RunFolderError(
                f"there is no complete run in {RUNS}, whose raw and refined corpora would be compared: `refine run` "
                "makes one, --run names another, or name two corpora"
            )
        run = done[-1].parent
    return run_at(run)


def pair(first: str, second: str, run: Path | None, limit: int | None, *, grouped: bool, hub: Hub = Hub()) -> Pair:
    """Read both corpora and find what they share.

    Args:
        first: "raw" or "refined" of the run, or a corpus as `pipeline.corpus.read` takes it.
        second: the same.
        run: the run; the latest one by default.
        limit: rows of each that are read; of a run, rows that it took in.
        hub: which part of datasets of the hub, or of saved ones, and their records' shape.
        grouped: whether near-duplicates are looked for, as a split needs them.

    Raises:
        SourceError, RunFolderError: one cannot be read, is empty, or they share no schema.
    """
    if first == second:
        raise SourceError(f"both corpora are {first}: name two, such as raw and refined")
    runs = [one in PARTS or is_run(Path(one).expanduser()) for one in (first, second)]
    if hub.shape is not None and all(runs):
        raise SourceError(f"--shape {hub.shape} says how records are read, and both corpora are of runs: leave it away")
    if run is not None and first not in PARTS and second not in PARTS:
        raise SourceError("--run names the run that raw and refined are of, and neither is compared: leave it away")
    store = latest(run) if first in PARTS or second in PARTS else None
    _check_shapes(first, second, store, hub)
    read = {_arm(said, first, second): _read(said, store, limit, hub) for said in (first, second)}
    frame, members = united(*(one.frame for one in read.values()))
    keys = distinct(corpora.keys(frame["text"]))
    groups = corpora.groups(frame["text"]) if grouped else np.arange(len(frame))
    made = Union(frame, keys, groups, dict(zip(read, members, strict=True)))
    both = store if {first, second} == set(PARTS) else None
    notes = tuple(note for one in read.values() for note in one.notes)
    found = Pair(read, both, made, notes, grouped)
    return replace(found, notes=(*notes, *_overlap(found)))


def _arm(said: str, *both: str) -> str:
    """An arm's name: what the user said, short where that tells the two apart; nothing in it turns text around."""
    short = [visible(Path(one.rstrip("/")).name or one) for one in both]
    names = short if len(set(short)) == len(short) else [visible(one) for one in both]
    alike = next((i for i, (a, b) in enumerate(zip(*names, strict=False)) if a != b), min(map(len, names)))
    cut = [_cut(name, alike) for name in names]
    if cut[0] == cut[1]:  # told apart by length alone, or far behind
        cut = [f"{name[: LONGEST - 4]} ({i})" for i, name in enumerate(cut, 1)]
    return cut[both.index(said)]


def _cut(name: str, alike: int) -> str:
    """A name of at most `LONGEST` characters, in which the place where it begins to differ is seen."""
    begin = max(min(alike - LONGEST // 4, len(name) - LONGEST + 1), 0)
    cut = name if len(name) <= LONGEST or not begin else "…" + name[begin:]
    return cut if len(cut) <= LONGEST else cut[: LONGEST - 1] + "…"


def _read(said: str, store: Store | None, limit: int | None, hub: Hub) -> Corpus:
    if said not in PARTS or store is None:
        shape = None if is_run(Path(said).expanduser()) else hub.shape
        return corpora.read(said, split=hub.split, config=hub.config, revision=hub.revision, shape=shape, limit=limit)
    return corpora.read_part(store, "raw" if said == "raw" else "refined", limit)


def _check_shapes(first: str, second: str, store: Store | None, hub: Hub) -> None:
    """Refuse a conversation against a plain document.

    Raises:
        SourceError: the two share no schema.
    """
    found = {said: _shape(said, store, hub) for said in (first, second)}
    plain = [said for said, shape in found.items() if shape == "text"]
    if len(plain) == 1 and None not in found.values():
        told = " and ".join(f"{said} is of shape {shape}" for said, shape in found.items())
        raise SourceError(f"{told}: plain documents and conversations share no schema; compare two of one kind")


def _shape(said: str, store: Store | None, hub: Hub) -> str | None:
    """The shape of a corpus's records, by its first; None where that is not known before it is read."""
    if said in PARTS and store is not None:
        return str(read_json(store.shard_list)["shape"])
    if is_run(folder := Path(said).expanduser()):
        return str(read_json(Store(folder).shard_list)["shape"]) if Store(folder).shard_list.exists() else None
    if hub.shape is not None:
        return hub.shape
    found = sources.find(said, split=hub.split, config=hub.config, revision=hub.revision)
    first = next(iter(found.rows()), None)
    return shapes.recognise(list(first.value)) if first and isinstance(first.value, dict) else None


def united(a: pl.DataFrame, b: pl.DataFrame) -> tuple[pl.DataFrame, tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """The conversations of both, each once, those of `a` first; and which of them each has: bool [K], bool [K].

    A conversation is in both where id and text are the same; of the rest, the n-th copy of a text in one is the n-th
    copy in the other.
    """
    rows_a, rows_b = (frame.select("id", "text").with_row_index("row") for frame in (a, b))
    same = rows_b.join(rows_a.unique(["id", "text"], keep="first"), on=["id", "text"], how="inner")
    same = same.unique("row_right", keep="first", maintain_order=True)
    left_a, left_b = (
        rows.join(same.select(pl.col(name).alias("row")), on="row", how="anti", maintain_order="left").with_columns(
            nth=pl.int_range(pl.len()).over("text")
        )
        for rows, name in ((rows_a, "row_right"), (rows_b, "row"))
    )
    alike = left_b.join(left_a, on=["text", "nth"], how="inner")
    pairs = pl.concat([same.select("row", "row_right"), alike.select("row", "row_right")])
    alone = rows_b.join(pairs, on="row", how="anti", maintain_order="left")["row"]
    frame = pl.concat([a, b[alone.to_list()]])
    in_a, in_b = np.arange(len(frame)) < len(a), np.arange(len(frame)) >= len(a)
    in_b[pairs["row_right"].to_numpy()] = True
    return frame, (in_a, in_b)


def _overlap(found: Pair) -> tuple[str, ...]:
    """What to say of two corpora that are no part of one another."""
    (a, b), members = found.names, found.union.members
    shared, alone = int((members[a] & members[b]).sum()), int((members[b] & ~members[a]).sum())
    if not alone and members[a].sum() == shared:
        return (f"{a} and {b} hold the same {shared:,} conversations: no difference can be found",)
    if not alone:
        return ()
    said = f"{b} is not a subset of {a}: {alone:,} of its {int(members[b].sum()):,} conversations are not in {a} "
    if members[b].all():
        said += (
            f"({a} is one of {b}); the test set is drawn from {b}, and both arms are scored on it and its part in {a}"
        )
    else:
        said += f"({shared:,} are); trainings of both are scored on a test set of each"
    return (said,)
