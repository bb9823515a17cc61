"""Time and memory of each step of a run, by size: a table in Markdown.

    python -m tests.bench.scale 100000 300000 1000000                    stages heuristics, language, dedup, ppl
    python -m tests.bench.scale 100000 300000 --stages dedup --report    and of the report
    python -m tests.bench.scale 147000 --only ultrachat_small            of messages of UltraChat alone

The table comes at the end; what a step used is on stderr as soon as the next one begins.

A conversation is two to eight messages, each drawn at random from real ones (the embedded corpus, and UltraChat-like
conversations of the test data, without which the bench does not run), with 8 % of its words replaced by others. 2 % are
copies of an earlier conversation, 8 % differ from one in up to 4 % of the words, and 10 % begin with its prompt.
Corpora are made once, in data/experiments/scale/.

CPU seconds are those of the main process and its workers. Memory is the peak of a process's own pages (RssAnon), seen
every 50 ms; pages of files that it maps, which the system takes back when it needs them, do not count. If a step of a
run takes more than 600 MB and 16 bytes a conversation, or a worker 700 MB, the bench says so and exits with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from pipeline.sources import EmbeddedSource
from tests.conftest import ROOT, SHARED

FOLDER = ROOT / "data" / "experiments" / "scale"
STAGES = "heuristics,language,dedup,ppl"
REPLACED, COPIES, NEAR_COPIES, SAME_PROMPTS = 0.08, 0.02, 0.08, 0.10
"""Shares: of a conversation's words; of the conversations."""
KNOWN = 5_000
"""Number of earlier conversations, replaced at random, of which copies are made."""
INTERVAL = 0.05
"""Seconds between two looks at the processes."""
TICKS = os.sysconf("SC_CLK_TCK")
MIB = 1 << 20
MAIN, WORKER, EACH = 600_000_000, 700_000_000, 16
"""What a run promises: bytes of the main process, those of a worker, and those of the main process a conversation."""

Messages = list[dict[str, str]]

RUN = """
import sys, refine
import pipeline.api.run as api

class Steps(api.ProgressReporter):
    def __call__(self, step, done, total, *more):
        print("" if done >= total > 0 else step, flush=True)

api.ProgressReporter = Steps
source, out, stages, workers = sys.argv[1:]
refine.run(source, out=out, stages=stages, workers=int(workers))
"""
"""A run in a process of its own, which prints the name of each step as it begins, and an empty line as it ends."""
AGAIN = "import sys, refine; print('decide again', flush=True); refine.decide(sys.argv[1])"
REPORT = "import sys, refine; print('report', flush=True); refine.report(sys.argv[1], out=sys.argv[1] + '-report')"


def messages(only: str) -> dict[str, list[list[str]]]:
    """Words of real messages by role, of one file of the test data, or of all."""
    if not (SHARED / "data").is_dir():
        sys.exit(f"the test data ({SHARED / 'data'}) is not on this machine, and corpora are made of it")
    chats: list[Messages] = [] if only else [row.value["messages"] for row in EmbeddedSource().rows()][:300]
    for name in (only,) if only else ("ultrachat_small", "oasst_100trees", "arena1k"):
        chats += pl.read_parquet(SHARED / "data" / "chat" / f"{name}.parquet")["messages"].to_list()
    spoken: dict[str, list[list[str]]] = {"user": [], "assistant": []}
    for message in (message for chat in chats for message in chat):
        if message["role"] in spoken and (words := message["content"].split()):
            spoken[message["role"]].append(words)
    return spoken


def conversations(count: int, only: str = "", seed: int = 0) -> Iterator[Messages]:
    """The corpus; a smaller one is the beginning of a larger one."""
    draw, spoken, known = random.Random(seed), messages(only), list[Messages]()
    pool = [word for part in spoken.values() for words in part for word in words]
    for _ in range(count):
        kind, earlier = draw.random(), draw.choice(known) if known else []
        if earlier and kind < COPIES:
            chat = earlier
        elif earlier and kind < COPIES + NEAR_COPIES:
            chat = [_edit(draw, one, draw.choice((0.01, 0.02, 0.04)), pool) for one in earlier]
        else:
            roles = [("user", "assistant")[turn % 2] for turn in range(draw.randrange(2, 9))]
            said = [{"role": role, "content": " ".join(draw.choice(spoken[role]))} for role in roles]
            chat = [_edit(draw, one, REPLACED, pool) for one in said]
            if earlier and kind < COPIES + NEAR_COPIES + SAME_PROMPTS:
                chat[0] = earlier[0]
        yield chat
        if len(known) < KNOWN:
            known.append(chat)
        elif draw.random() < 0.1:
            known[draw.randrange(KNOWN)] = chat


def _edit(draw: random.Random, message: dict[str, str], share: float, pool: Sequence[str]) -> dict[str, str]:
    """A message with a share of its words replaced."""
    words = message["content"].split()
    for _ in range(round(share * len(words))):
        words[int(draw.random() * len(words))] = pool[int(draw.random() * len(pool))]
    return {"role": message["role"], "content": " ".join(words)}


def corpus(count: int, only: str = "") -> Path:
    """A corpus as JSON Lines, made unless it is there."""
    path = FOLDER / f"{only}{count}.jsonl"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".tmp")
        with aside.open("w") as file:
            for i, chat in enumerate(conversations(count, only)):
                file.write(json.dumps({"prompt": chat[0]["content"], "prompt_id": str(i), "messages": chat}) + "\n")
        aside.rename(path)
    return path


@dataclass
class Use:
    """What a step used: seconds, CPU seconds, and the peak of memory in bytes of the main process and of a worker."""

    seconds: float = 0.0
    cpu: float = 0.0
    parent: int = 0
    worker: int = 0

    @property
    def sentence(self) -> str:
        """All of it in words."""
        memory = f"main process {self.parent / 1e6:.0f} MB, a worker {self.worker / 1e6:.0f} MB"
        return f"{self.seconds:.1f} s, {self.cpu:.1f} CPU s, {memory}"

    def add(self, other: Use) -> None:
        self.seconds += other.seconds
        self.cpu += other.cpu
        self.parent, self.worker = max(self.parent, other.parent), max(self.worker, other.worker)


@dataclass
class Watch:
    """Looks at a process and its children, and keeps what each step that the process names has used."""

    process: subprocess.Popen[str]
    steps: dict[str, Use] = field(default_factory=lambda: defaultdict(Use))
    step: str = "start"
    _between: Use = field(default_factory=Use)
    _cpu: dict[int, float] = field(default_factory=dict)
    _at: float = field(default_factory=time.monotonic)

    def watch(self) -> dict[str, Use]:
        """Wait for the process, and return what its steps used."""
        reader = threading.Thread(target=self._read, daemon=True)
        reader.start()
        while self.process.poll() is None:
            self._look()
            time.sleep(INTERVAL)
        if self.process.returncode:
            sys.exit("the run failed")
        return self.steps

    def _read(self) -> None:
        for line in self.process.stdout or ():
            if self.step and self.step != line.strip():
                sys.stderr.write(f"{self.step}: {self.steps[self.step].sentence}\n")
            self.step = line.strip()

    def _look(self) -> None:
        """Count the use since the last look. What is between two steps is the next one's, before write decide's."""
        step, now, use = self.step, time.monotonic(), Use()
        use.seconds, self._at = now - self._at, now
        for pid in self._pids():
            try:
                status = Path(f"/proc/{pid}/status").read_text()
                times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
                memory = int(status.split("RssAnon:")[1].split()[0]) * 1024
            except (OSError, IndexError):  # it has ended
                continue
            cpu = sum(map(int, times)) / TICKS
            use.cpu += cpu - self._cpu.get(pid, 0.0)
            self._cpu[pid] = cpu
            if pid == self.process.pid:
                use.parent = memory
            else:
                use.worker = max(use.worker, memory)
        if not step:
            self._between.add(use)
            return
        self.steps["decide" if step == "write" else step].add(self._between)
        self._between = Use()
        self.steps[step].add(use)

    def _pids(self) -> list[int]:
        """The process and all below it."""
        pids = [self.process.pid]
        for pid in pids:
            try:
                for task in Path(f"/proc/{pid}/task").iterdir():
                    pids += map(int, (task / "children").read_text().split())
            except OSError:
                continue
        return pids


def measure(count: int, stages: str, workers: int, only: str, *, report: bool) -> dict[str, Use]:
    """What each step of a run of a corpus used."""
    source, out = corpus(count, only), FOLDER / f"run-{count}"
    shutil.rmtree(out, ignore_errors=True)
    commands = [[RUN, str(source), str(out), stages, str(workers)], [AGAIN, str(out)]]
    commands += [[REPORT, str(out)]] if report else []
    steps: dict[str, Use] = {}
    for command in commands:
        words = [sys.executable, "-c", *command]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        used = Watch(subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)).watch()
        steps |= used
    shutil.rmtree(out)
    shutil.rmtree(f"{out}-report", ignore_errors=True)
    return steps


def table(measured: dict[int, dict[str, Use]]) -> Iterator[str]:
    """Rows of the table; the last column is how fast the main process grows from the smallest size to the largest."""
    heads = [f"{n:,}: s | CPU s | ms CPU each | main MB | worker MB" for n in measured]
    yield f"| step | {' | '.join(heads)} | bytes a conversation |"
    yield f"| --- |{' --- |' * (5 * len(heads) + 1)}"
    first, last = min(measured), max(measured)
    for step in [step for step in measured[last] if step != "start"]:
        cells = []
        for count, steps in measured.items():
            use = steps.get(step, Use())
            worker = f"{use.worker / MIB:.0f}" if use.worker else ""
            cells += [f"{use.seconds:.1f}", f"{use.cpu:.1f}", f"{1e3 * use.cpu / count:.3f}"]
            cells += [f"{use.parent / MIB:.0f}", worker]
        more = measured[last][step].parent - measured[first].get(step, Use()).parent
        growth = f"{more / (last - first):.0f}" if last > first else ""
        yield f"| {step} | {' | '.join(cells)} | {growth} |"


def main() -> None:
    """Print the table."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("sizes", type=int, nargs="+", help="numbers of conversations")
    asked.add_argument("--stages", default=STAGES)
    asked.add_argument("--workers", type=int, default=0, help="worker processes; 0: one per core")
    asked.add_argument("--only", default="", metavar="NAME", help="messages of one file of the test data alone")
    asked.add_argument("--report", action="store_true", help="measure `refine report` as well")
    given = asked.parse_args()
    options = given.stages, given.workers, given.only
    measured = {n: measure(n, *options, report=given.report) for n in sorted(given.sizes)}
    sys.stdout.write("\n".join(table(measured)) + "\n")
    for count, steps in measured.items():
        for step, use in steps.items():
            if step != "report" and (use.parent > MAIN + EACH * count or use.worker > WORKER):
                sys.exit(f"{step} of {count:,} conversations takes more memory than a run promises")


if __name__ == "__main__":
    main()
