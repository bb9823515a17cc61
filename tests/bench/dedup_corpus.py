"""Make a corpus of any size with known pairs from real texts: recombined paragraphs, edited copies, hard negatives.

    python -m tests.bench.dedup_corpus SOURCE OUT COUNT [SEED]    SOURCE/docs.parquet: id, text

75 % of the texts are five paragraphs of about 60 words drawn from all of SOURCE; 20 % are copies of one of them with 0,
1, 2, 4, 8 or 16 % of the words changed; 5 % are hard negatives, which share two or three paragraphs. OUT gets, in the
form of the benchmark corpus, docs.parquet (id, text), truth.parquet (id, origin), pairs.parquet (row numbers i < j and
the exact Jaccard of every pair of one origin at or above 0.5) and info.json. Pairs across origins are not recorded:
at these sizes no two share five paragraphs by chance.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

PARAGRAPHS, WORDS = 5, 60
BLOCK = 100_000
"""Number of rows made at once; a text and its copies are in one block."""
KNOWN = 100_000
"""Maximum number of rows for which pairs are computed, which takes ten times as long as the corpus itself."""
STRENGTHS = (0.0, 0.01, 0.02, 0.04, 0.08, 0.16)


def paragraphs(texts: list[str]) -> list[list[str]]:
    """Pieces of about `WORDS` words."""
    words = [text.split() for text in texts]
    return [part[at : at + WORDS] for part in words for at in range(0, len(part) - WORDS + 1, WORDS)]


def changed(draw: random.Random, words: list[str], share: float, pool: list[str]) -> list[str]:
    """A copy with a share of its words replaced, dropped or doubled."""
    copy = list(words)
    for _ in range(round(share * len(words))):
        at = draw.randrange(len(copy))
        copy[at : at + 1] = draw.choice([[draw.choice(pool)], [], [copy[at], copy[at]]])
    return copy


def family(draw: random.Random, parts: list[list[str]], pool: list[str]) -> list[list[str]]:
    """A text, and in the mean one third of a text made from it."""
    chosen = draw.choices(parts, k=PARAGRAPHS)
    first = list(itertools.chain(*chosen))
    texts = [first]
    while draw.random() < 0.25:
        if draw.random() < 0.2:
            shared = draw.sample(chosen, draw.choice([2, 3]))
            texts.append(list(itertools.chain(*shared, *draw.choices(parts, k=PARAGRAPHS - len(shared)))))
        else:
            texts.append(changed(draw, first, draw.choice(STRENGTHS), pool))
    return texts


def shingles(words: list[str]) -> set[tuple[str, ...]]:
    """Word 5-grams."""
    from tests.stages.dedup_reference import words as split

    found = split(" ".join(words))
    return {tuple(found[at : at + 5]) for at in range(max(1, len(found) - 4))}


def pairs(texts: list[list[str]]) -> Iterator[tuple[int, int, float]]:
    """Every pair of one family at a Jaccard of 0.5 or more."""
    if len(texts) > 1:
        sets = [shingles(words) for words in texts]
        for i, j in itertools.combinations(range(len(texts)), 2):
            if (jaccard := len(sets[i] & sets[j]) / len(sets[i] | sets[j])) >= 0.5:
                yield i, j, jaccard


def block(
    draw: random.Random, parts: list[list[str]], pool: list[str], start: int, count: int, *, truth: bool
) -> tuple[pl.DataFrame, list[tuple[int, int, float]]]:
    """Some rows of the corpus in random order, id, text, origin; and the pairs among them."""
    place, made, origins = draw.sample(range(count), count), [""] * count, [0] * count
    found: list[tuple[int, int, float]] = []
    done = 0
    while done < count:
        group = family(draw, parts, pool)[: count - done]
        rows = place[done : done + len(group)]
        for row, words in zip(rows, group, strict=True):
            made[row], origins[row] = " ".join(words), rows[0]
        for i, j, jaccard in pairs(group) if truth else ():
            first, second = sorted((start + rows[i], start + rows[j]))
            found.append((first, second, jaccard))
        done += len(group)
    ids = pl.Series("id", [f"m{start + row:08}" for row in range(count)])
    return pl.DataFrame({"id": ids, "text": made, "origin": ids.gather(origins)}), found


def make(source: Path, out: Path, count: int, seed: int) -> None:
    """Write the corpus, a block of rows at a time."""
    texts = pl.read_parquet(source / "docs.parquet")["text"].to_list()
    draw, parts = random.Random(seed), paragraphs(texts)
    pool = sorted({word for part in parts[:2000] for word in part})
    out.mkdir(parents=True, exist_ok=True)
    known, origins = [], []
    schema = pa.schema({"id": pa.large_string(), "text": pa.large_string()})
    with pq.ParquetWriter(out / "docs.parquet", schema, compression="zstd") as writer:
        for start in range(0, count, BLOCK):
            rows, found = block(draw, parts, pool, start, min(BLOCK, count - start), truth=count <= KNOWN)
            writer.write_table(rows.select("id", "text").to_arrow().cast(schema), row_group_size=20_000)
            origins.append(rows.select("id", "origin"))
            known += found
    pl.concat(origins).write_parquet(out / "truth.parquet")
    pl.DataFrame(sorted(known), schema=["i", "j", "jaccard"], orient="row").write_parquet(out / "pairs.parquet")
    (out / "info.json").write_text(json.dumps({"docs": count, "seed": seed}))


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else 7)
