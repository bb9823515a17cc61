"""`refine ablate`: which rule of a run moved the exponent? Each left out in turn and each alone, on one protocol."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich.text import Text

from pipeline import plan as planning
from pipeline import rules
from pipeline.ablate.result import Ablated, Contrast
from pipeline.compare import corpora, data
from pipeline.compare import design as designing
from pipeline.compare import scored as scoring
from pipeline.compare.checks import comparison_checks
from pipeline.compare.command import name_of, of_run
from pipeline.compare.corpora import Pair
from pipeline.compare.data import TrainingOptions
from pipeline.compare.design import Design
from pipeline.compare.scored import Scored
from pipeline.experiments.schedule import carry_out, named
from pipeline.plan import Plan
from pipeline.report import folder as folders
from pipeline.report.folder import REPORTS, build
from pipeline.report.parts import Check
from pipeline.report.run.checks import SHARE, Bounds
from pipeline.rules import Drop, KeepBest
from pipeline.signals import pairs_of, signals_of
from pipeline.store import RunFolderError, Store
from pipeline.terminal import console, safe, say, table
from trainer.prepare.arms import Union

Mask = NDArray[np.bool_]


def ablate(
    folder: Path, how: TrainingOptions, out: Path | None, bounds: Bounds, *, train: bool, fail: bool, as_json: bool
) -> None:
    """Say which rule moved the exponent, and write the report.

    Raises:
        RunFolderError, ReportError, RuleError, TrainerError: see there.
    """
    from pipeline.ablate import page

    if out is not None:
        folders.check(out)
    how.checked()
    pair = corpora.pair("raw", "refined", folder, None, grouped=train)
    what = "ablate" + ("-rules" if not train else "-quick" if how.quick else "")
    place = out or REPORTS / f"{name_of(pair)}-{what}"
    folders.check(place)
    members, contrasts, skipped = arms_of(pair)
    command = shlex.join(("refine", *sys.argv[1:]))
    for said in filter(None, [*skipped, folders.replaced(place, command)]):
        say(f"refine: {said}")
    none = (
        "Nothing was trained (--no-train)." if contrasts else "No rule of this run drops anything: nothing to compare."
    )
    assert pair.run is not None  # noqa: S101  raw and refined of a run
    found = Ablated(pair, contrasts, skipped, {}, None, None, of_run(pair.run, bounds).checks, none, command)
    if train and contrasts:
        found = _trained(found, members, how)
    made = build(page.page(found), place)
    if as_json:
        sys.stdout.write(json.dumps({"report": str(place / "index.html"), **made}, indent=2) + "\n")
    else:
        _show(found, place)
    if fail and any(one.passed is False for one in found.checks):
        sys.exit(1)


def arms_of(pair: Pair) -> tuple[dict[str, Mask], list[Contrast], list[str]]:
    """The arms of an ablation as parts of raw, which of them are compared, and why others are not.

    Decisions are made anew over the run's signals, for each rule without it and with it alone; no model is asked.

    Raises:
        RunFolderError: signals of the plan are not there, or the decisions are not those that lie in the run.
    """
    store = pair.run
    assert store is not None  # noqa: S101  raw and refined of a run
    plan = planning.load(store.plan)
    decided = _Decided(store, plan, pair.union.frame["id"])
    raw, refined = (pair.union.members[name] for name in pair.names)
    if not np.array_equal(decided.kept(plan.rules), refined):
        raise RunFolderError(f"{store.decisions} is not what the plan says now: start `refine decide {store.folder}`")
    members, contrasts, skipped = {"raw": raw, "refined": refined}, list[Contrast](), list[str]()
    for rule in plan.rules:
        without = decided.kept([one for one in plan.rules if one is not rule])
        alone = decided.kept([rule])
        for how, first, second, name in (
            ("alone", raw, alone, f"only {rule.reason}"),
            ("on top", without, refined, f"without {rule.reason}"),
        ):
            if np.array_equal(first, second):
                skipped.append(f"{rule.reason} {how} drops nothing: skipped")
                continue
            members[name] = alone if how == "alone" else without
            arms = ("raw", name) if how == "alone" else (name, "refined")
            lost, won = int((first & ~second).sum()), int((second & ~first).sum())
            contrasts.append(Contrast(rule.reason, how, *arms, lost, won))
    return members, contrasts, skipped


class _Decided:
    """What a run's signals let rules decide."""

    def __init__(self, store: Store, plan: Plan, ids: pl.Series) -> None:
        drops = [rule for rule in plan.rules if isinstance(rule, Drop)]
        read = dict.fromkeys([c for rule in drops for c in rule.columns()] + [term.split()[0] for term in plan.order])
        self.signals = pl.concat([signals_of(plan, store, name, list(read)) for name in store.shards()])
        kinds = [rule.pairs for rule in plan.rules if isinstance(rule, KeepBest)]
        self.pairs = pairs_of(plan, store, kinds)
        self.order, self.ids = plan.order, ids

    def kept(self, chosen: Sequence[rules.Rule]) -> Mask:
        """Which conversations, in the order of `ids`, these rules keep."""
        made = rules.decide(self.signals, self.pairs, chosen, self.order).select("id", "keep")
        kept = self.ids.to_frame("id").join(made, on="id", how="left", maintain_order="left")["keep"]
        mask: Mask = kept.fill_null(value=False).to_numpy()
        return mask


def _trained(found: Ablated, members: Mapping[str, Mask], how: TrainingOptions) -> Ablated:
    """Train all arms, each stream of tokens once."""
    pair = found.pair
    with how.folder(name_of(pair), [one.digest for one in pair.corpora.values()]) as folder:
        return _done(found, members, how, folder)


def _done(found: Ablated, members: Mapping[str, Mask], how: TrainingOptions, folder: Path) -> Ablated:
    pair = found.pair
    union = Union(pair.union.frame, pair.union.keys, pair.union.groups, members)
    arms = data.arms(union, how, folder)
    budgets = None if how.budgets is None else list(how.budgets)
    planned = designing.design(arms, budgets, how.seeds, quick=how.quick)
    design = Design(planned.budgets, planned.seeds, (), planned.quick)
    jobs = design.jobs(arms, list(members), how.device)
    trainings = folder / "trainings"
    every = [job for wanted in jobs.values() for job in wanted]
    carry_out(trainings, every, how.workers, how.device, named(jobs))
    tests = scoring.test_sets(pair, arms)
    scored = {
        (one.reason, one.how): [
            scoring.scored(
                test,
                arms,
                {key: jobs[key] for arm in (one.first, one.second) for key in jobs if key[1] == arm},
                trainings,
            )
            for test in tests
        ]
        for one in found.contrasts
    }
    checks = [*comparison_checks(pair, arms, design, jobs, trainings), *found.checks]
    said = verdict(scored, found.contrasts, design.lacks(), [one for one in checks if one.name != SHARE])
    return Ablated(pair, found.contrasts, found.skipped, scored, design, arms, checks, said, found.command)


def verdict(
    scored: Mapping[tuple[str, str], Sequence[Scored]],
    contrasts: Sequence[Contrast],
    lacks: str,
    checks: Sequence[Check],
) -> str:
    """One sentence: which rules moved the exponent, or that none can be said to have."""
    from pipeline.compare.verdict import MIXED, no_interval, too_few
    from pipeline.compare.verdict import verdict as of_two

    if lacks:
        return f"Nothing is concluded, because {lacks}."
    if failed := [one.name for one in checks if one.passed is False]:
        return f"Nothing can be concluded, because a check failed: {', '.join(failed)}."
    first = scored[contrasts[0].reason, contrasts[0].how]
    if few := too_few(first):  # test sets are the same ones for all
        return f"Nothing can be concluded, {few}."
    unknown = [f"{one.reason} {one.how}" for one in contrasts if no_interval(scored[one.reason, one.how])]
    moved = []
    for one in contrasts:
        found = of_two(scored[one.reason, one.how], (one.first, one.second), "", checks)
        if found.exponent:
            how = "steeper on one test set and flatter on the other" if found.exponent == MIXED else found.exponent
            moved.append(f"{one.reason} {one.how} makes it {how}")
    open_ended = f"; delta-alpha has no interval for {', '.join(unknown)}" if unknown else ""
    if len(unknown) == len(contrasts):
        return f"Nothing can be concluded{open_ended}."
    count = len(contrasts) - len(unknown)
    many = f"{count} contrast{'s were' if count > 1 else ' was'} looked at, each at 95 %"
    if not moved:
        return f"No rule can be said to have moved the exponent ({many}){open_ended}."
    chance = "so that one in twenty would be said to differ by chance"
    return f"The exponent moved: {'; '.join(moved)} ({many}, {chance}){open_ended}."


def _show(found: Ablated, place: Path) -> None:
    from pipeline.ablate.page import rows_of

    out = console()
    head, rows = rows_of(found)
    out.print(table("What each rule does", head, list(rows), frozenset({2, 3})))
    names = {True: "pass", False: "FAIL", None: "n/a"}
    checks: list[tuple[object, ...]] = [(names[one.passed], one.name, one.found) for one in found.checks]
    if checks:
        out.print(table("\nChecks", ("", "check", "found"), checks))
    out.print(Text(safe(f"\n{found.sentence}")))
    out.print(Text(safe(f"\n{place / 'index.html'}")), soft_wrap=True)
