"""Text of a corpus made safe for a page, and short labels and numbers."""

import unicodedata
from itertools import chain, count

import polars as pl

JOINERS = "\u200c\u200d"
"""Zero-width joiners, which are kept: Persian and emoji need them, and they affect only their neighbours."""
HIDDEN = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}
"""Unicode categories of characters that are not shown as they are."""


def visible(text: str, length: int | None = None) -> str:
    """Text cut to `length` characters, with control, format and unassigned characters written as ⟨U+202E⟩."""
    cut = text if length is None or len(text) <= length else text[: length - 1] + "…"
    if cut.isascii() and cut.isprintable():
        return cut
    hidden = {c for c in set(cut) - set("\n\t" + JOINERS) if unicodedata.category(c) in HIDDEN}
    return "".join(f"⟨U+{ord(c):04X}⟩" if c in hidden else c for c in cut)


def labels(names: list[str], length: int = 28) -> tuple[str, ...]:
    """Names as unique labels of an axis, on one line and cut to `length` characters."""
    unique: list[str] = []
    for name in names:
        label = visible(" ".join(name.split()) or "(empty)", length)
        numbered = (f"{label} ({n})" for n in count(2))
        unique.append(next(one for one in chain([label], numbered) if one not in unique))
    return tuple(unique)


def short(value: float | None) -> str:
    """A number in about five characters: 12,345 becomes 12.3k, 0.03456 becomes 0.035; None becomes "unknown"."""
    if value is None:
        return "unknown"
    size = abs(value)
    for limit, divisor, mark in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if size >= limit:
            return f"{value / divisor:.3g}{mark}"
    if size >= 100 or float(value).is_integer():  # noqa: PLR2004  three digits need no decimals
        return f"{value:,.0f}"
    return f"{value:.2g}" if size < 10 else f"{value:.3g}"  # noqa: PLR2004


def narrow(value: float) -> str:
    """A number for a cell of a heatmap: 0.95 becomes .95, and what is below 0.01 becomes ≈0."""
    if 0 < abs(value) < 0.01:  # noqa: PLR2004
        return "≈0"
    digits = short(value).replace("-", "\N{MINUS SIGN}")
    return digits.replace("0.", ".", 1) if abs(value) < 1 else digits


def largest(values: pl.Series, least: float) -> float:
    """The maximum of some numbers and `least`; nulls are ignored."""
    return float(max([least, *values.drop_nulls().to_list()]))
