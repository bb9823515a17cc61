"""What `refine dedup` tells: counts, the S-curve, the recall that is expected and measured, the largest clusters."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.dedup.found import Found, gathered
from stages.dedup.bands import chance
from stages.dedup.keep import PERMUTATIONS, Asked

LISTED = 5
"""Clusters that are listed."""


def summary(asked: Asked, found: Found) -> dict[str, Any]:
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


def _expected(asked: Asked) -> float:
    """Share found of pairs that are spread evenly from the threshold to 1."""
    jaccard = np.linspace(asked.threshold, 1, 1001)
    return float(np.mean(chance(jaccard, asked.bands, asked.rows)))


def said(told: dict[str, Any]) -> str:
    """The summary as a person reads it."""
    crowd = (
        f"{told['crowded']:,} texts share a band key with more than {Asked.most:,} kept ones and were compared with "
        "the best of those only, so that duplicates of them may have been missed\n"
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
