"""The verdict of a comparison: which corpus is better per token, or how large a difference can be at most.

The level is the primary endpoint: the ratio of the perplexities on one test set. The exponent is secondary, and is
concluded from an interval of 97.5 %, because which corpus is better if used up is another secondary question.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.compare.scored import Scored
from pipeline.experiments.formats import PERCENT, delta_alpha, ppl_change
from pipeline.report.parts import Chip
from trainer.prepare.split import MIN_CONVERSATIONS

Interval = tuple[float, float]
BETTER, WORSE, NONE, MIXED, UNCLEAR = "better", "worse", "no difference", "mixed", "cannot tell"
"""Answers; "mixed" if each corpus is better on another test set."""
WORTH_KNOWING = 0.005
"""The smallest relative difference of perplexity that matters: a smaller one counts as none."""


@dataclass(frozen=True)
class Verdict:
    """What may be concluded about the second arm.

    Attributes:
        sentence: the verdict for a reader.
        concludes: whether a difference of the level or of the exponent is concluded.
        answer: about the level: "better", "worse", "no difference", "mixed" or "cannot tell".
        exponent: "steeper", "flatter", or "" if no difference is concluded.
    """

    sentence: str
    concludes: bool
    answer: str = UNCLEAR
    exponent: str = ""

    def chip(self) -> Chip:
        """The answer in a few words."""
        moods: dict[str, Literal["good", "bad", "same"]] = {BETTER: "good", WORSE: "bad", NONE: "same"}
        more = {BETTER: " per token", WORSE: " per token", NONE: f" above {WORTH_KNOWING:.1%}", UNCLEAR: " yet"}
        return Chip(self.answer + more.get(self.answer, ""), moods.get(self.answer, "open"))


def verdict(  # noqa: PLR0917  what a verdict is made of
    scored: Sequence[Scored],
    primary: Scored,
    names: tuple[str, str],
    ends: Interval | None,
    lacks: str = "",
    failed: Sequence[str] = (),
    advice: str = "more seeds narrow it (--seeds)",
) -> Verdict:
    """Conclude from the level on the primary test set, which bounds the effect in any case.

    The second corpus is better if the interval `ends` of the ln of the PPL ratio is below 0, and worse if it is above.
    There is no difference if it is inside `WORTH_KNOWING`. The answer is mixed if the intervals on the test sets
    exclude 0 on different sides. `lacks` is why the design allows no conclusion, `failed` are the checks that failed,
    and `advice` says what would narrow the interval.
    """
    if lacks:
        return Verdict(f"Nothing is concluded, because {lacks}{_indication(primary)}.", concludes=False)
    if failed:
        return Verdict(f"Nothing can be concluded, because a check failed: {', '.join(failed)}.", concludes=False)
    if same(primary):
        text = f"There is no difference: all models of {names[0]} and {names[1]} have read the same text."
        return Verdict(text, concludes=False, answer=NONE)
    if few := too_few([primary]):
        return Verdict(f"Nothing can be concluded, {few}{_indication(primary)}.", concludes=False)
    if ends is None or not all(map(math.isfinite, ends)):
        why = "; ".join(primary.notes) or f"the difference has no interval on {primary.test.name}"
        return Verdict(f"Nothing can be concluded: {why}.", concludes=False)
    difference = primary.differences["power"]
    low, high = (math.expm1(end) for end in ends)
    at, (first, second) = f"at {difference.budget:,.0f} tokens", names
    powers = {one.test.name: one.differences.get("power") for one in scored}
    sides = {test: side(power.ln_ratio_interval) for test, power in powers.items() if power}
    bounds = f"{share(max(-low, 0))} lower and {share(max(high, 0))} higher than with {first}"
    if set(sides.values()) == {-1, 1}:
        answer = MIXED
        each = " and ".join(f"{'lower' if one < 0 else 'higher'} on {test}" for test, one in sides.items())
        text = f"Each corpus is better on other text: {at} the perplexity with {second} is {each}"
    elif low > 0 or high < 0:
        answer = BETTER if high < 0 else WORSE
        change = relative_change(math.expm1(difference.ln_ratio), (low, high))
        text = f"{second} is {answer} per token: {at} its perplexity is {change}"
    elif max(-low, high) < WORTH_KNOWING:
        answer = NONE
        text = f"There is no difference above {WORTH_KNOWING:.1%}: {at} the perplexity with {second} is at most "
        text += bounds
    else:
        answer = UNCLEAR
        text = f"Nothing can be told yet: {at} the perplexity with {second} is at most {bounds}; {advice}"
    strict = None if primary.strict is None else primary.strict.delta_alpha_interval
    exponent = {-1: "steeper", 0: "", 1: "flatter"}[side(strict)]
    alpha = delta_alpha(difference)
    about = f"Its exponent is {exponent}" if exponent else "The exponents cannot be told apart"
    concludes = answer in {BETTER, WORSE, MIXED} or bool(exponent)
    return Verdict(f"{text}. {about}: delta alpha {alpha}.", concludes, answer, exponent)


def too_few(scored: Sequence[Scored]) -> str:
    """Which test sets are too small for a bootstrap, as a clause; empty if none is."""
    few = [_few(one) for one in scored if one.test.effective < MIN_CONVERSATIONS]  # the bootstrap draws clusters
    return f"since a test set needs {MIN_CONVERSATIONS} conversations: {' and '.join(few)}" if few else ""


def same(one: Scored) -> bool:
    """Whether both arms have the same models."""
    first, second = (points.ppl for points in list(one.points.values())[:2])
    return bool(np.array_equal(first, second))


def side(interval: Interval | None) -> int:
    """The sign of an interval that excludes 0; else 0."""
    if interval is None or interval[0] <= 0 <= interval[1] or not all(map(math.isfinite, interval)):
        return 0
    return -1 if interval[1] < 0 else 1


def share(value: float) -> str:
    """A share in per cent, without a sign."""
    return f"{100 * value:.2f}{PERCENT}"


def relative_change(value: float, ends: Interval) -> str:
    """A relative change and its interval in words."""
    low, high = sorted(abs(end) for end in ends)
    return f"{share(abs(value))} {'lower' if value < 0 else 'higher'} ({100 * low:.2f} to {share(high)})"


def _few(one: Scored) -> str:
    count, distinct = one.test.conversations, one.test.distinct
    text = f"{one.test.name} has {count:,}"
    if distinct < count:
        text += f" in {distinct:,} cluster{'s' * (distinct > 1)} of near-duplicates"
    if distinct < MIN_CONVERSATIONS:
        return text
    return f"{text}, whose unequal lengths leave an effective sample size (Kish) of {int(one.test.effective)}"


def _indication(one: Scored) -> str:
    """The estimates in brackets, for a verdict that concludes nothing from them."""
    power = one.differences.get("power")
    if power is None:
        return ""
    if same(one):
        return " (and all models have read the same text)"
    return f" (not conclusive: PPL {ppl_change(power)}, delta alpha {delta_alpha(power)})"
