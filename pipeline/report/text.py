"""Text of a corpus as a page may show it: what is invisible or turns text around is named instead."""

from __future__ import annotations

import unicodedata

import polars as pl

JOINERS = "\u200c\u200d"
"""Persian words and emoji need these two, and they only join their neighbours."""


def visible(text: str, most: int | None = None) -> str:
    """Text in which control, format and unassigned characters are written as ⟨U+202E⟩, cut to `most` characters."""
    cut = text if most is None or len(text) <= most else text[: most - 1] + "…"
    if cut.isascii() and cut.isprintable():
        return cut
    return "".join(c if _plain(c) else f"⟨U+{ord(c):04X}⟩" for c in cut)


def _plain(c: str) -> bool:
    return c in "\n\t" or c in JOINERS or unicodedata.category(c) not in {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}


def labels(names: list[str], most: int = 28) -> tuple[str, ...]:
    """Names as an axis shows them: short, on one line, and no two alike."""
    said: list[str] = []
    for name in names:
        label = visible(" ".join(name.split()) or "(empty)", most)
        n = 1
        while (label if n == 1 else f"{label} ({n})") in said:
            n += 1
        said.append(label if n == 1 else f"{label} ({n})")
    return tuple(said)


def short(value: float | None) -> str:
    """A number in at most about five characters: 1,234 is 1.2k, 0.03456 is 0.035."""
    if value is None:
        return "unknown"
    size = abs(value)
    for limit, divisor, mark in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if size >= limit:
            return f"{value / divisor:.3g}{mark}"
    if size >= 100 or float(value).is_integer():  # noqa: PLR2004  three digits before the point need none after it
        return f"{value:,.0f}"
    return f"{value:.2g}" if size < 10 else f"{value:.3g}"  # noqa: PLR2004  two digits that count are enough


def largest(values: pl.Series, least: float) -> float:
    """The largest of some numbers, or `least` where that is larger or there are none."""
    found = values.drop_nulls().to_list()
    return float(max([least, *found]))
