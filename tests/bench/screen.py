"""How often the screen of `refine compare` is right: decisions between planted corpora, and between placebo rules.

    python -m tests.bench.screen decisions     twelve variants of a corpus, all pairs; about 4 minutes
    python -m tests.bench.screen placebos      400 random rules, of which none chooses; about 12 CPU minutes
    python -m tests.bench.screen laws          laws of n-gram models beyond the budgets they are fitted to; a minute
    python -m tests.bench.screen copies        what 30 % copies cost, and why; a minute

The corpus is the embedded default. Truth is a Kneser-Ney model of 500,000 tokens, ten times the largest budget of the
screen, or of the whole corpus, on clean test conversations. Pairs closer than 0.3 % are no decision.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import stats

from pipeline.compare.data import TEST_TOKENS
from pipeline.experiments import corpus as corpora
from tests.bench.edits import edited
from trainer.experiment import screen as screening
from trainer.experiment.screen import Choice, Null, Placebos, Screen
from trainer.prepare import arms as arming
from trainer.prepare.arms import Arms, Mask, Union, distinct
from trainer.prepare.choices import Choices
from trainer.prepare.streams import together
from trainer.presets import HOUSE
from trainer.scaling import Kind, Points, difference, fit
from trainer.scaling.spread import Interval

BUDGETS = tuple(50_000 // 2**i for i in reversed(range(6)))
TRUTH = 500_000
"""Tokens of the models that tell which corpus is better per token."""
CLOSE = 0.003
"""Difference of ln PPL below which a pair is no decision."""
RULES = 20
"""Random rules that are learned at a time: one, and as many placebo rules as a screen has."""
ORDERS = 12
"""Orders of each."""
DROPPED = 0.05
"""Share of the tokens that a placebo rule drops."""
TOP_BUDGETS = (25_000, 100_000)
LADDER = tuple(3125 * 2**i for i in range(9))
KINDS: tuple[Kind, ...] = ("power", "saturating")
CHARACTERS = 5_500_000
"""Characters of each variant, 1.2 million tokens; halves have half of it."""
CHOICES = Choices(test_tokens=TEST_TOKENS)
"""Those of a comparison."""
Edit = Callable[[str], str]
BOILERPLATE = "As always, please remember to like, share and subscribe to our newsletter for more tips and offers."


def variants(seed: int = 0) -> tuple[Union, dict[str, Mask]]:
    """The union of all variants, whose edited texts keep key and group of their originals, and the variants' masks."""
    rng = np.random.default_rng(seed)
    frame = corpora.read(None).frame.filter(pl.col("text").str.contains(r"\S"))
    keys, groups = distinct(corpora.keys(frame["text"])), corpora.groups(frame["text"])
    lengths = frame["text"].str.len_chars().to_numpy().astype(np.int64)
    order = rng.permutation(len(frame))
    good = order[(lengths[order] >= 200) & (lengths[order] <= 8000)]
    clean = _until(good, lengths, CHARACTERS)
    parts = [frame]
    rows: dict[str, NDArray[np.int64]] = {"clean": clean, "raw": _until(order, lengths, CHARACTERS)}
    origin = [np.arange(len(frame))]

    def add(
        name: str, kept: NDArray[np.int64], chosen: NDArray[np.int64], edit: Edit = _same, last: Edit = _same
    ) -> None:
        start = sum(map(len, parts))
        made = edited(frame[chosen.tolist()], edit, last)
        parts.append(made.with_columns(id=pl.format(f"{{}}-{name.replace(' ', '-')}", "id")))
        origin.append(chosen)
        rows[name] = np.concatenate([kept, np.arange(start, start + len(chosen))])

    core = _until(clean, lengths, int(0.7 * CHARACTERS))
    copied = rng.choice(core, int(0.43 * len(core)), replace=False)
    add("copies 30 %", core, copied)
    core = _until(clean, lengths, int(0.69 * CHARACTERS))
    copied = np.repeat(rng.choice(core, len(core) // 20, replace=False), 9)
    add("5 % copied 10 times", core, copied)
    for share in (0.2, 0.5):
        chosen = rng.permutation(clean)[: int(share * len(clean))]
        add(f"shuffled {share:.0%}", np.setdiff1d(clean, chosen), chosen, _shuffled(rng))
    none = np.empty(0, np.int64)
    add("boilerplate", none, clean, last=lambda text: f"{text}\n{BOILERPLATE}")
    for share in (0.02, 0.1):
        add(f"noise {share:.0%}", none, clean, partial(_noisy, share=share, rng=rng))
    add("cut to half", none, clean, lambda text: text[: len(text) // 2])
    rows["short half"] = clean[np.argsort(lengths[clean], kind="stable")[: len(clean) // 2]]
    rows["random half"] = _until(clean, lengths, CHARACTERS // 2)
    whole, source = pl.concat(parts), np.concatenate(origin)
    masks = {name: np.isin(np.arange(len(whole)), which) for name, which in rows.items()}
    every = keys[source]
    copies = np.isin(np.arange(len(whole)), np.concatenate([rows[name] for name in rows if "cop" in name]))
    every[copies] = distinct(every[copies])
    return Union(whole, every, groups[source], {"clean": masks["clean"]}), masks


def _same(text: str) -> str:
    return text


def _shuffled(rng: np.random.Generator) -> Edit:
    return lambda text: " ".join(rng.permutation(text.split()))


def _until(order: NDArray[np.int64], lengths: NDArray[np.int64], characters: int) -> NDArray[np.int64]:
    return order[: int(np.searchsorted(np.cumsum(lengths[order]), characters)) + 1]


def _noisy(text: str, share: float, rng: np.random.Generator) -> str:
    """The text with this share of its words replaced by random letters."""
    words = text.split(" ")
    for i in np.flatnonzero(rng.random(len(words)) < share):
        words[i] = "".join(map(chr, rng.integers(97, 123, max(len(words[i]), 1))))
    return " ".join(words)


def prepared(union: Union, masks: Mapping[str, Mask], folder: Path, test_tokens: int = TEST_TOKENS) -> Arms:
    """The data of all variants; the test set is drawn from the clean corpus."""
    arms = arming.prepare(union, HOUSE, Choices(test_tokens=test_tokens), folder, None, networks=False)
    return replace(
        arms,
        pools={name: mask[arms.split.pool] for name, mask in masks.items()},
        tests={name: mask[arms.split.test] for name, mask in masks.items()},
    )


def decisions(workers: int) -> None:
    """Print how often the screen decides as models of ten times its tokens, and of the whole corpora, do."""
    union, masks = variants()
    with tempfile.TemporaryDirectory(prefix="refine-decisions-") as scratch:
        arms = prepared(union, masks, Path(scratch) / "data", test_tokens=100_000)  # of corpora of 1.2 million tokens
        names = list(masks)
        short = screening.screen(arms, union, names, BUDGETS, seeds=12, workers=workers)
        enough = [name for name in names if short.tokens[name] > TRUTH]
        long = screening.screen(arms, union, enough, (TRUTH,), seeds=3, workers=workers)
    mask = np.stack([arms.tests["clean"]] * 2)
    size = short.targets[mask].sum()
    truth = {name: long.nats[name][:, -1][:, mask].sum(axis=1).mean() / size for name in enough}
    whole = {name: short.whole[name][mask].sum() / size for name in names}
    for name in names:
        ladder = np.exp(short.nats[name][..., mask].sum(axis=-1).mean(axis=0) / size)
        sys.stdout.write(
            f"{name:20} {short.tokens[name]:>9,} tokens, {short.unique[name]:>9,} unique; PPL "
            f"{' '.join(f'{one:7.1f}' for one in ladder)}  at {TRUTH:,}: {np.exp(truth.get(name, np.nan)):6.1f}"
            f"  whole: {np.exp(whole[name]):6.1f}\n"
        )
    points = {name: short.points(name, mask) for name in names}
    laws = {pair: difference(points[pair[0]], points[pair[1]]) for pair in itertools.combinations(names, 2)}
    _accuracy("per token", [(laws[a, b].ln_ratio, laws[a, b].ln_ratio_interval, truth[b] - truth[a])
                            for a, b in itertools.combinations(enough, 2)])  # fmt: skip
    for title, guess in _forecasts(short, mask).items():
        _accuracy(f"per corpus, {title}", [(*guess(a, b), whole[b] - whole[a])
                                           for a, b in itertools.combinations(names, 2)])  # fmt: skip


def _forecasts(short: Screen, mask: Mask) -> dict[str, Callable[[str, str], tuple[float, Interval | None]]]:
    """Forecasts of the difference of ln PPL between whole corpora, each with its interval."""

    def as_screen(a: str, b: str) -> tuple[float, Interval | None]:
        found = short.used_up((a, b), mask)
        return found.ln_ratio, found.interval

    def unique(a: str, b: str) -> tuple[float, None]:
        found = short.used_up((a, b), mask)
        copies = [np.log(short.unique[name] / short.tokens[name]) for name in (a, b)]
        return found.ln_ratio + found.alpha * float(copies[1] - copies[0]), None

    def size(a: str, b: str) -> tuple[float, None]:
        return -float(np.log(short.unique[b] / short.unique[a])), None

    return {"as the screen": as_screen, "by unique tokens": unique, "more unique tokens win": size}


def _accuracy(title: str, cases: list[tuple[float, tuple[float, float] | None, float]]) -> None:
    cases = [case for case in cases if abs(case[2]) > CLOSE]
    right = [np.sign(guess) == np.sign(true) for guess, _, true in cases]
    concluding = [
        np.sign(guess) == np.sign(true) for guess, ends, true in cases if ends is not None and ends[0] * ends[1] > 0
    ]
    error = np.array([guess - true for guess, _, true in cases])
    sys.stdout.write(
        f"{title}: right in {sum(right)} of {len(right)} pairs ({np.mean(right):.1%})"
        + (f", in {sum(concluding)} of {len(concluding)} that conclude" if concluding else "")
        + f"; error of ln PPL {error.mean():+.4f} (sd {error.std():.4f})\n"
    )


def placebos(times: int, workers: int) -> None:
    """Print how often random rules are found to choose, and to differ from one another, with their intervals.

    Each rule is compared with the raw corpus, as `refine compare` does; the other rules of `RULES` are its placebo
    rules. The exponent has none, so it is compared between neighbours.
    """
    frame = corpora.read(None).frame
    keys, groups = distinct(corpora.keys(frame["text"])), corpora.groups(frame["text"])
    union, levels, exponents = Union(frame, keys, groups, {"raw": np.ones(len(frame), np.bool_)}), [], []
    with tempfile.TemporaryDirectory(prefix="refine-placebos-") as scratch:
        arms = arming.prepare(union, HOUSE, CHOICES, Path(scratch) / "data", None, networks=False)
        lengths = arms.common.pool.lengths()
        for start in range(0, times, RULES):
            rules = {str(seed): _without_some(lengths, seed) for seed in range(start, min(start + RULES, times))}
            learned = replace(arms, pools={**arms.pools, **rules})
            found = screening.screen(learned, union, list(learned.pools), TOP_BUDGETS, seeds=ORDERS, workers=workers)
            replies = np.stack([np.zeros(len(found.targets[1]), np.bool_), found.targets[1] > 0])
            points = {name: found.points(name, replies) for name in learned.pools}
            laws = [difference(points["raw"], points[name]) for name in rules]
            effects = np.array([law.ln_ratio for law in laws])
            for i, law in enumerate(laws):
                others: dict[Null, Placebos] = {"random": Placebos(law.ln_ratio, np.delete(effects, i))}
                levels.append(_holds_zero(Choice.of(law.ln_ratio, law.ln_ratio_interval, others).interval))
            for first, second in zip(list(rules)[::2], list(rules)[1::2], strict=False):
                exponents.append(_holds_zero(difference(points[first], points[second]).delta_alpha_interval))
            sys.stdout.write(f"level {_rate(levels)}; exponent {_rate(exponents)}\n")
            sys.stdout.flush()


def laws(workers: int) -> None:
    """Print PPL by budget, the slope of each doubling, and errors of both laws at 2 and 4 times the budgets fitted."""
    frame = corpora.read(None).frame
    keys, groups = distinct(corpora.keys(frame["text"])), corpora.groups(frame["text"])
    union = Union(frame, keys, groups, {"raw": np.ones(len(frame), np.bool_)})
    with tempfile.TemporaryDirectory(prefix="refine-laws-") as scratch:
        arms = arming.prepare(union, HOUSE, CHOICES, Path(scratch) / "data", None, networks=False)
        found = screening.screen(arms, union, ["raw"], LADDER, workers=workers)
    y = found.nats["raw"].sum(axis=(-2, -1)) / found.targets.sum()
    slopes = np.diff(y.mean(axis=0)) / np.log(2)
    for budget, ln_ppl, slope in zip(LADDER[1:], y.mean(axis=0)[1:], slopes, strict=True):
        sys.stdout.write(f"{budget:,} tokens: PPL {np.exp(ln_ppl):.1f}, {slope:.3f} per doubling\n")
    for last in range(4, len(LADDER) - 2):
        part = slice(last - 4, last + 1)
        tokens = np.tile(np.array(LADDER[part], float), len(y))
        points = Points(tokens, np.exp(y[:, part].ravel()), np.repeat(np.arange(len(y)), 5))
        for kind in KINDS:
            law = fit(points, kind)
            errors = [np.expm1(law.ln_ppl(LADDER[at]).value - y[:, at].mean()) for at in (last + 1, last + 2)]
            sys.stdout.write(
                f"{kind} law of {LADDER[part][0]:,} to {LADDER[last]:,} tokens: {errors[0]:+.1%} at twice, "
                f"{errors[1]:+.1%} at four times\n"
            )


def copies(workers: int) -> None:
    """Print what 30 % copies cost at equal tokens, and its two parts: fewer unique tokens, and doubled counts."""
    clean = corpora.read(None).frame.filter(pl.col("text").str.contains(r"\S"))
    doubled = np.random.default_rng(0).permutation(len(clean))[: int(0.43 * len(clean))]
    frame = pl.concat([clean, clean[doubled.tolist()].with_columns(id=pl.format("{}-copy", "id"))])
    row = np.concatenate([np.arange(len(clean)), doubled])
    keys, groups = distinct(corpora.keys(frame["text"])), corpora.groups(clean["text"])[row]
    masks = {"copies": np.ones(len(frame), np.bool_), "unique": np.arange(len(frame)) < len(clean)}
    union = Union(frame, keys, groups, {"copies": masks["copies"]})
    for piece in (HOUSE.piece, None):
        with tempfile.TemporaryDirectory(prefix="refine-copies-") as scratch:
            preset = replace(HOUSE, piece=piece)
            arms = arming.prepare(union, preset, CHOICES, Path(scratch) / "data", None, networks=False)
            pool = arms.split.pool
            common = replace(
                arms.common, keys=together(keys[pool], groups[pool])
            )  # the prototype's whole conversations
            arms = replace(arms, common=common, pools={name: mask[pool] for name, mask in masks.items()})
            share = 1 - arms.tokens("unique") / arms.tokens("copies")
            budgets = (round((1 - share) * TOP_BUDGETS[-1]), TOP_BUDGETS[-1])
            found = screening.screen(arms, union, list(masks), budgets, workers=workers)
        size = found.targets.sum(axis=1)
        ln_ppl = {name: nats.sum(axis=-1) / size for name, nats in found.nats.items()}  # [orders, budgets, classes]
        less, doubling = (
            ln_ppl["unique"][:, 0] - ln_ppl["unique"][:, 1],
            ln_ppl["copies"][:, 1] - ln_ppl["unique"][:, 0],
        )
        apart = (found.apart["copies"] - found.apart["unique"])[:, 1].sum(axis=-1) / size
        sys.stdout.write(
            f"{'whole conversations' if piece is None else 'pieces'}, {share:.1%} of the tokens are copies\n"
        )
        for what, each in {
            f"copies against none at {budgets[1]:,} tokens": less + doubling,
            f"of this, {budgets[0]:,} in place of {budgets[1]:,} unique tokens": less,
            "of this, the same unique tokens with copies": doubling,
            "copies against none, copies apart from their originals": apart,
        }.items():
            ends = [f"{math.expm1(one.mean()):+.1%} (+- {_half(one):.1%})" for one in each.T[::-1]]
            sys.stdout.write(f"  {what}: {ends[0]} of PPL on replies, {ends[1]} on other messages\n")


def _half(values: NDArray[np.float64]) -> float:
    """Half of the 95 % t interval of a mean over orders."""
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def _without_some(lengths: NDArray[np.int64], seed: int) -> Mask:
    """A random rule, which drops 5 % of the tokens."""
    order = np.random.default_rng(seed).permutation(len(lengths))
    mask = np.ones(len(lengths), np.bool_)
    mask[order[np.cumsum(lengths[order]) <= DROPPED * lengths.sum()]] = False
    return mask


def _holds_zero(ends: Interval | None) -> bool:
    return ends is not None and ends[0] <= 0 <= ends[1]


def _rate(holds: list[bool]) -> str:
    wrong, n = len(holds) - sum(holds), len(holds)
    both = stats.binomtest(wrong, n).proportion_ci(method="exact")
    return f"differs in {wrong} of {n} ({wrong / n:.1%}, 95 % interval {both.low:.1%} to {both.high:.1%})"


def main() -> None:
    """Print one of the four."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("what", choices=["decisions", "placebos", "laws", "copies"])
    asked.add_argument("--times", type=int, default=400)
    asked.add_argument("--workers", type=int, default=2)
    given = asked.parse_args()
    if given.what == "decisions":
        decisions(given.workers)
    elif given.what == "laws":
        laws(given.workers)
    elif given.what == "copies":
        copies(given.workers)
    else:
        placebos(given.times, given.workers)


if __name__ == "__main__":
    main()
