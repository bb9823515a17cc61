"""Near copies: words are replaced until the Jaccard of word 5-grams, as `dedup` measures it, is what was asked for."""

from __future__ import annotations

import re
from random import Random

from stages.text.shingles import WIDTH, WORD

Messages = list[dict[str, str]]
"""`role` and `content` of each message of a conversation."""
TOLERANCE = 0.01
"""Largest distance of a near copy's Jaccard from its target."""
MIN_SHINGLES = 100
"""Minimum number of distinct shingles of an original: below it, one shingle is more than twice the tolerance."""
MAX_TRIES = 12
"""Maximum number of corrections of the number of changed shingles."""

_WORDS = re.compile(f"({WORD})")
"""The group makes `split` return words at odd indices."""


def near_copy(messages: Messages, jaccard: float, draw: Random) -> Messages | None:
    """A copy with other words at some places, its Jaccard to the original within `TOLERANCE`; None if it is too short.

    The other words are taken from the conversation itself.
    """
    parts = [_WORDS.split(message["content"]) for message in messages]
    at = [(i, j) for i, part in enumerate(parts) for j in range(1, len(part), 2)]
    words = [parts[i][j] for i, j in at]
    if (edited := _edited(words, jaccard, draw)) is None:
        return None
    for (i, j), word in zip(at, edited, strict=True):
        parts[i][j] = word
    return [{**message, "content": "".join(part)} for message, part in zip(messages, parts, strict=True)]


def _edited(words: list[str], target: float, draw: Random) -> list[str] | None:
    """The words with as many replaced as the target needs, by correcting the number of shingles to change."""
    before = shingles(words)
    if (n := len(before)) < MIN_SHINGLES:
        return None
    places = list(range(2 * WIDTH, len(words) - WIDTH, WIDTH))  # no shingle holds two of them
    draw.shuffle(places)
    step = draw.randrange(len(words) // 4, len(words) // 2)
    changed = round(n * (1 - target) / (1 + target))
    for _ in range(MAX_TRIES):
        if changed < 1 or changed // WIDTH > len(places):
            return None
        edited = _replace(words, changed, places, step)
        after = shingles(edited)
        gap = len(before & after) / len(before | after) - target
        if abs(gap) <= TOLERANCE * 0.9:  # room for the rounding of `dedup`
            return edited
        more = gap * (n + changed) ** 2 / (2 * n)  # the slope of (n - c) / (n + c)
        changed += round(more) or (1 if gap > 0 else -1)
    return None


def _replace(words: list[str], changed: int, places: list[int], step: int) -> list[str]:
    """Replace words so that about `changed` shingles change: five per word, or k for the k-th word of all."""
    edited = list(words)
    first = [changed % WIDTH - 1] if changed % WIDTH else []
    for place in [*first, *places[: changed // WIDTH]]:
        others = (words[(place + k * step) % len(words)] for k in range(1, len(words)))
        edited[place] = next((word for word in others if word.lower() != words[place].lower()), words[place])
    return edited


def shingles(words: list[str]) -> set[tuple[str, ...]]:
    """The distinct word 5-grams."""
    lower = [word.lower() for word in words]
    return set(zip(*(lower[k:] for k in range(WIDTH)), strict=False))
