"""Numbers, intervals and scaling laws as text: one rendering for every table, sentence and page."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from trainer.scaling import Difference, Law
from trainer.scaling.law import passes_through

MINUS = "\N{MINUS SIGN}"
PERCENT = "\N{NO-BREAK SPACE}%"
LAW_HEAD = ("law", "alpha", "A", "floor", "R2")
"""Heads of the columns of `law_cells`."""
DIFFERENCE_HEAD = ("law", "delta alpha", "delta ln A", "PPL differs by", "a token's worth")
"""Heads of the columns of `difference_cells`."""


def number(value: float) -> str:
    """A non-negative number in two decimals, none from 10,000, and three significant digits if it is tiny or huge."""
    if value and not 1e-3 <= value < 1e9:  # noqa: PLR2004
        return f"{value:.3g}"
    return f"{value:,.0f}" if value >= 1e4 else f"{value:,.2f}"  # noqa: PLR2004


def with_sign(value: float, digits: int) -> str:
    """A number with its sign and a typographic minus; zero has no sign."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", MINUS) if text.strip("+-0.") else text[1:]


def share(value: float) -> str:
    """A share in per cent; -0.0 is 0."""
    return f"{100 * value + 0.0:.2f}{PERCENT}"


def coverage(level: float) -> str:
    """The level of an interval, such as "95 %" or "99.9 %"."""
    return f"{100 * level:.3g} %"


def percent(value: float) -> str:
    """A relative change in per cent, with its sign."""
    return with_sign(100 * value, 1) + PERCENT


def exponent(alpha: float) -> str:
    """An exponent, or a difference of two."""
    return with_sign(alpha, 4)


def change(ln_ratio: float) -> str:
    """The logarithm of a ratio as a change in per cent."""
    return with_sign(100 * math.expm1(min(ln_ratio, 700.0)), 2) + PERCENT


def interval(ends: Sequence[float | None] | None, text: Callable[[float], str], unknown: str = "-") -> str:
    """An interval as "low to high"; `unknown` if an end is None."""
    if ends is None or ends[0] is None or ends[1] is None:
        return unknown
    return f"{text(ends[0])} to {text(ends[1])}"


def with_interval(value: float, ends: Sequence[float | None] | None, text: Callable[[float], str]) -> str:
    """A value, followed by its interval in brackets if it has one."""
    both = interval(ends, text, "")
    return f"{text(value)} ({both})" if both else text(value)


def law_cells(law: Law) -> tuple[str, ...]:
    """A law as a row of a table, with its intervals; see `LAW_HEAD`."""
    trivial = " (trivial)" if passes_through(law.points, law.spread.theta) else ""
    return (
        law.kind,
        with_interval(law.alpha, law.alpha_interval, exponent),
        with_interval(law.ln_A, law.ln_A_interval, _level),
        with_interval(law.floor, law.floor_interval, number) if law.kind == "saturating" else "-",
        "-" if law.r2 is None else f"{law.r2:.4f}{trivial}",
    )


def _level(ln_A: float) -> str:  # noqa: N803  as the law has it
    value = math.exp(min(ln_A, 700.0))
    return f"{value:,.0f}" if 100 <= value < 1e9 else number(value)  # noqa: PLR2004


def difference_cells(difference: Difference) -> tuple[str, ...]:
    """A difference of two laws as a row of a table, with its intervals; see `DIFFERENCE_HEAD`."""
    return (
        difference.kind,
        delta_alpha(difference),
        with_interval(difference.delta_ln_A, difference.delta_ln_A_interval, lambda value: with_sign(value, 3)),
        ppl_change(difference),
        token_worth(difference),
    )


def delta_alpha(difference: Difference) -> str:
    """The difference of the exponents with its interval."""
    return with_interval(difference.delta_alpha, difference.delta_alpha_interval, exponent)


def ppl_change(difference: Difference) -> str:
    """The change of PPL from the first corpus to the second at the largest common budget, with its interval."""
    return with_interval(difference.ln_ratio, difference.ln_ratio_interval, change)


def token_worth(difference: Difference) -> str:
    """How many tokens of the first corpus one token of the second is worth, with its interval."""
    value, brackets = token_worth_parts(difference)
    return f"{value} ({brackets})" if brackets else value


def token_worth_parts(difference: Difference) -> tuple[str, str]:
    """The parts of `token_worth`: the value, and its interval with a mark if it is extrapolated."""
    if difference.efficiency is None:
        return "unknown", ""
    more = [
        interval(difference.efficiency_interval, "{:.2f}".format, ""),
        "extrapolated" if difference.extrapolates else "",
    ]
    return f"{difference.efficiency:.2f}", ", ".join(filter(None, more))


def finite(value: Any) -> Any:  # noqa: ANN401  anything that becomes JSON
    """A value as JSON holds it: a number that is not finite becomes null."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
