"""The screen of a comparison: Kneser-Ney models in the place of networks, so that an answer takes a minute.

Both arms are learned in many orders, and so are placebo rules, which drop conversations at random. A network reads the
same pieces in the same orders, so what is odd about an order affects both alike (trainer/README.md). What only long
contexts show, n-grams do not see.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from trainer.counts.kneser_ney import Grams, KneserNey
from trainer.experiment.points import resample_scores
from trainer.prepare.arms import Arms, ArmsError, Mask, Union
from trainer.prepare.streams import Pieces, Rows, permutation
from trainer.scaling import Control, Points
from trainer.scaling.spread import Interval, Quantity

SEEDS = 24
"""Orders of each arm."""
PLACEBO_SEEDS = 12
"""Orders of each placebo rule."""
PLACEBOS = 19
"""Placebo rules of a kind: the least number by which a rank can be at the level of 5 %."""
MIN_PLACEBOS = 9
"""Placebo rules of a kind if there are many differences: enough for their spread, not for a rank."""
RUNGS = 6
"""Budgets, each twice the one before."""
TOP = 100_000
"""The largest budget in tokens, if each pool holds twice as much."""
MIN_TOP = 16_000
"""The smallest largest budget in tokens: below it the smallest budget is a few pieces."""
MAX_WHOLE = 16_000_000
"""Tokens of the training pools up to which whole corpora are learned too, with about 100 bytes of memory each."""
MIN_COPIES = 0.01
"""Share of copies in a pool from which a budget without its copies is measured too."""

Floats = NDArray[np.float64]
Null = Literal["random", "of the same lengths"]


@dataclass(frozen=True, eq=False)
class Placebos:
    """Differences of ln PPL, the second arm minus the first, by pairs of arms that drop as many tokens at random.

    `effects` [P] are those of the placebo rules, `effect` is that of the real arms in the same orders. Their mean is
    not 0 in a corpus with copies, since random rules leave fewer of them. `error` is the variance of that mean over
    orders, if it is compared with models of other orders; in the same orders it cancels. `of_rules` is whether both
    arms are parts of one corpus, so that rules chose them.
    """

    effect: float
    effects: Floats
    error: float = 0.0
    of_rules: bool = True

    @property
    def p(self) -> float:
        """Probability of an effect this far from the mean if the real rules dropped at random: by rank, two-sided."""
        return float(1 + self.as_far) / (len(self.effects) + 1)

    @property
    def as_far(self) -> int:
        """Number of placebo rules as far as the real ones from the mean of all, the real ones included."""
        mean = np.append(self.effects, self.effect).mean()
        return int(np.sum(np.abs(self.effects - mean) >= abs(self.effect - mean)))

    @property
    def mean(self) -> float:
        """Mean effect of the placebo rules."""
        return float(self.effects.mean())

    @property
    def sd(self) -> float:
        """Standard deviation of the effects of the placebo rules."""
        return float(self.effects.std(ddof=1))

    @property
    def variance(self) -> float:
        """Variance of another random rule around the mean of these."""
        return self.sd**2 * (1 + 1 / len(self.effects))


@dataclass(frozen=True)
class Choice:
    """What the choice of a rule did to ln PPL, beyond dropping as much: a difference less the mean of placebo rules.

    Between two corpora of which neither holds the other no rule chose, and random parts of both tell nothing of their
    mean: versions of one conversation are copies of each other in the union. Then no mean is taken off.

    Its interval contains that of the difference, over orders and test conversations, and in quadrature the spread of
    placebo rules and the error of their mean.
    """

    ln_ratio: float
    interval: Interval | None

    @classmethod
    def of(
        cls, ln_ratio: float, ends: Interval | None, placebos: Mapping[Null, Placebos], level: float = 0.95
    ) -> Choice:
        """The choice behind a difference with an interval of a level; without placebo rules, the difference itself.

        The mean is that of random conversations; the spread is that of the kind that spreads more.
        """
        if not placebos:
            return cls(ln_ratio, ends)
        taken_off, widest = placebos["random"], max(placebos.values(), key=lambda one: one.sd)
        mean, its_error = (taken_off.mean, taken_off.error) if taken_off.of_rules else (0.0, 0.0)
        value = ln_ratio - mean
        if ends is None:
            return cls(value, None)
        parts = (widest.variance, len(widest.effects) - 1), (its_error, PLACEBO_SEEDS - 1)
        spread, error = (stdtrit(left, (1 + level) / 2) * float(np.sqrt(part)) for part, left in parts)
        half = float(np.linalg.norm([(ends[1] - ends[0]) / 2, spread, error]))
        middle = (ends[0] + ends[1]) / 2 - mean
        return cls(value, (middle - half, middle + half))


@dataclass(frozen=True, eq=False)
class UsedUp:
    """The question which corpus to train on, if each is read to its end, whatever its size.

    Attributes:
        ln_ratio: ln(PPL of the second / PPL of the first), forecast: the difference at equal tokens, and the mean
            exponent of both arms times the difference of the ln of their tokens. Copies count on both sides: a budget
            holds as many of them as its corpus.
        interval: of it, at the level of 95 %.
        alpha: the mean exponent.
        crossing: the number of tokens of the first corpus that all of the second are worth.
        measured: ln_ratio of models of the whole training pools; None if they are too large.
        measured_interval: of it, over test conversations alone.
    """

    ln_ratio: float
    interval: Interval | None
    alpha: float
    crossing: float
    measured: float | None
    measured_interval: Interval | None

    @property
    def best(self) -> tuple[float, Interval | None]:
        """The measured ln_ratio with its interval, or else the forecast one."""
        if self.measured is None:
            return self.ln_ratio, self.interval
        return self.measured, self.measured_interval


@dataclass(frozen=True, eq=False)
class Screen:
    """The scores of all models: sums of nats by class (other text, replies) and test conversation, [2, K].

    `nats` [seeds, budgets, 2, K] and `whole` [2, K] are by arm; `whole` is empty if the pools are too large. `apart`
    are as `nats`, in orders that do not keep near-duplicates together; empty without copies. `placebos` are [P, 2,
    seeds, 2, K], the two arms at the largest budget, by the pair of arms that they imitate; `tokens` and `unique` are
    the tokens of each pool, with and without copies. `own` [n, 2, K] are by arm, the scores of models of the streams of
    n training runs. A mask of targets is [2, K], as are `targets` and `clusters`. `of_rules` is whether all arms are
    parts of one of them.
    """

    budgets: tuple[int, ...]
    nats: Mapping[str, Floats]
    whole: Mapping[str, Floats]
    apart: Mapping[str, Floats]
    placebos: Mapping[tuple[str, str], Mapping[Null, Floats]]
    targets: NDArray[np.int64]
    clusters: NDArray[np.int64]
    tokens: Mapping[str, int]
    unique: Mapping[str, int]
    own: Mapping[str, Floats] = field(default_factory=dict)
    of_rules: bool = True

    def differences(self, names: tuple[str, str], mask: Mask) -> Floats:
        """Differences of ln PPL, the second arm minus the first, by order and budget, float64 [seeds, budgets]."""
        first, second = (self.nats[name][..., mask].sum(axis=-1) for name in names)
        found: Floats = (second - first) / self.targets[mask].sum()
        return found

    def control(self, names: tuple[str, str], mask: Mask, budgets: Rows) -> Control:
        """A control variate for n training runs of these budgets, from the models of the same streams."""
        every = self.differences(names, mask)
        column = np.searchsorted(self.budgets, budgets)
        mean, variance = every.mean(axis=0)[column], every.var(axis=0, ddof=1)[column]
        first, second = (self.own[name][:, mask].sum(axis=1) for name in names)
        off = (second - first) / self.targets[mask].sum() - mean
        return Control(off, variance / len(every), np.maximum(variance, 1e-12))

    def points(self, arm: str, mask: Mask, *, apart: bool = False) -> Points:
        """Points of an arm's law on some of the targets, with the same resamples for all arms."""
        nats = (self.apart if apart else self.nats)[arm][..., mask]
        seeds, rungs = nats.shape[:2]
        flat = nats.reshape(seeds * rungs, -1)
        ppl = np.exp(flat.sum(axis=1) / self.targets[mask].sum())
        moved = resample_scores(flat, self.targets[mask], self.clusters[mask])
        return Points(np.tile(self.budgets, seeds).astype(float), ppl, np.repeat(np.arange(seeds), rungs), moved)

    def placebo(self, names: tuple[str, str], mask: Mask) -> dict[Null, Placebos]:
        """The real effect at the largest budget beside those of the placebo rules, by kind of placebo.

        With models of training runs (`own`), it is their difference that the rules are compared with.
        """
        size, found = self.targets[mask].sum(), {}
        for null, nats in self.placebos.get(names, {}).items():
            first, second = (self.nats[name][: nats.shape[2], -1][:, mask].sum(axis=1) for name in names)
            both = nats[..., mask].sum(axis=-1) / size
            effects = both[:, 1] - both[:, 0]
            error = float(effects.mean(axis=0).var(ddof=1)) / effects.shape[1] if self.own else 0.0
            effect = float((second - first).mean() / size)
            found[null] = Placebos(effect, effects.mean(axis=1), error, self.of_rules)
        return found

    def used_up(self, names: tuple[str, str], mask: Mask) -> UsedUp:
        """Both corpora at their own sizes."""
        first, second = (self._top_and_slope(self.points(name, mask)) for name in names)
        level = second[0] + first[0].times(-1.0)
        alpha = (first[1] + second[1]).times(0.5)
        sizes = [self.tokens[name] for name in names]
        forecast = level + alpha.times(float(np.log(sizes[1] / sizes[0])))
        crossing = sizes[1] * float(np.exp(np.clip(level.value / alpha.value, -50, 50)))
        measured, interval = None, None
        if self.whole:
            nats = np.stack([self.whole[name][mask] for name in names])
            ln_ppl = nats.sum(axis=1) / self.targets[mask].sum()
            measured = float(ln_ppl[1] - ln_ppl[0])
            moved = resample_scores(nats, self.targets[mask], self.clusters[mask])
            if moved is not None:
                low, high = np.quantile(moved[1] - moved[0], (0.025, 0.975))
                interval = float(low), float(high)
        return UsedUp(forecast.value, forecast.interval(0.95), alpha.value, crossing, measured, interval)

    def _top_and_slope(self, points: Points) -> tuple[Quantity, Quantity]:
        """Ln PPL at the largest budget, and the slope of ln PPL in ln tokens, of each seed."""
        x = np.log(np.array(self.budgets, float))
        weights = (np.eye(len(x))[-1], (x - x.mean()) / np.sum((x - x.mean()) ** 2))
        y = points.y.reshape(-1, len(x))
        moved = None if points.resampled is None else points.resampled.reshape(*y.shape, -1)
        top, slope = (
            Quantity(
                float((y @ one).mean()), y @ one, None, None if moved is None else np.einsum("t,stb->sb", one, moved)
            )
            for one in weights
        )
        return top, slope


def budgets_of(arms: Arms, names: Sequence[str]) -> tuple[int, ...]:
    """The budgets of a screen: `RUNGS` of them up to `TOP`, or to half of the smallest pool.

    Raises:
        ArmsError: the smallest pool is too small.
    """
    smallest = min(names, key=arms.tokens)
    top = min(TOP, arms.tokens(smallest) // 2)
    if top < MIN_TOP:
        raise ArmsError(
            f"the training pool of {smallest} has {arms.tokens(smallest):,} tokens, and a screen needs at least "
            f"{2 * MIN_TOP:,}: take a larger corpus"
        )
    return tuple(top // 2**i for i in reversed(range(RUNGS)))


def screen(
    arms: Arms,
    union: Union,
    names: Sequence[str],
    budgets: Sequence[int],
    *,
    seeds: int = SEEDS,
    imitated: Sequence[tuple[str, str]] = (),
    placebos: int = PLACEBOS,
    workers: int = 1,
    own: Sequence[tuple[int, int]] = (),
    scatter: bool = True,
    tell: Callable[[int, int], None] = lambda _done, _total: None,
) -> Screen:
    """Learn all arms in many orders, and placebo rules in the place of the differences of some pairs of arms.

    Args:
        arms: prepared data in the separated layout; no embeddings are needed.
        union: the conversations that they were prepared from.
        names: the arms.
        budgets: in tokens, ascending.
        seeds: number of orders.
        imitated: pairs of arms; placebo rules drop as much as the second lacks of the first, and the first of the
            second.
        placebos: number of placebo rules of each kind for each pair.
        workers: number of threads.
        own: budgets and order seeds of training runs, whose streams are learned too.
        scatter: whether orders that do not keep near-duplicates together are learned too, if there are copies.
        tell: is called with the number of pieces that are learned, and of all.
    """
    common, pool, rungs = arms.common, arms.common.pool, tuple(budgets)
    pieces, lengths = pool.pieces(arms.preset.piece), pool.lengths() + 1
    masks = {name: arms.pools[name] for name in names}
    tokens = {name: int(lengths[mask].sum()) for name, mask in masks.items()}
    unique = {name: _unique(lengths, union.groups[arms.split.pool], mask) for name, mask in masks.items()}
    orders = [pieces.order(common.keys, seed) for seed in range(seeds)]
    copies = scatter and any(unique[name] < (1 - MIN_COPIES) * tokens[name] for name in names)
    apart = [pieces.order(union.keys[arms.split.pool], seed) for seed in range(seeds if copies else 0)]
    first = partial(_first, pieces, tokens=rungs[-1])
    ladders = {name: [first(order, mask) for order in orders] for name, mask in masks.items()}
    scattered = {name: [first(order, mask) for order in apart] for name, mask in masks.items() if apart}
    dropped = {
        pair: {
            null: [first(order, mask) for mask in each for order in orders[:PLACEBO_SEEDS]]
            for null, each in placebo_arms(masks[pair[0]], masks[pair[1]], lengths, placebos).items()
        }
        for pair in imitated
    }
    streams = {
        name: [_first(pieces, pieces.order(common.keys, order), mask, budget) for budget, order in own]
        for name, mask in masks.items()
        if own
    }
    wholes = {name: np.flatnonzero(mask[pieces.rows]) for name, mask in masks.items()}
    used = np.arange(len(pieces.rows))
    of_arms = [*ladders.values(), *scattered.values(), *streams.values()]
    of_placebos = [each for of_pair in dropped.values() for each in of_pair.values()]
    chosen = [order for each in [*of_arms, *of_placebos] for order in each]
    if pool.tokens > MAX_WHOLE:
        used, wholes = np.unique(np.concatenate(chosen)), {}
    targets = common.test.target_counts()
    total = sum(map(len, (*chosen, *wholes.values())))
    learner = _Learner(Grams.of(pool, pieces.take(used), common.test), used, workers, lambda done: tell(done, total))
    return Screen(
        rungs,
        {name: learner.learn(each, rungs) for name, each in ladders.items()},
        {name: learner.learn([order], None)[0, 0] for name, order in wholes.items()},
        {name: learner.learn(each, rungs) for name, each in scattered.items()},
        {
            pair: {
                null: learner.learn(each, rungs[-1:])[:, -1].reshape(placebos, 2, -1, 2, len(common.test))
                for null, each in of_pair.items()
            }
            for pair, of_pair in dropped.items()
        },
        targets,
        np.broadcast_to(common.clusters, targets.shape),
        tokens,
        unique,
        {
            name: np.stack([learner.learn([order], (size,))[0, -1] for order, (size, _) in zip(each, own, strict=True)])
            for name, each in streams.items()
        },
        any(map(union.holds_all, union.members)),
    )


class _Learner:
    """Learns pieces in given orders in some threads; an order that is asked for twice is learned once."""

    def __init__(self, grams: Grams, used: Rows, workers: int, tell: Callable[[int], None]) -> None:
        self.grams, self.used, self.workers, self.tell = grams, used, workers, tell
        self.known: dict[tuple[bytes, int], Floats] = {}
        self.learned: list[int] = []  # pieces of each order; threads append to it

    def learn(self, orders: Sequence[Rows], budgets: tuple[int, ...] | None) -> Floats:
        """Nats of the test conversations at each budget, float64 [orders, budgets, 2, K]; None for the whole order.

        An order that was learned up to the same last budget may have more budgets.
        """
        last = 0 if budgets is None else budgets[-1]
        names = [(_digest(order), last) for order in orders]
        jobs = [job for job in dict(zip(names, orders, strict=True)).items() if job[0] not in self.known]
        self.learned.append(sum(map(len, orders)) - sum(len(order) for _, order in jobs))
        with ThreadPoolExecutor(self.workers) as pool:
            parts = [jobs[i :: self.workers] for i in range(self.workers)]
            for scores in pool.map(lambda part: self._each(part, budgets), parts):
                self.known |= scores
        count = 1 if budgets is None else len(budgets)
        return np.stack([self.known[name][-count:] for name in names])

    def _each(
        self, jobs: Sequence[tuple[tuple[bytes, int], Rows]], budgets: tuple[int, ...] | None
    ) -> dict[tuple[bytes, int], Floats]:
        if not jobs:
            return {}
        model, made = KneserNey(self.grams), {}
        for name, order in jobs:
            rows, before, scores = np.searchsorted(self.used, order), 0, []
            model.forget()
            for budget in budgets or (None,):
                stop = None if budget is None else budget - 1  # a budget of N ids has N - 1 targets
                model.learn(rows, before, stop)
                before = stop or 0
                scores.append(model.nats())
            made[name] = np.stack(scores)
            self.learned.append(len(order))
            self.tell(sum(self.learned))
        return made


def _digest(order: Rows) -> bytes:
    return hashlib.blake2b(order.tobytes(), digest_size=16).digest()


def _unique(lengths: Rows, groups: Rows, mask: Mask) -> int:
    """Tokens of an arm without copies: of each group of near-duplicates, those of the longest member."""
    longest = np.zeros(int(groups.max(initial=0)) + 1, np.int64)
    np.maximum.at(longest, groups[mask], lengths[mask])
    return int(longest.sum())


def deciles(lengths: Rows) -> Rows:
    """The decile of each length, from 0."""
    return np.searchsorted(np.quantile(lengths, np.arange(1, 10) / 10), lengths)


def placebo_arms(first: Mask, second: Mask, lengths: Rows, count: int) -> dict[Null, list[Mask]]:
    """Pairs of arms of random conversations, one arm after the other, that differ by as many tokens as two arms do.

    `count` pairs of each kind: of random conversations, and of random ones within each decile of the lengths.
    """
    strata: dict[Null, Rows] = {"random": np.zeros(len(lengths), np.int64), "of the same lengths": deciles(lengths)}
    return {
        null: [arm for seed in range(count) for arm in _placebo_pair(first, second, lengths, each, seed)]
        for null, each in strata.items()
    }


def _placebo_pair(first: Mask, second: Mask, lengths: Rows, strata: Rows, seed: int) -> tuple[Mask, Mask]:
    pair = first | second, first | second
    for only, arm in ((first & ~second, pair[1]), (second & ~first, pair[0])):
        free = np.flatnonzero(pair[0] & pair[1])
        order = free[permutation(-1 - seed, len(free))]
        for stratum in np.unique(strata[only]):
            rows = order[strata[order] == stratum]
            wanted = lengths[only & (strata == stratum)].sum()
            arm[rows[np.cumsum(lengths[rows]) <= wanted]] = False
    return pair


def _first(pieces: Pieces, order: Rows, mask: Mask, tokens: int) -> Rows:
    """The first pieces of an arm in an order that hold so many tokens."""
    count = 1 << 12
    while True:
        own = order[:count][mask[pieces.rows[order[:count]]]]
        ends = np.cumsum(pieces.sizes[own] + 1)
        if count >= len(order) or (len(ends) and ends[-1] >= tokens):
            return own[: int(np.searchsorted(ends, tokens)) + 1]
        count *= 2
