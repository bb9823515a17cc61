"""What a page consists of. A command makes sections of its own numbers; the page does not ask where they come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import polars as pl

from pipeline.report.heatmap import Drawn


@dataclass(frozen=True)
class Panel:
    """One chart of a figure, with the numbers that it shows."""

    title: str
    chart: Drawn
    numbers: pl.DataFrame
    """What `report.json` holds of it."""
    notes: tuple[str, ...] = ()
    """Lines below the chart."""


@dataclass(frozen=True)
class Figure:
    """Panels that are looked at side by side; one PNG."""

    name: str
    """Also the name of its PNG: lower-case words joined by "-"."""
    title: str
    says: str
    """One sentence on how to read it."""
    panels: tuple[Panel, ...]
    small: bool = False
    """Panels are small multiples, several in a row."""


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers; numbers stand on the right."""

    head: tuple[str, ...]
    rows: tuple[tuple[str | int | float | None, ...], ...]

    @property
    def long(self) -> bool:
        """Whether rows stay rows on a phone, where they are many; sentences would make them tall and narrow."""
        longest = max((len(cell) for row in self.rows for cell in row if isinstance(cell, str)), default=0)
        return len(self.rows) > 8 and longest <= 40  # noqa: PLR2004


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading and one sentence."""

    name: str
    title: str
    says: str
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    texts: tuple[tuple[str, str], ...] = ()
    """Texts to be shown as they are, such as a plan: heading and text."""
    missing: tuple[str, ...] = ()
    """What is not there, and which stage would add it."""


@dataclass(frozen=True)
class Tile:
    """A number of the headline."""

    value: str
    label: str


@dataclass(frozen=True)
class Examples:
    """Conversations that a reader can look at, and how sets of them are named."""

    rows: list[dict[str, Any]]
    """id, source, kept, reason, values, in (the bands it is in, as a click asks for them), messages and the like."""
    command: str
    """Shows one that is not here; its id goes at the end."""


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
    examples: Examples | None = None
    numbers: dict[str, Any] = field(default_factory=dict)
    """More numbers for `report.json`."""


@dataclass(frozen=True)
class Check:
    """One promise, whether it holds (None: it does not apply to this run), and what was found."""

    name: str
    passed: bool | None
    found: str
