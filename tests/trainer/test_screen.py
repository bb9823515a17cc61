"""The screen: planted damage is found, copies count as in the corpus, placebo rules imitate the real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.experiments import corpus as corpora
from tests.bench.edits import edited
from trainer.experiment import screen as screening
from trainer.experiment.screen import Choice, Placebos, Screen
from trainer.prepare import arms as arming
from trainer.prepare.arms import Arms, ArmsError, Mask, Union, distinct
from trainer.prepare.choices import Choices
from trainer.presets import HOUSE
from trainer.scaling import Difference, difference

CHOICES = Choices(tokenizer="bpe:800", test_tokens=12_000, validation_tokens=1_000)
NAMES = ("clean", "spoiled")
Made = tuple[Arms, Union, Screen]


@pytest.fixture(scope="module")
def screened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """A clean corpus against itself with shuffled words in a fifth of it, or with 43 % of it copied."""
    clean = corpora.read(None, limit=1200).frame.filter(pl.col("text").str.len_chars().is_between(200, 6000))
    keys, groups = distinct(corpora.keys(clean["text"])), corpora.groups(clean["text"])
    rng = np.random.default_rng(0)
    made: dict[str, Made] = {}

    def of(damage: str) -> Made:
        if damage in made:
            return made[damage]
        rows = np.sort(rng.permutation(len(clean))[: int({"copies": 0.43, "shuffled": 0.2}[damage] * len(clean))])
        more = clean[rows.tolist()].with_columns(id=pl.format("{}-again", "id"))
        if damage == "shuffled":
            more = edited(more, lambda text: " ".join(rng.permutation(text.split())))
        frame = pl.concat([clean, more])
        second = np.ones(len(frame), np.bool_)
        second[rows] = damage == "copies"
        first = np.arange(len(frame)) < len(clean)
        both = np.concatenate([keys, keys[rows]])
        union = Union(
            frame,
            distinct(both) if damage == "copies" else both,
            np.concatenate([groups, groups[rows]]),
            {"clean": first, "spoiled": second},
        )
        arms = arming.prepare(union, HOUSE, CHOICES, tmp_path_factory.mktemp(damage) / "data", networks=False)
        budgets = screening.budgets_of(arms, NAMES)
        found = screening.screen(arms, union, NAMES, budgets, seeds=8, imitated=[NAMES], placebos=5, workers=2)
        made[damage] = arms, union, found
        return made[damage]

    return of


def _tested(arms: Arms) -> Mask:
    """All messages in clean test conversations."""
    return np.stack([arms.tests["clean"]] * 2)


def law(made: Made, *, apart: bool = False) -> Difference:
    """Spoiled against clean on clean test conversations."""
    arms, _, found = made
    clean, spoiled = (found.points(name, _tested(arms), apart=apart) for name in NAMES)
    return difference(clean, spoiled)


def level(made: Made, *, apart: bool = False) -> float:
    """The change of PPL at the largest budget."""
    return float(np.expm1(law(made, apart=apart).ln_ratio))


def test_copies_count_as_in_the_corpus(screened: Callable[[str], Made]) -> None:
    """30 % copies leave 30 % fewer tokens to learn from; apart, a small budget holds none of them."""
    made = screened("copies")
    arms, _, found = made
    rules = found.placebo(NAMES, _tested(arms))
    assert 0.02 < rules["random"].mean < rules["random"].effect, "random rules leave fewer copies too"
    assert Choice.of(0.1, None, rules).ln_ratio == 0.1 - rules["random"].mean
    assert found.unique["spoiled"] == found.unique["clean"]
    alpha = law(made).a.alpha
    lost = float(np.expm1(alpha * np.log(found.unique["spoiled"] / found.tokens["spoiled"])))
    assert level(made) == pytest.approx(lost, abs=0.06)
    assert abs(level(made, apart=True)) < 0.05


def test_shuffled_words_are_found_and_random_rules_are_not(screened: Callable[[str], Made]) -> None:
    """The interval of the damage excludes 0 with the spread of the placebo rules; theirs is around 0."""
    arms, _, found = screened("shuffled")
    damage, rules = law(screened("shuffled")), found.placebo(NAMES, _tested(arms))
    ends, choice = damage.ln_ratio_interval, Choice.of(damage.ln_ratio, damage.ln_ratio_interval, rules)
    assert ends is not None
    assert choice.interval is not None
    assert choice.ln_ratio == damage.ln_ratio, "neither corpus holds the other, so no rule chose"
    assert choice.interval[1] - choice.interval[0] > ends[1] - ends[0]
    assert choice.interval[0] > 0
    for one in rules.values():
        assert one.p == 1 / 6
        assert abs(one.mean) < one.effect / 2
    assert not found.apart


def test_a_random_rule_is_found_in_5_percent_of_the_cases() -> None:
    """By the interval and by the rank, whatever random rules do on the mean."""
    rng, found, ranks = np.random.default_rng(0), 0, 0
    for _ in range(4000):
        real, *effects = rng.normal(-0.015, 0.001, 20)
        one = Placebos(real, np.array(effects))
        ends = Choice.of(real, (real, real), {"random": one}).interval
        assert ends is not None
        found += ends[0] > 0 or ends[1] < 0
        ranks += one.p <= 0.05
    assert 0.04 < found / 4000 < 0.06
    assert 0.04 < ranks / 4000 < 0.06


def test_the_larger_of_two_clean_corpora_is_better_if_read_to_its_end(screened: Callable[[str], Made]) -> None:
    """Per token copies hurt; used up, both corpora hold the same, and the forecast says so within a few per cent."""
    arms, _, found = screened("copies")
    used = found.used_up(NAMES, _tested(arms))
    assert used.measured is not None
    assert used.best == (used.measured, used.measured_interval)
    assert abs(used.ln_ratio) < level(screened("copies")) / 2
    assert used.ln_ratio == pytest.approx(used.measured, abs=0.08)  # counts of copies mislead n-grams a little
    assert used.crossing == pytest.approx(found.tokens["clean"], rel=0.25)


def test_placebo_rules_drop_as_many_tokens_in_each_stratum() -> None:
    """Within a conversation's length, of random conversations; what both have stays in both elsewhere."""
    rng = np.random.default_rng(0)
    lengths, first, second = rng.integers(5, 50, 3000), rng.random(3000) < 0.9, rng.random(3000) < 0.8
    strata = screening.deciles(lengths)
    arms = screening.placebo_arms(first, second, lengths, 3)["of the same lengths"]
    for seed, (a, b) in enumerate(zip(arms[::2], arms[1::2], strict=True)):
        assert (a | b).sum() == (first | second).sum()
        for stratum in range(10):
            here = strata == stratum
            for real, random in ((first & ~second, a & ~b), (second & ~first, b & ~a)):
                wanted = lengths[real & here].sum()
                assert 0 <= wanted - lengths[random & here].sum() < 50
        assert (a & ~b & first & ~second).sum() < 0.5 * (first & ~second).sum(), seed


def test_the_number_of_workers_changes_nothing(screened: Callable[[str], Made]) -> None:
    """Every score is the same to the bit."""
    arms, union, found = screened("copies")
    again = screening.screen(arms, union, NAMES, found.budgets, seeds=8, imitated=[NAMES], placebos=5, workers=1)
    for name in NAMES:
        assert np.array_equal(found.nats[name], again.nats[name])
        assert np.array_equal(found.apart[name], again.apart[name])
        assert np.array_equal(found.whole[name], again.whole[name])
    for null in found.placebos[NAMES]:
        assert np.array_equal(found.placebos[NAMES][null], again.placebos[NAMES][null])


def test_pools_too_large_to_be_read_to_the_end_are_learned_in_part(
    screened: Callable[[str], Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ladders are the same; only the whole pools are not learned. Progress ends with all that is learned."""
    arms, union, found = screened("copies")
    monkeypatch.setattr(screening, "MAX_WHOLE", 1000)
    told: list[tuple[int, int]] = []
    again = screening.screen(arms, union, NAMES, found.budgets, seeds=2, tell=lambda *done: told.append(done))
    assert not again.whole
    assert sorted(told) == told
    assert len({total for _, total in told}) == 1
    assert told[-1][0] == told[-1][1]
    assert np.allclose(again.nats["clean"], found.nats["clean"][:2])
    assert again.used_up(NAMES, _tested(arms)).measured is None


def test_too_small_a_pool_is_refused(screened: Callable[[str], Made]) -> None:
    """With what it has and what it needs."""
    arms, _, _ = screened("copies")
    few = {name: np.arange(len(mask)) < 20 for name, mask in arms.pools.items()}
    from dataclasses import replace

    with pytest.raises(ArmsError, match="a screen needs at least 32,000: take a larger corpus"):
        screening.budgets_of(replace(arms, pools=few), NAMES)


def test_a_screen_never_loads_torch(tmp_path: Path) -> None:
    """It would take longer than the models."""
    import subprocess
    import sys

    code = "import sys, trainer.experiment.screen, trainer.prepare.arms; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=tmp_path.parent).returncode == 0
