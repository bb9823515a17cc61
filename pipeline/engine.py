"""Where shards are worked on. The unit is a shard's name, never a batch of rows: names, order and bytes stay."""

from __future__ import annotations

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
TIDIED = "ignore::UserWarning:multiprocessing.resource_tracker"
"""Keeps the process that tidies up after stopped workers from saying that it did, in the form of PYTHONWARNINGS."""


class WorkerKilledError(Exception):
    """A worker process died without a word, as the system's out-of-memory killer makes it."""


class Engine(Protocol):
    """Something that applies a task to shards."""

    def map(self, task: Callable[[str], T], shards: Sequence[str]) -> Iterator[T]:
        """Results of `task` (picklable) for each shard, in the order of the shards."""

    def close(self) -> None:
        """Let the workers go."""


class Local:
    """This machine: the process itself for one worker, else a pool of fresh processes of one thread each."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def map(self, task: Callable[[str], T], shards: Sequence[str]) -> Iterator[T]:
        """Results in the order of the shards.

        Raises:
            WorkerKilledError: a worker was killed; what it had finished is kept.
        """
        if self.workers == 1 or len(shards) <= 1:
            yield from map(task, shards)
            return
        try:
            with _without_main():
                results = self._started().map(task, shards)
            yield from results
        except BrokenProcessPool as error:
            self._pool = None
            raise WorkerKilledError(
                "a worker process was killed by the system, most likely for want of memory: start the run again with "
                f"fewer --workers (now {self.workers}); it goes on where it stopped"
            ) from error

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            others = [one for one in os.environ.get("PYTHONWARNINGS", "").split(",") if one not in {"", TIDIED}]
            os.environ["PYTHONWARNINGS"] = ",".join([*others, TIDIED])
            # spawned, because forking a process with threads (polars, Arrow) may hang
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.workers, mp_context=context, initializer=_begin)
        return self._pool

    def close(self) -> None:
        """Stop the workers, without waiting for shards that nobody asks for any more."""
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
    """Give this worker one thread, since the workers are the parallelism, and let it end with the run's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the run's process answers it
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))  # read when a library starts its threads, which is later
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the run's process to die, so that no orphan writes into the folder of the next run."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
