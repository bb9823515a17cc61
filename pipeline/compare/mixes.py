"""What the corpora of a comparison consist of: sizes, lengths, languages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.compare.corpora import Pair

WORDS = (10, 30, 100, 300, 1000)
"""Edges of the bands of words a conversation."""
LANGUAGES = 8
"""Languages that are told one by one."""
ROWS = 2_000
"""Texts whose language is looked for at once."""


def statistics(found: Pair) -> dict[str, dict[str, Any]]:
    """Conversations, words, bytes and the median length of each arm, and what it shares with the other."""
    frame = found.union.frame
    words, size = words_of(frame), frame["text"].str.len_bytes()
    shared = np.logical_and.reduce(list(found.union.members.values()))
    told = {}
    for name, mask in found.union.members.items():
        here = pl.Series(mask)
        told[name] = {
            "conversations": int(mask.sum()),
            "words": int(words.filter(here).sum()),
            "bytes": int(size.filter(here).sum()),
            "median_words": float(np.median(words.filter(here).to_numpy())),
            "longest_words": int(words.filter(here).to_numpy().max()),
            "copies": int(mask.sum()) - frame["text"].filter(here).n_unique(),
            "near_duplicates": _in_groups(found.union.groups[mask]) if found.grouped else None,
            "shared": int(shared.sum()),
            "digest": found.corpora[name].digest,
        }
    return told


def _in_groups(groups: NDArray[np.int64]) -> int:
    """How many are in a group with another one of the same arm."""
    _, counts = np.unique(groups, return_counts=True)
    return int(counts[counts > 1].sum())


def words_of(frame: pl.DataFrame) -> pl.Series:
    """Words of each conversation: runs of characters that are not white space."""
    return frame["text"].str.count_matches(r"\S+")


def lengths(found: Pair) -> pl.DataFrame:
    """The mix of lengths: y (band of words), and for each arm its conversations and share, a row a band."""
    edges = [0, *WORDS]
    said = [f"{low:,} to {high - 1:,}" for low, high in zip(edges, WORDS, strict=False)] + [f"{WORDS[-1]:,} or more"]
    said[0] = f"fewer than {WORDS[0]}"
    return _mix(found, said, np.searchsorted(WORDS, words_of(found.union.frame).to_numpy(), side="right"))


def languages(found: Pair) -> pl.DataFrame:
    """The mix of languages, as the stage language tells them of the whole text: as `lengths`, the rare ones as one.

    Raises:
        MissingModelError: there is no model.
    """
    from stages.language import Language

    measure = Language().open(Path())
    one = pl.concat_list(pl.struct(role=pl.lit("user"), content="text")).alias("messages")
    frame = found.union.frame
    told = pl.concat(
        measure(part.select(one)).select(pl.col("language").fill_null("unknown")) for part in frame.iter_slices(ROWS)
    )
    often = told["language"].value_counts(sort=True).sort("count", "language", descending=[True, False])["language"]
    known = often.filter(often != "unknown").to_list()
    labels = known[:LANGUAGES]
    labels += [*(["others"] if len(known) > LANGUAGES else []), *(["unknown"] if len(known) < len(often) else [])]
    place = {name: labels.index(name if name in labels else "others") for name in often}
    return _mix(found, labels, told["language"].replace_strict(place, return_dtype=pl.Int64).to_numpy())


def _mix(found: Pair, labels: list[str], band: NDArray[np.int64]) -> pl.DataFrame:
    """How many conversations of each arm are in each band."""
    columns: dict[str, Any] = {"y": labels}
    for name, mask in found.union.members.items():
        counts = np.bincount(band[mask], minlength=len(labels))
        columns |= {f"{name} conversations": counts, f"{name} share": counts / max(counts.sum(), 1)}
    return pl.DataFrame(columns)
