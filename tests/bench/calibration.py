"""Calibration of `refine compare`: a random rule must change nothing, and a spoiled corpus must differ.

    python -m tests.bench.calibration same [--times 104] [--workers 2] [--rows FILE]
    python -m tests.bench.calibration known [--house FOLDER]    # tiny networks, or those of a default comparison

Same: each time 600 chats of the embedded default are drawn, and compared with what a rule keeps that drops a fifth of
them at random, as `refine compare` does: split by clusters, vocabulary, embeddings, paired training runs, control
variate, placebo rules, verdict. The output is how often the 95 % interval of the level beyond random rules, and that of
delta alpha, excludes 0 on the primary test set, and how often a verdict finds a difference. A chat has a reply, and 400
to 4,000 characters, so that the replies of a small test set are an effective 20 conversations or more.

Known: a corpus with 30 % copies, 20 % of its conversations with shuffled words, and boilerplate in all, against
its clean original.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import polars as pl
from scipy import stats

from pipeline.compare import design as designing
from pipeline.compare.command import UNTRAINED, conclude
from pipeline.compare.corpora import Pair, lineage_keys, unite
from pipeline.compare.data import leaks
from pipeline.compare.design import Design, Experiment
from pipeline.compare.result import Comparison
from pipeline.compare.scored import Scored
from pipeline.compare.screen import CONTROL_SEEDS
from pipeline.compare.verdict import Verdict, side
from pipeline.engine.local import Local
from pipeline.experiments import corpus as corpora
from pipeline.experiments.corpus import Corpus
from pipeline.experiments.formats import delta_alpha, ppl_change, token_worth
from tests.bench.edits import edited
from trainer.experiment import screen as screening
from trainer.experiment.jobs import order_seed, run
from trainer.prepare import arms as arming
from trainer.prepare.arms import Union
from trainer.prepare.choices import Choices
from trainer.prepare.template import ROLE_CODES
from trainer.presets import HOUSE, Preset, Text

TINY = replace(
    HOUSE,
    name="tiny",
    about="very small, for calibration",
    text=Text(template="chat"),
    shape=replace(HOUSE.shape, vocabulary=512, embedding=32, context=32, layers=2),
    phase1=replace(HOUSE.phase1, passes=3, least=2),
    phase2=replace(
        HOUSE.phase2, epochs=1, steps=110, batch=256, evaluations=6, rate=0.01, weight_decay=1.0, decay_tokens=0
    ),
    vocabulary=512,
    budgets=(1000, 2400, 5600, 13400, 32000),
)
"""A preset over 1.5 decades of tokens that takes half a second per training run; it reads chats by their roles."""
WANTED = Choices(test_tokens=12_000, validation_tokens=1_500)
"""Sizes of the sets: the replies of so many test tokens have an effective size above 20, which a verdict needs."""
SIZE = 600
"""Number of chats that a random rule drops some of."""
DROPPED = 0.2
"""Share of the conversations that a random rule drops."""
SEEDS = 2
PLACEBOS = 9
"""Number of random rules that a screen is compared with."""
BOILERPLATE = "As always, please remember to like, share and subscribe to our newsletter for more tips and offers."


@dataclass(frozen=True)
class Outcome:
    """The result of a comparison of two arms."""

    scored: tuple[Scored, ...]
    primary: Scored
    verdict: Verdict

    def excludes(self) -> tuple[bool, bool]:
        """Whether the intervals of the level beyond random rules and of delta alpha exclude 0 on the primary set."""
        alpha = self.primary.differences["power"].delta_alpha_interval
        return side(self.primary.choice.interval) != 0, side(alpha) != 0


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
    assert found.primary is not None
    return Outcome(tuple(found.scored), found.primary, found.verdict)


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
def chats() -> pl.DataFrame:
    """The chats of the embedded default, with their clusters as the column `group`."""
    replied = pl.element().struct.field("role") == ROLE_CODES["assistant"]
    long_enough = pl.col("text").str.len_chars().is_between(400, 4000)
    frame = corpora.read(None).frame.filter(long_enough, pl.col("turns").list.eval(replied).list.any())
    return frame.with_columns(group=pl.Series(corpora.groups(frame["text"])))


def random_rule(seed: int, size: int = SIZE) -> Pair:
    """Some chats, and what a rule that drops `DROPPED` of them at random keeps."""
    frame = chats()
    rows = np.random.default_rng(seed).permutation(len(frame))[:size].tolist()
    return paired(frame[rows], frame[rows[int(DROPPED * size) :]], ("raw", "refined"))


def spoiled(clean: pl.DataFrame, seed: int = 0) -> pl.DataFrame:
    """A clean corpus with boilerplate in all conversations, 20 % with shuffled words, and 30 % copies."""
    rng = np.random.default_rng(seed)
    chosen = pl.Series(np.isin(np.arange(len(clean)), rng.permutation(len(clean))[: len(clean) // 5]))
    shuffled = edited(clean.filter(chosen), lambda text: " ".join(rng.permutation(text.split()).tolist()))
    made = pl.concat([clean.filter(~chosen), shuffled])
    made = edited(made, lambda text: text, last=lambda text: f"{text}\n{BOILERPLATE}")
    copies = made.sample(int(len(made) * 0.3 / 0.7), with_replacement=True, seed=seed)
    number = pl.int_range(pl.len()).cast(pl.String)
    return pl.concat([made, copies.with_columns(id=pl.format("{}-copy-{}", "id", number))])


RATES = "level", "delta_alpha", "verdict"
"""What may differ: the two intervals of `Outcome.excludes`, and the verdict."""


def one(name: str) -> dict[str, object]:
    """An A/A comparison: `Outcome.excludes`, whether the verdict finds a difference, whether it is about replies."""
    found = compared(random_rule(int(name)))
    differs = dict(zip(RATES, (*found.excludes(), found.verdict.concludes), strict=True))
    return {"seed": int(name), **differs, "replies": found.primary.test.scope == "replies"}


def coverage(times: int, workers: int, rows: Path | None) -> None:
    """Print the errors of A/A comparisons as they finish."""
    made = pl.read_csv(rows).to_dicts() if rows and rows.exists() else []
    engine, done = Local(workers), {each["seed"] for each in made}
    task = importlib.import_module("tests.bench.calibration").one  # workers cannot import it from __main__
    try:
        for _, found in engine.map(task, [str(seed) for seed in range(times) if seed not in done]):
            made.append(found)
            if rows:
                pl.DataFrame(made).sort("seed").write_csv(rows)
            text = "; ".join(f"{what} {rate([bool(each[what]) for each in made])}" for what in RATES)
            sys.stdout.write(f"{len(made)} comparisons, {sum(each['replies'] for each in made)} of replies: {text}\n")
            sys.stdout.flush()
    finally:
        engine.close()


def rate(wrong: list[bool]) -> str:
    """How often something differs that does not, with its Clopper-Pearson interval."""
    both = stats.binomtest(sum(wrong), len(wrong)).proportion_ci(method="exact")
    share = sum(wrong) / len(wrong)
    return f"differs in {sum(wrong)} ({share:.1%}, 95 % interval {both.low:.1%} to {both.high:.1%})"


def known(seed: int = 0, size: int = 260, seeds: int = SEEDS) -> Outcome:
    """A spoiled corpus against its clean original, in chats that end with a reply, which the boilerplate then follows.

    Size and test tokens were chosen after seeing results. On replies the clean corpus's PPL is 9.0 % (6.6 % to 11.3 %)
    lower on clean text, and 11 % (5 % to 18 %) higher on spoiled text.
    """
    frame = chats().drop("group").filter(pl.col("turns").list.last().struct.field("role") == ROLE_CODES["assistant"])
    rows = np.random.default_rng(seed).permutation(len(frame))[:size]
    clean = frame[rows.tolist()]
    return compared(paired(spoiled(clean, seed), clean, ("spoiled", "clean")), seeds=seeds)


def known_house(folder: Path, workers: int) -> Outcome:
    """The known effect with the networks, budgets and seeds of a default comparison, on 1,500 clean conversations.

    Training runs stay in the folder and are not repeated. The design was fixed before its numbers were seen. On
    2026-11-26: on clean-test PPL -13.4 % (-19.5 % to -6.7 %), a token worth 1.46 (1.17 to 1.82),
    delta alpha +0.0148 (-0.0591 to +0.0886); on spoiled-test PPL +11.5 % (+5.1 % to +18.4 %), a token worth 0.73 (0.63
    to 0.85), delta alpha +0.0138 (-0.0474 to +0.0750).
    """
    frame = corpora.read(None).frame
    clean = frame[np.random.default_rng(0).permutation(len(frame))[:1500].tolist()]
    pair = paired(spoiled(clean), clean, ("spoiled", "clean"))
    preset = replace(HOUSE, budgets=designing.default_budgets(HOUSE))
    return outcome(pair, prepared(pair, folder, preset, 3, Choices()), workers)


def lines(outcome: Outcome) -> Sequence[str]:
    """The difference on each test set, and the verdict."""
    found = [(each.test.name, each.differences["power"]) for each in outcome.scored]
    differences = [
        f"{name}: delta alpha {delta_alpha(one)}, PPL {ppl_change(one)}, a token is worth {token_worth(one)}"
        for name, one in found
    ]
    return [*differences, outcome.verdict.sentence]


def main() -> None:
    """Print one of the two."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("what", choices=["same", "known"])
    asked.add_argument("--times", type=int, default=104)
    asked.add_argument("--workers", type=int, default=2)
    asked.add_argument("--rows", type=Path, metavar="FILE", help="same: a CSV file that keeps the comparisons")
    asked.add_argument("--house", type=Path, metavar="FOLDER", help="known: at the default size, in this folder")
    given = asked.parse_args()
    if given.what == "same":
        coverage(given.times, given.workers, given.rows)
    elif given.house:
        sys.stdout.write("\n".join((*lines(known_house(given.house, given.workers)), "")))
    else:
        for seed in range(3):
            sys.stdout.write("\n".join((f"Seed {seed} of the corpus:", *lines(known(seed)), "", "")))


if __name__ == "__main__":
    main()
