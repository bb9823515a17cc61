"""What band keys that match by chance cost the merge of `dedup`, by the size of a corpus: a table in Markdown.

    python -m tests.bench.band_keys 100000

In a corpus of n conversations a key of 32 bits is shared by chance as often as one of k bits in n / 2 ** (32 - k). So
the keys of a small corpus, cut to fewer bits, stand for a larger one. Conversations are those of `tests.bench.scale`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from stages.dedup import Dedup, pairs
from stages.dedup.groups import Groups
from stages.dedup.signatures import Signatures, choose, first_alike, shared_keys, sign_texts, write_sets
from stages.text.shingles import Sets
from tests.bench.scale import conversations

BITS = (32, 26, 24, 22, 21, 20, 19)
COLUMNS = (
    *("conversations", "by chance: share a key", "pairs", "largest component"),
    *("32 bits: candidates", "MB of sets", "compared", "found", "CPU s"),
    *("64 bits: candidates", "MB of sets", "compared", "found", "CPU s"),
)


def largest(bands: NDArray[np.uint32]) -> int:
    """Rows of the largest component of rows that share a band key."""
    ends = [np.empty((0, 2), np.int64)]
    for band in range(bands.shape[1]):
        keys, rows = shared_keys(bands[:, band], np.arange(len(bands)))
        same = keys[1:] == keys[:-1]
        ends.append(np.stack([rows[1:][same], rows[:-1][same]], 1))
    links = np.concatenate(ends)
    graph = coo_array((np.ones(len(links), np.int8), (links[:, 0], links[:, 1])), shape=(len(bands), len(bands)))
    return int(np.bincount(connected_components(graph, directed=False)[1]).max())


def row(texts: Sequence[pl.Series], signed: Signatures, bits: int) -> Iterator[str]:
    """The cells of a number of bits."""
    bands, copies = signed.bands & np.uint32((1 << bits) - 1), Groups.of(first_alike(signed.keys))
    count, width = bands.shape
    yield f"{count << (32 - bits):,}"
    yield f"{1 - np.exp(-width * count / 2**bits):.1%}"
    yield f"{width * count**2 / 2 ** (bits + 1):,.0f}"
    yield f"{largest(bands) / count:.2%}"
    for limit in (np.inf, 0.0):
        sets, begun = list[Sets](), time.process_time()

        def keep(*of: Any, sets: list[Sets] = sets) -> Sets:
            sets.append(write_sets(*of))
            return sets[0]

        with patch.multiple(pairs, CHANCE=limit, write_sets=keep):
            near = pairs.near_pairs(copies, signed.words, bands, partial(choose, texts), Dedup().matching, near=0.75)
        yield f"{(len(sets[0].ends) - 1) / count:.1%}"
        yield f"{sets[0].values.nbytes / 1e6:,.0f}"
        yield f"{near.compared:,}"
        yield f"{len(near.rows):,}"
        yield f"{time.process_time() - begun:.1f}"


def main() -> None:
    """Print a row for each number of bits."""
    whole = pl.Series(["\n".join(message["content"] for message in chat) for chat in conversations(int(sys.argv[1]))])
    texts = [whole[at : at + 2_000] for at in range(0, len(whole), 2_000)]
    signed = sign_texts(texts, Dedup().matching)
    for cells in (COLUMNS, ["---"] * len(COLUMNS), *(row(texts, signed, bits) for bits in BITS)):
        sys.stdout.write(f"| {' | '.join(cells)} |\n")


if __name__ == "__main__":
    main()
