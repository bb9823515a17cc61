"""Engines: where shards are worked on. The unit of work is a shard, so names, order and bytes do not depend on them."""

import contextlib
import math
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Protocol, TypeVar

T = TypeVar("T")

ONE_THREAD = ("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS")
"""Environment variables that limit the threads of a worker."""
WORKER_START = 1.5
"""Seconds that a worker takes to start; it is started only if there is as much work for it."""
TIDIED = "ignore::UserWarning:multiprocessing.resource_tracker"
"""Value of PYTHONWARNINGS that silences the process which cleans up after stopped workers."""


class WorkerKilledError(Exception):
    """A worker process was killed, most likely by the system's out-of-memory killer."""


class Engine(Protocol):
    """Applies a task to shards."""

    def processes(self, shards: int, seconds: float = math.inf) -> int:
        """How many processes would work on some shards, for which one process needs so many seconds."""

    def map(self, task: Callable[[str], T], shards: Sequence[str], seconds: float = math.inf) -> Iterator[T]:
        """Yield the result of `task`, which is picklable, for each shard, in order.

        `seconds` is about the time that one process needs for all of them; by default it is worth every worker.
        """

    def close(self) -> None:
        """Stop the workers."""


class Local:
    """This machine: the current process if one is enough, else a pool of processes with one thread each.

    The pool is started when it is first needed, and kept until `close`.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def processes(self, shards: int, seconds: float = math.inf) -> int:
        """1, the current process, unless there are two shards and enough work for two workers."""
        return max(1, min(self.workers, shards, int(min(seconds / WORKER_START, shards))))

    def map(self, task: Callable[[str], T], shards: Sequence[str], seconds: float = math.inf) -> Iterator[T]:
        """Yield results in the order of the shards; raises `WorkerKilledError` if a worker was killed."""
        processes = self.processes(len(shards), seconds)
        if processes == 1:
            yield from map(task, shards)
            return
        try:
            yield from self._map(task, shards, processes)
        except BrokenProcessPool as error:
            self._pool = None
            raise WorkerKilledError(
                "a worker process was killed by the system, most likely because memory ran out: start the run again "
                f"with fewer --workers (now {self.workers}); finished shards are kept"
            ) from error

    def _map(self, task: Callable[[str], T], shards: Sequence[str], processes: int) -> Iterator[T]:
        """Results in order, of at most so many shards at a time: the pool starts a process only if none is idle."""
        pool, left = self._executor(), iter(shards)
        results, running = deque[Future[T]](), set[Future[T]]()
        while True:
            with _without_main():
                started = [pool.submit(task, shard) for shard in islice(left, processes - len(running))]
            results.extend(started)
            if not results:
                return
            running = wait(running.union(started), return_when=FIRST_COMPLETED).not_done
            while results and results[0].done():
                yield results.popleft().result()

    def _executor(self) -> ProcessPoolExecutor:
        if self._pool is None:
            others = [one for one in os.environ.get("PYTHONWARNINGS", "").split(",") if one not in {"", TIDIED}]
            os.environ["PYTHONWARNINGS"] = ",".join([*others, TIDIED])
            # spawned, because a forked process with threads (polars, Arrow) may hang
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.workers, mp_context=context, initializer=_begin)
        return self._pool

    def close(self) -> None:
        """Stop the workers; shards that are still queued are not worked on."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Start workers that do not import the main module: no task is defined there, and a script would start again."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _begin() -> None:
    """Limit this worker to one thread, and end it with the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the main process handles it
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))  # libraries read it when they start their threads, later
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the main process to die, so that no orphan writes into the folder of the next run."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
