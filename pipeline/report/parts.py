"""The parts of a page. A command makes sections of its numbers; the page does not know where they come from."""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

import polars as pl

from pipeline.report.charts import Chart


@dataclass(frozen=True)
class Panel:
    """One chart of a figure, the numbers that report.json holds of it, and lines of text below it.

    Without a chart, the lines of text say what it would show.
    """

    title: str
    chart: Chart | None
    numbers: pl.DataFrame
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figure:
    """Panels side by side, and a sentence on how to read them; one PNG."""

    name: str
    """Name of its PNG: lower-case words joined by "-"."""
    title: str
    says: str
    panels: tuple[Panel, ...]
    small: bool = False
    """Whether the panels are small multiples, several per row."""


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers; columns of numbers are right-aligned."""

    head: tuple[str, ...]
    rows: tuple[tuple[str | int | float | None, ...], ...]

    @property
    def many(self) -> bool:
        """Whether a phone folds it, because its cells are many."""
        return len(self.rows) * len(self.head) > 40  # noqa: PLR2004

    @property
    def long(self) -> bool:
        """Whether a phone shows rows as rows: if the cells are many and their texts are short."""
        longest = max((len(cell) for row in self.rows for cell in row if isinstance(cell, str)), default=0)
        return self.many and longest <= 60  # noqa: PLR2004


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading and an introduction."""

    name: str
    title: str
    says: str
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    texts: tuple[tuple[str, str], ...] = ()
    """Headings and preformatted texts, such as a plan."""
    missing: tuple[str, ...] = ()
    """Notes: what is missing and how to add it, and what to beware of."""


@dataclass(frozen=True)
class Tile:
    """A number below the headline."""

    value: str
    label: str


@dataclass(frozen=True)
class Examples:
    """Conversations that a reader can search, and the command that shows any other; its id is appended."""

    rows: list[dict[str, Any]]
    """id, source, kept, reason, values, in (its bands, in the notation of a chart's `pick`), messages and more."""
    command: str


@dataclass(frozen=True)
class Check:
    """A condition, whether it holds (None: it does not apply), and the evidence."""

    name: str
    passed: bool | None
    found: str


@dataclass(frozen=True)
class Chip:
    """The answer in a word or two, in the colour of its mood."""

    text: str
    mood: Literal["good", "bad", "same", "open"]


@dataclass(frozen=True)
class Page:
    """A report."""

    title: str
    kicker: str
    headline: str
    tiles: tuple[Tile, ...]
    warnings: tuple[str, ...]
    checks: tuple[Check, ...]
    sections: tuple[Section, ...]
    about: str = ""
    """Explanation of the terms of the headline and the tiles."""
    answers: tuple[tuple[str, str], ...] = ()
    """Short questions of a reader, such as "How sure?", and their answers in a sentence or two."""
    chip: Chip | None = None
    examples: Examples | None = None
    numbers: dict[str, Any] = field(default_factory=dict)
    """Additional fields of `report.json`."""

    @property
    def passed(self) -> str:
        """How many checks passed, as a phrase."""
        applying = [check.passed for check in self.checks if check.passed is not None]
        return f"{sum(applying)} of {len(applying)} passed"

    @property
    def figures(self) -> list[Figure]:
        """All figures, in order."""
        return [figure for section in self.sections for figure in section.figures]

    @property
    def pictures(self) -> list[Figure]:
        """The figures that have a chart."""
        return [figure for figure in self.figures if any(panel.chart is not None for panel in figure.panels)]

    @property
    def lead(self) -> tuple[str, str]:
        """The first sentence of the headline, and the others."""
        first, *others = re.split(r"(?<=\.) (?=[A-Z])", self.headline, maxsplit=1)
        return first, " ".join(others)
