"""The engine of this machine: the current process, or a pool of processes."""

import contextlib
import math
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice

from pipeline.engine import ANY, ONE_THREAD, RETRIES, Answers, Needs, T, WorkerKilledError

WORKER_START = 1.5
"""Seconds that a worker takes to start; it is started only if there is as much work for it."""
TIDIED = "ignore::UserWarning:multiprocessing.resource_tracker"
"""Value of PYTHONWARNINGS that silences the process which cleans up after stopped workers."""


class Local:
    """This machine: the current process if one is enough, else a pool of processes with one thread each.

    The pool is started when it is first needed, and kept until `close`.
    """

    here = True

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def processes(self, keys: int, seconds: float = math.inf) -> int:
        """1, the current process, unless there are two keys and enough work for two workers."""
        return max(1, min(self.workers, keys, int(min(seconds / WORKER_START, keys))))

    def map(self, task: Callable[[str], T], keys: Iterable[str], needs: Needs = ANY) -> Iterator[tuple[str, T]]:
        """Yield each key with its result, in the order in which they are done; at most one key a worker is begun."""
        left = iter(keys)
        head = list(islice(left, self.workers))
        processes = self.processes(len(head), needs.seconds)
        left = chain(head, left)
        if processes == 1:
            yield from ((key, task(key)) for key in left)
        else:
            yield from self._map(task, left, processes)

    def _map(self, task: Callable[[str], T], left: Iterator[str], processes: int) -> Iterator[tuple[str, T]]:
        """Results of so many processes. The keys that ran when a worker was killed are tried again one at a time."""
        running, lost, losses = dict[Future[T], str](), list[str](), Counter[str]()
        try:
            while True:
                if not lost:
                    lost += self._submit(task, islice(left, processes - len(running)), running)
                if lost and not running:
                    lost += self._submit(task, [lost.pop()], running)
                if not running and not lost:
                    return
                done = wait(running, return_when=FIRST_COMPLETED).done
                for future in [future for future in running if future in done]:  # the first key's error is raised
                    key = running.pop(future)
                    try:
                        yield key, future.result()
                    except BrokenProcessPool as error:
                        losses[key] += 1
                        self._check_losses(key, losses[key], error)
                        lost.append(key)
                        self._abandon()
        finally:
            for future in running:
                future.cancel()

    def _submit(self, task: Callable[[str], T], keys: Iterable[str], running: dict[Future[T], str]) -> list[str]:
        """Begin keys, and return those that could not be begun because a worker has just been killed."""
        for key in keys:
            try:
                with _without_main():
                    running[self._executor().submit(task, key)] = key
            except BrokenProcessPool:
                self._abandon()
                return [key]
        return []

    def _check_losses(self, key: str, losses: int, error: Exception) -> None:
        if losses > RETRIES:
            raise WorkerKilledError(
                f"the worker process of {key} was killed by the system {losses} times, most likely because memory ran "
                f"out: start the run again with fewer --workers (now {self.workers}) or a smaller --shard-rows; what "
                "is finished is kept"
            ) from error

    def agree(self, question: Callable[[], Answers]) -> None:
        """Processes of this machine do not differ."""

    def _executor(self) -> ProcessPoolExecutor:
        if self._pool is None:
            others = [one for one in os.environ.get("PYTHONWARNINGS", "").split(",") if one not in {"", TIDIED}]
            os.environ["PYTHONWARNINGS"] = ",".join([*others, TIDIED])
            # spawned, because a forked process with threads (polars, Arrow) may hang
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.workers, mp_context=context, initializer=_begin)
        return self._pool

    def _abandon(self) -> None:
        """Give up a broken pool; every key that ran in it is lost."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def close(self) -> None:
        """Stop the workers; keys that are still queued are not worked on."""
        self._abandon()


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
