"""What README promises of the memory of a run holds at two sizes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench import scale
from tests.conftest import ROOT

SMALL, LARGE = 10_000, 60_000
"""Conversations of the two corpora."""
NOISE = 2_000_000
"""Bytes that an allocator keeps at one time and not at another: peaks of equal runs differed by up to 1.7 MB."""
STAGES = "heuristics,language,dedup,ppl"
PROGRAM = f"""
import pipeline.engine.local, pipeline.signals, stages.columns, stages.ppl.places
pipeline.engine.local.WORKER_START = 1e-9  # workers measure the small corpus as well
stages.columns.CHUNK = stages.ppl.places.CHUNK = 1 << 12  # what is in memory at once, less than the small corpus has
pipeline.signals.RuleInputs.decide.__defaults__ = (1 << 9,)
{scale.RUN}
print("decide again", flush=True)
refine.decide(out)
"""
FREES = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_ARENA_MAX": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "_RJEM_MALLOC_CONF": "dirty_decay_ms:0,muzzy_decay_ms:0",
    "POLARS_MAX_THREADS": "1",
}
"""Environment of a process that returns freed memory at once."""


def conversations(count: int) -> Iterator[str]:
    """JSON Lines of short conversations with ids of their own, of which 4 % are copies and 6 % repeat a prompt."""
    draw = random.Random(0)
    words = [f"w{draw.randrange(1 << 16):x}" for _ in range(2_000)]
    earlier: list[tuple[str, str]] = []
    for at in range(count):
        prompt, reply = (" ".join(draw.choices(words, k=8)) for _ in range(2))
        if at % 10 == 0 and earlier:
            old = draw.choice(earlier)
            prompt, reply = old if draw.random() < 0.4 else (old[0], reply)
        elif len(earlier) < 1_000 or at % 10 == 1:
            earlier.append((prompt, reply))
        yield json.dumps({"id": f"record-{at}", "prompt": prompt, "response": reply}) + "\n"


def peaks(folder: Path, count: int) -> dict[str, scale.Use]:
    """The peaks of each step of a run with two workers."""
    source = folder / f"{count}.jsonl"
    source.write_text("".join(conversations(count)))
    words = [sys.executable, "-c", PROGRAM, str(source), str(folder / f"run-{count}"), STAGES, "2"]
    environment = {**os.environ, **FREES, "PYTHONPATH": str(ROOT)}
    return scale.Watch(subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)).watch()


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_memory_is_what_readme_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six times the conversations: at most 16 bytes for each more in the main process, in any step.

    Steps are compared by what they take over `heuristics`, in which the main process holds nothing.
    """
    monkeypatch.setattr(scale, "INTERVAL", 0.02)
    small, large = (peaks(tmp_path, count) for count in (SMALL, LARGE))
    assert {"ingest", "dedup: merge", "ppl: fit", "ppl: merge", "decide", "write", "decide again"} <= set(small)
    over = [{step: use.parent - run["heuristics"].parent for step, use in run.items()} for run in (small, large)]
    grown = {step: over[1][step] - over[0][step] for step in over[0] if step not in {"start", "ingest"}}
    grown["ingest"] = large["ingest"].parent - small["ingest"].parent
    room = scale.EACH * (LARGE - SMALL) + NOISE
    assert not {step: more for step, more in grown.items() if more > room}, grown
    assert max(use.parent for use in large.values()) < scale.MAIN + scale.EACH * LARGE
    assert 0 < max(use.worker for use in large.values()) < scale.WORKER
