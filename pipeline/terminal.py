"""What a person sees: sentences for errors, progress, tables. Text of a corpus never reaches a terminal as it is."""

from __future__ import annotations

import sys
import time
import unicodedata
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text


def safe(said: str) -> str:
    """Text that a terminal only shows: control characters, escapes and direction overrides become U+FFFD."""
    return "".join(c if c in "\n\t" or not _acts(c) else "\ufffd" for c in said)


def _acts(c: str) -> bool:
    """Whether a terminal does something at this character, other than show it."""
    return unicodedata.category(c) in {"Cc", "Cs"} or "\u202a" <= c <= "\u202e" or "\u2066" <= c <= "\u2069"


def console() -> Console:
    """Standard output; wide where it is piped, so that nothing is cut."""
    return Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 140)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Rows a second."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} rows/s" if speed else "")


class ProgressReporter:
    """Progress on stderr: bars with rate and time left on a terminal, plain lines when piped."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, markup=False)
        self._bars: Progress | None = None
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description:<18}"),
                BarColumn(),
                MofNCompleteColumn(),
                _Rate(),
                TimeRemainingColumn(),
            )
            self._bars = Progress(*columns, console=self._console)
        self._tasks: dict[str, Any] = {}
        self._begun: dict[str, tuple[float, int]] = {}
        self._said = 0.0

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def warn(self, said: str) -> None:
        """A sentence that the user must not miss."""
        self._console.print(Text(safe(f"refine: {said}")))

    def __call__(self, step: str, done: int, total: int) -> None:
        """`done` of `total` rows of a step; a total of 0 is unknown."""
        if self._bars:
            if step not in self._tasks:
                self._tasks[step] = self._bars.add_task(step, total=None)
            known = total or None if ":" not in step or done else None  # a fit or a merge cannot say how far it is
            self._bars.update(self._tasks[step], completed=done, total=known)
            return
        now = time.monotonic()
        first = step not in self._begun
        if first and ":" in step:  # a fit or a merge, which cannot say how far it is
            self._console.print(f"{step} of {total:,} rows ...")
        began, base = self._begun.setdefault(step, (now, done))
        if not first and ":" not in step and (done >= total > 0 or now - self._said > 10):  # noqa: PLR2004  a line in ten seconds
            self._said = now
            rate = (done - base) / max(now - began, 1e-9)
            left = f", {(total - done) / rate:,.0f} s left" if rate and total > done else ""
            of = f" of {total:,}" if total else ""
            self._console.print(f"{step}: {done:,}{of} rows, {rate:,.0f} rows/s{left}")


def table(
    title: str, head: tuple[str, ...], rows: list[tuple[object, ...]], right: frozenset[int] = frozenset()
) -> Table:
    """A table; the columns named in `right` are numbers."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold", title_style="bold")
    for i, name in enumerate(head):
        made.add_column(name, justify="right" if i in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(safe(f"{cell:,}" if isinstance(cell, int) else str(cell))) for cell in row))
    return made


def say(line: str) -> None:
    """A line of progress on stderr."""
    sys.stderr.write(safe(line) + "\n")
    sys.stderr.flush()
