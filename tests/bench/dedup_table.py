"""Compare `refine dedup` with its peers, and measure how its cost grows: `make bench`.

    python -m tests.bench.dedup_table [--peers PYTHON] [--rounds N] [--sizes N ...] [--grow N ...] [--folder DIR]

Each command is a process that ends with kept ids. CPU seconds are those of the whole process tree, start-up included,
as the median of rounds in turn. Corpora: ../shared/bench (20,000 texts) if it exists, and corpora that
tests/bench/dedup_corpus.py makes from its texts, else from those of the embedded corpus. `--peers` names the Python of
a venv with rensa and datasketch (datasketch is omitted above 20,000 texts). `--grow` measures `refine dedup` alone on
corpora of these sizes, with its peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from tests.bench.dedup_corpus import make

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "bench" / "corpus"
HEAD = (
    "| tool | documents | per CPU s | MB per CPU s | per s | peak MB | recall J>=0.8 | precision J>=0.7 "
    "| removed without a kept neighbour J>=0.7 |"
)

GROWTH = "| documents | CPU s | s | CPU microseconds per document | peak MB | bytes per document |"


@dataclass(frozen=True)
class Cost:
    """Cost of one process: CPU and wall seconds, and peak memory in bytes."""

    cpu: float
    wall: float
    peak: int


LAUNCH = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([status, used.ru_utime + used.ru_stime, time.perf_counter() - start, used.ru_maxrss * 1024]))
"""
"""A child inherits the peak memory of its parent, so a small process starts it."""


def cost(command: list[str]) -> Cost:
    """Run a command to its end.

    Raises:
        RuntimeError: it failed.
    """
    done = subprocess.run([sys.executable, "-c", LAUNCH, *command], stdout=subprocess.PIPE, cwd=ROOT, check=True)
    status, *used = json.loads(done.stdout)
    if status:
        raise RuntimeError(f"{shlex.join(command)} ended with {status}")
    return Cost(*used)


def scores(corpus: Path, kept_ids: list[str]) -> tuple[float, float, int]:
    """Recall of pairs at 0.8, precision of removals at 0.7, removals without a kept neighbour at 0.7."""
    ids = pl.read_parquet(corpus / "docs.parquet", columns=["id"])["id"]
    kept = ids.is_in(pl.Series(kept_ids).implode()).to_numpy()
    pairs = pl.read_parquet(corpus / "pairs.parquet")
    i, j, jaccard = (pairs[name].to_numpy() for name in ("i", "j", "jaccard"))
    nearest, nearest_kept = np.zeros(len(ids)), np.zeros(len(ids))
    for one, other in ((i, j), (j, i)):
        np.maximum.at(nearest, one, jaccard)
        np.maximum.at(nearest_kept, one, np.where(kept[other], jaccard, 0))
    recall = 1 - (kept[i] & kept[j])[jaccard >= 0.8].mean()
    return float(recall), float((nearest[~kept] >= 0.7).mean()), int((nearest_kept[~kept] < 0.7).sum())


def commands(corpus: Path, kept: Path, peers: str | None, documents: int) -> dict[str, list[str]]:
    """The commands to compare, by tool."""
    script = str(Path(__file__).with_name("dedup_peers.py"))
    refine = [sys.executable, "-m", "pipeline.cli", "dedup", str(corpus / "docs.parquet"), "--kept", str(kept)]
    stage = [sys.executable, "-m", "tests.bench.dedup_kept", str(corpus), str(kept)]
    known = {
        "refine dedup": refine,
        "refine dedup --workers 1": [*refine, "--workers", "1"],
        "the stage of a run": stage,
    }
    if peers:
        known["rensa"] = [peers, script, "rensa", str(corpus), str(kept)]
        if documents <= 20_000:
            known["datasketch"] = [peers, script, "datasketch", str(corpus), str(kept)]
    return known


def compared(corpus: Path, peers: str | None, rounds: int) -> Iterator[str]:
    """A row of the table for each tool."""
    size = pl.scan_parquet(corpus / "docs.parquet").select(pl.len(), pl.col("text").str.len_bytes().sum()).collect()
    documents, volume = size.row(0)
    kept = Path(tempfile.mkdtemp()) / "kept.txt"
    costs: dict[str, list[Cost]] = {}
    found: dict[str, tuple[float, float, int]] = {}
    for turn in range(rounds + 1):  # the first one only fills caches, of machine code and of files
        for tool, command in commands(corpus, kept, peers, documents).items():
            if turn or "refine" in tool or "stage" in tool:
                one = cost(command)
                costs.setdefault(tool, []).extend([one] if turn else [])
                found[tool] = scores(corpus, kept.read_text().split())
    for tool, each in costs.items():
        cpu, wall = statistics.median(one.cpu for one in each), statistics.median(one.wall for one in each)
        recall, precision, alone = found[tool]
        yield (
            f"| {tool} | {documents:,} | {documents / cpu:,.0f} | {volume / cpu / 1e6:.0f} | {documents / wall:,.0f} | "
            f"{max(one.peak for one in each) / 1e6:,.0f} | {recall:.4f} | {precision:.4f} | {alone} |"
        )


def grown(corpus: Path) -> str:
    """A row of the table of growth."""
    documents = pl.scan_parquet(corpus / "docs.parquet").select(pl.len()).collect().item()
    kept = corpus / "kept.txt"
    command = [sys.executable, "-m", "pipeline.cli", "dedup", str(corpus / "docs.parquet"), "--kept", str(kept)]
    used = cost([*command, "--max-cluster", "1"])
    return (
        f"| {documents:,} | {used.cpu:.1f} | {used.wall:.1f} | {used.cpu / documents * 1e6:.1f} | "
        f"{used.peak / 1e6:,.0f} | {used.peak / documents:,.0f} |"
    )


def source(folder: Path) -> Path:
    """A folder with texts from which corpora are made."""
    if SHARED.is_dir():
        return SHARED
    import chitchat_dataset

    talks = chitchat_dataset.Dataset().values()
    texts = ["\n".join(said["text"] for turn in talk["messages"] for said in turn) for talk in talks]
    pl.DataFrame({"text": texts}).write_parquet(folder / "docs.parquet")
    return folder


def machine() -> str:
    """Processor, cores and date."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if info.exists()
        else []
    )
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="*", default=[20_000, 100_000])
    parser.add_argument("--grow", type=int, nargs="*", default=[])
    parser.add_argument("--folder", type=Path, help="where corpora are made, and found again")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = given.folder or Path(name)
        texts = source(folder)
        sys.stdout.write(f"{machine()}; texts of {texts.parent.name if SHARED.is_dir() else 'chitchat'}\n\n")
        if given.sizes:
            sys.stdout.write(f"{HEAD}\n|{'---|' * (HEAD.count('|') - 1)}\n")
        for count in given.sizes:
            corpus = SHARED if SHARED.is_dir() and count == 20_000 else folder / str(count)
            if not (corpus / "info.json").exists():
                make(texts, corpus, count, 7)
            for line in compared(corpus, given.peers, given.rounds):
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()
        if given.grow:
            sys.stdout.write(f"\n{GROWTH}\n|{'---|' * (GROWTH.count('|') - 1)}\n")
        for count in given.grow:
            if not (folder / str(count) / "info.json").exists():
                make(texts, folder / str(count), count, 7)
            sys.stdout.write(f"{grown(folder / str(count))}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
