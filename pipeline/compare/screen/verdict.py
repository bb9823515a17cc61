"""The verdict of a screen, and which corpus is better if each is read to its end."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl

from pipeline.compare.screen import Screened
from pipeline.compare.verdict import UNCLEAR, WORTH_KNOWING, Verdict, relative_change, verdict


def screen_verdict(screened: Screened, failed: Sequence[str], worth_knowing: float = WORTH_KNOWING) -> Verdict:
    """Conclude from a screen, whose interval has the spread of placebo rules in it."""
    advice = _advice(screened) if "power" in screened.primary.differences else ""
    found = verdict(
        *(screened.scored, screened.primary, screened.names),
        failed=failed,
        advice=advice,
        worth_knowing=worth_knowing,
        beside=screened.beside,
    )
    if found.answer == UNCLEAR and not found.sentence.startswith("Nothing can be told yet"):
        return found
    return replace(found, sentence=f"{found.sentence} {used_up_sentence(screened)}")


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


def _advice(screened: Screened) -> str:
    """What would narrow the interval: the advice for its largest part."""
    top = screened.primary.rows.filter(pl.col("tokens") == screened.screen.budgets[-1])
    both = [top.filter(pl.col("arm") == name)["nats"].to_numpy() for name in screened.names]
    seeds = len(both[0])
    orders = float(np.std(both[1] - both[0], ddof=1)) / math.sqrt(seeds)
    low, high = screened.difference.ln_ratio_interval or (0.0, 0.0)
    parts = {
        "random rules that drop as much differ by that much, and a larger corpus narrows it": max(
            (one.sd for one in screened.primary.placebos.values()), default=0.0
        ),
        f"the orders differ by that much, and more seeds narrow it (--seeds {4 * seeds})": orders,
        "a larger test set narrows it (--test-tokens)": math.sqrt(max(((high - low) / 4) ** 2 - orders**2, 0.0)),
    }
    return max(parts, key=lambda text: parts[text])
