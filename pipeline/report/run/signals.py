"""The signals that a report draws, with their axes and the thresholds that rules set on them."""

import re
from dataclasses import dataclass

import polars as pl

from pipeline.plan import Plan
from pipeline.rules import Drop
from stages.stage import Axis

MAX_SIGNALS = 24
"""Maximum number of signals that a report draws."""


@dataclass(frozen=True)
class Signal:
    """A signal as a figure draws it."""

    name: str
    unit: str
    log: bool


@dataclass(frozen=True)
class Threshold:
    """A number that a rule compares a signal with."""

    reason: str
    text: str
    at: float


def select_signals(plan: Plan) -> tuple[Signal, ...]:
    """The signals that a report draws, by rank: first choice are those that rules read, then those with an axis."""
    scalar = {name for name, kind in plan.signals.items() if kind.is_numeric() or kind == pl.Boolean}
    ruled = [column for rule in plan.rules if isinstance(rule, Drop) for column in rule.columns()]
    axes = {
        name: axis
        for one in plan.stages
        for name, axis in (one.stage.axes or dict.fromkeys(one.signals, Axis())).items()
    }
    ranked = sorted(axes, key=lambda name: axes[name].rank)
    names = [name for name in dict.fromkeys([*ruled, *ranked]) if name in scalar][:MAX_SIGNALS]
    drawn = sorted(((name, axes.get(name, Axis())) for name in names), key=lambda one: one[1].rank)
    return tuple(Signal(name, axis.unit, axis.log) for name, axis in drawn)


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
