"""The verdict of a screen: which corpus is better, or how large a difference can be at most."""

import math
from collections.abc import Sequence

import numpy as np
import polars as pl

from pipeline.compare.checks import screen_checks
from pipeline.compare.corpora import Pair
from pipeline.compare.screen import Screened
from pipeline.compare.verdict import BETTER, MIXED, NONE, UNCLEAR, WORSE, Verdict, same, side, too_few
from pipeline.experiments.formats import PERCENT
from pipeline.report.parts import Check

WORTH_KNOWING = 0.005
"""The smallest relative difference of perplexity that matters: a smaller one counts as none."""


def conclude(pair: Pair, screened: Screened, run_checks: Sequence[Check] = ()) -> tuple[list[Check], Verdict]:
    """Check a finished screen and its run, and conclude."""
    checks = [*screen_checks(pair, screened.arms), *run_checks]
    return checks, verdict_of(screened, [one.name for one in checks if one.passed is False])


def verdict_of(screened: Screened, failed: Sequence[str]) -> Verdict:
    """Conclude from the level on the primary test set, which bounds the effect in any case.

    A corpus is better if the 95 % interval of the PPL ratio at the largest budget, with the spread of placebo rules,
    excludes 1. There is no difference if the interval is inside `WORTH_KNOWING`.
    """
    if failed:
        return Verdict(f"Nothing can be concluded, because a check failed: {', '.join(failed)}.", concludes=False)
    if few := too_few([screened.primary]):
        return Verdict(f"Nothing can be concluded, {few}.", concludes=False, answer=UNCLEAR)
    if "power" not in screened.primary.differences or screened.difference.ln_ratio_interval is None:
        return Verdict(f"Nothing can be concluded: {'; '.join(screened.primary.notes)}.", concludes=False)
    first, second = screened.names
    difference, budget = screened.difference, f"at {screened.design.budgets[-1]:,} tokens"
    if same(screened.primary):
        return Verdict(f"There is no difference: {first} and {second} are the same text.", concludes=False, answer=NONE)
    low, high = (math.expm1(end) for end in screened.level_interval or (-math.inf, math.inf))
    value = math.expm1(difference.ln_ratio)
    sides = {one.test.name: side(one.differences["power"].ln_ratio_interval) for one in screened.scored}
    mixed = set(sides.values()) == {-1, 1}
    if mixed:
        answer = MIXED
        text = f"Each corpus is better on other text: {budget} the perplexity with {second} is " + " and ".join(
            f"{'lower' if one < 0 else 'higher'} on {test}" for test, one in sides.items()
        )
    elif low > 0 or high < 0:
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
        text += f"; {_takes(screened)}"
    return Verdict(f"{text}. {used_up_sentence(screened)}", answer in {BETTER, WORSE, MIXED}, answer=answer)


def used_up_sentence(screened: Screened) -> str:
    """Which corpus is better if each is read to its end."""
    first, second = screened.names
    found, tokens = screened.used_up, screened.screen.tokens
    value, ends = found.best
    sizes = f"{first} has {tokens[first]:,} training tokens, {second} {tokens[second]:,}"
    if ends is None or ends[0] <= 0 <= ends[1]:
        return f"Read to their ends, the two cannot be told apart ({sizes})."
    change = relative_change(math.expm1(value), (math.expm1(ends[0]), math.expm1(ends[1])))
    better = "better" if value < 0 else "worse"
    return f"Read to its end, {second} is {better}: its perplexity is {change}; {sizes}."


def _takes(screened: Screened) -> str:
    """What would narrow the interval: the advice for its largest part."""
    parts = {
        "random rules that drop as much differ by that much, and a larger corpus narrows it": max(
            (one.sd for one in screened.placebos.values()), default=0.0
        )
    }
    top = screened.primary.rows.filter(pl.col("tokens") == screened.design.budgets[-1])
    both = [top.filter(pl.col("arm") == name)["nats"].to_numpy() for name in screened.names]
    seeds = screened.design.seeds
    orders = float(np.std(both[1] - both[0], ddof=1)) / math.sqrt(seeds)
    parts[f"the orders differ by that much, and more seeds narrow it (--seeds {4 * seeds})"] = orders
    low, high = screened.difference.ln_ratio_interval or (0.0, 0.0)
    tests = math.sqrt(max(((high - low) / 4) ** 2 - orders**2, 0.0))
    parts["a larger test set narrows it (--test-tokens)"] = tests
    return max(parts, key=lambda text: parts[text])


def share(value: float) -> str:
    """A share in per cent, without a sign."""
    return f"{100 * value:.2f}{PERCENT}"


def relative_change(value: float, ends: tuple[float, float]) -> str:
    """A relative change and its interval in words."""
    low, high = sorted(abs(end) for end in ends)
    return f"{share(abs(value))} {'lower' if value < 0 else 'higher'} ({100 * low:.2f} to {share(high)})"
