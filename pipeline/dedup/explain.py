"""Output of `refine dedup`: counts, the S-curve, the expected and the measured recall, the largest clusters."""

import random
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.dedup.output import Result, gather_rows
from pipeline.dedup.texts import Texts
from stages.dedup.bands import Matching
from stages.text.shingles import WIDTH, shingle_sets, split

MAX_CLUSTERS = 5
"""Maximum number of clusters that are listed."""
MAX_SOURCES, MIN_WORDS = 500, 40
"""Maximum number of texts that are copied to measure the recall, and minimum number of words of each."""


def summary(matching: Matching, threshold: float, result: Result) -> dict[str, Any]:
    """Counts, bands and recall, the largest clusters."""
    kept, mask = result.kept, result.mask()
    of, first = kept.of[result.start :], kept.first[result.start :]
    sizes = np.bincount(of, minlength=len(kept.of))
    largest = np.argsort(-sizes, kind="stable")[:MAX_CLUSTERS]
    largest = largest[sizes[largest] > 1]
    rows = np.unique(largest)
    ids = dict(zip(rows.tolist(), result.id_of(rows), strict=True))
    texts = dict(zip(rows.tolist(), gather_rows(iter(result.texts), rows), strict=True))
    bands, rows_per_band = matching.bands()
    return {
        "texts": len(mask),
        "kept": int(mask.sum()),
        "removed": int((~mask).sum()),
        "exact_copies_removed": int((~mask & (first == kept.first[of])).sum()),
        "pairs_compared": kept.compared,
        "crowded": kept.crowded,
        "threshold": threshold,
        "bands": bands,
        "rows": rows_per_band,
        "chance": {f"{s:g}": round(matching.chance(s), 5) for s in (0.5, 0.6, 0.7, 0.75, 0.8, 0.9)},
        "expected_recall": round(float(np.mean(matching.chance(np.linspace(threshold, 1, 1001)))), 5),
        "largest_clusters": [
            {"id": ids[row], "texts": int(sizes[row]), "example": texts[row][:80]} for row in largest.tolist()
        ],
    }


def in_words(figures: dict[str, Any], bucket: int) -> str:
    """The summary in a sentence or two."""
    crowd = (
        f"{figures['crowded']:,} texts share a band key with more than {bucket:,} kept ones and were compared with the "
        "best of those only, so that duplicates of them may have been missed\n"
    )
    exact, removed = figures["exact_copies_removed"], figures["removed"]
    return (
        f"{figures['texts']:,} texts: {figures['kept']:,} kept, {removed:,} removed ({exact:,} exact copies, "
        f"{removed - exact:,} near-duplicates at Jaccard >= {figures['threshold']:g}) in {figures['seconds']:.1f} s\n"
        f"{crowd if figures['crowded'] else ''}"
        f"{_lines(figures['notes'])}"
    )


def _lines(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    from pipeline.terminal import safe  # and rich with it, which a command without notes does not need

    return "".join(f"{safe(note)}\n" for note in notes)


def explanation(figures: dict[str, Any], permutations: int) -> str:
    """A description of the search for duplicates and the share of them that it finds."""
    copies, largest = figures["injected"], figures["largest_clusters"]
    measured = (
        f"measured recall, of {copies['copies']} edited copies of texts of this file (mean Jaccard "
        f"{copies['jaccard']:.3f}, minimum {figures['threshold']:g}): {copies['recall']:.5f}, "
        f"expected {copies['expected']:.5f}"
        if copies["copies"]
        else "measured recall: no text of this file is long enough to be edited"
    )
    lines = [
        f"{figures['bands']} bands of {figures['rows']} rows, from {permutations} permutations",
        "Jaccard of a pair          " + "".join(f"{jaccard:>9}" for jaccard in figures["chance"]),
        "probability of comparison  " + "".join(f"{share:>9.5f}" for share in figures["chance"].values()),
        f"expected recall, of pairs spread evenly from {figures['threshold']:g} to 1: {figures['expected_recall']:.5f}",
        measured,
        f"{figures['pairs_compared']:,} pairs compared; of two duplicates the one kept is by order: {figures['order']}",
        *(f"{one['texts']:,} are duplicates of {one['id']!r}: {one['example']!r}" for one in largest),
    ]
    return "\n".join(lines) + "\n"


def measure_recall(texts: Texts, matching: Matching, threshold: float) -> dict[str, float]:
    """The recall measured on copies of the first texts, edited to a Jaccard from the threshold to 0.1 above it."""
    draw = random.Random(1)  # noqa: S311  no secrets
    sources = [text.split() for part in islice(texts, 8) for text in part.head(MAX_SOURCES)]
    sources = [text for text in sources if len(text) >= MIN_WORDS][:MAX_SOURCES]
    copies = [_copy(draw, text, draw.uniform(threshold, min(0.99, threshold + 0.1))) for text in sources]
    (keys, sets), (copied_keys, copied_sets) = (_keys_and_sets(side, matching) for side in (sources, copies))
    found = (keys == copied_keys).any(axis=1)
    pairs = zip(sets, copied_sets, strict=True)
    jaccard = np.array([np.intersect1d(a, b).size / np.union1d(a, b).size for a, b in pairs], np.float64)
    right = jaccard >= threshold
    if not right.any():
        return {"copies": 0, "jaccard": 0.0, "recall": 0.0, "expected": 0.0}
    return {
        "copies": int(right.sum()),
        "jaccard": round(float(jaccard[right].mean()), 4),
        "recall": round(float(found[right].mean()), 5),
        "expected": round(float(np.mean(matching.chance(jaccard[right]))), 5),
    }


def _copy(draw: random.Random, text: list[str], jaccard: float) -> list[str]:
    """A text with words changed; each changed word costs `WIDTH` of the shared shingles."""
    copy, shingles = list(text), len(text) - WIDTH + 1
    for at in draw.sample(range(len(copy)), int(shingles * (1 - jaccard) / (1 + jaccard) / WIDTH)):
        copy[at] = f"changed{draw.randrange(1 << 30)}"
    return copy


def _keys_and_sets(texts: list[list[str]], matching: Matching) -> tuple[NDArray[np.uint32], list[NDArray[np.uint64]]]:
    keys, sets = [np.empty((0, matching.bands()[0]), np.uint32)], list[NDArray[np.uint64]]()
    for words in split(pl.Series([" ".join(text) for text in texts], dtype=pl.String)):
        keys.append(matching.keys(words))
        values, ends = shingle_sets(words)
        sets += np.split(values, ends[:-1])
    return np.concatenate(keys), sets
