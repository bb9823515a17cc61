"""Engines: the same laws for this process, for a pool of processes, and for a Ray cluster of two nodes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.engine import RETRIES, Answers, Engine, EngineError, Needs, WorkerKilledError
from pipeline.engine.local import WORKER_START, Local
from stages.stage import CorruptInputError

ENGINES = ("this process", "two processes", "ray")
WORKERS = ("two processes", "ray")
"""Engines whose tasks run in other processes."""


@pytest.fixture(scope="module")
def ray_engine(cluster: Any) -> Iterator[Engine]:
    """The engine of that cluster."""
    from pipeline.engine.ray import Ray

    made = Ray(cluster.address)
    yield made
    made.close()


@pytest.fixture(scope="module")
def two_processes() -> Iterator[Engine]:
    """A pool of two processes."""
    made = Local(2)
    yield made
    made.close()


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Engine:
    """The engine of this name."""
    if request.param == "this process":
        return Local(1)
    fixture: Engine = request.getfixturevalue({"two processes": "two_processes", "ray": "ray_engine"}[request.param])
    return fixture


def length(key: str) -> int:
    """A small result."""
    return len(key)


def begin(folder: Path, key: str) -> str:
    """Leave a file for each attempt."""
    (folder / f"{key}.{time.time_ns()}").touch()
    return key


def attempts(folder: Path, key: str) -> int:
    """How often a key was begun."""
    return len(list(folder.glob(f"{key}.*")))


def refuse(folder: Path, key: str) -> str:
    """Raise an error of ours on one key."""
    if begin(folder, key) == "3":
        raise CorruptInputError(folder / key, "it is bent")
    return key


def die(folder: Path, times: int, key: str) -> str:
    """Kill the worker so many times on one key."""
    begin(folder, key)
    if key == "3" and attempts(folder, key) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return key


def wait_for(folder: Path, key: str) -> str:
    """Take a while, but for the first key."""
    begin(folder, key)
    time.sleep(0 if key == "0" else 0.3)
    return key


def linger(folder: Path, key: str) -> str:
    """Do not end at the first attempt on the last key."""
    begin(folder, key)
    if key == "5" and attempts(folder, key) == 1:
        time.sleep(1_000)
    return key


@pytest.mark.parametrize("engine", ENGINES, indirect=True)
@pytest.mark.parametrize("count", [0, 1, 300])
def test_each_key_has_its_result_once(engine: Engine, count: int) -> None:
    """In any order, whether the keys are a list or an iterator."""
    keys = [str(i) for i in range(count)]
    for given in (keys, iter(keys)):
        results = list(engine.map(length, given))
        assert sorted(results) == sorted((key, len(key)) for key in keys)


@pytest.mark.parametrize("engine", ENGINES, indirect=True)
def test_keys_are_drawn_as_workers_become_free(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most two keys per worker are drawn ahead of the results, so that memory does not grow with their number."""
    monkeypatch.setattr("pipeline.engine.ray.TASK_SECONDS", 0.0)
    drawn, ended = 0, 0

    def keys() -> Iterator[str]:
        nonlocal drawn
        for i in range(40):
            drawn += 1
            yield str(i)

    for _ in engine.map(length, keys()):
        ended += 1
        assert drawn - ended <= 2 * engine.processes(100)
    assert ended == 40


@pytest.mark.parametrize("engine", ENGINES, indirect=True)
def test_an_error_of_the_task_comes_out_as_itself(engine: Engine, tmp_path: Path) -> None:
    """With its type and fields, after one attempt; the engine still works."""
    with pytest.raises(CorruptInputError) as caught:
        list(engine.map(partial(refuse, tmp_path), [str(i) for i in range(6)]))
    assert (caught.value.path, caught.value.why) == (tmp_path / "3", "it is bent")
    assert attempts(tmp_path, "3") == 1
    assert list(engine.map(length, ["abc"])) == [("abc", 3)]


@pytest.mark.parametrize("engine", WORKERS, indirect=True)
def test_a_lost_worker_costs_its_keys_only(engine: Engine, tmp_path: Path) -> None:
    """Up to `RETRIES` times the key is tried again, and nothing is done twice that was reported."""
    keys = [str(i) for i in range(8)]
    assert sorted(engine.map(partial(die, tmp_path, RETRIES), keys)) == [(key, key) for key in keys]
    assert attempts(tmp_path, "3") == RETRIES + 1


@pytest.mark.parametrize("engine", WORKERS, indirect=True)
def test_a_key_that_kills_its_worker_each_time_is_named(engine: Engine, tmp_path: Path) -> None:
    """After `RETRIES` further attempts."""
    with pytest.raises(WorkerKilledError, match=r"the worker (process )?of 3 was (killed by the system|lost) 4 times"):
        list(engine.map(partial(die, tmp_path, 99), [str(i) for i in range(8)]))
    assert attempts(tmp_path, "3") == RETRIES + 1
    assert list(engine.map(length, ["abc"])) == [("abc", 3)]


@pytest.mark.parametrize("engine", ENGINES, indirect=True)
def test_closing_the_results_stops_the_work(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs may end; nothing else is begun."""
    monkeypatch.setattr("pipeline.engine.ray.TASK_SECONDS", 0.0)
    results = engine.map(partial(wait_for, tmp_path), [str(i) for i in range(30)])
    next(results)
    results.close()  # type: ignore[attr-defined]
    time.sleep(1)
    begun = len(list(tmp_path.iterdir()))
    assert begun <= 1 + 2 * engine.processes(100)
    time.sleep(1)
    assert len(list(tmp_path.iterdir())) == begun


class Here:
    """A process says where it is."""

    def __call__(self) -> Answers:
        return {"polars": os.environ.get("REFINE_TEST_POLARS", "1")}


def test_a_node_with_another_version_is_refused(ray_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any work, in a sentence with the difference; equal nodes agree."""
    ray_engine.agree(Here())
    assert list(ray_engine.map(length, ["abc"])) == [("abc", 3)]
    monkeypatch.setenv("REFINE_TEST_POLARS", "2")
    with pytest.raises(EngineError, match=r"node \S+ would not give the same bytes: polars 1 \(here 2\); install"):
        ray_engine.agree(Here())
    with pytest.raises(EngineError, match=r"polars 1 \(here 2\)"):  # a node that joined later
        list(ray_engine.map(length, ["abc"]))
    monkeypatch.undo()
    ray_engine.agree(Here())


def test_a_slow_key_is_started_again(ray_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first attempt would outlast the test; the second one counts."""
    monkeypatch.setattr("pipeline.engine.ray.REFRESH", 1.0)
    monkeypatch.setattr("pipeline.engine.ray.TASK_SECONDS", 0.0)
    keys = [str(i) for i in range(6)]
    assert sorted(ray_engine.map(partial(linger, tmp_path), keys)) == [(key, key) for key in keys]
    assert attempts(tmp_path, "5") == 2


def test_needs_that_no_node_can_meet_are_refused(ray_engine: Engine) -> None:
    """At once, with what is asked and what is free."""
    with pytest.raises(EngineError, match=r"no node of the Ray cluster has 64 cores and 1\.1 GB of memory"):
        list(ray_engine.map(length, ["a"], Needs(cores=64)))


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.1:9", r"no Ray cluster answers at 127\.0\.0\.1:9 \(Connection refused\): start one with `ray start"),
        ("ray://head:10001", r"--address is ray://head:10001, expected auto or HOST:PORT"),
        ("head", r"--address is head, expected auto or HOST:PORT"),
    ],
)
def test_an_address_without_a_cluster_is_one_sentence(address: str, why: str) -> None:
    """Within seconds, and in this process, which Ray's own attempt would end."""
    from pipeline.engine.ray import connect

    pytest.importorskip("ray")
    with pytest.raises(EngineError, match=why):
        connect(address, 1)


def process(key: str) -> tuple[str, int]:
    """A key, and the process that works on it."""
    time.sleep(0.05)
    return key, os.getpid()


def test_workers_are_started_only_for_enough_work(two_processes: Local) -> None:
    """Below the time that two workers take to start, this process does it all."""
    keys = [str(i) for i in range(8)]
    seconds = [two_processes.processes(8, share * WORKER_START) for share in (0, 1.9, 2, 3, 100)]
    assert seconds == [1, 1, 2, 2, 2]
    assert [two_processes.processes(count, 1e9) for count in (0, 1, 2, 9)] == [1, 1, 2, 2]
    alone = {at for _, (_, at) in two_processes.map(process, keys, Needs(seconds=2 * WORKER_START - 0.01))}
    shared, again = ({at for _, (_, at) in two_processes.map(process, keys)} for _ in range(2))
    assert alone == {os.getpid()}
    assert os.getpid() not in shared
    assert shared & again  # the pool is kept from step to step
