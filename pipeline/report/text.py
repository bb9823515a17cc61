"""Text of a corpus as a page may show it: what is invisible or turns text around is named instead."""

from __future__ import annotations

import unicodedata

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
