"""Engines: the same laws for this process, for a pool of processes, and for a Ray cluster of two nodes."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.engine import RETRIES, Answers, Engine, EngineError, Needs, WorkerKilledError
from pipeline.engine.local import WORKER_START, Local
from stages.stage import CorruptInputError
from tests.pipeline.cluster import add_node

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


def gpus_here(_key: str) -> tuple[str, str]:
    """The node that works on a key, and the GPUs that Ray gives the task."""
    import ray

    context = ray.get_runtime_context()
    return context.get_node_id(), ",".join(context.get_accelerator_ids()["GPU"])


def test_a_gpu_is_asked_for_where_there_is_one(cluster: Any, ray_engine: Engine, tmp_path: Path) -> None:
    """A cluster without one does the work on its cores; one with a GPU on that node, and only what needs a GPU."""
    keys = [str(i) for i in range(6)]
    assert {gpus for _, (_, gpus) in ray_engine.map(gpus_here, keys, Needs(gpus=1))} == {""}
    node = add_node(cluster, tmp_path, gpus=1)
    try:
        assert {at for _, at in ray_engine.map(gpus_here, keys, Needs(gpus=1))} == {(node.node_id, "0")}
        assert {gpus for _, (_, gpus) in ray_engine.map(gpus_here, keys)} == {""}
    finally:
        cluster.remove_node(node)


@dataclass(eq=False)
class Begun:
    """A task of `Stand`, and the memory that it asks for in bytes."""

    work: Callable[[], Any]
    memory: int


@dataclass
class Stand:
    """Stands in for the module ray: two nodes of 3 GB, whose tasks run in this process when they are asked for."""

    exceptions: Any
    stuck: float = 0.0
    """Seconds until a task is begun."""
    free: float = 2.0
    """Cores that are free meanwhile."""
    kills: int = 0
    """How many times the worker of the key 3 is killed because memory runs out."""
    tasks: list[Begun] = field(default_factory=list)
    begins: float = 0.0
    """Second in which its nodes join."""
    now: float = 0.0
    """Seconds on its clock."""

    def __post_init__(self) -> None:
        """What needs no state."""
        self.init = self.shutdown = self.cancel = lambda *_, **__: None
        self.put = lambda value: value
        self.remote = lambda **_: lambda work: SimpleNamespace(options=lambda memory: self.options(work, memory))
        node = {"Alive": True, "Resources": {"CPU": 1.0, "memory": 3e9}}
        self.nodes = lambda: [node, node] if self.now >= self.begins else [{"Alive": True, "Resources": {}}]
        self.cluster_resources = lambda: {"CPU": 2.0, "memory": 6e9}
        self.available_resources = lambda: {"CPU": self.free, "memory": 6e9}

    def options(self, work: Callable[..., Any], memory: int) -> Any:
        """A task that can be begun."""

        def begin(task: object, expected: bytes, keys: list[str]) -> Begun:
            self.tasks.append(Begun(partial(work, task, expected, keys), memory))
            return self.tasks[-1]

        return SimpleNamespace(remote=begin)

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    def wait(self, begun: list[Begun], timeout: float, **_: object) -> tuple[list[Begun], list[Begun]]:
        """A task that has ended, or none after the time."""
        if self.now < self.stuck:
            self.now += timeout
            return [], begun
        return begun[:1], begun[1:]

    def get(self, begun: Begun) -> Any:
        """The result of a task."""
        outcome = begun.work()
        if self.kills and [key for key, _ in outcome.results] == ["3"]:
            self.kills -= 1
            raise self.exceptions.OutOfMemoryError("the node runs low on memory")
        return outcome


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Stand:
    """A stand-in, with its clock."""
    exceptions = pytest.importorskip("ray.exceptions", reason="the package ray is not installed")
    made = Stand(exceptions)
    monkeypatch.setitem(sys.modules, "ray", made)
    monkeypatch.setattr("pipeline.engine.ray.time.monotonic", lambda: made.now)
    monkeypatch.setattr("pipeline.engine.ray.time.sleep", made.sleep)
    return made


def on_stand(keys: Sequence[str], warn: Callable[[str], None] = lambda _: None, memory: int = 1_000_000_000) -> Any:
    """Lengths of keys, by the engine."""
    from pipeline.engine.ray import Ray

    return sorted(Ray(None, warn=warn).map(length, keys, Needs(memory=memory)))


def test_a_key_that_ran_out_of_memory_is_given_twice_as_much(stand: Stand) -> None:
    """Each time again, up to what the largest node has; in the end it is named."""
    keys = [str(i) for i in range(5)]
    stand.kills = RETRIES
    assert on_stand(keys) == [(key, 1) for key in keys]
    usual = [1_000_000_000] * 5
    assert [task.memory for task in stand.tasks] == [*usual, 2_000_000_000, 3_000_000_000, 3_000_000_000]
    stand.kills = RETRIES + 1
    with pytest.raises(WorkerKilledError, match=r"the worker of 3 was lost 4 times, the last time by OutOfMemoryError"):
        on_stand(keys)


def test_nothing_waits_in_silence(stand: Stand) -> None:
    """Each minute without a result is reported; if nothing runs either, an error says what is asked and free."""
    warnings = list[str]()
    stand.stuck, stand.free = 3_600.0, 0.0
    assert on_stand(["a", "b"], warnings.append) == [("a", 1), ("b", 1)]
    asked = "2 tasks of 1 cores and 1.0 GB each; free in the cluster: 0 cores, 6.0 GB"
    assert warnings == [f"no result for {minute} min: {asked}" for minute in range(1, 61)]
    stand.now, stand.free = 0.0, 2.0
    why = r"nothing has ended for 16 min and nothing runs \(2 tasks of 1 cores and 1\.0 GB each; free in the cluster: 2"
    with pytest.raises(EngineError, match=why):
        on_stand(["a", "b"])


def test_a_cluster_that_has_just_been_started_may_have_its_head_only(stand: Stand) -> None:
    """The first node with a core is waited for; if none comes, an error says so."""
    warnings = list[str]()
    stand.begins = 600.0
    assert on_stand(["a"], warnings.append) == [("a", 1)]
    assert warnings == ["no node of the Ray cluster has a core yet: waiting 15 min for one"]
    stand.now, stand.begins = 0.0, 1_000.0
    with pytest.raises(EngineError, match=r"no node of the Ray cluster has 1 cores and 1\.0 GB"):
        on_stand(["a"])


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
