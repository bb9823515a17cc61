"""Terminal output: progress and notes on stderr, tables on stdout. Text of a corpus is always escaped."""

import contextlib
import sys
import threading
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

RATE_WINDOW = 30.0
"""Length in seconds of the window over which the rate of a step is measured."""

MIN_SECONDS = 5.0
"""Minimum age in seconds of a step before its rate and time left are shown."""

LINE_INTERVAL = 10.0
"""Minimum number of seconds between two plain progress lines of a step."""

BEAT_INTERVAL = 30.0
"""Seconds between two plain lines about a fit, a merge or a preparation, which reports no rows while it works."""


def safe(text: str) -> str:
    """Replace control characters, terminal escapes and direction overrides by U+FFFD, except newline and tab."""
    return "".join(c if c in "\n\t" or not _acts(c) else "\ufffd" for c in text)


def _acts(c: str) -> bool:
    """Whether a terminal acts on this character instead of showing it."""
    return unicodedata.category(c) in {"Cc", "Cs"} or "\u202a" <= c <= "\u202e" or "\u2066" <= c <= "\u2069"


def console() -> Console:
    """Standard output; 140 characters wide if it is not a terminal, so that tables are not cut."""
    return Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 140)


@dataclass
class _Output:
    """Destinations of progress, notes and errors in this process."""

    quiet: bool = False
    log: TextIO | None = None


_OUTPUT = _Output()


def configure(*, quiet: bool, log_file: Path | None) -> None:
    """Set the global options `--quiet` and `--log-file`; raises `OSError` if the log file cannot be opened."""
    if _OUTPUT.log:
        _OUTPUT.log.close()
    _OUTPUT.quiet, _OUTPUT.log = quiet, None
    if log_file is not None:
        _OUTPUT.log = log_file.open("a", encoding="utf-8", buffering=1)


@contextlib.contextmanager
def progress(*, show: bool) -> Iterator[None]:
    """Show progress and notes inside the block only if `show` is true; a log file gets them in any case."""
    before = _OUTPUT.quiet
    _OUTPUT.quiet = before or not show
    try:
        yield
    finally:
        _OUTPUT.quiet = before


def say(line: str, *, always: bool = False) -> None:
    """Write a line to stderr and the log file; under `--quiet` to stderr only if it is an error (`always`)."""
    line = safe(line) + "\n"
    if always or not _OUTPUT.quiet:
        sys.stderr.write(line)
        sys.stderr.flush()
    if _OUTPUT.log:
        _OUTPUT.log.write(line)


@contextlib.contextmanager
def _every(seconds: float, act: Callable[[], None]) -> Iterator[None]:
    """Call a function every so many seconds while the block runs."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(seconds):
            act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def repeating(seconds: float, line: Callable[[], str]) -> contextlib.AbstractContextManager[None]:
    """Write a line of progress every so many seconds while the block runs."""
    return _every(seconds, lambda: say(line()))


@dataclass
class _Step:
    """One step of a run and the samples that its rate is computed from."""

    name: str
    began: float
    printed: float
    """When its last line was printed; at first, when it began."""
    done: int = 0
    total: int = 0
    samples: deque[tuple[float, int]] = field(default_factory=deque)
    task: TaskID | None = None

    @property
    def silent(self) -> bool:
        """Whether this is a fit or a merge, which reports only its start and its end."""
        return self.name.endswith((": fit", ": merge"))

    def update(self, done: int, total: int, now: float) -> None:
        self.done, self.total = done, total
        self.samples.append((now, done))
        while len(self.samples) > 2 and now - self.samples[1][0] >= RATE_WINDOW:  # noqa: PLR2004  the window's two ends
            self.samples.popleft()

    def speed(self, now: float) -> str:
        """Rate over the last `RATE_WINDOW` seconds and the time left; empty in the first `MIN_SECONDS`."""
        if self.silent or now - self.began < MIN_SECONDS:
            return ""
        begin, base = self.samples[0]
        rate = (self.done - base) / max(now - begin, 1e-9)
        if not rate:
            return ""
        left = f", {(self.total - self.done) / rate:,.0f} s left" if self.total > self.done else ""
        return f"{rate:,.0f} rows/s{left}"

    def line(self, now: float) -> str:
        seconds = now - self.began
        if self.done >= self.total > 0:
            return f"{self.name}{' of' if self.silent else ':'} {self.done:,} rows in {seconds:,.1f} s"
        if self.silent:
            return f"{self.name} of {self.total:,} rows, {seconds:,.0f} s so far"
        of = f" of {self.total:,}" if self.total else ""
        return ", ".join(filter(None, [f"{self.name}: {self.done:,}{of} rows", self.speed(now)]))


class ProgressReporter(contextlib.ExitStack):
    """Progress on stderr: bars with elapsed time, rate and time left on a terminal, plain lines otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self._console = Console(stderr=True, highlight=False, markup=False)
        self._bars: Progress | None = None
        if self._console.is_terminal and not _OUTPUT.quiet:
            columns = (TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bars = Progress(*columns, TextColumn("{task.fields[speed]}"), console=self._console)
        self._steps: dict[str, _Step] = {}

    def __enter__(self) -> Self:
        if self._bars:
            self.enter_context(self._bars)
        self.enter_context(_every(BEAT_INTERVAL, self._beat))
        return self

    def _beat(self) -> None:
        """Report that a fit or merge is still at work."""
        for step in list(self._steps.values()):
            if step.silent and step.done < step.total:
                self._line(step.line(time.monotonic()))

    def warn(self, note: str) -> None:
        """Write a sentence that the reader must not miss."""
        if self._bars:
            self._console.print(Text(safe(f"refine: {note}")))
        self._line(f"refine: {note}")

    def _line(self, line: str) -> None:
        """Write a plain line, to the log file alone while bars are shown."""
        with progress(show=self._bars is None):
            say(line)

    def __call__(self, step: str, done: int, total: int) -> None:
        """Report that `done` of `total` rows of a step are done; a total of 0 is unknown."""
        now = time.monotonic()
        first = step not in self._steps
        state = self._steps.setdefault(step, _Step(step, now, now))
        state.update(done, total, now)
        if self._bars:
            if state.task is None:
                state.task = self._bars.add_task(step, total=None, speed="")
            known = total or None if not state.silent or done else None
            self._bars.update(state.task, completed=done, total=known, speed=state.speed(now))
        if first and state.silent:
            self._line(f"{step} of {total:,} rows ...")
        elif not first and (done >= total > 0 or now - state.printed > LINE_INTERVAL):
            state.printed = now
            self._line(state.line(now))


def table(
    title: str, head: tuple[str, ...], rows: list[tuple[object, ...]], right: frozenset[int] = frozenset()
) -> Table:
    """Build a table without borders; `right` are the indices of right-aligned columns."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold", title_style="bold")
    for i, name in enumerate(head):
        made.add_column(name, justify="right" if i in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(safe(f"{cell:,}" if isinstance(cell, int) else str(cell))) for cell in row))
    return made
