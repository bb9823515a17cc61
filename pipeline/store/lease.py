"""The lease of a run in a bucket: one process writes at a time. It needs nothing but create-if-absent.

`.lease/000001` is created by its first holder, who overwrites `.lease/000001.beat` while it works. A rival that finds
the beat old, by the server's clock, creates `.lease/000002`; of several rivals one succeeds. A holder that finds a
higher number has lost the lease. Tasks of a former holder can do no harm: they write the same bytes.
"""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from pipeline.store.bucket import Bucket, PlaceError

BEAT = 30.0
"""Seconds between two beats."""
STALE = 300.0
"""Seconds without a beat after which a lease is free."""
FREE = b"free"
"""Content of the last beat of a holder that has ended."""


class LeaseLostError(PlaceError):
    """Another process has taken the lease, because this one did not answer for too long."""


@dataclass(frozen=True)
class Lease:
    """A lease that this process holds."""

    bucket: Bucket
    number: int

    @property
    def name(self) -> str:
        """Its object."""
        return f".lease/{self.number:06d}"

    def beat(self, content: bytes = b"") -> None:
        """Say that the holder is alive."""
        self.bucket.put(f"{self.name}.beat", content or str(os.getpid()).encode())

    def check(self) -> None:
        """Raise `LeaseLostError` if another process has taken the lease."""
        if (newest := max(_numbers(self.bucket), default=0)) != self.number:
            raise LeaseLostError(
                f"{self.bucket.url} is written by {_holder(self.bucket, newest)} now, because this process did not "
                "answer for five minutes: start the same command again when that one has ended"
            )


@contextlib.contextmanager
def leased(bucket: Bucket) -> Iterator[Lease]:
    """Be the only process that writes below a URL; raises `PlaceError` if another one is."""
    held = Lease(bucket, _take(bucket))
    held.beat()
    done = threading.Event()
    thread = threading.Thread(target=_beat, args=(held, done), daemon=True)
    thread.start()
    try:
        yield held
    finally:
        done.set()
        thread.join()
        with contextlib.suppress(PlaceError):
            held.check()
            held.beat(FREE)


def is_held(bucket: Bucket) -> bool:
    """Whether a process writes below a URL now."""
    newest = max(_numbers(bucket), default=0)
    return newest > 0 and _seconds_left(bucket, newest) > 0


def _beat(held: Lease, done: threading.Event) -> None:
    while not done.wait(BEAT):
        with contextlib.suppress(PlaceError):  # the next one may reach the server
            held.beat()


def _take(bucket: Bucket) -> int:
    """The number of a new lease."""
    numbers = _numbers(bucket)
    newest = max(numbers, default=0)
    if newest and (wait := _seconds_left(bucket, newest)) > 0:
        raise PlaceError(
            f"{bucket.url} is in use by {_holder(bucket, newest)}: wait for it; if it is dead, start again in "
            f"{wait:.0f} s"
        )
    claim = {"host": _host(), "process": os.getpid(), "since": datetime.now(UTC).isoformat("T", "seconds")}
    if not bucket.create(f".lease/{newest + 1:06d}", json.dumps(claim).encode()):
        raise PlaceError(f"{bucket.url} has just been taken by {_holder(bucket, newest + 1)}: wait for it")
    for number in numbers:
        for name in (f".lease/{number:06d}", f".lease/{number:06d}.beat"):
            bucket.remove(bucket.folder / name)
    Lease(bucket, newest + 1).check()  # a rival may have been so slow that the number was free again
    return newest + 1


def _numbers(bucket: Bucket) -> list[int]:
    bucket.refresh(bucket.folder / ".lease")
    names = [name.removeprefix(".lease/") for name in bucket.sizes() if name.startswith(".lease/")]
    return [int(name) for name in names if name.isdigit()]


def _seconds_left(bucket: Bucket, number: int) -> float:
    """Seconds until a lease is free, by the server's clock; negative if it is."""
    name = f".lease/{number:06d}"
    claim = _claim(bucket, number)
    if claim and claim["host"] == _host() and not _lives(claim["process"]):
        return -1.0
    beat = bucket.changed(f"{name}.beat") or bucket.changed(name)
    if beat is None or bucket.get(f"{name}.beat") == FREE:
        return -1.0
    probe = f".lease/now-{uuid4().hex}"
    bucket.put(probe, b"")
    now = bucket.changed(probe)
    bucket.remove(bucket.folder / probe)
    return STALE - (now - beat).total_seconds() if now else STALE


def _holder(bucket: Bucket, number: int) -> str:
    """Who holds a lease, and since when."""
    claim = _claim(bucket, number)
    return f"process {claim['process']} on {claim['host']} since {claim['since']}" if claim else "another process"


def _claim(bucket: Bucket, number: int) -> dict[str, Any] | None:
    """What the holder of a lease says of itself; None if that cannot be read."""
    try:
        claim = json.loads(bucket.get(f".lease/{number:06d}") or b"")
        return {"host": str(claim["host"]), "process": int(claim["process"]), "since": str(claim["since"])}
    except (ValueError, LookupError, TypeError):
        return None


def _host() -> str:
    """This machine since it was started; a container has a name of its own."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()}-{boot.read_text(encoding='ascii')[:8]}" if boot.exists() else socket.gethostname()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
