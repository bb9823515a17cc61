"""Calibration of `refine compare`: two halves of a corpus must not differ, and a spoiled corpus must.

    python -m tests.bench.calibration [--times 104] [--workers 2]
    python -m tests.bench.calibration --house FOLDER        # the known effect alone, at the default size

A/A: each time 1,500 conversations of the embedded default are drawn and split into two random halves, which are
compared as `refine compare` does: split by clusters, vocabulary, embeddings, paired training runs, laws,
verdict. The output is how often the 95 % intervals of delta alpha contain 0, and how often a
verdict finds a difference.

On 2026-11-26: 92.8 % of 208 intervals of 104 comparisons (two test sets each) contain 0, 7.7 % of verdicts find a
difference.

Known effect: a corpus with 30 % copies, 20 % of its conversations with shuffled words, and boilerplate in all, against
its clean original.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import polars as pl

from pipeline.compare import design as designing
from pipeline.compare.command import UNTRAINED, conclude
from pipeline.compare.corpora import Pair, lineage_keys, unite
from pipeline.compare.data import leaks
from pipeline.compare.design import Design, Experiment
from pipeline.compare.result import Comparison
from pipeline.compare.scored import Scored
from pipeline.compare.screen import CONTROL_SEEDS
from pipeline.compare.verdict import Verdict
from pipeline.engine.local import Local
from pipeline.experiments import corpus as corpora
from pipeline.experiments.corpus import Corpus
from pipeline.experiments.formats import delta_alpha, ppl_change, token_worth
from trainer.experiment import screen as screening
from trainer.experiment.jobs import order_seed, run
from trainer.prepare import arms as arming
from trainer.prepare.arms import Union
from trainer.prepare.choices import Choices
from trainer.presets import HOUSE, Preset, Text

TINY = replace(
    HOUSE,
    name="tiny",
    about="very small, for calibration",
    text=Text(),
    shape=replace(HOUSE.shape, vocabulary=512, embedding=32, context=32, layers=2),
    phase1=replace(HOUSE.phase1, passes=3, least=2),
    phase2=replace(
        HOUSE.phase2, epochs=1, steps=110, batch=256, evaluations=6, rate=0.01, weight_decay=1.0, decay_tokens=0
    ),
    vocabulary=512,
    budgets=(1000, 2400, 5600, 13400, 32000),
)
"""A preset over 1.5 decades of tokens that takes half a second per training run; it reads plain text without roles."""
WANTED = Choices(test_tokens=24_000, validation_tokens=1_500)
"""Sizes of the sets: so many test tokens of the default have an effective size of 23 to 32; a verdict needs 20."""
SIZE = 1_500
"""Number of conversations that are split into halves."""
SEEDS = 3
PLACEBOS = 9
"""Number of random rules that a screen is compared with."""
BOILERPLATE = "As always, please remember to like, share and subscribe to our newsletter for more tips and offers."


@dataclass(frozen=True)
class Outcome:
    """The result of a comparison of two arms."""

    scored: tuple[Scored, ...]
    verdict: Verdict

    def holds(self) -> list[bool | None]:
        """Whether the interval of delta alpha contains 0 on each test set; None without an interval."""
        found = [one.differences["power"].delta_alpha_interval for one in self.scored]
        return [None if both is None else both[0] <= 0 <= both[1] for both in found]


def prepared(pair: Pair, folder: Path, preset: Preset, seeds: int, choices: Choices) -> Experiment:
    """The data, the n-gram models and the jobs of a comparison without baselines; the data lie in folder/data."""
    arms = arming.prepare(pair.union, preset, choices, folder / "data")
    texts = pair.union.frame["text"]
    trained = texts.gather(np.concatenate([arms.split.pool, arms.split.validation]))
    arms = replace(arms, leaks=leaks(trained, texts.gather(arms.split.test)))
    design = Design(preset.budgets, (seeds,) * len(preset.budgets), ())
    own = [(budget, order_seed(budget, seed)) for budget, seed in design.pairs]
    made = screening.screen(
        *(arms, pair.union, pair.names, design.budgets),
        seeds=CONTROL_SEEDS,
        imitated=[pair.names],
        placebos=PLACEBOS,
        own=own,
    )
    return Experiment(arms, design, design.jobs(arms, pair.names, "cpu"), folder, made)


def outcome(pair: Pair, experiment: Experiment, workers: int = 1) -> Outcome:
    """Do the training runs that are not in the experiment's folder yet, and conclude."""
    engine = Local(workers)
    try:
        run(experiment.runs, experiment.every(), engine.map, lambda _job, _record: None)
    finally:
        engine.close()
    empty = Comparison(pair, UNTRAINED, [], None, [], None, [], "", experiment.folder)
    found = conclude(empty, experiment)
    return Outcome(tuple(found.scored), found.verdict)


def compared(pair: Pair, preset: Preset = TINY, seeds: int = SEEDS, wanted: Choices = WANTED) -> Outcome:
    """A whole comparison in this process."""
    with tempfile.TemporaryDirectory(prefix="refine-calibration-") as scratch:
        return outcome(pair, prepared(pair, Path(scratch), preset, seeds, wanted))


def paired(first: pl.DataFrame, second: pl.DataFrame, names: tuple[str, str]) -> Pair:
    """Two frames as a pair of corpora; clusters are computed unless they are in the column `group`."""
    frame, members = unite(first, second)
    made = frame["group"].to_numpy() if "group" in frame.columns else corpora.groups(frame["text"])
    union = Union(frame, lineage_keys(frame, *members), made, dict(zip(names, members, strict=True)))
    read = {name: Corpus(name, name, one) for name, one in zip(names, (first, second), strict=True)}
    return Pair(read, None, union, ())


@lru_cache(maxsize=1)
def default() -> pl.DataFrame:
    """The embedded default, with its clusters as the column `group`."""
    frame = corpora.read(None).frame
    return frame.with_columns(group=pl.Series(corpora.groups(frame["text"])))


def halves(seed: int, size: int = SIZE) -> Pair:
    """Two random halves of some conversations; near-duplicates may be in both."""
    frame = default()
    rows = np.random.default_rng(seed).permutation(len(frame))[:size]
    return paired(frame[rows[: size // 2].tolist()], frame[rows[size // 2 :].tolist()], ("a", "b"))


def spoiled(clean: pl.DataFrame, seed: int = 0) -> pl.DataFrame:
    """A clean corpus with boilerplate in all conversations, 20 % with shuffled words, and 30 % copies."""
    rng = np.random.default_rng(seed)
    shuffled = set(rng.permutation(len(clean))[: len(clean) // 5].tolist())
    texts = [
        " ".join(rng.permutation(text.split()).tolist()) if i in shuffled else text
        for i, text in enumerate(clean["text"])
    ]
    made = clean.with_columns(text=pl.Series(f"{text}\n{BOILERPLATE}" for text in texts))
    copies = made.sample(int(len(made) * 0.3 / 0.7), with_replacement=True, seed=seed)
    number = pl.int_range(pl.len()).cast(pl.String)
    return pl.concat([made, copies.with_columns(id=pl.format("{}-copy-{}", "id", number))])


def one(name: str) -> tuple[list[bool | None], bool]:
    """An A/A comparison: `Outcome.holds`, and whether the verdict finds a difference."""
    found = compared(halves(int(name)))
    return found.holds(), found.verdict.concludes


def coverage(times: int, workers: int) -> None:
    """Print the coverage of A/A comparisons as they finish."""
    engine, holds, verdicts = Local(workers), list[bool](), list[bool]()
    try:
        for done, (_, (held, concludes)) in enumerate(engine.map(one, [str(i) for i in range(times)]), 1):
            holds += [each for each in held if each is not None]
            verdicts.append(concludes)
            if done % 10 == 0 or done == times:
                sys.stdout.write(
                    f"{done} comparisons: {np.mean(holds):.3f} of {len(holds)} intervals of delta alpha contain 0; "
                    f"{np.mean(verdicts):.3f} of verdicts find a difference\n"
                )
                sys.stdout.flush()
    finally:
        engine.close()


def known(seed: int = 0, size: int = 260, seeds: int = SEEDS) -> Outcome:
    """A spoiled corpus against its clean original, in conversations of 400 to 4,000 characters.

    Length, size and test tokens were chosen after seeing results: with an earlier split, conversations without a reply
    (44 % of the default) showed no difference on clean text. With these settings the clean corpus's PPL on clean text
    is lower by 4.1 % (2.8 % to 5.4 %), with two other seeds of the corpus by 4.5 % (1.7 % to 7.2 %) and 3.5 % (2.1 % to
    4.8 %), and on spoiled text higher by 12 % to 18 %. The interval of delta alpha always contains 0.
    """
    frame = default().drop("group").filter(pl.col("text").str.len_chars().is_between(400, 4000))
    rows = np.random.default_rng(seed).permutation(len(frame))[:size]
    clean = frame[rows.tolist()]
    wanted = replace(WANTED, test_tokens=12_000)
    return compared(paired(spoiled(clean, seed), clean, ("spoiled", "clean")), seeds=seeds, wanted=wanted)


def known_house(folder: Path, workers: int) -> Outcome:
    """The known effect with the networks, budgets and seeds of a default comparison, on 1,500 clean conversations.

    Training runs stay in the folder and are not repeated. The design was fixed before its numbers were seen. On
    2026-11-26: on clean-test PPL -13.4 % (-19.5 % to -6.7 %), a token worth 1.46 (1.17 to 1.82),
    delta alpha +0.0148 (-0.0591 to +0.0886); on spoiled-test PPL +11.5 % (+5.1 % to +18.4 %), a token worth 0.73 (0.63
    to 0.85), delta alpha +0.0138 (-0.0474 to +0.0750).
    """
    frame = default().drop("group")
    clean = frame[np.random.default_rng(0).permutation(len(frame))[:1500].tolist()]
    pair = paired(spoiled(clean), clean, ("spoiled", "clean"))
    preset = replace(HOUSE, budgets=designing.default_budgets(HOUSE))
    return outcome(pair, prepared(pair, folder, preset, SEEDS, Choices()), workers)


def lines(outcome: Outcome) -> Sequence[str]:
    """The difference on each test set, and the verdict."""
    found = [(each.test.name, each.differences["power"]) for each in outcome.scored]
    differences = [
        f"{name}: delta alpha {delta_alpha(one)}, PPL {ppl_change(one)}, a token is worth {token_worth(one)}"
        for name, one in found
    ]
    return [*differences, outcome.verdict.sentence]


def main() -> None:
    """Print both."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--times", type=int, default=104)
    asked.add_argument("--workers", type=int, default=2)
    asked.add_argument(
        "--house", type=Path, metavar="FOLDER", help="the known effect at the default size, in this folder"
    )
    given = asked.parse_args()
    if given.house:
        sys.stdout.write("\n".join((*lines(known_house(given.house, given.workers)), "")))
        return
    for seed in range(3):
        sys.stdout.write("\n".join((f"Known effect, seed {seed} of the corpus:", *lines(known(seed)), "", "")))
    sys.stdout.write("A/A:\n")
    coverage(given.times, given.workers)


if __name__ == "__main__":
    main()
