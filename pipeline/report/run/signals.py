"""What a reader should know of a signal: its unit, whether its axis is logarithmic, and the thresholds on it."""

from __future__ import annotations

import re
from dataclasses import dataclass

import polars as pl

from pipeline.plan import Plan
from pipeline.rules import Drop

MOST = 24
"""Signals that a report shows at most: those of the rules first."""

KNOWN: dict[str, tuple[str, bool]] = {
    "ppl": ("perplexity per token", True),
    "toxicity": ("probability, worst message", False),
    "nearest_jaccard": ("Jaccard to the nearest other", False),
    "n_words": ("words", True),
    "n_turns": ("turns", True),
    "prompt_words": ("words of the first prompt", True),
    "assistant_chars": ("characters of the replies", True),
    "reply_repetition": ("share of replies said before", False),
    "exact_copies": ("conversations with this text", True),
    "toxicity_share": ("share of messages above 0.5", False),
    "ppl_z": ("robust deviations of ln ppl", False),
    "alpha_words": ("share of words with a letter", False),
    "dup_lines": ("share of lines seen before", False),
    "code_share": ("share of characters in code", False),
    "language_score": ("certainty of the language", False),
    "refusals": ("replies that decline", False),
    "mean_word_len": ("characters a word", False),
    "user_chars": ("characters of the user", True),
    "cluster_size": ("conversations in its cluster", True),
    "ppl_assistant": ("perplexity of the replies", True),
    "ppl_worst_turn": ("perplexity of the worst turn", True),
    "ppl_tokens": ("tokens scored", True),
    "toxicity_mean": ("mean probability", False),
    "user_turns": ("messages of the user", True),
    "assistant_turns": ("replies", True),
    "empty_replies": ("replies of white space", False),
    "no_feelings": ("replies that deny feelings", False),
    "truncated_last": ("last reply cut off (0 or 1)", False),
    "answer_copies": ("conversations with its answer", True),
    "repeated_answer_share": ("share of answers given elsewhere", False),
    "dup_span_share": ("share of words found elsewhere", False),
    "contamination": ("share of an evaluation item", False),
    "dedup_words": ("words", True),
    "against_jaccard": ("Jaccard to the earlier corpus", False),
}
"""Signals of the stages that come with refine that are worth a figure, in the order of how much they say: unit, and
whether their axis is logarithmic."""
_OWN = 6
"""Signals of a user's own stages come after this many known ones."""


@dataclass(frozen=True)
class Signal:
    """A signal as a figure shows it."""

    name: str
    unit: str
    log: bool


@dataclass(frozen=True)
class Threshold:
    """A number that a rule compares a signal with."""

    reason: str
    said: str
    at: float


def chosen(plan: Plan) -> tuple[Signal, ...]:
    """The signals a report shows, the most telling first: those that rules read, a user's own, and known ones."""
    scalar = {name for name, kind in plan.signals.items() if kind.is_numeric() or kind == pl.Boolean}
    ruled = [column for rule in plan.rules if isinstance(rule, Drop) for column in rule.columns()]
    own = [
        name
        for measured in plan.stages
        if not type(measured.stage).__module__.startswith("stages.")
        for name in measured.signals
    ]
    names = [name for name in dict.fromkeys([*ruled, *own, *KNOWN]) if name in scalar][:MOST]
    order = {name: i for i, name in enumerate(KNOWN)}
    names.sort(key=lambda name: order.get(name, _OWN - 0.5))
    return tuple(Signal(name, *KNOWN.get(name, ("", False))) for name in names)


_NUMBER = r"(-?\d+(?:\.\d+)?(?:[eE]-?\d+)?)"
_SIDES = re.compile(rf"\b([A-Za-z_]\w*)\s*(>=|<=|<>|!=|=|>|<)\s*{_NUMBER}")


def thresholds(plan: Plan, name: str) -> list[Threshold]:
    """The numbers that rules compare a signal with, as the rules say it: `column operator number`."""
    return [
        Threshold(rule.reason, f"{column} {operator} {number}", float(number))
        for rule in plan.rules
        if isinstance(rule, Drop)
        for column, operator, number in _SIDES.findall(re.sub(r"'[^']*'", "''", rule.where))
        if column == name
    ]
