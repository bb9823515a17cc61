"""Compare `refine run` with other systems on the same conversations.

    python -m tests.bench.run_table [--peers PYTHON] [--text-dedup PYTHON] [--copies N] [--rounds N]

The corpus is ultrachat_small of ../shared/data/chat with copies of which a tenth of the words is replaced (see
`stage_speed`). `refine` reads its `messages`; the others get the contents joined by newlines, since they read no
conversations (see `run_peers`). Each row is a process that ends with kept documents. CPU seconds are those of the whole
process tree, start-up included, as the median of rounds in turn.

`--peers` names the Python of a venv with `datatrove[processing,io]==0.10.1 spacy py-data-juicer==1.6.1 aiohttp`,
`--text-dedup` that of one with `text-dedup==0.4.0`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from tests.bench.dedup_table import Cost, cost, machine
from tests.bench.stage_speed import copies

HEAD = "| system | step | conversations | per CPU s | per s | peak MB |"


def refine(corpus: Path, folder: Path, *options: str) -> list[str]:
    """A run of these options."""
    return [sys.executable, "-m", "pipeline.cli", "run", str(corpus), "--out", str(folder / "run"), *options]


def commands(corpus: Path, folder: Path, peers: str | None, text_dedup: str | None) -> dict[tuple[str, str], list[str]]:
    """Commands by system and step."""
    one = ("--workers", "1")
    known = {
        ("refine", "filter"): refine(corpus, folder, "--stages", "heuristics", *one),
        ("refine", "dedup"): refine(corpus, folder, "--stages", "dedup", *one),
        ("refine", "the default plan without toxicity"): refine(
            corpus, folder, "--stages", "heuristics,language,dedup,ppl", *one
        ),
        ("refine", "the default plan"): refine(corpus, folder, *one),
        ("refine", "the default plan, two workers"): refine(corpus, folder, "--workers", "2"),
    }
    script, documents = str(Path(__file__).with_name("run_peers.py")), str(corpus.with_name("documents.jsonl"))
    steps = [(peers, tool, step) for tool in ("datatrove", "data-juicer") for step in ("filter", "dedup")]
    for python, tool, step in (*steps, (text_dedup, "text-dedup", "dedup")):
        if python:
            known[tool, step] = [python, script, tool, step, documents, str(folder)]
    return known


def compared(corpus: Path, rounds: int, peers: str | None, text_dedup: str | None) -> Iterator[str]:
    """A row for each system and step."""
    conversations = pl.scan_ndjson(corpus).select(pl.len()).collect().item()
    costs: dict[tuple[str, str], list[Cost]] = {}
    for _ in range(rounds):
        for key in commands(corpus, Path(), peers, text_dedup):
            with tempfile.TemporaryDirectory() as name:
                costs.setdefault(key, []).append(cost(commands(corpus, Path(name), peers, text_dedup)[key]))
    for (system, step), each in costs.items():
        cpu, wall = statistics.median(one.cpu for one in each), statistics.median(one.wall for one in each)
        peak = max(one.peak for one in each) / 1e6
        yield (
            f"| {system} | {step} | {conversations:,} | {conversations / cpu:,.0f} | {conversations / wall:,.0f} | "
            f"{peak:,.0f} |"
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--peers")
    parser.add_argument("--text-dedup")
    parser.add_argument("--copies", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    sys.stdout.write(f"{machine()}\n\n{HEAD}\n|{' --- |' * (HEAD.count('|') - 1)}\n")
    with tempfile.TemporaryDirectory() as name:
        chats = copies("ultrachat_small", given.copies)
        chats.write_ndjson(Path(name, "chats.jsonl"))
        joined = pl.col("messages").list.eval(pl.element().struct.field("content")).list.join("\n")
        chats.select(id="prompt_id", text=joined).write_ndjson(Path(name, "documents.jsonl"))
        for line in compared(Path(name, "chats.jsonl"), given.rounds, given.peers, given.text_dedup):
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
