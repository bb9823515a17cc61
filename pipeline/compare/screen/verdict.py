"""The verdict of a screen: which corpus is better, or how large a difference can be at most."""

import math
from collections.abc import Sequence

import numpy as np
import polars as pl

from pipeline.compare.checks import screen_checks
from pipeline.compare.corpora import Pair
from pipeline.compare.screen import Screened
from pipeline.compare.verdict import BETTER, MIXED, NONE, UNCLEAR, WORSE, Verdict, side, too_few
from pipeline.experiments.formats import PERCENT
from pipeline.report.parts import Check

WORTH_KNOWING = 0.005
"""The smallest relative difference of perplexity that matters: a smaller one counts as none."""
ALPHA = 0.05
"""Level of the placebo rules' rank."""


def conclude(pair: Pair, screened: Screened, run_checks: Sequence[Check] = ()) -> tuple[list[Check], Verdict]:
    """Check a finished screen and its run, and conclude."""
    checks = [*screen_checks(pair, screened.arms), *run_checks]
    return checks, verdict_of(screened, [one.name for one in checks if one.passed is False])


def verdict_of(screened: Screened, failed: Sequence[str]) -> Verdict:
    """Conclude from the level on the primary test set, which bounds the effect in any case.

    A corpus is better if the 95 % interval of the PPL ratio at the largest budget excludes 1, and the difference is
    larger than that of each placebo rule. There is no difference if the interval is inside `WORTH_KNOWING`.
    """
    if failed:
        return Verdict(f"Nothing can be concluded, because a check failed: {', '.join(failed)}.", concludes=False)
    if few := too_few([screened.primary]):
        return Verdict(f"Nothing can be concluded, {few}.", concludes=False, answer=UNCLEAR)
    if "power" not in screened.primary.differences or screened.difference.ln_ratio_interval is None:
        return Verdict(f"Nothing can be concluded: {'; '.join(screened.primary.notes)}.", concludes=False)
    first, second = screened.names
    difference, budget = screened.difference, f"at {screened.design.budgets[-1]:,} tokens"
    if difference.ln_ratio_interval == (0.0, 0.0):
        return Verdict(f"There is no difference: {first} and {second} are the same text.", concludes=False, answer=NONE)
    low, high = (math.expm1(end) for end in difference.ln_ratio_interval or (-math.inf, math.inf))
    value = math.expm1(difference.ln_ratio)
    sides = {one.test.name: side(one.differences["power"].ln_ratio_interval) for one in screened.scored}
    mixed = set(sides.values()) == {-1, 1}
    random = min((one.p for one in screened.placebos.values()), default=0.0)
    if mixed:
        answer = MIXED
        text = f"Each corpus is better on other text: {budget} the perplexity with {second} is " + " and ".join(
            f"{'lower' if one < 0 else 'higher'} on {test}" for test, one in sides.items()
        )
    elif (low > 0 or high < 0) and random <= ALPHA:
        answer = BETTER if high < 0 else WORSE
        text = f"{second} is {answer} per token: {budget} its perplexity is {relative_change(value, (low, high))}"
    elif max(-low, high) < WORTH_KNOWING:
        answer = NONE
        text = f"There is no difference above {WORTH_KNOWING:.1%}: {budget} the perplexity with {second} is at most "
        text += f"{share(max(-low, 0))} lower and {share(max(high, 0))} higher than with {first}"
    else:
        answer = UNCLEAR
        text = f"Nothing can be told yet: {budget} the perplexity with {second} is at most {share(max(-low, 0))} lower "
        text += f"and {share(max(high, 0))} higher than with {first}"
        if low > 0 or high < 0:
            text += ", which dropping as much at random may do too"
        else:
            text += f"; {_takes(screened)}"
    return Verdict(f"{text}. {used_up_sentence(screened)}", answer in {BETTER, WORSE, MIXED}, answer=answer)


def used_up_sentence(screened: Screened) -> str:
    """Which corpus is better if each is read to its end."""
    first, second = screened.names
    found, sizes = screened.used_up, screened.screen.unique
    known = found.measured is not None
    value = found.measured if found.measured is not None else found.ln_ratio
    ends = found.measured_interval if known else found.interval
    more = sizes[first] / sizes[second] - 1
    size = f"{first} has {abs(more):.1%} {'more' if more > 0 else 'fewer'} tokens without copies"
    if ends is None or ends[0] <= 0 <= ends[1]:
        return f"Read to their ends, the two cannot be told apart ({size})."
    change = relative_change(math.expm1(value), (math.expm1(ends[0]), math.expm1(ends[1])))
    return f"Read to its end, {second} is {'better' if value < 0 else 'worse'}: its perplexity is {change}, as {size}."


def _takes(screened: Screened) -> str:
    """What would narrow the interval."""
    points = next(iter(screened.primary.points.values()))
    if points.resampled is None:
        return "a larger test set is needed (--test-tokens)"
    seeds = screened.primary.rows.filter(pl.col("tokens") == screened.design.budgets[-1])
    both = [seeds.filter(pl.col("arm") == name)["nats"].to_numpy() for name in screened.names]
    spread = float(np.std(both[1] - both[0], ddof=1)) / math.sqrt(screened.design.seeds)
    ends = screened.difference.ln_ratio_interval or (0.0, 0.0)
    half = (ends[1] - ends[0]) / 2
    if 2 * spread > half / 2:
        return f"the orders differ by that much: more seeds narrow it (--seeds {4 * screened.design.seeds})"
    return "a larger test set narrows it (--test-tokens)"


def share(value: float) -> str:
    """A share in per cent, without a sign."""
    return f"{100 * value:.2f}{PERCENT}"


def relative_change(value: float, ends: tuple[float, float]) -> str:
    """A relative change and its interval in words."""
    low, high = sorted(abs(end) for end in ends)
    return f"{share(abs(value))} {'lower' if value < 0 else 'higher'} ({100 * low:.2f} to {share(high)})"
