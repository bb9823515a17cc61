"""What a part of a target says of a plan: the plan against raw, per token, used up, and on raw itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from pipeline.compare.numbers import level_numbers
from pipeline.compare.scored import Scored
from pipeline.compare.screen import Screened
from pipeline.experiments.formats import change, with_interval

Goal = Literal["token", "corpus"]
"""What the best plan is best at."""


@dataclass(frozen=True)
class Estimate:
    """A number with the ends of its 95 % interval; None for what is unknown."""

    value: float | None
    ends: tuple[float, float] | None = None

    @classmethod
    def parse(cls, row: Mapping[str, Any]) -> Self:
        """An estimate from JSON."""
        return cls(row["value"], None if row["ends"] is None else (row["ends"][0], row["ends"][1]))

    @property
    def change(self) -> str:
        """The ln of a ratio as a change in per cent, with its interval."""
        return "-" if self.value is None else with_interval(self.value, self.ends, change)

    @property
    def times(self) -> str:
        """A factor with its interval."""
        return "-" if self.value is None else with_interval(self.value, self.ends, "{:.2f}".format)


@dataclass(frozen=True)
class Finding:
    """A plan against raw; below 0 the plan is better.

    Attributes:
        per_token: ln of the PPL ratio on the target after equally many tokens.
        worth: tokens of raw that one token of the plan is worth for the target.
        used_up: ln of the PPL ratio on the target if both corpora are read to their ends.
        on_raw: ln of the PPL ratio on the test conversations of raw after equally many tokens.
        extrapolates: whether raw was never trained on as many tokens as `worth` says.
    """

    per_token: Estimate
    worth: Estimate
    used_up: Estimate
    on_raw: Estimate
    extrapolates: bool = False

    @classmethod
    def of(cls, target: Scored, raw: Scored | None, screened: Screened) -> Self | None:
        """The finding of two arms that are scored on the target and on raw; None if no law could be fitted."""
        power, cost = target.differences.get("power"), None if raw is None else raw.differences.get("power")
        if power is None:
            return None
        return cls(
            Estimate(power.ln_ratio, power.ln_ratio_interval),
            Estimate(power.efficiency, power.efficiency_interval),
            Estimate(*screened.used_up.best),
            Estimate(None) if cost is None else Estimate(cost.ln_ratio, cost.ln_ratio_interval),
            power.extrapolates,
        )

    @classmethod
    def parse(cls, row: Mapping[str, Any]) -> Self:
        """A finding from JSON."""
        names = ("per_token", "worth", "used_up", "on_raw")
        per_token, worth, used_up, on_raw = (Estimate.parse(row[name]) for name in names)
        return cls(per_token, worth, used_up, on_raw, row["extrapolates"])

    def level(self, goal: Goal) -> Estimate:
        """What a goal minimises."""
        return self.per_token if goal == "token" else self.used_up

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """The finding as cells of a table; see `HEAD`."""
        return self.per_token.change, self.value, self.used_up.change, self.on_raw.change

    @property
    def value(self) -> str:
        """The worth of a token with its interval, and a mark if it is extrapolated."""
        if not self.extrapolates or self.worth.ends is None:
            return self.worth.times
        return f"{self.worth.times.removesuffix(')')}, extrapolated)"

    @property
    def numbers(self) -> dict[str, Any]:
        """The finding for a script; differences of PPL are relative."""
        return {
            **level_numbers("level", self.per_token.value, self.per_token.ends),
            "worth": self.worth.value,
            "worth_interval": self.worth.ends,
            "extrapolates": self.extrapolates,
            **level_numbers("used_up", self.used_up.value, self.used_up.ends),
            **level_numbers("raw_test", self.on_raw.value, self.on_raw.ends),
        }


HEAD = ("PPL differs by", "a token's worth", "used up", "on raw-test")
"""Heads of the columns of `Finding.cells`."""

Kind = Literal["rules", "selection", "random"]


@dataclass(frozen=True)
class Trial:
    """What the development part of a target says of a candidate.

    Attributes:
        name: the candidate for a reader.
        kind: the rules alone, a selection, or a random one.
        key: digest of the conversations that it keeps.
        conversations: number of these.
        tokens: their training tokens.
        finding: None if it was not measured.
        note: why it was not.
    """

    name: str
    kind: Kind
    key: str
    conversations: int
    tokens: int
    finding: Finding | None = None
    note: str = ""

    @classmethod
    def parse(cls, row: Mapping[str, Any]) -> Self:
        """A trial from JSON; a KeyError or TypeError if it is none."""
        finding = None if row["finding"] is None else Finding.parse(row["finding"])
        name, kind, key = (row[name] for name in ("name", "kind", "key"))
        return cls(name, kind, key, row["conversations"], row["tokens"], finding, row["note"])

    @property
    def numbers(self) -> dict[str, Any]:
        """The trial for a script."""
        row = {key: value for key, value in asdict(self).items() if key != "finding"}
        return row | (self.finding.numbers if self.finding else {})

    def level(self, goal: Goal) -> float:
        """What a goal minimises; infinite if it was not measured."""
        value = None if self.finding is None else self.finding.level(goal).value
        return math.inf if value is None else value


@dataclass(frozen=True)
class Confirmation:
    """What the test part of a target says of the plan that was picked.

    Attributes:
        key: digest of the conversations that it keeps.
        name: the plan for a reader.
        network: the kind of models; None for n-grams.
        finding: None if no law could be fitted.
        choice: ln of the PPL ratio on the target per token, beyond random rules that drop as much.
        verdict: of the comparison, in sentences.
        budget: training tokens after which both corpora are compared; None if no law could be fitted.
    """

    key: str
    name: str
    network: str | None
    finding: Finding | None
    choice: Estimate
    verdict: str
    budget: int | None = None

    @classmethod
    def parse(cls, row: Mapping[str, Any]) -> Self:
        """A confirmation from JSON; a KeyError or TypeError if it is none."""
        finding = None if row["finding"] is None else Finding.parse(row["finding"])
        choice = Estimate.parse(row["choice"])
        return cls(row["key"], row["name"], row["network"], finding, choice, row["verdict"], row.get("budget"))

    @property
    def numbers(self) -> dict[str, Any]:
        """The confirmation for a script."""
        row = {key: getattr(self, key) for key in ("key", "name", "network", "verdict", "budget")}
        row |= level_numbers("choice", self.choice.value, self.choice.ends)
        return row | (self.finding.numbers if self.finding else {})


def best(trials: list[Trial], goal: Goal) -> Trial | None:
    """The best of the trials that were measured, the first of equal ones; None if none was."""
    measured = [one for one in trials if one.finding is not None]
    return min(measured, key=lambda one: one.level(goal), default=None)
