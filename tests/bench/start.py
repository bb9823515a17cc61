"""CPU seconds of short runs: `python -m tests.bench.start [CODE ...]`.

Runs 100 dialogues of the embedded default with all stages and with each one, and a sample of 1 % of 200,000 edited
ones in JSON Lines with all stages but `toxicity`. CPU seconds are those of the process and its workers, and the least
of three runs. Each CODE is a folder with a version of the project, by default this one, of which the sample always is.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline import sources
from tests.conftest import ROOT

STAGES = ("heuristics", "language", "dedup", "ppl", "toxicity")
FAST = ",".join(STAGES[:-1])
DIALOGUES = 200_000


def cost(code: Path, *words: str, times: int = 3) -> tuple[float, float]:
    """CPU and wall seconds of `refine run`."""
    spent = []
    for _ in range(times):
        with tempfile.TemporaryDirectory() as folder:
            before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            command = [sys.executable, "-m", "pipeline.cli", "--quiet", "run", *words, "--out", f"{folder}/run"]
            environment = {**os.environ, "PYTHONPATH": str(code)}
            subprocess.run(command, check=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
            after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
            spent.append((after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall))
    return min(spent)


def write_corpus(path: Path) -> None:
    """Edited dialogues of the embedded default: 4 % of their words are others of the same dialogue."""
    draw, dialogues = random.Random(0), [row.value["messages"] for row in sources.find(None).rows()]
    with path.open("w", encoding="utf-8") as file:
        for _ in range(DIALOGUES):
            messages = draw.choice(dialogues)
            words = " ".join(message["content"] for message in messages).split() or ["none"]
            edited = [
                {
                    **message,
                    "content": " ".join(w if draw.random() > 0.04 else draw.choice(words) for w in text.split()),
                }
                for message in messages
                for text in [message["content"]]
            ]
            file.write(json.dumps({"messages": edited}) + "\n")


def main() -> None:
    """One line a version and run."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.jsonl"
        write_corpus(corpus)
        for code in [Path(word).resolve() for word in sys.argv[1:]] or [ROOT]:
            for stages in ("all", *STAGES):
                picked = [] if stages == "all" else ["--stages", stages]
                cpu, wall = cost(code, "--limit", "100", *picked)
                sys.stdout.write(f"{code.name}: 100 dialogues, {stages}: {cpu:.2f} CPU s, {wall:.1f} s\n")
                sys.stdout.flush()
        cpu, wall = cost(ROOT, str(corpus), "--sample", "1%", "--stages", FAST, times=1)
        size = corpus.stat().st_size / 1e6
        sys.stdout.write(f"1 % of {DIALOGUES:,} ({size:.0f} MB): {cpu:.2f} CPU s, {wall:.1f} s\n")


if __name__ == "__main__":
    main()
