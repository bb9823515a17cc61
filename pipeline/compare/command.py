"""`refine compare`: two corpora in; whether the second is worth more, a page and every number out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.text import Text

from pipeline.compare import corpora, data, mixes
from pipeline.compare import design as designing
from pipeline.compare import scored as scoring
from pipeline.compare.checks import comparison_checks, corpora_checks
from pipeline.compare.corpora import Hub, Pair
from pipeline.compare.data import TrainingOptions, word
from pipeline.compare.result import Compared, RunFindings, Trained
from pipeline.compare.scored import Scored
from pipeline.compare.verdict import verdict
from pipeline.experiments.schedule import carry_out, named
from pipeline.report import folder as folders
from pipeline.report.folder import REPORTS, build
from pipeline.report.parts import Check
from pipeline.report.run.checks import SHARE, Bounds, check
from pipeline.report.run.duplicates import kinds
from pipeline.report.run.frame import finished
from pipeline.store import Store
from pipeline.terminal import console, safe, say, table


@dataclass(frozen=True)
class CompareOptions:
    """What a user asks for; see the help of `refine compare`."""

    first: str
    second: str
    run: Path | None
    out: Path | None
    limit: int | None
    train: bool
    how: TrainingOptions
    fail: bool
    as_json: bool
    words: tuple[str, ...]
    """The command as it was typed."""
    hub: Hub = field(default_factory=Hub)
    bounds: Bounds = field(default_factory=Bounds)


def compare(asked: CompareOptions) -> None:
    """Compare two corpora, write the report, and exit with 1 where a check failed and that was asked for.

    Raises:
        SourceError, RunFolderError, ReportError, TrainerError: see there.
    """
    import json
    import shlex

    from pipeline.compare import page

    if asked.out is not None:
        folders.check(asked.out)
    asked.how.checked()
    pair = corpora.pair(asked.first, asked.second, asked.run, asked.limit, grouped=asked.train, hub=asked.hub)
    run = None if pair.run is None else of_run(pair.run, asked.bounds)
    place = asked.out or REPORTS / f"{name_of(pair)}-{_what(asked)}"
    folders.check(place)
    command = shlex.join(("refine", *asked.words))
    notes = _notes(pair, run, asked.limit)
    for note in filter(None, [*notes, folders.replaced(place, command)]):
        say(f"refine: {note}")
    found = _compared(pair, run, asked, command, notes)
    made = build(page.page(found), place)
    if asked.as_json:
        sys.stdout.write(json.dumps({"report": str(place / "index.html"), **made}, indent=2) + "\n")
    else:
        _show(found, place)
    if asked.fail and any(one.passed is False for one in found.checks):
        sys.exit(1)


def _what(asked: CompareOptions) -> str:
    """The end of the report's name, by which a look at the corpora does not take the place of the experiment."""
    return "compare" + ("-corpora" if not asked.train else "-quick" if asked.how.quick else "")


def _notes(pair: Pair, run: RunFindings | None, limit: int | None) -> tuple[str, ...]:
    if run is None or limit is None or limit >= run.read.rows.height:
        return pair.notes
    said = f"--limit {limit} compares the first rows of {run.read.store.folder}; what the run measured is of all of it"
    return (*pair.notes, said)


def name_of(pair: Pair) -> str:
    """What the comparison's folders are named by."""
    return word(pair.run.folder.resolve().name if pair.run is not None else "-".join(pair.names))


def of_run(store: Store, bounds: Bounds) -> RunFindings:
    """Read a run and look at its files; what is missing is said before any training."""
    read = finished(store.folder)
    found = kinds(read.plan, store)
    return RunFindings(read, found, check(read, found, bounds))


def _compared(
    pair: Pair, run: RunFindings | None, asked: CompareOptions, command: str, notes: Sequence[str]
) -> Compared:
    of_run = [] if run is None else run.checks
    if not asked.train:
        said = "Nothing was trained (--no-train), so that nothing is concluded: what both corpora consist of."
        return Compared(pair, None, [*corpora_checks(pair), *of_run], said, command, run, notes)
    with asked.how.folder(name_of(pair), [one.digest for one in pair.corpora.values()]) as folder:
        trained = train(pair, asked.how, folder, of_run)
    return Compared(pair, trained, [*trained.checks, *of_run], trained.verdict.sentence, command, run, notes)


def train(pair: Pair, how: TrainingOptions, folder: Path, of_run: Sequence[Check] = ()) -> Trained:
    """Make the data, do the trainings that are missing, and read what they say.

    Args:
        pair: the corpora.
        how: they are trained.
        folder: of the trainings.
        of_run: checks of the run that both are parts of; how much was kept forbids no conclusion.
    """
    arms = data.arms(pair.union, how, folder)
    budgets = None if how.budgets is None else list(how.budgets)
    design = designing.design(arms, budgets, how.seeds, quick=how.quick)
    jobs = design.jobs(arms, pair.names, how.device)
    trainings = folder / "trainings"
    every = [job for wanted in jobs.values() for job in wanted]
    cost = carry_out(trainings, every, how.workers, how.device, named(jobs))
    scored = [scoring.scored(test, arms, jobs, trainings) for test in scoring.test_sets(pair, arms)]
    checks = comparison_checks(pair, arms, design, jobs, trainings)
    said = verdict(scored, pair.names, design.lacks(), [*checks, *(one for one in of_run if one.name != SHARE)])
    return Trained(arms, design, cost, jobs, folder, scored, checks, said)


def _show(found: Compared, place: Path) -> None:
    out = console()
    if found.trained is not None:
        for one in found.trained.scored:
            _show_test(one, found.pair.names)
    else:
        out.print(_corpora(found.pair))
    names = {True: "pass", False: "FAIL", None: "n/a"}
    rows: list[tuple[object, ...]] = [(names[one.passed], one.name, one.found) for one in found.checks]
    out.print(table("\nChecks", ("", "check", "found"), rows))
    out.print(Text(safe(f"\n{found.sentence}")))
    out.print(Text(safe(f"\n{place / 'index.html'}")), soft_wrap=True)


def _corpora(pair: Pair) -> Any:  # noqa: ANN401  a rich table
    told = mixes.statistics(pair)
    keys = ("conversations", "words", "bytes", "median_words", "copies", "shared")
    rows: list[tuple[object, ...]] = [(name, *(f"{one[key]:,.0f}" for key in keys)) for name, one in told.items()]
    head = ("", *(key.replace("_", " ") for key in keys))
    return table("Corpora", head, rows, frozenset(range(1, len(head))))


def _show_test(one: Scored, names: tuple[str, str]) -> None:
    """Laws, difference and baselines on one test set."""
    from pipeline.compare.numbers import baselines, difference_rows, law_rows, standing

    out, test = console(), one.test
    what = f"\n{test.name}: {test.tokens:,} tokens of {test.conversations:,} conversations, {test.says}"
    out.print(Text(safe(what), style="bold"))
    head, rows = law_rows(one)
    out.print(table("laws, with 95 % intervals", head, list(rows), frozenset(range(2, len(head)))))
    head, rows = difference_rows(one)
    against = f"{names[1]} against {names[0]}; a token's worth is in tokens of {names[0]}"
    out.print(table(f"\n{against}", head, list(rows), frozenset(range(1, len(head)))))
    head, rows = baselines(one)
    out.print(table("\nPPL by training tokens, all of seed 0", head, list(rows), frozenset(range(2, len(head)))))
    for said in standing(one):
        out.print(Text(safe(said)))
