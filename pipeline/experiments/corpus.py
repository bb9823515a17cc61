"""A corpus as the trainer takes it: texts as columns, what names them wherever they stand, and which are alike."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline import sources
from pipeline.ingest import Limits, ingest
from pipeline.manifest import Manifest
from pipeline.ownership import is_run, run_at
from pipeline.sources import shapes
from pipeline.sources.rows import SourceError, shown
from pipeline.store import Store
from stages.dedup import Dedup
from stages.files import plain_table, read_frame, save_frame
from stages.text.shingles import text_keys

COLUMNS = pl.Schema({"id": pl.String(), "first": pl.String(), "text": pl.String(), "source": pl.String()})
"""Columns of a corpus, none null: the first message's content, and all contents joined by a newline."""
UNREADABLE = 0.01
"""The share of unreadable rows that is left out without an error, as in ingest."""
ALIKE = 0.5
"""Jaccard from which on two conversations must not be on two sides of a split.

Lower than the 0.75 from which on one of two is dropped: a test conversation of which half stands in the training pool
is no fair test either. It costs little: from 0.75 to 0.5 eight chat corpora lost under 5 % of their clusters, OASST's
trees 21 % (branches that share a beginning), and one corpus, of a single question asked in many ways, ran together."""
MARGIN = 5 / 7
"""Where bands are placed below that, as in `refine dedup`: pairs at 0.5, 0.6, 0.7 are compared with a chance of 0.873,
0.988, 0.9998."""
ROWS = 2_000
"""Texts that are measured at once."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """Conversations.

    Attributes:
        name: how a user said it.
        digest: 16 hex digits of the texts, in order, wherever they were read from.
        frame: the columns of `COLUMNS`, a row a conversation.
        notes: sentences for the record and the user, such as how many rows could not be read.
    """

    name: str
    digest: str
    frame: pl.DataFrame
    notes: tuple[str, ...] = ()

    def keys(self) -> NDArray[np.uint64]:
        """What names each conversation wherever it stands, uint64 [K]: a hash of its words; copies have the same."""
        return keys(self.frame["text"])


def read(
    said: str | None,
    *,
    split: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    shape: str | None = None,
    limit: int | None = None,
    tell: Callable[[int], None] = lambda _rows: None,
) -> Corpus:
    """The corpus that a user means by a word on the command line, read as `refine run` reads it.

    Ids are those that ingest gives; of a run, whose refined corpus is meant, those of the run. Rows that cannot be read
    are left out and said, up to 1 %.

    Memory: the texts, at most twice, and a shard. Ingested shards lie in the system's folder for temporary files until
    they are read, compressed.

    Args:
        said: a run folder, a file, a folder, a hub id; nothing for the embedded default.
        split: of a saved Dataset or a dataset of the hub.
        config: of a dataset of the hub.
        revision: of a dataset of the hub.
        shape: of the records, recognised by default.
        limit: rows that are read.
        tell: called with the number of rows read so far.

    Raises:
        SourceError: there is no such source, it cannot be read, or it holds no text.
    """
    source = sources.find(said, split=split, config=config, revision=revision)
    if shape is not None and shape not in shapes.SHAPES:
        raise SourceError(f"the shape is {shape!r}; there are {shapes.expected()}")
    if said is not None and is_run(folder := Path(said).expanduser()):
        if shape is not None:
            raise SourceError(
                f"the shape is {shape!r}, and {source.name} is a run, whose shape is known: leave it away"
            )
        store = Store(folder)
        check_kept(store, None)
        return _read(source.name, _conversations(store, "refined"), limit)
    with tempfile.TemporaryDirectory(prefix="refine-corpus-") as scratch:
        store = Store(Path(scratch) / "run")
        done = ingest(source, store, Limits(limit=limit, unreadable=1.0, shape=shape), tell)
        notes = _notes(source.name, store, done)
        return _read(source.name, _conversations(store, "raw"), None, notes)


def read_part(store: Store, part: Literal["raw", "refined"], limit: int | None = None) -> Corpus:
    """The corpus that a run took in, or what it kept; ids are those of the run.

    Args:
        store: the run.
        part: which of the two.
        limit: of what it took in, the first so many rows; refined is what was kept of these.

    Raises:
        RunFolderError: the run is not complete.
        CorruptInputError: a shard cannot be read.
        SourceError: there is no text in it.
    """
    run_at(store.folder)
    if part == "refined":
        check_kept(store, limit)
    if part == "refined" and limit is not None:
        return _read(f"{part} of {shown(store.folder.name)}", _kept_of(store, limit), None)
    return _read(f"{part} of {shown(store.folder.name)}", _conversations(store, part), limit)


def check_kept(store: Store, limit: int | None) -> None:
    """Refuse a refined corpus of which nothing is left.

    Raises:
        SourceError: nothing was kept, of the whole run or of its first rows.
    """
    folder = shown(str(store.folder))
    if store.manifest.is_file() and not Manifest.load(store).counts.refined:
        raise SourceError(
            f"the refined corpus of {folder} is empty, every conversation was dropped: `refine show {folder}` says "
            f"why, `refine decide {folder}` takes other rules"
        )
    if limit is not None and not any(len(frame) for frame in _kept_of(store, limit)):
        raise SourceError(f"none of the first {limit:,} rows of {folder} was kept: take a larger --limit")


def _kept_of(store: Store, limit: int) -> Iterator[pl.DataFrame]:
    """What was kept of the first rows that the run took in."""
    left = limit
    for shard, frame in zip(store.shards(), _conversations(store, "refined"), strict=True):
        ids = read_frame(store.raw(shard), ["id"])["id"].head(left)
        left -= len(ids)
        yield frame.filter(pl.col("id").is_in(ids.implode()))
        if not left:
            return


def groups(texts: pl.Series, jaccard: float = ALIKE) -> NDArray[np.int64]:
    """The near-duplicate cluster of each text, int64 [K]: the row of its first member.

    Exact copies and pairs at `jaccard` or more, by connected components: the signal `cluster` of `stages.dedup`, with
    its MinHash, its exact check and its way with crowds. Texts of fewer than five words are alike when they are equal;
    empty ones are copies of each other. Give the texts that are trained on: conversations that differ may open with
    the same message.

    Memory: 200 bytes a text and 100 a pair, beside a part of the texts. In the system's folder for temporary files lie
    the texts meanwhile, compressed, and 8 bytes a word of those that may have a near-duplicate.

    Args:
        texts: no nulls.
        jaccard: of word 5-grams, above 0, up to 1.
    """
    stage = Dedup(floor=min(0.5, round(MARGIN * jaccard, 3)), cluster=jaccard, max_cluster=1.0)
    raw, measured = list[Path](), list[Path]()
    with tempfile.TemporaryDirectory(prefix="refine-groups-") as scratch:
        for begin in range(0, len(texts), ROWS):
            part = texts[begin : begin + ROWS].rename("text").to_frame()
            ids = pl.int_range(begin, begin + len(part), eager=True).cast(pl.String).rename("id")
            frame = part.with_columns(ids, prompt=pl.lit(""))
            raw.append(Path(scratch) / "raw" / f"{len(raw):05d}.parquet")
            measured.append(Path(scratch) / "measured" / raw[-1].name)
            save_frame(raw[-1], frame)
            save_frame(measured[-1], ids.to_frame().hstack(stage.measure(frame.select(stage.reads))))
        stage.merge(raw, measured, Path(scratch))
        merged = [read_frame(Path(scratch) / "merged" / path.name, ["cluster"])["cluster"] for path in measured]
    clusters = pl.concat([pl.Series("cluster", [], pl.String), *merged])
    return clusters.cast(pl.Int64).to_numpy().astype(np.int64)


def keys(texts: pl.Series) -> NDArray[np.uint64]:
    """A hash of the words of each text, uint64 [K], that depends on nothing else; see `stages.shingles.Words`."""
    return text_keys(texts)[:, 0].copy()


def _notes(name: str, store: Store, done: dict[str, Any]) -> tuple[str, ...]:
    """What is to be said of rows that ingest left out or mended.

    Raises:
        SourceError: too many cannot be read.
    """
    notes, rows, left = [], done["rows"], done["quarantined"]
    if left:
        shard = next(shard["name"] for shard in done["shards"] if shard["quarantined"])
        first = read_frame(store.quarantine(shard), ["file", "row", "reason"]).row(0)
        said = f"{left:,} of {rows:,} rows of {name} cannot be read; the first: {first[0]}, row {first[1]}: {first[2]}"
        if left > UNREADABLE * rows:
            raise SourceError(f"{said}; that is more than {UNREADABLE:.0%}: mend them, or say which shape they have")
        notes.append(f"{said}; they are left out")
    if done["replaced"]:
        notes.append(f"{done['replaced']:,} of {rows:,} rows of {name} hold invalid text, which was replaced by U+FFFD")
    return tuple(notes)


def _conversations(store: Store, part: Literal["raw", "refined"]) -> Iterator[pl.DataFrame]:
    """The columns of `COLUMNS` of each shard."""
    content = pl.col("messages").list.eval(pl.element().struct.field("content"))
    for shard in store.shards():
        path = store.raw(shard) if part == "raw" else store.refined(shard)
        frame = read_frame(path, ["id", "messages", "source"]).select(
            "id",
            first=content.list.first().fill_null(""),
            text=content.list.join("\n").fill_null(""),
            source=pl.col("source").fill_null(""),
        )
        alone = pl.from_arrow(plain_table(frame))  # a column of polars keeps the one alive that it was taken from
        assert isinstance(alone, pl.DataFrame)  # noqa: S101  a table is never a Series
        yield alone


def _read(name: str, parts: Iterable[pl.DataFrame], limit: int | None, notes: tuple[str, ...] = ()) -> Corpus:
    """Put shards together, and name them by their content."""
    frames, left = [COLUMNS.to_frame()], limit
    texts, lengths = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
    for part in parts:
        frame = part if left is None else part.head(left)
        left = None if left is None else left - len(frame)
        for column in ("first", "text"):
            lengths.update(frame[column].str.len_bytes().to_numpy().tobytes())
        texts.update("".join(frame["text"]).encode())
        frames.append(frame)
        if left == 0:
            break
    corpus = pl.concat(frames, rechunk=False)
    if not corpus["text"].str.contains(r"\S").any():
        raise SourceError(f"{name} holds no text ({len(corpus):,} conversations, all empty): take another corpus")
    state = hashlib.blake2b(texts.digest() + lengths.digest(), digest_size=8)
    return Corpus(name, state.hexdigest(), corpus, notes)
