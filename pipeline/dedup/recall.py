"""What a band plan finds of copies whose Jaccard is known, because they were made from texts of the corpus."""

from __future__ import annotations

import random
from itertools import islice

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.dedup.columns import Texts
from stages.dedup.bands import chance
from stages.dedup.keep import PERMUTATIONS, SEED, Asked
from stages.text.shingles import WIDTH, band_keys, parts, shingle_sets, sign, words

SOURCES, SHORTEST = 500, 40
"""Texts that are copied, and the words that one must have."""


def injected(texts: Texts, asked: Asked) -> dict[str, float]:
    """Copy texts with words changed, so that their Jaccard is from the threshold to 0.1 above; see what is found."""
    draw = random.Random(SEED)  # noqa: S311  no secrets
    sources = [text.split() for part in islice(texts, 8) for text in part.head(SOURCES)]
    sources = [text for text in sources if len(text) >= SHORTEST][:SOURCES]
    copies = [_copy(draw, text, draw.uniform(asked.threshold, min(0.99, asked.threshold + 0.1))) for text in sources]
    found, jaccard = np.empty(0, np.bool_), np.empty(0)
    if sources:
        keys, sets = zip(
            *(_measured([" ".join(text) for text in side], asked) for side in (sources, copies)), strict=True
        )
        found = (keys[0] == keys[1]).any(axis=1)
        pairs = [(np.intersect1d(a, b).size, np.union1d(a, b).size) for a, b in zip(*sets, strict=True)]
        jaccard = np.array([shared / every for shared, every in pairs])
    right = jaccard >= asked.threshold
    if not right.any():
        return {"copies": 0, "jaccard": 0.0, "recall": 0.0, "expected": 0.0}
    return {
        "copies": int(right.sum()),
        "jaccard": round(float(jaccard[right].mean()), 4),
        "recall": round(float(found[right].mean()), 5),
        "expected": round(float(np.mean(chance(jaccard[right], asked.bands, asked.rows))), 5),
    }


def _copy(draw: random.Random, text: list[str], jaccard: float) -> list[str]:
    """A word that is changed costs `WIDTH` of the shared shingles."""
    copy, shingles = list(text), len(text) - WIDTH + 1
    for at in draw.sample(range(len(copy)), int(shingles * (1 - jaccard) / (1 + jaccard) / WIDTH)):
        copy[at] = f"changed{draw.randrange(1 << 30)}"
    return copy


def _measured(texts: list[str], asked: Asked) -> tuple[NDArray[np.uint32], list[NDArray[np.uint64]]]:
    keys, sets = [], []
    for part in parts(pl.Series(texts)):
        found = words(part)
        keys.append(band_keys(sign(found, PERMUTATIONS, SEED), asked.bands, asked.rows))
        values, ends = shingle_sets(found)
        sets += np.split(values, ends[:-1])
    return np.concatenate(keys), sets
