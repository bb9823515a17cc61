"""Engines: what applies a task to keys. An engine knows neither shards nor files nor stages."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")

RETRIES = 3
"""Maximum number of times that a key is tried again after its worker was lost."""
ONE_THREAD = ("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS")
"""Environment variables that limit the threads of a worker."""

Answers = Mapping[str, str]
"""What a process says of itself: a name, such as that of a package, and its value."""


class EngineError(Exception):
    """There is no such engine or cluster, or it cannot do the work; the message says what to do."""


class WorkerKilledError(EngineError):
    """A worker was killed again and again, most likely because memory ran out; the message names the key."""


@dataclass(frozen=True)
class Needs:
    """What a task needs, and for how long."""

    cores: int = 1
    gpus: int = 0
    """Asked for only in a cluster that has some."""
    memory: int = 1 << 30
    """Bytes."""
    seconds: float = math.inf
    """About the time that one process needs for all keys; by default they are worth every worker."""


ANY = Needs()
"""What a task needs that says nothing."""


class Engine(Protocol):
    """Applies a task to keys."""

    here: bool
    """Whether its workers are processes of this machine, which see its files."""

    def processes(self, keys: int, seconds: float = math.inf) -> int:
        """How many processes would work on some keys, for which one process needs so many seconds."""

    def map(self, task: Callable[[str], T], keys: Iterable[str], needs: Needs = ANY) -> Iterator[tuple[str, T]]:
        """Yield each key with the result of `task` once, in any order.

        The task is picklable and idempotent: it may run twice. Keys are drawn as workers become free; results are
        small, since they all pass through this process. Closing the iterator stops the work.

        Raises:
            Exception: the task's own, which is not tried again.
            WorkerKilledError: the worker of a key was lost more than `RETRIES` times.
        """

    def agree(self, question: Callable[[], Answers]) -> None:
        """Raise `EngineError` if a process that would work answers otherwise than this one."""

    def close(self) -> None:
        """Stop the workers."""


def differences(own: Answers, other: Answers) -> str:
    """What another process answers otherwise, as "polars 1.2 (here 1.3)"; empty if nothing."""
    names = sorted(own.keys() | other.keys())
    wrong = [name for name in names if own.get(name) != other.get(name)]
    return ", ".join(f"{name} {other.get(name, 'missing')} (here {own.get(name, 'missing')})" for name in wrong)
