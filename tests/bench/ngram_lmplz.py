"""Our trainer against lmplz: `python tests/bench/ngram_lmplz.py LMPLZ CHAT.parquet ...` (UltraChat's columns).

Every second line of a corpus is trained on by both and the others are scored: the largest difference of a sentence's
log10 probability, and both perplexities.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import polars as pl

from stages.ngram import train
from stages.ngram.kneser_ney import FALLBACK
from stages.ppl.score import load
from stages.ppl.tokens import tokenise


def by_lmplz(lmplz: Path, lines: pl.Series, out: Path) -> tuple[int, ...]:
    """Train a model as our default is, and return the number of its n-grams of each order."""
    text = out.with_suffix(".txt")
    text.write_text("\n".join(lines) + "\n", encoding="utf-8")
    options = ["-o", "5", "--prune", "0", "0", "1", "--discount_fallback", *map(str, FALLBACK)]
    with text.open("rb") as source:
        subprocess.run([lmplz, *options, "--arpa", out], stdin=source, stderr=subprocess.DEVNULL, check=True)
    with out.open("rb") as file:
        return tuple(map(int, re.findall(rb"^ngram \d+=(\d+)", file.read(1 << 12), re.MULTILINE)))


def main() -> None:
    """One line a corpus."""
    lmplz, *corpora = map(Path, sys.argv[1:])
    for corpus in corpora:
        content = pl.read_parquet(corpus)["messages"].explode().struct.field("content")
        lines = tokenise(content)
        seen, held_out = lines[::2]["line"], lines[1::2]
        scores: dict[str, list[float]] = {}
        seconds, sizes = {}, {}
        with tempfile.TemporaryDirectory() as folder:
            for name in ("ours", "lmplz"):
                start, path = time.perf_counter(), Path(folder) / f"{name}.arpa"
                sizes[name] = train([seen], path).sizes if name == "ours" else by_lmplz(lmplz, seen, path)
                seconds[name] = time.perf_counter() - start
                score = load(path)
                scores[name] = [score(line) for line in held_out["line"]]
        most = max(abs(one - other) for one, other in zip(scores["ours"], scores["lmplz"], strict=True))
        tokens = int(held_out["n"].sum())
        ppl = {name: 10 ** (-sum(one) / tokens) for name, one in scores.items()}
        sys.stdout.write(
            f"{corpus.stem}: {held_out.height} sentences, largest difference {most:.1e} log10, perplexity "
            f"{ppl['ours']:.6f} and {ppl['lmplz']:.6f}, sizes {'equal' if sizes['ours'] == sizes['lmplz'] else sizes}, "
            f"{seconds['ours']:.1f} s and {seconds['lmplz']:.1f} s\n"
        )


if __name__ == "__main__":
    main()
