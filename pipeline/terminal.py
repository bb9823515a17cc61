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
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

RATE_WINDOW = 30.0
"""Length in seconds of the window over which the rate of a step is measured."""

MIN_SECONDS = 5.0
"""Minimum age in seconds of a step before its rate and time left are shown."""

LINE_INTERVAL = 10.0
"""Minimum number of seconds between two plain progress lines of a step."""

BEAT_INTERVAL = 30.0
"""Seconds between two plain lines about a step that reports nothing while it works."""


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


def duration(seconds: float) -> str:
    """A time as one number, with no more precision than an estimate has: "54 s", "3 min" or "2.5 h"."""
    minutes = seconds / 60
    return f"{seconds:,.0f} s" if minutes < 2 else f"{minutes:,.0f} min" if minutes < 120 else f"{minutes / 60:,.1f} h"  # noqa: PLR2004


@dataclass
class _Step:
    """One step of a run and the samples that its rate is computed from."""

    name: str
    unit: str
    """What is counted, in the plural."""
    began: float
    printed: float
    """When its last line was printed; at first, when it began."""
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    """About how long it will take; 0 if unknown."""
    samples: deque[tuple[float, int, float]] = field(default_factory=deque)
    """Time, rows and share of the work of the reports in the last `RATE_WINDOW` seconds."""
    passes: int = 1
    """How often a fit or merge has begun to read the corpus."""
    task: TaskID | None = None

    @property
    def reads(self) -> bool:
        """Whether this is a fit or a merge, which reads the corpus several times and then computes."""
        return self.name.endswith((": fit", ": merge"))

    @property
    def complete(self) -> bool:
        return self.done >= self.total > 0

    def update(self, done: int, total: int, share: float | None, now: float) -> None:
        if self.reads and done < self.done:
            if done:
                return  # threads take shards in no particular order
            self.passes += 1
            self.samples = deque([(now, 0, 0.0)])  # never empty: another thread draws the bar
        self.done, self.total = done, total
        self.samples.append((now, done, share if share is not None else done / max(total, 1)))
        while len(self.samples) > 2 and now - self.samples[1][0] >= RATE_WINDOW:  # noqa: PLR2004  the window's two ends
            self.samples.popleft()

    def speed(self, now: float) -> str:
        """Rate over the last `RATE_WINDOW` seconds, and about the time left; what is not known is left out."""
        (begin, rows, before), (last, _, share) = self.samples[0], self.samples[-1]
        gain, seconds = share - before, last - begin
        idle = self.reads and now - last >= MIN_SECONDS  # what it has read, it computes with
        rated = gain > 0 and seconds > 0 and now - self.began >= MIN_SECONDS and not (self.complete or idle)
        left, pass_ = self.seconds - (now - self.began), ""
        if rated and self.total and not (self.reads and self.seconds):
            left, pass_ = (1 - share) * seconds / gain - (now - last), " of this pass" * self.reads
        rate = f"{(self.done - rows) / seconds:,.0f} {self.unit}/s" if rated else f"{now - self.began:,.0f} s so far"
        return f"{rate}, about {duration(left)} left{pass_}" if left >= 1 else rate

    def line(self, now: float) -> str:
        if self.complete:
            return f"{self.name}{' of' if self.reads else ':'} {self.done:,} {self.unit} in {now - self.began:,.1f} s"
        of = f" of {self.total:,}" if self.total else ""
        far = f"{self.name}{f', pass {self.passes}' * self.reads}: {self.done:,}{of} {self.unit}"
        if self.reads and not self.done and self.passes == 1:
            far = f"{self.name}{of} {self.unit}"
        return f"{far}, {self.speed(now)}"


class _Speed(ProgressColumn):
    """The rate of a step, or its time so far, and the time left."""

    def render(self, task: Task) -> Text:
        step: _Step = task.fields["step"]
        return Text("" if step.complete else step.speed(time.monotonic()))


class ProgressReporter(contextlib.ExitStack):
    """Progress on stderr: bars with elapsed time, rate and time left on a terminal, plain lines otherwise.

    `unit` is what is counted.
    """

    def __init__(self, unit: str = "rows") -> None:
        super().__init__()
        self._unit = unit
        self._console = Console(stderr=True, highlight=False, markup=False)
        self._bars: Progress | None = None
        if self._console.is_terminal and not _OUTPUT.quiet:
            columns = (TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bars = Progress(*columns, _Speed(), console=self._console)
        self._steps: dict[str, _Step] = {}

    def __enter__(self) -> Self:
        if self._bars:
            self.enter_context(self._bars)
        self.enter_context(_every(BEAT_INTERVAL, self.beat))
        return self

    def beat(self) -> None:
        """Report that the last step is still at work, if it has not reported anything."""
        now = time.monotonic()
        for step in list(self._steps.values())[-1:]:
            if not step.complete and now - step.printed >= BEAT_INTERVAL:
                self._print(step, now)

    def _print(self, step: _Step, now: float) -> None:
        step.printed = now
        self._line(step.line(now))

    def warn(self, note: str) -> None:
        """Write a sentence that the reader must not miss."""
        if self._bars:
            self._console.print(Text(safe(f"refine: {note}")))
        self._line(f"refine: {note}")

    def _line(self, line: str) -> None:
        """Write a plain line, to the log file alone while bars are shown."""
        with progress(show=self._bars is None):
            say(line)

    def __call__(self, step: str, done: int, total: int, share: float | None = None, seconds: float = 0.0, /) -> None:
        """Report that `done` of `total` rows of a step are done; see `pipeline.measure.ReportProgress`."""
        now = time.monotonic()
        first = step not in self._steps
        state = self._steps.setdefault(step, _Step(step, self._unit, now, now))
        state.update(done, total, share, now)
        state.seconds = seconds
        if self._bars:
            if state.task is None:
                state.task = self._bars.add_task(step, total=None, step=state)
            self._bars.update(
                state.task, completed=state.done, total=total or None if state.done or not state.reads else None
            )
        if first and state.reads:
            about = f", about {duration(seconds)}" if seconds >= MIN_SECONDS else ""
            self._line(f"{step} of {total:,} {self._unit}{about} ...")
        elif not first and (state.complete or now - state.printed > LINE_INTERVAL):
            self._print(state, now)


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
