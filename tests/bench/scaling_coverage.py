"""Coverage of the intervals of a scaling law: simulated training runs of two corpora with known laws.

    python -m tests.bench.scaling_coverage [--times 1000]

The ln PPL of a simulated run is the law's plus three effects: its seed (level and slope in ln tokens), noise that the
nested budgets of a seed share (correlation sqrt(n / N) between n and N > n tokens), and the test set, which is redrawn
for each experiment: each of its conversations has a level and a slope common to all seeds, and noise for each run.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

import numpy as np

from trainer.scaling import Kind, Points, difference
from trainer.scaling.curves import ln_curve
from trainer.scaling.points import Floats

PPL_AT_START = {"power": 900.0, "saturating": 700.0}


@dataclass(frozen=True)
class Design:
    """One experiment: corpus a has exponent `alpha`, b has `alpha + delta`; standard deviations are in ln PPL."""

    kind: Kind
    seeds: int
    budgets: int
    decades: float
    alpha: float = -0.35
    delta: float = -0.03
    floor: float = 0.0
    level: float = 0.02
    slope: float = 0.006
    noise: float = 0.01
    nested: bool = True
    shared: float = 0.5
    """Share of a seed's variance that is common to both corpora (order, weights)."""
    conversations: int = 0
    resamples: int = 100

    def says(self) -> str:
        """The design as a phrase."""
        law = f"{self.kind}, floor {self.floor:g}" if self.floor else self.kind
        seeds = f"{self.seeds} seeds" if self.seeds > 1 else "no seeds"
        test = f", {self.conversations} test conversations" if self.conversations else ""
        noise = f"{'nested ' if self.nested else ''}noise {self.noise:g}, slope sd {self.slope:g}"
        same = ", the same corpus twice" if not self.delta else ""
        return f"{law}{same}; {seeds}, {self.budgets} budgets, {self.decades:g} decades; {noise}{test}"


DESIGNS = (
    Design("power", 3, 5, 1.5),
    Design("power", 3, 7, 2.5, noise=0.03),
    Design("power", 5, 5, 1.5),
    Design("power", 5, 6, 2.0, slope=0.02),
    Design("power", 3, 5, 1.5, conversations=150),
    Design("power", 5, 6, 2.0, conversations=150),
    Design("power", 3, 5, 1.5, delta=0.0, conversations=150),
    Design("power", 1, 5, 1.5, slope=0.0, nested=False),
    Design("power", 1, 7, 2.5, slope=0.0, nested=False),
    Design("power", 1, 5, 1.5, slope=0.0),
    Design("power", 1, 6, 2.0),
    Design("saturating", 3, 5, 1.5, floor=60.0),
    Design("saturating", 3, 6, 2.0, floor=60.0),
    Design("saturating", 3, 6, 2.0, floor=15.0),
    Design("saturating", 5, 7, 2.5, floor=60.0),
    Design("saturating", 3, 6, 2.0, floor=60.0, conversations=150),
    Design("saturating", 1, 6, 2.0, floor=60.0, slope=0.0, nested=False),
    Design("saturating", 1, 6, 2.0, floor=60.0),
)


@dataclass(frozen=True)
class Coverage:
    """Shares of intervals that contain the truth, and the median half width of alpha's; `none` have no interval."""

    alpha: float
    delta: float
    half_width: float
    none: float


def simulated(design: Design, rng: np.random.Generator) -> tuple[Points, Points]:
    """One experiment: the points of corpus a and of corpus b."""
    x = np.linspace(np.log(1e4), np.log(1e4) + design.decades * np.log(10), design.budgets)
    common, kept = _of_seeds(design, x, rng), np.sqrt(design.shared)
    test = _of_test(design, x, rng)
    arms = []
    for alpha in (design.alpha, design.alpha + design.delta):
        ln_a = np.log(PPL_AT_START[design.kind]) - alpha * x[0]
        truth = ln_curve(np.array([ln_a, alpha, design.floor][: 3 if design.floor else 2]), x)
        clean = truth + kept * common + np.sqrt(1 - design.shared) * _of_seeds(design, x, rng)
        arms.append(_points(design, x, clean, _seen(design, test, rng)))
    return arms[0], arms[1]


def _of_seeds(design: Design, x: Floats, rng: np.random.Generator) -> Floats:
    """Effects of seeds on ln PPL [S, T]."""
    tokens, size = np.exp(x), (design.seeds, len(x))
    steps = rng.normal(size=size) * np.sqrt(np.diff(tokens, prepend=0.0))
    noise = steps.cumsum(axis=1) / np.sqrt(tokens) if design.nested else rng.normal(size=size)
    level, slope = rng.normal(0, (design.level, design.slope), (design.seeds, 2)).T
    made: Floats = design.noise * noise + level[:, None] + slope[:, None] * (x - x.mean())
    return made


def _of_test(design: Design, x: Floats, rng: np.random.Generator) -> Floats:
    """Effects of each test conversation on ln PPL [M, 1, T], common to all seeds."""
    level, slope = rng.normal(0, (0.4, 0.06), (design.conversations, 2)).T
    made: Floats = (level[:, None] + slope[:, None] * (x - x.mean()))[:, None]
    return made


def _seen(design: Design, test: Floats, rng: np.random.Generator) -> Floats:
    """Ln PPL of each run on each test conversation [M, S, T], including its noise."""
    return test + rng.normal(0, 0.08, (design.conversations, design.seeds, design.budgets))


def _points(design: Design, x: Floats, clean: Floats, seen: Floats) -> Points:
    seed = np.repeat(np.arange(design.seeds), len(x)) if design.seeds > 1 else None
    tokens = np.tile(np.exp(x), design.seeds)
    if not design.conversations:
        return Points(tokens, np.exp(clean.ravel()), seed)
    m = design.conversations
    draws = np.random.default_rng(7).multinomial(m, np.full(m, 1 / m), size=design.resamples) / m
    resampled = np.einsum("bm,mst->stb", draws, seen) + clean[..., None]
    y = clean + seen.mean(axis=0)
    return Points(tokens, np.exp(y.ravel()), seed, resampled.reshape(len(tokens), -1))


def coverage(design: Design, times: int, seed: int = 1, level: float = 0.95) -> Coverage:
    """How often the intervals contain the truth, in `times` experiments."""
    rng = np.random.default_rng(seed)
    holds: list[tuple[bool, bool]] = []
    widths = []
    for _ in range(times):
        found = difference(*simulated(design, rng), kind=design.kind, level=level)
        alpha, delta = found.a.alpha_interval, found.delta_alpha_interval
        if alpha is None or delta is None:
            continue
        holds.append((alpha[0] <= design.alpha <= alpha[1], delta[0] <= design.delta <= delta[1]))
        widths.append((alpha[1] - alpha[0]) / 2)
    of_alpha, of_delta = np.mean(holds, axis=0)
    return Coverage(float(of_alpha), float(of_delta), float(np.median(widths)), 1 - len(holds) / times)


def main() -> None:
    """Print the table."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument(
        "--times", type=int, default=1000, help="experiments a design; a third of them for saturating laws"
    )
    times = asked.parse_args().times
    sys.stdout.write("| design | experiments | alpha | delta alpha | half width of alpha |\n|---|---|---|---|---|\n")
    for design in DESIGNS:
        n = times if design.kind == "power" else max(times // 3, 1)
        found = coverage(design, n)
        row = f"{design.says()} | {n:,} | {found.alpha:.3f} | {found.delta:.3f} | {found.half_width:.4f}"
        sys.stdout.write(f"| {row} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
