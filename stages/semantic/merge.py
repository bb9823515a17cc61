"""The merge of `stages.semantic`: from the vectors of all shards to pairs and clusters, and the columns of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.dedup.groups import copies
from stages.files import read_frame, save_frame, save_json, scratch, zeros
from stages.semantic import pairs
from stages.semantic.cells import Floats, centres, nearest, unit_scales
from stages.semantic.vectors import Vectors
from stages.stage import COSINES
from stages.text.messages import by_row, spoken
from stages.text.shards import Ids, Rows, Shards
from stages.text.shingles import text_keys

MAX_CLUSTERS = 64
"""Maximum number of clusters that a corpus gets by default."""
MAX_READ = 50_000
"""Maximum number of texts that the words of clusters are counted in."""
WORDS, EXAMPLE = 6, 200
"""Words of a cluster that `semantic.json` lists, and characters of its example."""
NONE = np.uint32(2**32 - 1)
"""Number of no cluster."""


@dataclass(frozen=True)
class Search:
    """What is compared, and how; the parameters of the stage."""

    of: str
    floor: float
    neighbours: int
    clusters: int


def text_of(of: str, batch: pl.DataFrame) -> pl.Series:
    """The text of each conversation that is compared: its first prompt, its first reply, or all of it."""
    if of == "prompt":
        return batch["prompt"]
    if of == "conversation":
        return batch["text"]
    replies = spoken(batch).filter(role="assistant").group_by("row", maintain_order=True)
    return by_row(batch.height, replies.agg(pl.col("content").first()))["content"].fill_null("")


@dataclass(frozen=True)
class _Corpus:
    """The different texts that have a vector."""

    first: Rows  # [n], the first copy of each row
    rows: Rows  # [m], in order
    vectors: Vectors  # [m, components], in a temporary file
    order: Rows  # [m], their random order, that of their keys

    @classmethod
    def read(cls, shards: Shards, aside: Path) -> _Corpus:
        same = copies(shards, "semantic", text_keys(pl.Series([""]))[0])
        first = np.arange(len(shards))
        first[same.rows] = same.first
        rows, keys, width = [np.empty(0, np.int64)], [np.empty(0, np.uint64)], 0
        for here, frame in shards.signals("semantic_key", "semantic_vector"):
            chosen = frame["semantic_vector"].is_not_null().to_numpy() & (
                first[here] == np.arange(here.start, here.stop)
            )
            rows.append(here.start + np.flatnonzero(chosen))
            keys.append(frame["semantic_key"].to_numpy()[chosen])
            width = max(width, int(frame["semantic_vector"].list.len().max() or 0))  # type: ignore[arg-type]
        numbers, order = np.concatenate(rows), np.argsort(np.concatenate(keys), kind="stable")
        vectors = zeros(aside / "vectors", np.int8, len(numbers) * width).reshape(len(numbers), width)
        begin = 0
        for here, frame in shards.signals("semantic_vector"):
            chosen = numbers[slice(*np.searchsorted(numbers, (here.start, here.stop)))] - here.start
            part = frame["semantic_vector"].gather(chosen).explode(empty_as_null=False, keep_nulls=False)
            vectors[begin : begin + len(chosen)] = part.to_numpy().reshape(len(chosen), width)
            begin += len(chosen)
        return cls(first, numbers, vectors, order)

    def spread(self, values: NDArray[Any], none: Any) -> NDArray[Any]:  # noqa: ANN401  of the type of the values
        """Values of the different texts [m] for all rows [n]; `none` for a row without a vector."""
        every = np.full(len(self.first), none, values.dtype)
        every[self.rows] = values
        return np.asarray(every[self.first])


def merge(raw: Sequence[Path], measured: Sequence[Path], folder: Path, search: Search) -> None:
    """Write `merged/`, `semantic.parquet` and `semantic.json`; see `stages.semantic`."""
    shards = Shards.of(raw, measured)
    with scratch(folder, "vectors") as aside:
        corpus = _Corpus.read(shards, aside)
        near = pairs.find(corpus.vectors, corpus.order, search.floor, search.neighbours)
        heads, of, typical = _clusters(corpus, search.clusters)
    rows = corpus.rows[near.rows]
    ids = Ids(shards, rows, corpus.first)
    columns = {
        "semantic_nearest": _nearest(corpus, near),
        "semantic_crowded": corpus.spread(near.crowded, none=False),
        "semantic_cluster": corpus.spread(of, NONE),
        "semantic_typical": corpus.spread(typical, np.float32(0)),
    }
    for at, path in enumerate(measured):
        here = slice(int(shards.starts[at]), int(shards.starts[at + 1]))
        own = {name: pl.Series(values[here]) for name, values in columns.items()}
        unknown = own["semantic_cluster"] == NONE
        own |= {name: own[name].set(unknown, None) for name in ("semantic_cluster", "semantic_typical")}
        own["semantic_nearest"] = own["semantic_nearest"].set(own["semantic_nearest"] == 0, None)
        first = {"id": shards.ids(at), "semantic_copy_of": ids.of(corpus.first[here])}
        save_frame(folder / "merged" / path.name, pl.DataFrame({**first, **own}))
    found = {"id": ids.of(rows[:, 0]), "other": ids.of(rows[:, 1]), "cosine": near.cosine}
    save_frame(folder / "semantic.parquet", pl.DataFrame(found, schema=COSINES))
    summary = _summary(corpus, near, columns, search)
    summary["clusters"] = _described(shards, columns, heads, search.of)
    save_json(folder / "semantic.json", summary, indent=1, end="")


def _clusters(corpus: _Corpus, count: int) -> tuple[Vectors, NDArray[np.uint32], Floats]:
    """Centres, the cluster of each different text, and its cosine to the centre; the largest cluster is the first."""
    total = len(corpus.rows)
    count = min(count or min(max(round((total / 2) ** 0.5), 1), MAX_CLUSTERS), total)
    if not count:
        return corpus.vectors[:0], np.empty(0, np.uint32), np.empty(0, np.float32)
    heads = centres(corpus.vectors, corpus.order, count)
    of, cosines = nearest(corpus.vectors, heads, 1)
    every = corpus.spread(of[:, 0], -1)
    sizes = np.bincount(every[every >= 0], minlength=count)  # of conversations
    order = np.argsort(-sizes, kind="stable")
    numbers = np.empty(count, np.uint32)
    numbers[order] = np.arange(count)
    return heads[order], numbers[of[:, 0]], cosines[:, 0].clip(max=1)


def _nearest(corpus: _Corpus, near: pairs.Pairs) -> Floats:
    """The cosine of each row to the most similar other; 1 for one with a copy, 0 if there is none."""
    best = np.zeros(len(corpus.rows), np.float32)
    for side in (0, 1):
        np.maximum.at(best, near.rows[:, side], near.cosine)
    every = corpus.spread(best, np.float32(0))
    every[np.bincount(corpus.first, minlength=len(corpus.first))[corpus.first] > 1] = 1
    return np.asarray(every)


def _summary(corpus: _Corpus, near: pairs.Pairs, columns: dict[str, Any], search: Search) -> dict[str, Any]:
    total, crowded = len(corpus.first), int(columns["semantic_crowded"].sum())
    without = int((columns["semantic_cluster"] == NONE).sum())
    notes = []
    if without:
        notes.append(f"{without:,} of {total:,} conversations have no vector, because no word is known")
    if crowded:
        notes.append(
            f"{crowded:,} of {total:,} conversations have more than {search.neighbours} near-duplicates at "
            f"a cosine of {search.floor:g}; the nearest are recorded (the column semantic_crowded marks them; more "
            f"neighbours, or a higher floor, find all)"
        )
    return {
        "of": search.of,
        "conversations": total,
        "without_vector": without,
        "copies": total - int((corpus.first == np.arange(total)).sum()),
        "floor": search.floor,
        "pairs": len(near.rows),
        "crowded": crowded,
        "cells": near.cells,
        "notes": notes,
    }


def _described(shards: Shards, columns: dict[str, Any], heads: Vectors, of: str) -> list[dict[str, Any]]:
    """The clusters: number, size, the words that mark it, its most typical text, its place on a map."""
    cluster, typical = columns["semantic_cluster"], columns["semantic_typical"]
    sizes = np.bincount(cluster[cluster != NONE], minlength=len(heads))
    words, places = _words(shards, cluster, of), _map(heads)
    members = [np.flatnonzero(cluster == number) for number in np.flatnonzero(sizes)]
    best = np.array([rows[typical[rows].argmax()] for rows in members], np.int64)
    texts = text_of(of, shards.take(best, "prompt", "messages", "text", "details")) if len(best) else pl.Series()
    examples = dict(zip(np.flatnonzero(sizes).tolist(), texts, strict=True))
    described = []
    for number, size in enumerate(sizes.tolist()):
        described.append(
            {
                "cluster": number,
                "size": size,
                "words": words.get(number, []),
                "example": examples.get(number, "")[:EXAMPLE],
                "x": round(float(places[number, 0]), 3),
                "y": round(float(places[number, 1]), 3),
            }
        )
    return described


def _map(heads: Vectors) -> NDArray[np.float64]:
    """Places of centres on a plane, [clusters, 2]: two principal components, the largest number of each above 0."""
    if not len(heads):
        return np.empty((0, 2))
    units = heads.astype(np.float64) * unit_scales(heads)[:, None]
    units -= units.mean(0)
    axes = np.linalg.eigh(units.T @ units)[1][:, :-3:-1]
    places = units @ axes
    signs = np.sign(np.take_along_axis(places, np.abs(places).argmax(0)[None], 0))
    return np.asarray(places * signs)


def _words(shards: Shards, cluster: NDArray[np.uint32], of: str) -> dict[int, list[str]]:
    """The words that mark each cluster, by what they add to its Kullback-Leibler divergence from all conversations.

    A word counts once a conversation.
    """
    step = max(1, -(-len(shards) // MAX_READ))
    counts = [pl.DataFrame(schema={"c": pl.UInt32, "w": pl.String, "n": pl.UInt32})]
    for at, path in enumerate(shards.raw):
        here = slice(int(shards.starts[at]), int(shards.starts[at + 1]))
        texts = text_of(of, read_frame(path, ("prompt", "messages", "text", "details")))
        frame = pl.DataFrame({"c": cluster[here], "w": texts}).gather_every(step, -here.start % step)
        words = pl.col("w").str.to_lowercase().str.extract_all(r"\p{L}{3,}").list.unique(maintain_order=True)
        frame = frame.filter(pl.col("c") != NONE).with_columns(words).explode("w").drop_nulls()
        counts.append(frame.group_by("c", "w").agg(n=pl.len()))
    both = pl.concat(counts).group_by("c", "w").agg(pl.col("n").sum())
    expected = pl.col("n").sum().over("w") / pl.col("n").sum() * pl.col("n").sum().over("c")
    weight = pl.col("n") * (pl.col("n") / expected).log()
    ranked = both.with_columns(weight=weight).sort(["c", "weight", "w"], descending=[False, True, False])
    top = ranked.group_by("c", maintain_order=True).agg(pl.col("w").head(WORDS))
    return dict(top.iter_rows())
