"""The merge of `stages.turns`: what repeats over all shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.files import read_frame, save_frame
from stages.text.repeats import Repeats, Shard
from stages.text.shards import Shards

LARGEST = 10
"""Answers and openings that are listed."""

Listed = tuple[int, int, str, pl.DataFrame]
"""Key, conversations that have it, the first one's id, and its `messages` as a frame of one row."""


def merge(raw: Sequence[Path], measured: Sequence[Path], folder: Path) -> Iterator[tuple[str, list[Listed]]]:
    """Write `merged/` for the measured shards; then give the most repeated "answers" and "openings"."""
    shards = Shards.of(raw, measured)
    repeats = {kind: _repeats(shards, reader) for kind, reader in (("answers", _answers), ("openings", _openings))}
    (folder / "merged").mkdir(parents=True, exist_ok=True)
    for at, path in enumerate(measured):
        save_frame(folder / "merged" / path.name, _columns(shards, at, repeats["answers"], repeats["openings"]))
    yield from ((kind, [_listed(shards, found, at) for at in _largest(found)]) for kind, found in repeats.items())


def _answers(shards: Shards, at: int) -> Shard:
    given = read_frame(shards.measured[at], ["answer_keys"])["answer_keys"]
    sizes = given.list.len().fill_null(0).to_numpy().astype(np.int64)
    start = int(shards.starts[at])
    keys = given.explode().drop_nulls().to_numpy() if sizes.any() else np.empty(0, np.uint64)
    return np.repeat(np.arange(start, start + len(sizes)), sizes), keys


def _openings(shards: Shards, at: int) -> Shard:
    keys = read_frame(shards.measured[at], ["opening_key"])["opening_key"]
    there = keys.is_not_null().to_numpy()
    return int(shards.starts[at]) + np.flatnonzero(there), keys.drop_nulls().to_numpy()


def _repeats(shards: Shards, reader: Callable[[Shards, int], Shard]) -> Repeats:
    def each() -> Iterator[Shard]:
        return (reader(shards, at) for at in range(len(shards.measured)))

    return Repeats(each, sum(len(keys) for _, keys in each()))


def _columns(shards: Shards, at: int, answers: Repeats, openings: Repeats) -> pl.DataFrame:
    ids, start = shards.ids(at), int(shards.starts[at])
    rows, keys = _answers(shards, at)
    counts, firsts = answers.of(keys)
    given = np.bincount(rows - start, minlength=len(ids))
    repeated = np.bincount(rows - start, counts > 1, len(ids))
    earlier = np.bincount(rows - start, (firsts >= 0) & (firsts < rows), len(ids))
    most = np.zeros(len(ids), np.int64)
    np.maximum.at(most, rows - start, counts)
    there, keys = _openings(shards, at)
    alike = np.zeros(len(ids), np.int64)
    alike[there - start] = openings.of(keys)[0]
    of = np.maximum(given, 1)
    return pl.DataFrame(
        {
            "id": ids,
            "repeated_answers": _known(repeated, given, pl.UInt32()),
            "repeated_answer_share": _known(repeated / of, given, pl.Float32()),
            "earlier_answer_share": _known(earlier / of, given, pl.Float32()),
            "answer_copies": _known(most, given, pl.UInt32()),
            "opening_copies": _known(alike, alike, pl.UInt32()),
        }
    )


def _known(values: NDArray[np.int64] | NDArray[np.float64], where: NDArray[np.int64], kind: pl.DataType) -> pl.Series:
    """A column that is null where there is nothing to know."""
    return pl.Series(values).cast(kind).set(pl.Series(where == 0), None)


def _largest(found: Repeats) -> NDArray[np.int64]:
    return np.lexsort((found.firsts, -found.counts))[:LARGEST]


def _listed(shards: Shards, found: Repeats, at: int) -> Listed:
    row = int(found.firsts[at])
    shard = int(np.searchsorted(shards.starts, row, side="right")) - 1
    frame = read_frame(shards.raw[shard], ["id", "messages"]).slice(row - int(shards.starts[shard]), 1)
    return int(found.keys[at]), int(found.counts[at]), str(frame["id"][0]), frame.select("messages")
