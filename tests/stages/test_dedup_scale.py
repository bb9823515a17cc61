"""The memory of the merge of dedup grows with the corpus as documented."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from stages.dedup import Dedup
from stages.stage import DETAILS, MESSAGES

PEAK = """
import sys, threading, time
from pathlib import Path
from stages.dedup import Dedup

def anonymous():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024

def merge(name):
    folder = Path(name)
    measured = sorted(folder.glob("measured/*.parquet"))
    Dedup().merge(sorted(folder.glob("raw/*.parquet")), measured, folder)

def peak_of(name):
    peak, done = [0], threading.Event()
    def watch():
        while not done.wait(0.002):
            peak[0] = max(peak[0], anonymous())
    thread = threading.Thread(target=watch)
    thread.start()
    merge(name)
    done.set()
    thread.join()
    return peak[0]

merge(sys.argv[1])
print(peak_of(sys.argv[2]) - peak_of(sys.argv[1]))
"""


def corpus(folder: Path, shards: int, rows: int = 25_000) -> Path:
    """Shards of short random texts, measured; a tenth of them nearly equals another."""
    random, stage = np.random.default_rng(len(folder.name)), Dedup()
    (folder / "raw").mkdir(parents=True)
    (folder / "measured").mkdir()
    for at in range(shards):
        words = random.integers(0, 1 << 30, (rows, 12))
        words[: rows // 10, 1:] = words[rows // 2 : rows // 2 + rows // 10, 1:]
        ids = [f"{at:05}-{row:09}" for row in range(rows)]
        texts = [" ".join(map(str, text)) for text in words.tolist()]
        message = pl.struct(role=pl.lit("text"), content="text")
        batch = pl.DataFrame({"id": ids, "text": texts, "prompt": ids}).with_columns(
            messages=pl.concat_list(message).cast(MESSAGES), details=pl.lit(None, DETAILS)
        )
        batch.write_parquet(folder / f"raw/{at:05}.parquet")
        signals = batch.select("id").hstack(stage.measure(batch.select(stage.reads)))
        signals.write_parquet(folder / f"measured/{at:05}.parquet")
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_memory_of_the_merge_is_bounded(tmp_path: Path) -> None:
    """300,000 conversations more, of which a fifth are candidates, cost what the docstring of `Dedup` says."""
    small, large = corpus(tmp_path / "small", 4), corpus(tmp_path / "large", 16)
    command = [sys.executable, "-c", PEAK, str(small), str(large)]
    more = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    rows = 25_000 * 12
    pairs = len(pl.read_parquet(large / "dedup.parquet")) - len(pl.read_parquet(small / "dedup.parquet"))
    assert pairs > 25_000
    assert more < 16 * rows + 3_000_000  # what the allocator keeps: 2 MB between equal runs
