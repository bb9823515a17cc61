"""Engines: results in order, whatever does the work, and no more processes than the work is worth."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from pipeline.engine import WORKER_START, Local


@pytest.fixture
def engine() -> Iterator[Local]:
    """Three workers at most."""
    made = Local(3)
    yield made
    made.close()


def process(shard: str) -> tuple[str, int]:
    """The shard, and the process that works on it; the first one takes longest."""
    time.sleep(0.2 if shard == "0" else 0)
    return shard, os.getpid()


def begin(folder: Path, shard: str) -> str:
    """Leave a file for a shard that is begun; only the first one ends before there is a file "go"."""
    (folder / shard).touch()
    while shard != "0" and not (folder / "go").exists():
        time.sleep(0.01)
    return shard


def test_workers_are_started_only_for_enough_work(engine: Local) -> None:
    """Below the time that two workers take to start, this process does it all; results are the same, in order."""
    shards = [str(i) for i in range(8)]
    alone = list(engine.map(process, shards, 2 * WORKER_START - 0.01))
    assert [engine.processes(8, seconds * WORKER_START) for seconds in (0, 1.9, 2, 3, 100)] == [1, 1, 2, 3, 3]
    assert [engine.processes(shards, 1e9) for shards in (0, 1, 2, 9)] == [1, 1, 2, 3]
    shared = list(engine.map(process, shards, 2 * WORKER_START))
    assert [shard for shard, _ in alone] == [shard for shard, _ in shared] == shards
    assert {one for _, one in alone} == {os.getpid()}
    assert os.getpid() not in {one for _, one in shared}
    assert 1 <= len({one for _, one in shared}) <= 2


def test_no_more_shards_are_handed_out_than_there_are_workers(engine: Local, tmp_path: Path) -> None:
    """A shard is begun when another is done and its result is asked for, so that nothing piles up."""
    results = engine.map(partial(begin, tmp_path), [str(i) for i in range(9)])
    assert next(results) == "0"
    while len(list(tmp_path.iterdir())) < engine.workers:
        time.sleep(0.01)
    time.sleep(0.3)
    assert len(list(tmp_path.iterdir())) == engine.workers
    (tmp_path / "go").touch()
    assert list(results) == [str(i) for i in range(1, 9)]
    assert len(list(tmp_path.iterdir())) == 10


def test_the_pool_is_kept_from_step_to_step(engine: Local) -> None:
    """A process that one step has started works on the next one."""
    shards = [str(i) for i in range(6)]
    first, second = ({one for _, one in engine.map(process, shards)} for _ in range(2))
    assert first & second
