"""The engine of a Ray cluster, whose nodes have refine installed and see the run's files.

Only names of keys, the task and small results pass through Ray, so that any node may die. The scheduling is that of
self-scheduled chunks with backup tasks (Dean and Ghemawat 2004, section 3.6).
"""

import contextlib
import math
import os
import pickle
import socket
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any

from pipeline.engine import ANY, ONE_THREAD, RETRIES, Answers, EngineError, Needs, T, WorkerKilledError, differences

TASK_SECONDS = 10.0
"""Target duration of a Ray task, which works on as many keys as last so long, because each costs the driver 1 ms."""
MAX_KEYS = 32
"""Maximum number of keys of a Ray task; if its worker is lost, their results are lost too."""
WINDOW = 2
"""Ray tasks at a time per process of the cluster."""
REFRESH = 10.0
"""Seconds after which the nodes of the cluster are counted again."""
SLOW = 10.0
"""A task that is older than so many median tasks, and than `REFRESH`, is started a second time."""
NOTICE, STALL = 60.0, 900.0
"""Seconds without a result, or a node, after which that is reported, and after which an idle cluster is an error."""
STORE_BYTES = 80 << 20
"""Size of the object store of a Ray of this machine in bytes, near Ray's minimum: nothing large is in it."""


def connect(address: str | None, cores: int) -> None:
    """Join the Ray cluster at an address, or start a Ray of this machine with so many cores."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise EngineError("--engine ray needs the package ray: start `pip install 'refine[ray]'`") from error
    if address is not None and address != "auto":
        _reach(address)
    env = {"env_vars": dict.fromkeys(ONE_THREAD, "1")}
    own = {} if address else {"num_cpus": cores, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    try:
        ray.init(address or "local", runtime_env=env, log_to_driver=False, logging_level="ERROR", **own)
    except (OSError, RuntimeError, ValueError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EngineError(
            f"Ray cannot be joined at {address or 'this machine'} ({why}): name the address of a running cluster, or "
            "omit --address to start a Ray of this machine"
        ) from error


def _reach(address: str) -> None:
    """Refuse an address where nothing listens; Ray would try for a minute and then end the process."""
    host, _, port = address.rpartition(":")
    if address.startswith("ray://") or not host or not port.isdigit():
        raise EngineError(
            f"--address is {address}, expected auto or HOST:PORT of the cluster's head; start refine on a node of the "
            "cluster, for example by `ray job submit`"
        )
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise EngineError(
            f"no Ray cluster answers at {address} ({error.strerror or error}): start one with `ray start --head`, or "
            "omit --address to start a Ray of this machine"
        ) from error


@dataclass(frozen=True)
class _Outcome:
    """What a Ray task returns: the results of its keys up to the first error."""

    results: list[tuple[str, Any]]
    error: Exception | None
    seconds: float


def _work(task: Callable[[str], Any], expected: bytes, keys: list[str]) -> _Outcome:
    """Apply a task to keys, in a worker that has been checked."""
    _check(expected)
    start, results = time.perf_counter(), list[tuple[str, Any]]()
    for key in keys:
        try:
            results.append((key, task(key)))
        except Exception as error:  # noqa: BLE001  the driver raises it
            return _Outcome(results, error, time.perf_counter() - start)
    return _Outcome(results, None, time.perf_counter() - start)


@lru_cache(maxsize=1)  # once per process: a node may have joined the cluster after the others were asked
def _check(expected: bytes) -> None:
    question, answers = pickle.loads(expected)  # noqa: S301  from the driver
    if question is not None and (wrong := differences(answers, question())):
        raise EngineError(_differs(socket.gethostname(), wrong))


def _ask(question: Callable[[], Answers]) -> tuple[str, Answers]:
    return socket.gethostname(), question()


def _differs(host: str, wrong: str) -> str:
    return (
        f"node {host} would not give the same bytes: {wrong}; install the same packages and models on every node, and "
        "choose an --out that all of them see"
    )


@dataclass(eq=False)
class _Chunk:
    """Some keys that a Ray task works on, twice at the same time if it is slow."""

    keys: list[str]
    memory: int
    losses: int = 0
    begun: float = 0.0
    copies: int = 0


class Ray:
    """A Ray cluster, or a Ray of this machine. `warn` is called with a sentence that must be read."""

    here = False

    def __init__(self, address: str | None, cores: int = 1, warn: Callable[[str], None] = lambda _: None) -> None:
        connect(address, cores)
        self.warn = warn
        self._expected = pickle.dumps((None, {}))
        self._wait()

    def _wait(self) -> None:
        """Wait for the first node with a core: a cluster that has just been started may have its head only."""
        begun = time.monotonic()
        if not alive():
            self.warn(f"no node of the Ray cluster has a core yet: waiting {STALL / 60:.0f} min for one")
        while not alive() and time.monotonic() - begun < STALL:
            time.sleep(REFRESH / 2)

    def processes(self, keys: int, seconds: float = math.inf) -> int:
        """Every core of the cluster, as far as there are keys."""
        del seconds
        return max(1, min(keys, slots(ANY)))

    def agree(self, question: Callable[[], Answers]) -> None:
        """Ask every node, and later each worker before its first key."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        own = question()
        self._expected = pickle.dumps((question, own))
        ask = ray.remote(max_retries=0, num_cpus=0)(_ask)
        for node in alive():
            where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            try:
                host, answers = ray.get(ask.options(scheduling_strategy=where).remote(question), timeout=300)
            except ray.exceptions.RayTaskError as error:
                raise EngineError(_differs(node["NodeManagerHostname"], _reason(error.cause or error))) from error
            except ray.exceptions.GetTimeoutError as error:
                name = node["NodeManagerHostname"]
                raise EngineError(f"node {name} of the Ray cluster has not answered for 300 s: remove it") from error
            except ray.exceptions.RayError:  # the node has died, and needs not agree
                continue
            if wrong := differences(own, answers):
                raise EngineError(_differs(host, wrong))

    def map(self, task: Callable[[str], T], keys: Iterable[str], needs: Needs = ANY) -> Iterator[tuple[str, T]]:
        """Yield each key with its result; raises `EngineError` if no node is large enough, or the cluster stalls."""
        step = _Step(self, task, keys, needs)
        try:
            yield from step.results()
        finally:
            step.stop()

    def close(self) -> None:
        """Leave the cluster; Ray then ends this driver's workers."""
        import ray

        ray.shutdown()


def alive() -> list[dict[str, Any]]:
    """The nodes of the cluster that work."""
    import ray

    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


def asked(needs: Needs) -> dict[str, int]:
    """What a task with these needs asks of a node, by Ray's names; GPUs only if a node has some."""
    gpus = {"GPU": needs.gpus} if needs.gpus and any(node["Resources"].get("GPU") for node in alive()) else {}
    return {"CPU": needs.cores, "memory": needs.memory, **gpus}


def slots(needs: Needs) -> int:
    """How many tasks with these needs the cluster can work on at a time; 0 if no node is large enough."""
    amounts = asked(needs).items()
    return sum(int(min(node["Resources"].get(name, 0) // amount for name, amount in amounts)) for node in alive())


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"


@dataclass
class _Step:
    """One `map` under way."""

    engine: Ray
    task: Callable[[str], Any]
    keys: Iterable[str]
    needs: Needs
    again: list[_Chunk] = field(default_factory=list)
    running: dict[Any, _Chunk] = field(default_factory=dict)
    """Chunks by the reference of their Ray task."""
    spent: deque[float] = field(default_factory=lambda: deque(maxlen=101))
    """Seconds per key of the last chunks."""

    def __post_init__(self) -> None:
        """Count the cluster, and refuse needs that no node can meet."""
        import ray

        self.left, self.count = iter(self.keys), len(self.keys) if isinstance(self.keys, Sized) else math.inf
        self.parallel, self.counted = slots(self.needs), time.monotonic()
        if not self.parallel:
            raise EngineError(
                f"no node of the Ray cluster has {self.needs.cores} cores and {self.needs.memory / 1e9:.1f} GB of "
                f"memory, which a task needs; it has {_free()}: add a larger node"
            )
        self.last = self.noticed = time.monotonic()
        options = {"num_cpus": self.needs.cores, "num_gpus": asked(self.needs).get("GPU", 0), "max_retries": 0}
        self.remote = ray.remote(scheduling_strategy="SPREAD", **options)(_work)
        self.shared = ray.put(self.task), ray.put(self.engine._expected)  # noqa: SLF001  of the same module

    def results(self) -> Iterator[tuple[str, Any]]:
        """Each key with its result."""
        import ray

        while True:
            self._fill()
            if not self.running:
                return
            done, _ = ray.wait(list(self.running), timeout=REFRESH / 2, fetch_local=False)
            if time.monotonic() - self.counted > REFRESH:
                self.parallel, self.counted = max(slots(self.needs), 1), time.monotonic()
                self._copy_slow()
            if not done:
                self._notice()
            for reference in done:
                yield from self._collect(reference)

    def _fill(self) -> None:
        """Start chunks until the window is full: those that were lost first, each of their keys by itself."""
        while len(self.running) < WINDOW * self.parallel:
            if self.again:
                self._start(self.again.pop())
                continue
            few = self.count // (WINDOW * self.parallel) if self.count < math.inf else MAX_KEYS
            size = max(min(int(TASK_SECONDS / max(self._usual(), 1e-3)), int(few), MAX_KEYS), 1)
            if not (keys := list(islice(self.left, size))):
                return
            self.count -= len(keys)
            self._start(_Chunk(keys, self.needs.memory))

    def _usual(self) -> float:
        """Median seconds per key; at first those of a whole task, so that a chunk has one key."""
        return statistics.median(self.spent) if self.spent else TASK_SECONDS

    def _start(self, chunk: _Chunk) -> None:
        chunk.begun, chunk.copies = time.monotonic(), chunk.copies + 1
        reference = self.remote.options(memory=chunk.memory).remote(*self.shared, chunk.keys)
        self.running[reference] = chunk

    def _collect(self, reference: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401  Ray has no types
        """The results of a Ray task that has ended; none if its worker was lost."""
        import ray

        chunk = self.running.pop(reference, None)
        if chunk is None:  # its copy was faster
            return
        chunk.copies -= 1
        try:
            outcome = ray.get(reference)
        except ray.exceptions.RayTaskError as error:  # raised before or after the task itself
            raise EngineError(f"a node cannot run a task of refine ({_reason(error.cause or error)})") from error
        except ray.exceptions.RuntimeEnvSetupError as error:
            raise EngineError(f"a node cannot start a worker ({_reason(error)}): repair or remove it") from error
        except ray.exceptions.RayError as error:
            self._lose(chunk, error)
            return
        self.last = self.noticed = time.monotonic()
        self.spent.append(outcome.seconds / max(len(outcome.results), 1))
        for copy in [copy for copy, of in self.running.items() if of is chunk]:
            del self.running[copy]
            ray.cancel(copy)
        yield from outcome.results
        if outcome.error is not None:
            raise outcome.error

    def _lose(self, chunk: _Chunk, error: Exception) -> None:
        """Put the keys of a chunk back, unless a copy of it still runs; an out-of-memory kill doubles what it asks."""
        import ray

        if chunk.copies:
            return
        chunk.losses += 1
        if chunk.losses > RETRIES:
            raise WorkerKilledError(
                f"the worker of {chunk.keys[0]} was lost {chunk.losses} times, the last time by "
                f"{type(error).__name__}: look at this shard, or give the nodes more memory; what is finished is kept"
            ) from error
        memory = chunk.memory
        if isinstance(error, ray.exceptions.OutOfMemoryError):
            largest = max((int(node["Resources"].get("memory", 0)) for node in alive()), default=memory)
            memory = min(2 * memory, max(largest, memory))
        self.again += [_Chunk([key], memory, chunk.losses) for key in chunk.keys]

    def _copy_slow(self) -> None:
        """Start a second copy of chunks that take much longer than others, once nothing else is left to start."""
        usual, now = self._usual(), time.monotonic()
        for chunk in list(self.running.values()):
            slow = now - chunk.begun > max(SLOW * usual * len(chunk.keys), REFRESH)
            if slow and chunk.copies == 1 and not self.again and len(self.running) < self.parallel:
                self._start(chunk)

    def _notice(self) -> None:
        """Report that nothing has ended for long; an error if nothing runs either."""
        import ray

        waited, now = time.monotonic() - self.last, time.monotonic()
        if now - self.noticed < NOTICE:
            return
        self.noticed = now
        asked = f"{self.needs.cores} cores and {self.needs.memory / 1e9:.1f} GB each"
        state = f"{len(self.running)} tasks of {asked}; free in the cluster: {_free()}"
        idle = ray.available_resources().get("CPU", 0) >= ray.cluster_resources().get("CPU", 0)
        if waited > STALL and idle:
            raise EngineError(
                f"nothing has ended for {waited / 60:.0f} min and nothing runs ({state}): look at `ray status`, repair "
                "the cluster, and start the same command again"
            )
        self.engine.warn(f"no result for {waited / 60:.0f} min: {state}")

    def stop(self) -> None:
        """Cancel what still runs."""
        import ray

        for reference in self.running:
            with contextlib.suppress(Exception):  # the cluster may be gone
                ray.cancel(reference)


def _free() -> str:
    """What is free in the cluster."""
    import ray

    free = ray.available_resources()
    gpus = f", {free.get('GPU', 0):g} GPUs" if ray.cluster_resources().get("GPU") else ""
    return f"{free.get('CPU', 0):g} cores, {free.get('memory', 0) / 1e9:.1f} GB{gpus}"
