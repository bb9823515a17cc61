"""Engines: where shards are worked on. The unit of work is a shard, so names, order and bytes do not depend on them."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol, TypeVar

T = TypeVar("T")

ONE_THREAD = ("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS")
"""Environment variables that limit the threads of a worker."""
TIDIED = "ignore::UserWarning:multiprocessing.resource_tracker"
"""Value of PYTHONWARNINGS that silences the process which cleans up after stopped workers."""


class WorkerKilledError(Exception):
    """A worker process was killed, most likely by the system's out-of-memory killer."""


class Engine(Protocol):
    """Applies a task to shards."""

    def map(self, task: Callable[[str], T], shards: Sequence[str]) -> Iterator[T]:
        """Yield the result of `task`, which is picklable, for each shard, in order."""

    def close(self) -> None:
        """Stop the workers."""


class Local:
    """This machine: the current process if there is one worker, else a pool of processes with one thread each."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def map(self, task: Callable[[str], T], shards: Sequence[str]) -> Iterator[T]:
        """Yield results in the order of the shards; raises `WorkerKilledError` if a worker was killed."""
        if self.workers == 1 or len(shards) <= 1:
            yield from map(task, shards)
            return
        try:
            with _without_main():
                results = self._executor().map(task, shards)
            yield from results
        except BrokenProcessPool as error:
            self._pool = None
            raise WorkerKilledError(
                "a worker process was killed by the system, most likely because memory ran out: start the run again "
                f"with fewer --workers (now {self.workers}); finished shards are kept"
            ) from error

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
