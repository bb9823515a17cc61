"""The verdict of a comparison: one sentence on what may be concluded, or why nothing may."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.compare.scored import Scored
from pipeline.experiments.formats import delta_alpha, ppl_change, token_worth
from pipeline.report.parts import Check, Chip
from trainer.prepare.split import MIN_CONVERSATIONS
from trainer.scaling import Kind

Interval = tuple[float, float]
BETTER, WORSE, NONE, UNCLEAR = "better", "worse", "no difference", "cannot tell"
MIXED = "mixed"
"""Exponent, level or answer of a verdict if the test sets disagree on the direction of a significant difference."""


@dataclass(frozen=True)
class Verdict:
    """What may be concluded about the second arm.

    Attributes:
        sentence: the verdict for a reader.
        concludes: whether a difference of the exponent or of the level is concluded.
        exponent: "steeper", "flatter", "mixed", or "" if nothing is concluded about it.
        level: of its PPL at the largest common budget: "lower", "higher", "mixed", or "".
        answer: "better", "worse", "no difference", "mixed" or "cannot tell"; "" if a screen did not ask.
    """

    sentence: str
    concludes: bool
    exponent: str = ""
    level: str = ""
    answer: str = ""

    def chip(self) -> Chip:
        """The answer in a word or two."""
        answer = self.answer or {"lower": BETTER, "higher": WORSE}.get(self.level, self.level) or UNCLEAR
        moods: dict[str, Literal["good", "bad", "same"]] = {BETTER: "good", WORSE: "bad", NONE: "same"}
        return Chip(answer, moods.get(answer, "open"))


def verdict(scored: Sequence[Scored], names: tuple[str, str], lacks: str, checks: Sequence[Check]) -> Verdict:
    """Conclude from the intervals on all test sets; a failed check, or what the design `lacks`, forbids a conclusion.

    The exponents differ if the 95 % interval of delta alpha (the second exponent minus the first) excludes 0, on the
    same side, on every test set, and no saturating law contradicts it. The levels differ if the 95 % interval of the
    PPL ratio at the largest common budget excludes 1 in the same way. If the intervals of all test sets exclude it, but
    on different sides, each corpus is better on other text: the verdict is "mixed".
    """
    failed = [check.name for check in checks if check.passed is False]
    indication = _indication(scored, names)
    if lacks:
        return Verdict(f"Nothing is concluded, because {lacks}{indication}.", concludes=False)
    if failed:
        return Verdict(f"Nothing can be concluded, because a check failed: {', '.join(failed)}.", concludes=False)
    if scored and all(map(same, scored)):
        return Verdict(f"There is no difference: {_alike(names)}.", concludes=False)
    if few := too_few(scored):
        return Verdict(f"Nothing can be concluded, {few}{indication}.", concludes=False)
    if missing := no_interval(scored):
        return Verdict(f"Nothing can be concluded: {missing}.", concludes=False)
    exponent = _exponent(scored)
    level = _agreed([side(_ratio(one)) for one in scored], ("lower", "higher"))
    clauses = (_exponent_clause(scored, names, exponent), _level_clause(scored, names, level), _bend_clause(scored))
    return Verdict(f"{'; '.join(filter(None, clauses))}.", bool(exponent or level), exponent, level)


def too_few(scored: Sequence[Scored]) -> str:
    """Which test sets are too small for a bootstrap, as a clause; empty if none is."""
    few = [_few(one) for one in scored if one.test.effective < MIN_CONVERSATIONS]  # the bootstrap draws clusters
    return f"since a test set needs {MIN_CONVERSATIONS} conversations: {' and '.join(few)}" if few else ""


def no_interval(scored: Sequence[Scored]) -> str:
    """The test sets on which delta alpha has no interval, as a clause; empty if it has one on all."""
    missing = [one.test.name for one in scored if _alpha(one, "power") is None]
    if scored and not missing:
        return ""
    return f"delta alpha has no interval on {', '.join(missing) or 'any test set'}"


def same(one: Scored) -> bool:
    """Whether both arms have the same training runs."""
    first, second = (points.ppl for points in list(one.points.values())[:2])
    return bool(np.array_equal(first, second))


def _alike(names: tuple[str, str]) -> str:
    return f"at these budgets {names[0]} and {names[1]} are the same text, and all their training runs are the same"


def _few(one: Scored) -> str:
    count, distinct = one.test.conversations, one.test.distinct
    text = f"{one.test.name} has {count:,}"
    if distinct < count:
        text += f" in {distinct:,} cluster{'s' * (distinct > 1)} of near-duplicates"
    if distinct < MIN_CONVERSATIONS:
        return text
    return f"{text}, whose unequal lengths leave an effective sample size (Kish) of {int(one.test.effective)}"


def _alpha(one: Scored, kind: Kind) -> Interval | None:
    difference = one.differences.get(kind)
    return None if difference is None else difference.delta_alpha_interval


def _ratio(one: Scored) -> Interval | None:
    return one.differences["power"].ln_ratio_interval


def side(interval: Interval | None) -> int:
    """The sign of an interval that excludes 0; else 0."""
    if interval is None or interval[0] <= 0 <= interval[1] or not all(map(math.isfinite, interval)):
        return 0
    return -1 if interval[1] < 0 else 1


def _agreed(sides: Sequence[int], words: tuple[str, str]) -> str:
    """The word for the side of all intervals; "mixed" if they lie on both sides, empty if one holds 0."""
    if not sides or 0 in sides:
        return ""
    if len(set(sides)) > 1:
        return MIXED
    return words[0] if sides[0] < 0 else words[1]


def _exponent(scored: Sequence[Scored]) -> str:
    sides = [side(_alpha(one, "power")) for one in scored]
    others = [side(_alpha(one, "saturating")) for one in scored]
    if any(side and other == -side for side, other in zip(sides, others, strict=True)):
        return ""
    return _agreed(sides, ("steeper", "flatter"))


def _exponent_clause(scored: Sequence[Scored], names: tuple[str, str], exponent: str) -> str:
    first, second = names
    each = _each(scored, lambda one: delta_alpha(one.differences["power"]))
    if exponent == MIXED:
        words = {-1: "steeper", 1: "flatter"}
        exponent = " and ".join(f"{words[side(_alpha(one, 'power'))]} on {one.test.name}" for one in scored)
    if exponent:
        return f"The exponent of {second} is {exponent} than that of {first}: delta alpha is {each}"
    significant = [one.test.name for one in scored if side(_alpha(one, "power"))]
    if len(significant) == len(scored):
        return f"Nothing can be concluded about the exponent, on which the laws disagree: delta alpha is {each}"
    if significant:
        only = f"it differs on {', '.join(significant)} alone"
        return f"Nothing can be concluded about the exponent, since {only}: delta alpha is {each}"
    return f"No difference between the exponents of {first} and {second} can be concluded: delta alpha is {each}"


def _level_clause(scored: Sequence[Scored], names: tuple[str, str], level: str) -> str:
    first, second = names
    each = _each(scored, lambda one: ppl_change(one.differences["power"]))
    at = f"at {scored[0].differences['power'].budget:,.0f} tokens"
    if not level:
        return f"no difference in PPL {at} can be concluded: that of {second} differs by {each} from that of {first}"
    worth = _each(scored, lambda one: token_worth(one.differences["power"]))
    tokens = f"one token of {second} is worth {worth} of {first}"
    if level != MIXED:
        return f"{at} the PPL of {second} is {level}: {each}; {tokens}"
    better = {one.test.name: names[side(_ratio(one)) < 0] for one in scored}
    if all(test == f"{arm}-test" for test, arm in better.items()):
        who = "each corpus is better on its own kind of text"
    else:
        who = " and ".join(f"{arm} has the lower PPL on {test}" for test, arm in better.items())
    return f"{at} {who}: the PPL of {second} differs by {each} from that of {first}; {tokens}"


def _bend_clause(scored: Sequence[Scored]) -> str:
    bent = [
        f"{arm} on {one.test.name}"
        for one in scored
        for arm, held in one.laws.held_out.items()
        if held.preferred == "saturating" and held.clear
    ]
    if not bent:
        return ""
    return f"alpha is the mean slope over these budgets, because the points bend ({', '.join(bent)})"


def _indication(scored: Sequence[Scored], names: tuple[str, str]) -> str:
    """The estimates in brackets, for a verdict that concludes nothing from them."""
    fitted = [one for one in scored if "power" in one.differences]
    if not fitted:
        return ""
    if all(map(same, scored)):
        return f" (and {_alike(names)})"
    each = _each(fitted, lambda one: delta_alpha(one.differences["power"]))
    return f" (delta alpha of {names[1]}, not conclusive: {each})"


def _each(scored: Sequence[Scored], text: Callable[[Scored], str]) -> str:
    return " and ".join(f"{text(one)} on {one.test.name}" for one in scored)
