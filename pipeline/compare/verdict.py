"""The verdict of a comparison: which corpus is better per token, or how large a difference can be at most.

The level is the primary endpoint: the ratio of the perplexities on one test set, of replies if there are enough of
them, less the mean of random rules that drop as much. The exponent is secondary, and is
concluded from an interval of 97.5 %, because which corpus is better if used up is another secondary question.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.compare.scored import Scored
from pipeline.experiments.formats import change, delta_alpha, ppl_change, share, token_worth, with_interval
from pipeline.report.parts import Chip
from trainer.experiment.kinds import KINDS
from trainer.experiment.screen import Choice
from trainer.prepare.split import MIN_CONVERSATIONS
from trainer.scaling import Difference

Interval = tuple[float, float]
BETTER, WORSE, NONE, MIXED, UNCLEAR = "better", "worse", "no difference", "mixed", "cannot tell"
"""Answers; "mixed" if each corpus is better on another test set."""
RANDOM = "than with a random choice of as many tokens"
FROM_RANDOM = "from such a choice"
"""What the level beyond random rules is compared with, for a reader."""
WORTH_KNOWING = 0.005
"""Default of the smallest relative difference of perplexity that matters: a smaller one counts as none."""


@dataclass(frozen=True)
class Verdict:
    """What may be concluded about the second arm.

    Attributes:
        sentence: the verdict for a reader.
        concludes: whether a difference of the level or of the exponent is concluded.
        answer: about the level: "better", "worse", "no difference", "mixed" or "cannot tell".
        exponent: "steeper", "flatter", or "" if no difference is concluded.
        worth_knowing: the smallest relative difference that matters; "no difference" is none above it.
    """

    sentence: str
    concludes: bool
    answer: str = UNCLEAR
    exponent: str = ""
    worth_knowing: float = WORTH_KNOWING

    def chip(self) -> Chip:
        """The answer in a few words."""
        moods: dict[str, Literal["good", "bad", "same"]] = {BETTER: "good", WORSE: "bad", NONE: "same"}
        more = {BETTER: " per token", WORSE: " per token", NONE: f" above {self.worth_knowing:.1%}", UNCLEAR: " yet"}
        return Chip(self.answer + more.get(self.answer, ""), moods.get(self.answer, "open"))


def verdict(
    scored: Sequence[Scored],
    primary: Scored,
    names: tuple[str, str],
    lacks: str = "",
    failed: Sequence[str] = (),
    *,
    advice: str = "more seeds narrow it (--seeds)",
    worth_knowing: float = WORTH_KNOWING,
    beside: Scored | None = None,
) -> Verdict:
    """Conclude from the level on the primary test set, which bounds the effect in any case.

    The level is `Scored.choice`: less the mean of placebo rules, if rules chose the corpora. The second corpus is
    better if its interval is below 0, and worse if it is above. There is no difference if it is inside plus or minus
    `worth_knowing`. The answer is mixed if the intervals on the test sets exclude 0 on different sides. `lacks` is why
    the design allows no conclusion, `failed` are the checks that failed, and `advice` says what would narrow the
    interval. The sentence also gives the difference from the first corpus itself, and that on all messages,
    which is `beside`. If the primary test set is a target, the answer is about that alone, and a second sentence has
    the worth of a token there and the differences on the other test sets.
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
    ends = primary.choice.interval
    if ends is None or not all(map(math.isfinite, ends)):
        why = "; ".join(primary.notes) or f"the difference has no interval on {primary.test.name}"
        return Verdict(f"Nothing can be concluded: {why}.", concludes=False)
    difference = primary.differences["power"]
    low, high = (math.expm1(end) for end in ends)
    at, (first, second) = f"at {difference.budget:,.0f} tokens", names
    sides = {one.test.name: side(one.choice.interval) for one in scored if one.differences}
    what = "perplexity on replies" if primary.test.scope == "replies" else "perplexity"
    what += " of the target" if primary.test.of_target else ""
    than = RANDOM if primary.of_rules else f"than with {first}"
    bounds = f"{share(max(-low, 0))} lower and {share(max(high, 0))} higher {than}"
    if set(sides.values()) == {-1, 1} and not primary.test.of_target:
        answer = MIXED
        each = " and ".join(f"{'lower' if one < 0 else 'higher'} on {test}" for test, one in sides.items())
        text = f"Each corpus is better on other text: {at} the {what} with {second} is {each}"
    elif low > 0 or high < 0:
        answer = BETTER if high < 0 else WORSE
        found = relative_change(math.expm1(primary.choice.ln_ratio), (low, high))
        text = f"{second} is {answer} per token: {at} its {what} is {found}"
        text += f" {RANDOM}" if primary.of_rules else ""
    elif max(-low, high) < worth_knowing:
        answer = NONE
        text = f"There is no difference above {worth_knowing:.1%}: {at} the {what} with {second} is at most {bounds}"
    else:
        answer = UNCLEAR
        text = f"Nothing can be told yet: {at} the {what} with {second} is at most {bounds}; {advice}"
    text += _against(primary, first) + _on_everything(beside)
    strict = None if primary.strict is None else primary.strict.delta_alpha_interval
    exponent = {-1: "steeper", 0: "", 1: "flatter"}[side(strict)]
    alpha = delta_alpha(primary.strict or difference)
    if primary.strict is not None:
        alpha += f", an interval of {100 * primary.strict.level:.4g} %"
    about = f"Its exponent is {exponent}" if exponent else "The exponents cannot be told apart"
    concludes = answer in {BETTER, WORSE, MIXED} or bool(exponent)
    text += f". {about}: delta alpha {alpha}.{_for_target(primary, scored, names)}"
    return Verdict(text, concludes, answer, exponent, worth_knowing)


def _for_target(primary: Scored, scored: Sequence[Scored], names: tuple[str, str]) -> str:
    """The worth of a token for a target, and what it costs on the other test sets, as a sentence; else empty."""
    if not primary.test.of_target:
        return ""
    worth = token_worth(primary.differences["power"])
    others = [one for one in scored if not one.test.of_target and one.differences]
    costs = [f"{ppl_change(one.differences['power'])} on {one.test.name}" for one in others]
    cost = f"; its perplexity differs by {' and by '.join(costs)}" if costs else ""
    return f" For the target, a token of {names[1]} is worth {worth} of {names[0]}{cost}."


def _against(primary: Scored, first: str) -> str:
    """The difference from the first corpus itself, if the level is another one."""
    if not primary.of_rules:
        return ""
    return f"; against {first} it differs by {ppl_change(primary.differences['power'])}"


def _on_everything(beside: Scored | None) -> str:
    """The level on all messages, if the verdict is about replies."""
    if beside is None or not beside.differences:
        return ""
    level = with_interval(beside.choice.ln_ratio, beside.choice.interval, change)
    return f". On all messages, it differs by {level}{f' {FROM_RANDOM}' if beside.of_rules else ''}"


def decides(ends: Interval | None, worth_knowing: float) -> bool:
    """Whether an interval of the ln of the PPL ratio excludes 0, or differences above `worth_knowing`."""
    return side(ends) != 0 or (ends is not None and max(-math.expm1(ends[0]), math.expm1(ends[1])) < worth_knowing)


@dataclass(frozen=True, eq=False)
class NetworkFinding:
    """The difference that a network finds on the primary test set, by the power laws; None if it has none.

    `choice` is its level less the mean of placebo rules.
    """

    kind: str
    difference: Difference | None
    choice: Choice

    @property
    def label(self) -> str:
        """The network for a reader."""
        return KINDS[self.kind].label

    @property
    def side(self) -> int:
        """-1 if PPL is lower with the second corpus, 1 if it is higher, 0 if the interval of the choice contains 0."""
        return side(self.choice.interval)


def agreement(findings: Sequence[NetworkFinding], corpus: str) -> str:
    """Whether two or more networks agree about the level with a corpus, as a sentence.

    They agree if the intervals of all choices exclude 0 on the same side.
    """
    lower, higher, unclear = (_listed([one.label for one in findings if one.side == at]) for at in (-1, 1, 0))
    sides = " and ".join(f"{word} for {of}" for word, of in (("lower", lower), ("higher", higher)) if of)
    if not sides:
        return f"No network finds a difference: the interval of each ({unclear}) contains 0."
    start = "disagree" if lower and higher else "do not all conclude" if unclear else "agree"
    rest = f"; nothing can be told from {unclear}" if unclear else ""
    return f"The networks {start}: with {corpus} the perplexity is {sides}{rest}."


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


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
