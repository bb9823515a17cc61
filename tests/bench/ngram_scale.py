"""Memory, disk and time of training an n-gram model, by size: `python tests/bench/ngram_scale.py 5000000 20000000`.

Words are drawn from Zipf's law over a million types, each alone, so that nearly every 5-gram is a new one: harder than
text, of which a third to a half of the 5-grams repeat. Memory is the process's own pages (RssAnon); pages of columns on
disk come and go with what the system can spare.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from stages.ngram import train

_LINE, _BATCH, _TYPES = 25, 20_000, 1_000_000


def lines(tokens: int) -> Iterator[pl.Series]:
    """Batches of lines of 25 words."""
    draw = np.random.default_rng(0)
    ranks = np.cumsum(1 / np.arange(1, _TYPES + 1))
    for _ in range(tokens // (_LINE * _BATCH)):
        words = np.searchsorted(ranks, draw.random((_BATCH, _LINE)) * ranks[-1])
        yield pl.Series(words).cast(pl.Array(pl.String, _LINE)).arr.join(" ")


class Watch(threading.Thread):
    """The highest RssAnon, and the most bytes in a folder, seen every 50 ms."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.memory, self.disk, self.over = folder, 0, 0, False

    def run(self) -> None:
        while not self.over:
            status = Path("/proc/self/status").read_text()
            self.memory = max(self.memory, int(status.split("RssAnon:")[1].split()[0]) * 1024)
            try:
                self.disk = max(self.disk, sum(p.stat().st_blocks * 512 for p in self.folder.rglob("*")))
            except OSError:  # a column went away between listing and asking
                continue
            time.sleep(0.05)


def main() -> None:
    """One line a size."""
    for size in map(int, sys.argv[1:]):
        with tempfile.TemporaryDirectory(dir=Path.cwd() / "data") as folder:
            watch = Watch(Path(folder))
            watch.start()
            start = time.perf_counter()
            model = train(lines(size), Path(folder) / "model.arpa", prune=(0,) if "--whole" in sys.argv else (0, 0, 1))
            seconds, watch.over = time.perf_counter() - start, True
            watch.join()
            out = (
                f"{model.tokens:,} tokens: {seconds:.0f} s ({model.tokens / seconds / 1e3:.0f} k tokens/s), "
                f"memory {watch.memory / 2**20:.0f} MiB ({watch.memory / model.tokens:.0f} bytes a token), "
                f"disk {watch.disk / 2**20:.0f} MiB ({watch.disk / model.tokens:.0f} bytes a token), kept {model.sizes}"
            )
            sys.stdout.write(out + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
