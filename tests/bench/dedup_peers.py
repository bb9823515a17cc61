"""Deduplicate with another tool: `python dedup_peers.py TOOL CORPUS KEPT`, in a venv that has the tool.

rensa: MinHash of 128 permutations, 16 bands, estimated Jaccard at or above 0.7. datasketch: MinHash of 128
permutations, LSH of 16 bands of 8; each text that it finds is a duplicate. Both keep the first text, and get the set of
lower-cased word 5-grams of each text, as here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

WORD = re.compile(r"\w+")


def shingles(text: str) -> list[str]:
    """Distinct word 5-grams."""
    words = WORD.findall(text.lower())
    return list({" ".join(words[at : at + 5]) for at in range(max(1, len(words) - 4))})


def rensa(ids: list[str], texts: list[str]) -> Iterator[str]:
    """Ids that rensa's deduplicator keeps, fed in batches."""
    import rensa as tool

    index = tool.RMinHashDeduplicator(threshold=0.7, num_perm=128, use_lsh=True, num_bands=16, seed=42)
    for at in range(0, len(ids), 2000):
        names, sets = ids[at : at + 2000], [shingles(text) for text in texts[at : at + 2000]]
        signatures = tool.RMinHash.from_token_sets(sets, num_perm=128, seed=42)
        new = index.add_pairs(list(zip(names, signatures, strict=True)))
        yield from (name for name, kept in zip(names, new, strict=True) if kept)


def datasketch(ids: list[str], texts: list[str]) -> Iterator[str]:
    """Ids of the texts for which datasketch's index has no earlier kept one."""
    import xxhash
    from datasketch import MinHash, MinHashLSH

    index, empty = MinHashLSH(num_perm=128, params=(16, 8)), MinHash(128, hashfunc=xxhash.xxh32_intdigest)
    for name, text in zip(ids, texts, strict=True):
        signature = empty.copy()
        signature.update_batch([shingle.encode() for shingle in shingles(text)])
        if not index.query(signature):
            index.insert(name, signature)
            yield name


if __name__ == "__main__":
    docs = pq.read_table(f"{sys.argv[2]}/docs.parquet")
    kept = {"rensa": rensa, "datasketch": datasketch}[sys.argv[1]](docs["id"].to_pylist(), docs["text"].to_pylist())
    Path(sys.argv[3]).write_text("\n".join(kept))
