"""The one sentence of a comparison: what may be concluded, or that nothing may."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.compare.scored import Scored
from pipeline.report.parts import Check
from trainer.prepare.split import MIN_CONVERSATIONS
from trainer.scaling import Difference, Kind

Interval = tuple[float, float]
MINUS = "\N{MINUS SIGN}"
MIXED = "mixed"


@dataclass(frozen=True)
class Verdict:
    """What may be said.

    Attributes:
        sentence: one, for people.
        concludes: whether anything is concluded, about the exponent or the level.
        exponent: "steeper", "flatter", "mixed" where it is one on one test set and the other on another, or "" where
            nothing is concluded: of the second arm.
        level: "lower", "higher", "mixed" or "" alike: its PPL at the largest common budget.
    """

    sentence: str
    concludes: bool
    exponent: str = ""
    level: str = ""


def verdict(found: Sequence[Scored], names: tuple[str, str], lacks: str, checks: Sequence[Check]) -> Verdict:
    """What may be concluded, from intervals on all test sets alike.

    The exponent is said to differ where the 95 % interval of delta-alpha leaves out 0 on the same side on every test
    set, and no saturating law says the opposite; the level, where that of the PPL ratio at the largest common budget
    leaves out 1 so. Where intervals on all test sets leave it out, but on different sides, each corpus is better at
    other text, which is a finding too: "mixed".

    Args:
        found: both arms on each test set.
        names: of the arms.
        lacks: why the design is too small for any conclusion; empty where it is not.
        checks: those that failed forbid a conclusion.
    """
    failed = [one.name for one in checks if one.passed is False]
    indication = _indication(found, names)
    if lacks:
        return Verdict(f"Nothing is concluded, because {lacks}{indication}.", concludes=False)
    if failed:
        return Verdict(f"Nothing can be concluded, because a check failed: {', '.join(failed)}.", concludes=False)
    if found and all(map(_same, found)):
        return Verdict(f"No difference can be found: {_alike(names)}.", concludes=False)
    if few := too_few(found):
        return Verdict(f"Nothing can be concluded, {few}{indication}.", concludes=False)
    if missing := no_interval(found):
        return Verdict(f"Nothing can be concluded: {missing}.", concludes=False)
    exponent = _exponent(found)
    level = _agreed([_side(_ratio(one)) for one in found], ("lower", "higher"))
    said = "; ".join(filter(None, (_of_exponent(found, names, exponent), _of_level(found, names, level), _bend(found))))
    return Verdict(f"{said}.", bool(exponent or level), exponent, level)


def too_few(found: Sequence[Scored]) -> str:
    """Which test sets hold too little for an interval to be believed, as a part of a sentence; empty where none do."""
    few = [_few(one) for one in found if one.test.effective < MIN_CONVERSATIONS]  # what is bootstrapped are clusters
    return f"since a test set needs {MIN_CONVERSATIONS} conversations: {' and '.join(few)}" if few else ""


def no_interval(found: Sequence[Scored]) -> str:
    """On which test sets delta-alpha has no interval, as a part of a sentence; empty where it has one on all."""
    missing = [one.test.name for one in found if _alpha(one, "power") is None]
    if found and not missing:
        return ""
    return f"delta-alpha has no interval on {', '.join(missing) or 'any test set'}"


def _same(one: Scored) -> bool:
    """Whether the arms' trainings are the very same."""
    first, second = (points.ppl for points in list(one.points.values())[:2])
    return bool(np.array_equal(first, second))


def _alike(names: tuple[str, str]) -> str:
    return f"at these budgets {names[0]} and {names[1]} are the same text, and all their trainings the same"


def _few(one: Scored) -> str:
    """How few conversations a test set has, or says as much as."""
    count, distinct = one.test.conversations, one.test.distinct
    said = f"{one.test.name} has {count:,}"
    if distinct < count:
        said += f" in {distinct:,} cluster{'s' * (distinct > 1)} of near-duplicates"
    if distinct < MIN_CONVERSATIONS:
        return said
    return f"{said}, which for their lengths say as much as {int(one.test.effective)} alike"


def _alpha(one: Scored, kind: Kind) -> Interval | None:
    found = one.differences.get(kind)
    return None if found is None else found.delta_alpha_interval


def _ratio(one: Scored) -> Interval | None:
    return one.differences["power"].ln_ratio_interval


def _side(interval: Interval | None) -> int:
    """Which side of 0 an interval lies on; 0 where it holds 0, or is not there."""
    if interval is None or interval[0] <= 0 <= interval[1] or not all(map(math.isfinite, interval)):
        return 0
    return -1 if interval[1] < 0 else 1


def _agreed(sides: Sequence[int], words: tuple[str, str]) -> str:
    """The word for the side that all are on; "mixed" for both sides; empty where one is on none."""
    if not sides or 0 in sides:
        return ""
    if len(set(sides)) > 1:
        return MIXED
    return words[0] if sides[0] < 0 else words[1]


def _exponent(found: Sequence[Scored]) -> str:
    sides = [_side(_alpha(one, "power")) for one in found]
    against = [_side(_alpha(one, "saturating")) for one in found]
    if any(side and other == -side for side, other in zip(sides, against, strict=True)):
        return ""
    return _agreed(sides, ("steeper", "flatter"))


def _of_exponent(found: Sequence[Scored], names: tuple[str, str], exponent: str) -> str:
    first, second = names
    each = _each(found, lambda one: alpha_said(one.differences["power"]))
    if exponent:
        how = exponent
        if exponent == MIXED:
            words = {-1: "steeper", 1: "flatter"}
            how = " and ".join(f"{words[_side(_alpha(one, 'power'))]} on {one.test.name}" for one in found)
        return f"The exponent of {second} is {how} than that of {first}: delta-alpha is {each}"
    apart = [one.test.name for one in found if _side(_alpha(one, "power"))]
    if len(apart) == len(found):
        return f"Nothing can be concluded about the exponent, on which the laws disagree: delta-alpha is {each}"
    if apart:
        only = f"it differs on {', '.join(apart)} alone"
        return f"Nothing can be concluded about the exponent, since {only}: delta-alpha is {each}"
    return f"No difference of the exponents of {first} and {second} can be concluded: delta-alpha is {each}"


def _of_level(found: Sequence[Scored], names: tuple[str, str], level: str) -> str:
    first, second = names
    each = _each(found, lambda one: ratio_said(one.differences["power"]))
    at = f"at {found[0].differences['power'].budget:,.0f} tokens"
    if not level:
        return f"no difference of their PPL {at} can be concluded, where {second} lies {each} from {first}"
    worth = _each(found, lambda one: efficiency_said(one.differences["power"]))
    of_first = f"so that one of its tokens is worth {worth} of {first}'s"
    if level != MIXED:
        return f"{at} the PPL of {second} is {level}: {each}, {of_first}"
    better = {one.test.name: names[_side(_ratio(one)) < 0] for one in found}
    if all(test == f"{arm}-test" for test, arm in better.items()):
        who = "each corpus is the better one for its own kind of text"
    else:
        who = " and ".join(f"{arm} has the lower PPL on {test}" for test, arm in better.items())
    return f"{at} {who}: the PPL of {second} lies {each} from {first}'s, {of_first}"


def _bend(found: Sequence[Scored]) -> str:
    bent = [
        f"{arm} on {one.test.name}"
        for one in found
        for arm, held in one.held_out.items()
        if held.preferred == "saturating" and held.clear
    ]
    if not bent:
        return ""
    return f"alpha is the mean slope over these budgets, since the points bend ({', '.join(bent)})"


def _indication(found: Sequence[Scored], names: tuple[str, str]) -> str:
    """What the numbers look like, where nothing may be concluded from them."""
    there = [one for one in found if "power" in one.differences]
    if not there:
        return ""
    if all(map(_same, found)):
        return f" (and {_alike(names)})"
    each = _each(there, lambda one: alpha_said(one.differences["power"]))
    return f" (delta-alpha of {names[1]}, for what it is worth: {each})"


def _each(found: Sequence[Scored], said: Callable[[Scored], str]) -> str:
    return " and ".join(f"{said(one)} on {one.test.name}" for one in found)


def alpha_said(found: Difference) -> str:
    """Delta-alpha with its interval."""
    return signed(found.delta_alpha, ".4f") + _between(found.delta_alpha_interval, lambda x: signed(x, ".4f"))


def ratio_said(found: Difference) -> str:
    """How far PPL lies from the first arm's at the largest common budget, with its interval."""
    return change(found.ln_ratio) + _between(found.ln_ratio_interval, change)


def efficiency_said(found: Difference) -> str:
    """How many tokens of the first arm one of the second is worth, with its interval."""
    if found.efficiency is None:
        return "no known number"
    both = found.efficiency_interval
    said = [f"{both[0]:.2f} to {both[1]:.2f}"] if both else []
    said += ["extrapolated"] if found.extrapolates else []
    return f"{found.efficiency:.2f}" + (f" ({', '.join(said)})" if said else "")


def change(ln_ratio: float) -> str:
    """A ratio as a change in per cent."""
    return signed(100 * math.expm1(min(ln_ratio, 700.0)), ".1f") + "\N{NO-BREAK SPACE}%"


def signed(value: float, form: str) -> str:
    """A number with its sign, a real minus; 0 has none."""
    said = f"{value:+{form}}"
    return said.replace("-", MINUS) if said.strip("+-0.") else said[1:]


def _between(interval: Interval | None, said: Callable[[float], str]) -> str:
    return "" if interval is None else f" ({said(interval[0])} to {said(interval[1])})"
