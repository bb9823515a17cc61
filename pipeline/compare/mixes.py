"""Sizes, lengths and languages of the corpora of a comparison."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.compare.corpora import Pair

WORD_EDGES = (10, 30, 100, 300, 1000)
"""Edges of the bands of words per conversation."""
MAX_LANGUAGES = 8
"""Maximum number of languages with a bar of their own."""
LANGUAGE_BATCH = 2_000
"""Texts per call of the language model."""


def statistics(pair: Pair) -> dict[str, dict[str, Any]]:
    """Sizes of each corpus by its name, in conversations, words and bytes, and what both share.

    `near_duplicates` is the number of conversations in a cluster with others of the same corpus, None if clusters were
    not computed.
    """
    frame = pair.union.frame
    words, size = words_of(frame), frame["text"].str.len_bytes()
    shared = np.logical_and.reduce(list(pair.union.members.values()))
    sizes = {}
    for name, mask in pair.union.members.items():
        here = pl.Series(mask)
        lengths = words.filter(here).to_numpy()
        members = np.unique(pair.union.groups[mask], return_counts=True)[1]
        sizes[name] = {
            "conversations": int(mask.sum()),
            "words": int(lengths.sum()),
            "bytes": int(size.filter(here).sum()),
            "median_words": float(np.median(lengths)),
            "longest_words": int(lengths.max()),
            "copies": int(mask.sum()) - frame["text"].filter(here).n_unique(),
            "near_duplicates": int(members[members > 1].sum()) if pair.grouped else None,
            "shared": int(shared.sum()),
            "digest": pair.corpora[name].digest,
        }
    return sizes


def words_of(frame: pl.DataFrame) -> pl.Series:
    """The number of words of each conversation: runs of characters other than white space."""
    return frame["text"].str.count_matches(r"\S+")


def lengths(pair: Pair) -> pl.DataFrame:
    """The mix of lengths, a row per band of words.

    Columns: y (the band), and for each corpus "NAME conversations", "NAME share" (of them), "NAME words" and "NAME
    share of words".
    """
    edges = [0, *WORD_EDGES]
    bands = [f"{low:,} to {high - 1:,}" for low, high in zip(edges, WORD_EDGES, strict=False)]
    bands = [f"fewer than {WORD_EDGES[0]}", *bands[1:], f"{WORD_EDGES[-1]:,} or more"]
    return _mix(pair, bands, np.searchsorted(WORD_EDGES, words_of(pair.union.frame).to_numpy(), side="right"))


def languages(pair: Pair) -> pl.DataFrame:
    """The mix of languages of whole texts, by the stage `language`, with the columns of `lengths`.

    Raises:
        MissingModelError: the language model is not installed.
    """
    from stages.language import Language

    measure = Language().open(Path())
    messages = pl.concat_list(pl.struct(role=pl.lit("user"), content="text")).alias("messages")
    batches = pair.union.frame.iter_slices(LANGUAGE_BATCH)
    language = pl.concat(
        measure(batch.select(messages)).select(pl.col("language").fill_null("unknown")) for batch in batches
    )["language"]
    counts = language.value_counts(sort=True).sort("count", "language", descending=[True, False])["language"]
    known = counts.filter(counts != "unknown").to_list()
    bands = known[:MAX_LANGUAGES]
    bands += [*(["others"] if len(known) > MAX_LANGUAGES else []), *(["unknown"] if len(known) < len(counts) else [])]
    place = {name: bands.index(name if name in bands else "others") for name in counts}
    return _mix(pair, bands, language.replace_strict(place, return_dtype=pl.Int64).to_numpy())


def _mix(pair: Pair, bands: list[str], band: NDArray[np.int64]) -> pl.DataFrame:
    """Conversations of each corpus by band; `band` holds the index of each conversation's."""
    columns: dict[str, Any] = {"y": bands}
    words = words_of(pair.union.frame).to_numpy()
    for name, mask in pair.union.members.items():
        counts = np.bincount(band[mask], minlength=len(bands))
        in_words = np.bincount(band[mask], words[mask], len(bands)).astype(np.int64)
        columns |= {f"{name} conversations": counts, f"{name} share": counts / max(counts.sum(), 1)}
        columns |= {f"{name} words": in_words, f"{name} share of words": in_words / max(in_words.sum(), 1)}
    return pl.DataFrame(columns)
