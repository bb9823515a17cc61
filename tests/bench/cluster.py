"""A run on a Ray cluster of two nodes against one on this machine: bytes, CPU seconds, and what survives a kill.

    python -m tests.bench.cluster 20000                 the same corpus, by turns, twice each
    python -m tests.bench.cluster 3000 --kills 10       a node, then the driver, killed ten times each in mid-run
    python -m tests.bench.cluster 0 --driver            what the driver uses for tasks that do nothing

Both nodes, with one core each, are on this machine; the head has no core. Corpora are those of `tests.bench.scale`.

CPU seconds are those of the run's process and its workers; of a run on Ray also those of all other processes of the
cluster meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from pipeline.engine import ray
from tests.bench.scale import STAGES, TICKS, corpus
from tests.conftest import contents
from tests.pipeline.cluster import add_node, path, two_nodes

REPEATS = 2
"""Runs of each kind."""
SHARD_ROWS = "100"
"""Rows of a shard: few, so that a short run has many."""
SPAN = 0.05, 0.95
"""Range from which the moment of a kill is drawn, as a share of the files that a whole run writes."""
KEYS = 100_000
"""Keys of an empty task."""


def refine(source: Path, out: Path, stages: str, *more: str) -> subprocess.Popen[bytes]:
    """A run in a process of its own."""
    words = ["run", source, "--out", out, "--stages", stages, "--shard-rows", SHARD_ROWS, *more]
    command = [sys.executable, "-m", "pipeline.cli", "--quiet", *map(str, words)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path()}, stdout=subprocess.DEVNULL)


def ended(process: subprocess.Popen[bytes]) -> None:
    """Wait for a run to end well."""
    if process.wait():
        sys.exit(f"a run ended with {process.returncode}")


class Meter:
    """CPU seconds of all descendants of this process since it was made, looked at every 100 ms."""

    def __init__(self) -> None:
        self.spent, self.own = dict[tuple[int, int], float](), set[tuple[int, int]]()
        self._look()
        self.before, self._done = dict(self.spent), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            self._look()

    def _look(self) -> None:
        processes = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
                processes[int(stat.parent.name)] = fields
        for process, fields in processes.items():
            above = int(fields[1])
            while above in processes and above != os.getpid():
                above = int(processes[above][1])
            if above == os.getpid():
                key = process, int(fields[19])
                if key not in self.spent and _is_rays(process):
                    self.own.add(key)
                self.spent[key] = (int(fields[11]) + int(fields[12])) / TICKS

    def read(self) -> tuple[float, float]:
        """Stop, and return the seconds, and those of Ray's own processes."""
        self._done.set()
        self._thread.join()
        self._look()
        used = {key: seconds - self.before.get(key, 0.0) for key, seconds in self.spent.items()}
        return sum(used.values()), sum(used[key] for key in self.own)


def _is_rays(process: int) -> bool:
    """Whether a process belongs to Ray itself; its workers do not."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False
    return b"/ray/" in words and b"default_worker" not in words


def on_ray(cluster: Any, source: Path, out: Path, stages: str) -> tuple[float, float]:
    """CPU seconds of a run on the cluster, and of Ray's own processes among them."""
    meter = Meter()
    ended(refine(source, out, stages, "--engine", "ray", "--address", cluster.address))
    return meter.read()


def overhead(cluster: Any, source: Path, folder: Path, stages: str) -> None:
    """Print CPU seconds of both, by turns, and whether the bytes are equal."""
    local, on_two = list[float](), list[float]()
    for turn in range(REPEATS):
        meter = Meter()
        ended(refine(source, folder / f"local{turn}", stages, "--workers", "2"))
        local.append(meter.read()[0])
        begun = time.monotonic()
        total, own = on_ray(cluster, source, folder / f"ray{turn}", stages)
        on_two.append(total)
        seconds = time.monotonic() - begun
        equal = contents(folder / f"local{turn}") == contents(folder / f"ray{turn}")
        same = "equal" if equal else "DIFFERENT"
        say(f"local {local[-1]:.1f}, Ray {total:.1f}, of which its own {own:.1f} in {seconds:.0f} s; bytes {same}")
    say(f"least: local {min(local):.1f}, Ray {min(on_two):.1f}: {min(on_two) / min(local) - 1:+.1%}")


def written(out: Path) -> int:
    """How many shards of all kinds a run has written."""
    return len([*out.rglob("[0-9]*.parquet")])


def kills(cluster: Any, source: Path, folder: Path, stages: str, times: int) -> None:
    """Kill a node, then the driver, in mid-run, so many times each, and compare the bytes."""
    words = ("--engine", "ray", "--address", cluster.address)
    ended(refine(source, folder / "whole", stages, *words))
    whole, draw, caught = contents(folder / "whole"), random.Random(0), 0
    for turn in range(times):
        for victim in ("node", "driver"):
            out, share = folder / f"{victim}{turn}", draw.uniform(*SPAN)
            node = add_node(cluster, folder / "cache")
            driver = refine(source, out, stages, *words)
            while driver.poll() is None and written(out) < share * written(folder / "whole"):
                time.sleep(0.02)
            os.kill(node.all_processes["raylet"][0].process.pid if victim == "node" else driver.pid, signal.SIGKILL)
            in_time = not (out / "manifest.json").exists()
            caught += in_time
            code = driver.wait()
            cluster.remove_node(node, allow_graceful=False)
            if code:
                ended(refine(source, out, stages, *words))
            equal = contents(out) == whole
            when = f"at {share:.0%} of the files" if in_time else "after the end"
            again = ", started again" if code else ""
            say(f"{victim} killed {when}{again}: bytes {'equal' if equal else 'DIFFERENT'}")
    say(f"{caught} of {2 * times} kills came before the end of a run")


def driver(cluster: Any) -> None:
    """Print CPU seconds and memory of a driver: for many keys, and for Ray tasks of one key each."""
    engine = ray.Ray(cluster.address)
    list(engine.map(len, map(str, range(500))))
    for count, seconds in ((KEYS, ray.TASK_SECONDS), (KEYS // 50, 0.0)):
        ray.TASK_SECONDS = seconds
        begun, held = time.process_time(), _held()
        ended = sum(1 for _ in engine.map(len, (str(i) for i in range(count))))
        used = time.process_time() - begun
        chunk, more = "up to 32" if seconds else "one", _held() - held
        say(f"{ended:,} keys, {chunk} a task: {used:.1f} CPU s, {1000 * used / ended:.3f} ms a key, +{more} MB")
    engine.close()


def _held() -> int:
    """The own memory of this process in MB."""
    return int(Path("/proc/self/status").read_text(encoding="ascii").split("RssAnon:")[1].split()[0]) // 1024


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Carry out the command line."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("count", type=int, help="conversations")
    asked.add_argument("--stages", default=STAGES)
    asked.add_argument("--kills", type=int, default=0, help="kill a node and the driver so many times each")
    asked.add_argument("--driver", action="store_true", help="measure the driver")
    given = asked.parse_args()
    source = Path() if given.driver else corpus(given.count)
    with tempfile.TemporaryDirectory() as temporary, two_nodes(Path(temporary), {}) as cluster:
        if given.driver:
            driver(cluster)
        elif given.kills:
            kills(cluster, source, Path(temporary), given.stages, given.kills)
        else:
            overhead(cluster, source, Path(temporary), given.stages)


if __name__ == "__main__":
    main()
