"""Small tables: printed in a terminal, as text, and as HTML in a notebook."""

import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from pipeline.report.text import visible
from pipeline.terminal import safe, table


@dataclass(frozen=True)
class Summary:
    """A title, a table and a closing text, which describe a result or a part of one."""

    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[object, ...]]
    numeric: frozenset[int] = frozenset()
    """Indices of the right-aligned columns."""
    note: str = ""

    def print(self, out: Console) -> None:
        """Print the table and the text."""
        if self.head:
            out.print(table(self.title, self.head, list(self.rows), self.numeric))
        if self.note:
            out.print(Text(safe(self.note)), soft_wrap=True)

    def html(self) -> str:
        """Return the table and the text as HTML; text of a corpus and names of files are escaped."""
        head = "".join(f"<th>{_escaped(name)}</th>" for name in self.head)
        rows = "".join(f"<tr>{''.join(map(self._cell, range(len(row)), row))}</tr>" for row in self.rows)
        title = f"<p><b>{_escaped(self.title.strip())}</b></p>" if self.title else ""
        note = f"<p>{_escaped(self.note.strip())}</p>" if self.note else ""
        return f"{title}<table><tr>{head}</tr>{rows}</table>{note}" if self.head else note

    def _cell(self, column: int, value: object) -> str:
        align = ' style="text-align: right"' if column in self.numeric else ""
        return f"<td{align}>{_escaped(value)}</td>"


def _escaped(value: object) -> str:
    return html.escape(visible(f"{value:,}" if isinstance(value, int) else str(value)))


class Display:
    """A result that shows as text in a terminal and as tables in a notebook."""

    def summaries(self) -> Sequence[Summary]:
        """Return what describes the result."""
        raise NotImplementedError

    def print(self, out: Console) -> None:
        """Print the result."""
        for summary in self.summaries():
            summary.print(out)

    def __repr__(self) -> str:
        out = Console(file=io.StringIO(), width=140, highlight=False, markup=False, emoji=False, color_system=None)
        with out.capture() as capture:
            self.print(out)
        return "\n".join(line.rstrip() for line in capture.get().splitlines())

    def _repr_html_(self) -> str:
        return "".join(summary.html() for summary in self.summaries())
