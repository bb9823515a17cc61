"""The two corpora of a comparison: which they are, what they share, and their names."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline import sources
from pipeline.experiments import corpus as corpora
from pipeline.experiments.corpus import Corpus
from pipeline.ownership import RUNS, RunState, run_at, run_folders, state
from pipeline.report.text import visible
from pipeline.sources import shapes
from pipeline.sources.rows import SourceError
from pipeline.store import RunFolderError, Store, read_json
from stages.readers import is_run
from trainer.prepare.arms import Union, distinct

PARTS = ("raw", "refined")
"""Names of corpora that mean a part of the run."""
MAX_NAME = 40
"""Maximum length of an arm's name, in characters."""


@dataclass(frozen=True)
class HubOptions:
    """Which part of a hub dataset or saved DatasetDict to read, and the shape of records outside runs."""

    split: str | None = None
    config: str | None = None
    revision: str | None = None
    shape: str | None = None


@dataclass(frozen=True, eq=False)
class Target:
    """What a user trains for; `near` of its conversations have a near-duplicate in a corpus, and are not tested on."""

    corpus: Corpus
    near: int

    @property
    def notes(self) -> tuple[str, ...]:
        """How many of its conversations are left out, as a sentence, if any are."""
        if not self.near:
            return ()
        text = f"{self.near:,} of the {len(self.corpus.frame):,} conversations of the target {self.corpus.name} have a "
        return (f"{text}near-duplicate in one of the corpora, and are left out of its test set",)


@dataclass(frozen=True, eq=False)
class Pair:
    """Two corpora by the arm's name; the second is compared with the first."""

    corpora: Mapping[str, Corpus]
    run: Store | None
    """The run that both are parts of; None for other corpora."""
    union: Union
    """The conversations of both; each is its own group if near-duplicates were not searched."""
    notes: tuple[str, ...]
    grouped: bool = True
    """Whether near-duplicates were searched."""
    target: Target | None = None
    """What the user trains for, whose conversations follow those of both corpora in the union; None without one."""

    @property
    def names(self) -> tuple[str, str]:
        """The two arms."""
        first, second = self.corpora
        return first, second

    @property
    def digests(self) -> list[str]:
        """The digests of both corpora, and of the target."""
        return [corpus.digest for corpus in (*self.corpora.values(), *([self.target.corpus] if self.target else []))]

    @property
    def subset(self) -> bool:
        """Whether the second corpus is a subset of the first."""
        first, second = (self.union.members[name] for name in self.names)
        return not bool((second & ~first).any())


def latest(run: Path | None) -> Store:
    """The run that "raw" and "refined" are parts of: `run`, or the complete run that finished last.

    Runs are searched for in data/runs/ and in the current folder.

    Raises:
        RunFolderError: there is none, or it is not complete.
    """
    if run is None:
        complete = [folder for folder in run_folders() if state(folder) is RunState.COMPLETE]
        if not complete:
            raise RunFolderError(
                f"there is no complete run in {RUNS} or the current folder whose raw and refined corpora could be "
                "compared: make one with `refine run`, name one with --run, or name two corpora"
            )
        run = max(complete, key=lambda folder: (Store(folder).manifest.stat().st_mtime, str(folder)))
    return run_at(run)


def pair(
    first: str,
    second: str,
    run: Path | None,
    limit: int | None,
    *,
    grouped: bool,
    hub: HubOptions = HubOptions(),
    target: str | None = None,
) -> Pair:
    """Read two corpora and find out what they share.

    Args:
        first: "raw" or "refined" of the run, or a corpus as `pipeline.experiments.corpus.read` takes it.
        second: the same.
        run: the run; the latest one by default.
        limit: maximum number of rows to read of each; of a run, of its raw rows.
        grouped: whether to search near-duplicates, which a split needs.
        hub: which part of the datasets that are compared to read.
        target: a third corpus, for a test set; `grouped` is true.

    Raises:
        SourceError, RunFolderError: a corpus cannot be read or is empty, the two share no schema, or all conversations
            of the target have a near-duplicate in one of them.
    """
    if first == second:
        raise SourceError(f"both corpora are {first}: name two, such as raw and refined")
    of_runs = [name in PARTS or is_run(Path(name).expanduser()) for name in (first, second)]
    if hub.shape is not None and all(of_runs):
        raise SourceError(f"--shape {hub.shape} sets how records are read, but both corpora are of runs: omit it")
    if run is not None and first not in PARTS and second not in PARTS:
        raise SourceError("--run names the run of raw and refined, but neither is compared: omit it")
    store = latest(run) if first in PARTS or second in PARTS else None
    _check_shapes(first, second, store, hub)
    read = {_arm(name, first, second): _read(name, store, limit, hub) for name in (first, second)}
    frame, members = unite(*(one.frame for one in read.values()))
    keys = lineage_keys(frame, *members)
    groups = _with_versions(corpora.groups(frame["text"]), frame, *members) if grouped else np.arange(len(frame))
    union = Union(frame, keys, groups, dict(zip(read, members, strict=True)))
    both = store if {first, second} == set(PARTS) else None
    parts = " and ".join(name for name in (first, second) if name in PARTS)
    chosen = [f"{parts} of {store.name}, the run that finished last; --run names another"] if store and not run else []
    notes = (*chosen, *(note for one in read.values() for note in one.notes), *_overlap(union))
    if target is None:
        return Pair(read, both, union, notes, grouped)
    union, aim = with_target(union, corpora.read(target))
    return Pair(read, both, union, (*notes, *aim.corpus.notes, *aim.notes), grouped, aim)


def _arm(name: str, *both: str) -> str:
    """The name of an arm: the last part of a path if the two differ there, in printable characters."""
    short = [visible(Path(one.rstrip("/")).name or one) for one in both]
    names = short if len(set(short)) == len(short) else [visible(one) for one in both]
    differ = next((i for i, (a, b) in enumerate(zip(*names, strict=False)) if a != b), min(map(len, names)))
    cut = [_cut(one, differ) for one in names]
    if cut[0] == cut[1]:  # they differ in length alone, or far behind
        cut = [f"{one[: MAX_NAME - 4]} ({i})" for i, one in enumerate(cut, 1)]
    return cut[both.index(name)]


def _cut(name: str, differ: int) -> str:
    """A name cut to `MAX_NAME` characters that include position `differ`."""
    begin = max(min(differ - MAX_NAME // 4, len(name) - MAX_NAME + 1), 0)
    cut = name if len(name) <= MAX_NAME or not begin else "…" + name[begin:]
    return cut if len(cut) <= MAX_NAME else cut[: MAX_NAME - 1] + "…"


def _read(name: str, store: Store | None, limit: int | None, hub: HubOptions) -> Corpus:
    if name not in PARTS or store is None:
        shape = None if is_run(Path(name).expanduser()) else hub.shape
        return corpora.read(name, split=hub.split, config=hub.config, revision=hub.revision, shape=shape, limit=limit)
    return corpora.read_part(store, "raw" if name == "raw" else "refined", limit)


def _check_shapes(first: str, second: str, store: Store | None, hub: HubOptions) -> None:
    """Refuse to compare conversations with plain documents."""
    shape_of = {name: _shape(name, store, hub) for name in (first, second)}
    if None not in shape_of.values() and list(shape_of.values()).count("text") == 1:
        both = " and ".join(f"{name} is of shape {shape}" for name, shape in shape_of.items())
        raise SourceError(f"{both}: plain documents and conversations share no schema; compare two of one kind")


def _shape(name: str, store: Store | None, hub: HubOptions) -> str | None:
    """The shape of a corpus's records, judged by the first; None if it is unknown before reading."""
    if name in PARTS and store is not None:
        return str(read_json(store.shard_list)["shape"])
    if is_run(folder := Path(name).expanduser()):
        return str(read_json(Store(folder).shard_list)["shape"]) if Store(folder).shard_list.exists() else None
    if hub.shape is not None:
        return hub.shape
    source = sources.find(name, split=hub.split, config=hub.config, revision=hub.revision)
    first = next(iter(source.rows()), None)
    return shapes.recognise(first.value) if first and isinstance(first.value, dict) else None


def with_target(union: Union, corpus: Corpus) -> tuple[Union, Target]:
    """A union with the conversations of a target that have no near-duplicate in it; a SourceError if none is left.

    The clusters of the union stay what they are.
    """
    size = len(union.frame)
    found = corpora.groups(pl.concat([union.frame["text"], corpus.frame["text"]]))
    near = np.isin(found[size:], found[:size])
    rows = np.flatnonzero(~near)
    if not corpus.frame["text"].gather(rows).str.contains(r"\S").any():
        raise SourceError(
            f"each of the {len(near):,} conversations of the target {corpus.name} has a near-duplicate in the corpora "
            "that are compared: name a target that nothing is trained on"
        )
    frame = corpus.frame[rows.tolist()]
    members = {name: np.append(mask, np.zeros(len(rows), np.bool_)) for name, mask in union.members.items()}
    keys = np.append(union.keys, distinct(corpora.keys(frame["text"])))
    groups = np.append(union.groups, found[size:][rows])
    made = Union(pl.concat([union.frame, frame]), keys, groups, members, np.arange(size + len(rows)) >= size)
    return made, Target(corpus, int(near.sum()))


def unite(a: pl.DataFrame, b: pl.DataFrame) -> tuple[pl.DataFrame, tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """The union of two corpora, rows of `a` first, and which rows each contains: bool [K], bool [K].

    A conversation is in both if its id, text and turns are equal; among the others, the n-th copy of a text in one
    corpus is the n-th copy in the other.
    """
    said = ["text", "turns"]
    rows_a, rows_b = (frame.select("id", *said).with_row_index("row") for frame in (a, b))
    same = rows_b.join(rows_a.unique(["id", *said], keep="first"), on=["id", *said], maintain_order="left")
    same = same.unique("row_right", keep="first", maintain_order=True)
    left_a, left_b = (
        rows.join(same.select(pl.col(name).alias("row")), on="row", how="anti", maintain_order="left").with_columns(
            nth=pl.int_range(pl.len()).over(said)
        )
        for rows, name in ((rows_a, "row_right"), (rows_b, "row"))
    )
    alike = left_b.join(left_a, on=[*said, "nth"], how="inner")
    pairs = pl.concat([same.select("row", "row_right"), alike.select("row", "row_right")])
    alone = rows_b.join(pairs, on="row", how="anti", maintain_order="left")["row"]
    frame = pl.concat([a, b[alone.to_list()]])
    in_a, in_b = np.arange(len(frame)) < len(a), np.arange(len(frame)) >= len(a)
    in_b[pairs["row_right"].to_numpy()] = True
    return frame, (in_a, in_b)


def lineage_keys(frame: pl.DataFrame, in_a: NDArray[np.bool_], in_b: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Keys of a union's conversations, uint64 [K]: of the text, so that they do not depend on the source.

    Two versions of a conversation, with one id and different texts in the two corpora, have the same key.
    """
    keys = distinct(corpora.keys(frame["text"]))
    new, old = _versions(frame, in_a, in_b)
    keys[new] = keys[old]
    return keys


def _versions(
    frame: pl.DataFrame, in_a: NDArray[np.bool_], in_b: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of `b` that are another version of a row of `a`, with its id but another text, and those rows of `a`."""
    rows = frame.select("id").with_row_index("row")
    old, new = (rows.filter(pl.Series(alone)).unique("id", keep="first") for alone in (in_a & ~in_b, in_b & ~in_a))
    versions = new.join(old, on="id", how="inner")
    return versions["row"].cast(pl.Int64).to_numpy(), versions["row_right"].cast(pl.Int64).to_numpy()


def _with_versions(
    groups: NDArray[np.int64], frame: pl.DataFrame, in_a: NDArray[np.bool_], in_b: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Clusters of near-duplicates in which the two versions of a conversation are together, however much differs.

    Otherwise one arm could be trained on what the other one is tested on. A loop over the versions that are apart.
    """
    parent = dict[int, int]()

    def root(group: int) -> int:
        while (above := parent.get(group, group)) != group:
            parent[group] = group = parent.get(above, above)
        return group

    for one, other in zip(*(groups[rows].tolist() for rows in _versions(frame, in_a, in_b)), strict=True):
        low, high = sorted((root(one), root(other)))
        if low != high:
            parent[high] = low
    apart = np.array(sorted(parent), np.int64)
    at = np.searchsorted(apart, groups)
    there = np.append(apart, -1)[at] == groups
    joined = groups.copy()
    joined[there] = np.array([root(group) for group in apart.tolist()], np.int64)[at[there]]
    return joined


def _overlap(union: Union) -> tuple[str, ...]:
    """A note on two corpora that are equal, or of which the second is not a subset of the first."""
    members = union.members
    a, b = members
    shared, alone = int((members[a] & members[b]).sum()), int((members[b] & ~members[a]).sum())
    if not alone and members[a].sum() == shared:
        return (f"{a} and {b} hold the same {shared:,} conversations: no difference can be found",)
    if not alone:
        return ()
    note = f"{b} is not a subset of {a}: {alone:,} of its {int(members[b].sum()):,} conversations are not in {a} "
    if members[b].all():
        note += f"({a} is a subset of {b}); the test set is drawn from {b}, and both arms are scored on it and on its "
        note += f"part in {a}"
    else:
        note += f"({shared:,} are); both arms are scored on one test set of each corpus"
    return (note,)
