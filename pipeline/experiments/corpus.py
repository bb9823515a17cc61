"""A corpus as the trainer reads it: texts as columns, keys that do not depend on the source, near-duplicate groups."""

import hashlib
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline import sources
from pipeline.ingest import Limits, ingest
from pipeline.manifest import Manifest
from pipeline.ownership import run_at
from pipeline.sources import shapes
from pipeline.sources.rows import SourceError, valid_text
from pipeline.store import Store
from stages.dedup.bands import Matching
from stages.dedup.pairs import clusters
from stages.files import plain_table, read_frame
from stages.readers import is_run
from stages.text.shingles import text_keys
from trainer.prepare.template import ROLE_CODES, TURNS
from trainer.prepare.vocabulary import ROLES

COLUMNS = pl.Schema(
    {"id": pl.String(), "first": pl.String(), "text": pl.String(), "turns": TURNS, "source": pl.String()}
)
"""Columns of a corpus, without nulls: `first` is the first content, `text` all contents joined by a newline, and
`turns` the role and the length in characters of each message."""
UNREADABLE = 0.01
"""Maximum share of unreadable rows that are omitted without an error, as in ingest."""
ALIKE = 0.5
"""Smallest Jaccard at which two conversations must be on the same side of a split.

Lower than 0.75, at which one of two is dropped: a test conversation that is half in the training pool is no fair test
either. It costs little: from 0.75 to 0.5 eight chat corpora lost under 5 % of their clusters, OASST's trees 21 %
(branches with a common beginning), and one corpus, a single question asked in many ways, became one cluster."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """Conversations to train on, a row of `COLUMNS` each, and notes such as how many rows could not be read."""

    name: str
    """As it was typed."""
    digest: str
    """16 hex digits of the texts and roles in order; the same from any source."""
    frame: pl.DataFrame
    notes: tuple[str, ...] = ()


def read(
    name: str | None,
    *,
    split: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    shape: str | None = None,
    limit: int | None = None,
) -> Corpus:
    """Read the corpus that a user names, as `refine run` reads it; of a run, the refined corpus.

    Ids are those of ingest, or of the run. Up to 1 % unreadable rows are omitted, with a note.

    Memory: the texts, at most twice, and a shard. The ingested shards, compressed, are in the system's folder for
    temporary files until they are read.

    Args:
        name: a run folder, a file, a folder, a hub id; None for the embedded default.
        split: of a saved Dataset or a dataset of the hub.
        config: of a dataset of the hub.
        revision: of a dataset of the hub.
        shape: of the records; by default it is recognised.
        limit: maximum number of rows to read.

    Raises:
        SourceError: there is no such source, it cannot be read, or it holds no text.
    """
    source = sources.find(name, split=split, config=config, revision=revision)
    if shape is not None and shape not in shapes.SHAPES:
        raise SourceError(f"the shape is {shape!r}; there are {shapes.expected()}")
    if name is not None and is_run(folder := Path(name).expanduser()):
        if shape is not None:
            raise SourceError(f"the shape is {shape!r}, but {source.name} is a run, whose shape is known: omit it")
        store = Store(folder)
        check_kept(store, None)
        return _read(source.name, _conversations(store, "refined"), limit)
    with tempfile.TemporaryDirectory(prefix="refine-corpus-") as scratch:
        store = Store(Path(scratch) / "run")
        done = ingest(source, store, Limits(limit=limit, unreadable=1.0, shape=shape))
        return _read(source.name, _conversations(store, "raw"), None, _notes(source.name, store, done))


def read_part(store: Store, part: Literal["raw", "refined"], limit: int | None = None) -> Corpus:
    """The raw or the refined corpus of a complete run; ids are those of the run.

    `limit` takes the first raw rows; refined is what was kept of these. A corpus without text is a `SourceError`.
    """
    run_at(store.folder)
    rows = _conversations(store, part)
    if part == "refined":
        check_kept(store, limit)
        rows = rows if limit is None else _kept_of(store, limit)
    return _read(f"{part} of {valid_text(store.folder.name)}", rows, limit)


def check_kept(store: Store, limit: int | None) -> None:
    """Refuse an empty refined corpus by a `SourceError`: nothing was kept of the run, or of its first `limit` rows."""
    folder = valid_text(str(store.folder))
    if store.manifest.is_file() and not Manifest.load(store).counts.refined:
        raise SourceError(
            f"the refined corpus of {folder} is empty, every conversation was dropped: `refine show {folder}` says "
            f"why, `refine decide {folder}` takes other rules"
        )
    if limit is not None and not any(len(frame) for frame in _kept_of(store, limit)):
        raise SourceError(f"none of the first {limit:,} rows of {folder} was kept: take a larger --limit")


def _kept_of(store: Store, limit: int) -> Iterator[pl.DataFrame]:
    """The refined rows among the first `limit` raw ones."""
    left = limit
    for shard, frame in zip(store.shards(), _conversations(store, "refined"), strict=True):
        ids = read_frame(store.raw(shard), ["id"])["id"].head(left)
        left -= len(ids)
        yield frame.filter(pl.col("id").is_in(ids.implode()))
        if not left:
            return


def groups(texts: pl.Series, jaccard: float = ALIKE) -> NDArray[np.int64]:
    """The near-duplicate cluster of each text, int64 [K]: the row of its first member.

    Exact copies and pairs at or above `jaccard`, by connected components: the signal `cluster` of `stages.dedup`, by
    the same code. Texts of fewer than five words are alike if they are equal; empty texts are copies of each other.
    Pass the texts that are trained on: conversations that differ may open with the same message.

    Memory: 200 bytes per text and 100 per pair, beside the texts. The system's folder for temporary files holds 8 bytes
    per word of the texts that may have a near-duplicate.

    Args:
        texts: no nulls.
        jaccard: of word 5-grams, above 0, up to 1.
    """
    return clusters(texts, Matching.for_threshold(jaccard), jaccard)


def keys(texts: pl.Series) -> NDArray[np.uint64]:
    """A hash of the words of each text, uint64 [K], whatever its source; see `stages.text.shingles.Words`."""
    return text_keys(texts)[:, 0].copy()


def _notes(name: str, store: Store, done: dict[str, Any]) -> tuple[str, ...]:
    """Notes on the rows that ingest omitted or repaired.

    Raises:
        SourceError: more than 1 % of the rows are unreadable.
    """
    notes, rows, left = list(done["notes"]), done["rows"], done["quarantined"]
    if left:
        shard = next(shard["name"] for shard in done["shards"] if shard["quarantined"])
        first = read_frame(store.quarantine(shard), ["file", "row", "reason"]).row(0)
        note = f"{left:,} of {rows:,} rows of {name} cannot be read; the first: {first[0]}, row {first[1]}: {first[2]}"
        if left > UNREADABLE * rows:
            raise SourceError(f"{note}; that is more than {UNREADABLE:.0%}: fix them, or set the shape of the records")
        notes.append(f"{note}; they are omitted")
    return tuple(notes)


def conversations(frame: pl.DataFrame) -> pl.DataFrame:
    """The columns of `COLUMNS`, from the columns id, messages and source of a run."""
    said = pl.element().struct.field("content").fill_null("")
    role = pl.element().struct.field("role")
    role = role.replace_strict(ROLE_CODES, default=ROLES.index("other"), return_dtype=pl.UInt8)
    content = pl.col("messages").list.eval(said)
    turns = pl.col("messages").list.eval(pl.struct(role=role, length=said.str.len_chars()))
    return frame.select(
        "id",
        first=content.list.first().fill_null(""),
        text=content.list.join("\n").fill_null(""),
        turns=turns.cast(TURNS).fill_null([]),
        source=pl.col("source").fill_null(""),
    )


def _conversations(store: Store, part: Literal["raw", "refined"]) -> Iterator[pl.DataFrame]:
    for shard in store.shards():
        path = store.raw(shard) if part == "raw" else store.refined(shard)
        frame = conversations(read_frame(path, ["id", "messages", "source"]))
        yield pl.DataFrame(plain_table(frame))  # else a column keeps the frame alive that it was selected from


def _read(name: str, parts: Iterable[pl.DataFrame], limit: int | None, notes: tuple[str, ...] = ()) -> Corpus:
    """Concatenate shards, and compute the digest of their content."""
    frames, left = [COLUMNS.to_frame()], sys.maxsize if limit is None else limit
    texts, lengths, turns = (hashlib.blake2b(digest_size=16) for _ in range(3))
    for part in parts:
        frame = part.head(left)
        left -= len(frame)
        for column in ("first", "text"):
            lengths.update(frame[column].str.len_bytes().to_numpy().tobytes())
        texts.update("".join(frame["text"]).encode())
        flat = frame["turns"].explode(empty_as_null=False).struct
        for values in (frame["turns"].list.len(), flat.field("role"), flat.field("length")):
            turns.update(values.to_numpy().tobytes())
        frames.append(frame)
        if not left:
            break
    corpus = pl.concat(frames, rechunk=False)
    if not corpus["text"].str.contains(r"\S").any():
        raise SourceError(f"{name} holds no text ({len(corpus):,} conversations, all empty): take another corpus")
    state = hashlib.blake2b(texts.digest() + lengths.digest() + turns.digest(), digest_size=8)
    return Corpus(name, state.hexdigest(), corpus, notes)
