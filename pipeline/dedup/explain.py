"""What `refine dedup` tells: counts, the S-curve, the recall that is expected and measured, the largest clusters."""

from __future__ import annotations

import random
from itertools import islice
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.dedup.columns import Texts
from pipeline.dedup.found import Found, gathered
from stages.dedup.bands import chance
from stages.dedup.keep import PERMUTATIONS, SEED, KeepOptions
from stages.text.shingles import WIDTH, band_keys, parts, shingle_sets, sign, words

LISTED = 5
"""Clusters that are listed."""


def summary(asked: KeepOptions, found: Found) -> dict[str, Any]:
    """Counts, the plan, the largest clusters."""
    kept, mask = found.kept, found.mask()
    of, first = kept.of[found.start :], kept.first[found.start :]
    sizes = np.bincount(of, minlength=len(kept.of))
    largest = np.argsort(-sizes, kind="stable")[:LISTED]
    largest = largest[sizes[largest] > 1]
    rows = np.unique(largest)
    ids = dict(zip(rows.tolist(), found.of(rows), strict=True))
    texts = dict(zip(rows.tolist(), gathered(iter(found.texts), rows), strict=True))
    copies = int((~mask & (first == kept.first[of])).sum())
    return {
        "texts": len(mask),
        "kept": int(mask.sum()),
        "removed": int((~mask).sum()),
        "exact_copies_removed": copies,
        "pairs_compared": kept.compared,
        "crowded": kept.crowded,
        "threshold": asked.threshold,
        "bands": asked.bands,
        "rows": asked.rows,
        "chance": {f"{s:g}": round(chance(s, asked.bands, asked.rows), 5) for s in (0.5, 0.6, 0.7, 0.75, 0.8, 0.9)},
        "expected_recall": round(_expected(asked), 5),
        "largest_clusters": [
            {"id": ids[row], "texts": int(sizes[row]), "example": texts[row][:80]} for row in largest.tolist()
        ],
    }


def _expected(asked: KeepOptions) -> float:
    """Share found of pairs that are spread evenly from the threshold to 1."""
    jaccard = np.linspace(asked.threshold, 1, 1001)
    return float(np.mean(chance(jaccard, asked.bands, asked.rows)))


def said(told: dict[str, Any]) -> str:
    """The summary as a person reads it."""
    crowd = (
        f"{told['crowded']:,} texts share a band key with more than {KeepOptions.most:,} kept ones and were compared "
        "with the best of those only, so that duplicates of them may have been missed\n"
    )
    exact, near = told["exact_copies_removed"], told["removed"] - told["exact_copies_removed"]
    return (
        f"{told['texts']:,} texts: {told['kept']:,} kept, {told['removed']:,} removed ({exact:,} exact copies, "
        f"{near:,} near-duplicates at Jaccard >= {told['threshold']:g}) in {told['seconds']:.1f} s\n"
        f"{crowd if told['crowded'] else ''}"
    )


def explained(told: dict[str, Any]) -> str:
    """How duplicates were found, and how many of them are."""
    copies = told["injected"]
    measured = (
        f"measured recall, of {copies['copies']} edited copies of texts of this file (mean Jaccard "
        f"{copies['jaccard']:.3f}, least {told['threshold']:g}): {copies['recall']:.5f}, "
        f"expected {copies['expected']:.5f}"
        if copies["copies"]
        else "measured recall: no text of this file is long enough to be edited"
    )
    lines = [
        f"{told['bands']} bands of {told['rows']} rows, of {PERMUTATIONS} permutations: what shares a band is compared",
        "Jaccard of a pair        " + "".join(f"{jaccard:>9}" for jaccard in told["chance"]),
        "chance to be compared    " + "".join(f"{share:>9.5f}" for share in told["chance"].values()),
        f"expected recall, of pairs spread evenly from {told['threshold']:g} to 1: {told['expected_recall']:.5f}",
        measured,
        f"{told['pairs_compared']:,} pairs compared; of two duplicates the one kept is by order: {told['order']}",
        *(f"{one['texts']:,} are duplicates of {one['id']!r}: {one['example']!r}" for one in told["largest_clusters"]),
    ]
    return "\n".join(lines) + "\n"


SOURCES, SHORTEST = 500, 40
"""Texts that are copied, and the words that one must have."""


def injected(texts: Texts, asked: KeepOptions) -> dict[str, float]:
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


def _measured(texts: list[str], asked: KeepOptions) -> tuple[NDArray[np.uint32], list[NDArray[np.uint64]]]:
    keys, sets = [], []
    for part in parts(pl.Series(texts)):
        found = words(part)
        keys.append(band_keys(sign(found, PERMUTATIONS, SEED), asked.bands, asked.rows))
        values, ends = shingle_sets(found)
        sets += np.split(values, ends[:-1])
    return np.concatenate(keys), sets
