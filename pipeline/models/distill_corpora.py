"""`refine distill TEACHER raw refined`: which corpus gives the better students, by the test sets of a comparison."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from pipeline import VERSION
from pipeline.compare import corpora, data, scored
from pipeline.compare.command import pair_name
from pipeline.compare.corpora import Pair
from pipeline.compare.data import TrainingOptions, folder_word
from pipeline.compare.design import LEVEL
from pipeline.compare.scored import TestSet
from pipeline.compare.verdict import BETTER, NONE, UNCLEAR, WORSE, WORTH_KNOWING, relative_change
from pipeline.experiments.formats import finite, share
from pipeline.experiments.train import EXPERIMENTS, check_device
from pipeline.models import distill as distilling
from pipeline.models.apply import Texts
from pipeline.models.distill import Course, Distilled, DistillOptions
from pipeline.models.extract import KEY, RECORD
from pipeline.models.work import text_set
from pipeline.ownership import check_experiment, experiment_claimed
from pipeline.terminal import console, safe, say, table
from stages.files import save, save_json
from trainer.experiment.points import resample_scores
from trainer.experiment.records import scores
from trainer.prepare import streams, vocabulary
from trainer.prepare.arms import Arms
from trainer.prepare.split import MIN_CONVERSATIONS
from trainer.scaling.spread import half_width

STUDENTS = "students"
"""Folder of the students, one for each corpus and seed."""
SEEDS = 3
"""Default number of students of each corpus."""
Nats = NDArray[np.float64]


@dataclass(frozen=True)
class CorporaDistilled:
    """The outcome of `distill_corpora`.

    Attributes:
        corpora: names of both.
        student: kind of the students.
        tokens: training tokens of each student.
        seeds: number of students of each corpus.
        passes: over the texts of each corpus.
        test: the test set that the answer is about, and what of it is scored: "replies" or "everything".
        conversations: of the test set.
        effective: effective sample size in clusters of near-duplicates.
        nats: per token of the comparison's tokenizer, by corpus and seed.
        ln_ratio: ln of the ratio of perplexities, the second corpus to the first; below 0 the second is better.
        interval: of that, over seeds and test conversations; None for one seed.
        answer: "better", "worse", "no difference" or "cannot tell", about the second corpus.
        sentence: the answer for a reader.
        notes: for a reader.
        folder: where the students are.
    """

    corpora: tuple[str, str]
    student: str
    tokens: int
    seeds: int
    passes: dict[str, float]
    test: tuple[str, str]
    conversations: int
    effective: float
    nats: dict[str, list[float]]
    ln_ratio: float
    interval: tuple[float, float] | None
    answer: str
    sentence: str
    notes: tuple[str, ...]
    folder: str


def distill_on(
    options: DistillOptions, sources: Sequence[str], run: Path | None, seeds: int | None, command: str
) -> Distilled | CorporaDistilled:
    """Distil on one corpus, or on two to find out which is better.

    Raises:
        DistillError: neither one nor two corpora are named, or an option is for the other case.
    """
    from trainer.distill.student import DistillError

    if len(sources) not in {1, 2}:
        raise DistillError(f"there are {len(sources)} corpora to distil on: name one or two")
    if seeds is not None and seeds < 1:
        raise DistillError(f"--seeds is {seeds}, expected at least 1")
    if len(sources) == 1:
        if run is not None:
            raise DistillError("--run names the run of raw and refined, and one corpus is named: name both")
        if seeds is not None:
            raise DistillError("--seeds is for two corpora, and one is named: omit it, or name both")
        return distilling.distill(options, command)
    if options.compare or options.score is not None:
        raise DistillError("--compare and --score are for one corpus, and two are named: omit them")
    return distill_corpora(options, sources[1], run, SEEDS if seeds is None else seeds, command)


def distill_corpora(
    options: DistillOptions, second: str, run: Path | None = None, seeds: int = SEEDS, command: str = ""
) -> CorporaDistilled:
    """Distil a teacher on two corpora, `options.source` and `second`, at equal tokens and seeds, and compare them.

    The split, the test sets and the check for leaks are those of `refine compare`. Finished students are kept.

    Raises:
        TrainerError: a model, an option or a corpus does not serve, or a test conversation leaks.
        RunFolderError, SourceError: a folder or a corpus cannot be read.
    """
    from trainer.distill import student as building
    from trainer.distill import training

    stages = training.check_stages(options.stages)
    check_device(options.device)
    teacher, student = distilling.load_pair(options, stages)
    pair = corpora.pair(options.source, second, run, options.limit, grouped=True)
    settings = distilling.settings_of(options, teacher, stages)
    context = teacher.context(options.context)
    out = options.out or EXPERIMENTS / f"{folder_word(Path(options.teacher).name)}-on-{pair_name(pair)}"
    check_experiment(out, "--out")
    digest = "+".join(pair.digests)
    origin = distilling.origin_of(options, settings, teacher, digest, context)
    distilling.check_same(out, origin)
    with experiment_claimed(out, origin, "--out") as folder:
        arms = data.arms(pair.union, TrainingOptions(screen=True), folder)
        words = vocabulary.load(arms.common.folder / "tokenizer.json")
        test = text_set("test set", streams.decode(arms.common.test, words), arms.common.clusters)
        passes = dict[str, float]()
        for name in pair.names:
            pool, validation = (
                streams.decode(stream.take(np.flatnonzero(pair.union.members[name][rows])), words)
                for stream, rows in (
                    (arms.common.pool, arms.split.pool),
                    (arms.common.validation, arms.split.validation),
                )
            )
            texts = Texts(pool, validation, test)
            pieces = training.Texts(*(training.pieces(teacher, one, context) for one in (pool, validation)))
            for seed in range(seeds):
                place = folder / STUDENTS / f"{folder_word(name)}-{seed}"
                own = replace(settings, seed=options.seed + seed)
                passes[name] = own.tokens / pieces.tokens
                student = building.build(teacher, options.student, own.seed)
                _learn(Course(place, teacher, student, texts, pieces, own), f"{name}, seed {own.seed}")
        made = compare_students(pair, arms, folder, seeds)
        notes = (*pair.notes, *teacher.notes(), *_passes(passes))
        made = replace(made, student=student.kind, tokens=settings.tokens, passes=passes, notes=notes)
        save_json(folder / RECORD, finite({KEY: VERSION, "command": command, **asdict(made)}))
    return made


def _learn(course: Course, label: str) -> None:
    """Train and score a student, unless that is done."""
    if (course.folder / "scores.npz").exists():
        say(f"{label}: done before")
        return
    from trainer import causal

    say(f"\n{label}")
    course.folder.mkdir(parents=True, exist_ok=True)
    with causal.quiet():
        course.begin()
        course.learn()
        found = course.score(distilling.STUDENT, course.student.network)

    def write(aside: Path) -> None:
        with aside.open("wb") as file:
            np.savez(file, nats=found.nats, targets=found.tokens)

    save(course.folder / "scores.npz", write)
    course.tidy()


def _passes(passes: dict[str, float]) -> tuple[str, ...]:
    """A note if students read texts more than once."""
    if max(passes.values()) <= 1:
        return ()
    each = " and ".join(f"{number:.1f} passes over {name}" for name, number in passes.items())
    return (f"the students read {each}, so they compare corpora as much as tokens",)


def compare_students(pair: Pair, arms: Arms, folder: Path, seeds: int) -> CorporaDistilled:
    """The students of both corpora on the test set of the comparison's verdict, and what may be concluded."""
    test, _ = scored.test_sets_in_scope(pair, arms)
    each = [
        np.stack([scores(folder / STUDENTS / f"{folder_word(name)}-{seed}")[0] for seed in range(seeds)])
        for name in pair.names
    ]
    ln_ratio, ends = difference(each, test)
    nats = {
        name: [float(one[test.mask].sum() / test.tokens) for one in runs]
        for name, runs in zip(pair.names, each, strict=True)
    }
    answer, text = conclude(pair.names, test, ln_ratio, ends)
    about = (test.name, test.scope), test.conversations, round(test.effective, 1)
    return CorporaDistilled(pair.names, "", 0, seeds, {}, *about, nats, ln_ratio, ends, answer, text, (), str(folder))


def difference(each: Sequence[Nats], test: TestSet) -> tuple[float, tuple[float, float] | None]:
    """Ln of the ratio of perplexities of two corpora, from nats [S, 2, K] of each, and its interval.

    Seeds are paired. Their part of the variance and that of the test conversations, drawn by clusters, are added in
    quadrature, as in a comparison.
    """
    a, b = (runs[:, test.mask].sum(axis=1) / test.tokens for runs in each)
    by_seed = b - a
    of = np.broadcast_to(test.clusters, test.targets.shape)[test.mask]
    stacked = np.concatenate([runs[:, test.mask] for runs in each])
    moved = resample_scores(stacked, test.targets[test.mask], of)
    count = len(by_seed)
    if count < 2 or moved is None:  # noqa: PLR2004  one seed has no spread
        return float(by_seed.mean()), None
    drawn = (moved[count:] - moved[:count]).mean(axis=0)
    parts = [(float(by_seed.var(ddof=1)) / count, count - 1), (float(drawn.var(ddof=1)), len(drawn) - 1)]
    half = half_width(LEVEL, [(value, float(free)) for value, free in parts])
    assert half is not None  # noqa: S101  every part has degrees of freedom
    middle = float(by_seed.mean())
    return middle, (middle - half, middle + half)


def conclude(
    names: tuple[str, str], test: TestSet, ln_ratio: float, ends: tuple[float, float] | None
) -> tuple[str, str]:
    """The answer about the second corpus, and its sentence."""
    first, second = names
    if test.effective < MIN_CONVERSATIONS:
        return UNCLEAR, (
            f"Nothing can be concluded: {test.name} has an effective sample size of {test.effective:.1f} "
            f"conversations, and {MIN_CONVERSATIONS} are needed."
        )
    if ends is None:
        return UNCLEAR, "Nothing can be concluded from one student of each corpus: take more --seeds."
    low, high = map(math.expm1, ends)
    what = "perplexity on replies" if test.scope == "replies" else "perplexity"
    if low > 0 or high < 0:
        answer = BETTER if high < 0 else WORSE
        found = relative_change(math.expm1(ln_ratio), (low, high))
        return answer, f"{second} is {answer} to distil on: the {what} of its students is {found} than with {first}."
    bounds = f"at most {share(max(-low, 0))} lower and {share(max(high, 0))} higher than with {first}"
    if max(-low, high) < WORTH_KNOWING:
        return (
            NONE,
            f"There is no difference above {WORTH_KNOWING:.1%}: the {what} of students of {second} is {bounds}.",
        )
    return UNCLEAR, f"Nothing can be told yet: the {what} of students of {second} is {bounds}; more --seeds narrow it."


def print_corpora(made: CorporaDistilled, *, as_json: bool) -> None:
    """Print the perplexity of each student and the sentence, or everything as JSON."""
    if as_json:
        sys.stdout.write(json.dumps(finite(asdict(made)), indent=2) + "\n")
        return
    shown, (title, head, rows) = console(), cells(made)
    shown.print(table(title, head, rows, frozenset(range(1, len(head)))))
    for line in (made.sentence, *made.notes, f"{made.folder}: {STUDENTS}/, {RECORD}"):
        shown.print(Text(safe(line)))


def cells(made: CorporaDistilled) -> tuple[str, tuple[str, ...], list[tuple[object, ...]]]:
    """Title, head and rows of the table of students; all columns but the first are numbers."""
    head = ("PPL", *(f"seed {seed}" for seed in range(made.seeds)), "passes")
    rows: list[tuple[object, ...]] = [
        (name, *(f"{math.exp(min(one, 700.0)):,.2f}" for one in nats), f"{made.passes[name]:.2f}")
        for name, nats in made.nats.items()
    ]
    title = f"\n{made.test[0]}, {made.test[1]}: {made.conversations:,} conversations; per token of the comparison"
    return title, head, rows
