"""A run on a Ray cluster: the bytes of a run on this machine, whatever dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipeline import plan as planning
from pipeline import sources
from pipeline.engine import Engine
from pipeline.engine.local import Local
from pipeline.ingest import Limits
from pipeline.run import ActiveRun
from pipeline.store import Store
from tests.conftest import ROOT, chat, contents
from tests.pipeline.cluster import STORE

TOY = ROOT / "tests" / "pipeline" / "toy.toml"
SHARDS = 12


def carry_out(corpus: Path, out: Path, engine: Engine, tell: Any = lambda *_: None) -> dict[str, bytes]:
    """The files of a run of the toy plan."""
    active = ActiveRun(Store(out), planning.load(TOY), engine, tell, lambda _: None)
    active.carry_out(sources.find(str(corpus)), Limits(rows=10))
    return contents(out)


class Made(NamedTuple):
    """A corpus, and the files that one process of this machine makes of it."""

    corpus: Path
    files: dict[str, bytes]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Twelve shards of ten conversations, with copies."""
    folder = tmp_path_factory.mktemp("local")
    path = folder / "corpus.jsonl"
    lines = [json.dumps(chat(i // 2 if i % 5 == 0 else i, 2 + i % 4)) for i in range(10 * SHARDS)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return Made(path, carry_out(path, folder / "r", Local(1)))


@pytest.fixture
def engine(cluster: Any) -> Iterator[Engine]:
    """The engine of the cluster."""
    from pipeline.engine.ray import Ray

    made = Ray(cluster.address)
    yield made
    made.close()


@pytest.mark.parametrize("step", ["Words", "write"])
def test_a_node_that_dies_changes_no_byte(cluster: Any, engine: Engine, made: Made, tmp_path: Path, step: str) -> None:
    """Its raylet is killed while a stage measures, and while shards are written; the other nodes do its work."""
    node = cluster.add_node(num_cpus=1, object_store_memory=STORE)
    raylet = node.all_processes["raylet"][0].process
    killed = list[int]()

    def tell(name: str, done: int, *_: object) -> None:
        if name.endswith(step) and done and not killed:
            killed.append(raylet.pid)
            os.kill(raylet.pid, signal.SIGKILL)

    try:
        assert carry_out(made.corpus, tmp_path / "r", engine, tell) == made.files
    finally:
        cluster.remove_node(node, allow_graceful=False)
    assert killed


def test_a_driver_that_is_killed_is_started_again(cluster: Any, made: Made, tmp_path: Path) -> None:
    """The same command resumes: what was there is not made again, and the files are those of an undisturbed run."""
    words = ["run", made.corpus, "--plan", TOY, "--out", "r", "--shard-rows", 10, "--engine", "ray"]
    command = [sys.executable, "-m", "pipeline.cli", *map(str, words), "--address", cluster.address]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    driver = subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while driver.poll() is None and len(list(tmp_path.glob("r/signals/*Words*/*.parquet"))) < SHARDS // 3:
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    time.sleep(1)  # Ray ends the driver's workers
    before = {path: path.stat().st_ino for path in tmp_path.glob("r/signals/**/*.parquet")}
    assert not (tmp_path / "r" / "manifest.json").exists()
    subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True)
    assert contents(tmp_path / "r") == made.files
    assert {path: path.stat().st_ino for path in before} == before
