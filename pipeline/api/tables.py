"""Small tables, as text in a terminal and as HTML in a notebook."""

from __future__ import annotations

import html
import io
from dataclasses import dataclass

from rich.console import Console

from pipeline.report.text import visible
from pipeline.terminal import safe, table


@dataclass(frozen=True)
class Summary:
    """A title, a table and a closing line that describe a result."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]
    numeric: frozenset[int] = frozenset()
    """Indices of the right-aligned columns."""
    note: str = ""

    def text(self) -> str:
        """Return the summary as plain text."""
        out = Console(file=io.StringIO(), width=140, highlight=False, markup=False, emoji=False, color_system=None)
        with out.capture() as capture:
            out.print(table(self.title, self.head, list(self.rows), self.numeric))
        lines = [line.rstrip() for line in capture.get().splitlines()]
        return "\n".join([*lines, *([safe(self.note)] if self.note else [])])

    def html(self) -> str:
        """Return the summary as HTML; text of the corpus and names of files are escaped."""
        head = "".join(f"<th>{_cell(name)}</th>" for name in self.head)
        body = "".join(
            "<tr>" + "".join(self._data(i, value) for i, value in enumerate(row)) + "</tr>" for row in self.rows
        )
        note = f"<p>{_cell(self.note)}</p>" if self.note else ""
        return f"<p><b>{_cell(self.title)}</b></p><table><tr>{head}</tr>{body}</table>{note}"

    def _data(self, column: int, value: object) -> str:
        align = ' style="text-align: right"' if column in self.numeric else ""
        return f"<td{align}>{_cell(value)}</td>"


def _cell(value: object) -> str:
    return html.escape(visible(f"{value:,}" if isinstance(value, int) else str(value)))
