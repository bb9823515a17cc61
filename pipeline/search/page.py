"""The page of a search, its numbers, its plan with the evidence in comments, and its lines for a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl

from pipeline import VERSION
from pipeline import plan as planning
from pipeline.compare.figures import HOW_TO_READ, SCHEMA, intervals
from pipeline.compare.numbers import HeadAndRows, Rows
from pipeline.compare.show import print_json, print_rows, print_verdict
from pipeline.experiments.formats import change, finite, interval
from pipeline.report.parts import Chip, Figure, Page, Panel, Section, Table, Tile
from pipeline.report.text import visible
from pipeline.rules import KeepTop
from pipeline.search.findings import HEAD, Confirmation, Estimate, Trial
from pipeline.search.result import Search
from pipeline.search.trials import ORDERS
from trainer.experiment.kinds import KINDS

GOALS = {"token": "per token", "corpus": "if each corpus is read to its end"}
"""Goals of a search, for a reader."""
FIGURES = {"rules": "the rules alone", "selection": "selections", "random": "random selections"}
"""Kinds of plans, for the legend of the figure."""
ABOUT = (
    "Each plan is tried by n-gram models on the development part of the target, against the raw corpus. The plan that "
    "does best there is tested on the test part, which neither its signals nor the choice have seen. The best of many "
    "looks better than it is, so the number of the test is the one to believe. Random selections of the same shares "
    "are among the plans: one that does no better than these is luck."
)
"""Explanation of the page."""


def line(trial: Trial) -> str:
    """A trial as a line of progress."""
    if trial.finding is None:
        return f"{trial.name}: {trial.note}"
    return f"{trial.name}: PPL on the target {trial.finding.per_token.change}"


def headline(found: Search) -> str:
    """What was picked, and what both parts of the target say of it, in sentences."""
    one, tested, goal = found.picked.finding, found.confirmed.finding, found.goal
    failed = f"Nothing can be concluded, because a check failed: {', '.join(found.failed)}. " if found.failed else ""
    tried = sum(trial.finding is not None for trial in found.trials)
    first = "-" if one is None else one.level(goal).change
    text = (
        f"{failed}Of {tried} plans, {found.picked.name!r} is best {GOALS[goal]}: its perplexity on the target differs "
    )
    chose, test = (f" ({at})" if goal == "token" else "" for at in (_grams(found.budget), _models(found.confirmed)))
    text += f"from that of raw by {first} on the part that chose it{chose}"
    if tested is None:
        return f"{text}. {luck(found)} The test found no difference to compare this with. {found.confirmed.verdict}"
    text += f", and by {tested.level(goal).change} on the test part{test}. {luck(found)}"
    text += f" In the test, a token of it is worth {tested.value} of raw. Its perplexity differs by "
    text += f"{tested.used_up.change} if each corpus is read to its end, " if goal == "token" else ""
    text += f"{tested.per_token.change} per token, " if goal == "corpus" else ""
    return f"{text}and by {tested.on_raw.change} on the test conversations of raw."


def _grams(budget: int) -> str:
    """The models of trials, and the tokens that they learned."""
    return f"n-grams, {budget:,} tokens"


def _models(one: Confirmation) -> str:
    """The models of a test, and the tokens that they learned."""
    label = "n-grams" if one.network is None else KINDS[one.network].label
    return label if one.budget is None else f"{label}, {one.budget:,} tokens"


def luck(found: Search) -> str:
    """How random selections did, and whether the picked plan beats them, as a sentence."""
    values = [one.level(found.goal) for one in found.trials if one.kind == "random" and one.finding is not None]
    if found.picked.kind == "random":
        return "It is a random selection: nothing that was tried beats luck."
    if not values or found.picked.finding is None:
        return "No random selection was tried."
    ends = found.picked.finding.level(found.goal).ends
    side = "outside" if ends is not None and ends[1] < min(values) else "inside"
    best = f"The best of {len(values)} random selections reaches {change(min(values))}"
    return f"{best} on the part that chose, which is {side} the interval of the picked one."


def sides(found: Search) -> HeadAndRows:
    """The picked plan on both parts of the target, and other plans that were tested before."""
    head = ("part of the target", "plan", "models", *HEAD, "beyond random rules")
    one = found.picked
    cells = one.finding.cells if one.finding else ("-",) * len(HEAD)
    rows: Rows = [("development, which chose it", visible(one.name, 80), _grams(found.budget), *cells, "-")]
    for each in (*found.before, found.confirmed):
        part = "test" if each is found.confirmed else "test, before"
        cells = each.finding.cells if each.finding else ("-",) * len(HEAD)
        rows.append((part, visible(each.name, 80), _models(each), *cells, each.choice.change))
    return head, rows


def trial_rows(found: Search) -> HeadAndRows:
    """Every plan that was tried, in the order of trying."""
    rows: Rows = []
    for one in found.trials:
        cells = one.finding.cells if one.finding else (visible(one.note, 80), "-", "-", "-")
        rows.append((visible(one.name, 80), f"{one.conversations:,}", f"{one.tokens:,}", *cells))
    return ("plan", "conversations", "tokens", *HEAD), rows


def _figure(found: Search) -> Figure:
    """The picked plan on the test part, and all plans by their result on the development part, the best first."""
    measured = sorted((one for one in found.trials if one.finding), key=lambda one: one.level(found.goal))
    named = [(one.name, one.kind, one.finding) for one in measured]
    named.insert(0, ("the picked one, tested", found.picked.kind, found.confirmed.finding))
    estimates = [(name, FIGURES[kind], one.level(found.goal)) for name, kind, one in named if one is not None]
    rows = [(name, kind, one.value, *_ends(one)) for name, kind, one in estimates if one.value is not None]
    frame = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    about = f"{HOW_TO_READ}. All but the first are on the development part of the target, {GOALS[found.goal]}."
    return Figure("trials", "Every plan that was tried", about, (Panel("", intervals(frame, "ln_ratio"), frame),))


def _ends(one: Estimate) -> tuple[float | None, float | None]:
    return one.ends if one.ends is not None and bool(np.isfinite(one.ends).all()) else (None, None)


def page(found: Search) -> Page:
    """The report of a search."""
    notes = [*found.notes]
    if found.before:
        looks = len(found.before) + 1
        notes.insert(
            0, f"{looks} plans were tested on the same part of the target, so the last test is not a first look"
        )
    return Page(
        title=f"A plan for {visible(Path(found.target.source).name, 60)}",
        kicker=f"refine search · {visible(found.source, 60)}",
        headline=visible(headline(found)),
        chip=_chip(found),
        tiles=_tiles(found),
        warnings=tuple(visible(note) for note in notes),
        checks=tuple(found.comparison.checks),
        sections=_sections(found),
        about=ABOUT,
        numbers=numbers(found),
    )


def _sections(found: Search) -> tuple[Section, ...]:
    parts = ", ".join(f"{size:,} for {part}" for part, size in found.target.sizes.items())
    (head, rows), (both, of_both) = trial_rows(found), sides(found)
    return (
        Section(
            "sides",
            "Development and test",
            f"The target has {parts}, by clusters of near-duplicates. Nothing is corrected: the gain that chose the "
            "plan and the one that a test found stand side by side. Used up: if each corpus is read to its end, by "
            f"n-gram models. The test has a page of its own, in {visible(found.page.parent.name)}-confirmation.",
            tables=(Table(both, tuple(of_both)),),
        ),
        Section(
            "trials",
            "Every plan that was tried",
            f"In the order of trying. No more were tried: {visible(found.stopped)}; {found.left} were left. PPL is "
            f"that after {found.budget:,} tokens, by n-gram models in {ORDERS} orders, with 95 % intervals over "
            "orders and test conversations.",
            (_figure(found),),
            (Table(head, tuple(rows)),),
        ),
        Section(
            "plan",
            "The plan",
            "refine run takes it: it is plan.toml in the folder of the search.",
            texts=(("plan.toml", visible(commented(found))), ("The command of this search", visible(found.command))),
        ),
    )


def _chip(found: Search) -> Chip:
    ends = found.confirmed.choice.ends
    if found.failed or ends is None or ends[0] <= 0 <= ends[1]:
        return Chip("not confirmed", "open")
    return Chip("confirmed", "good") if ends[1] < 0 else Chip("worse than random", "bad")


def _tiles(found: Search) -> tuple[Tile, ...]:
    one, tested = found.picked.finding, found.confirmed.finding
    labels = {"PPL per token on the part that chose it": one.per_token} if one else {}
    if tested is not None:
        labels |= {
            "PPL per token on the test part": tested.per_token,
            "PPL on the test part if each corpus is read to its end": tested.used_up,
            "PPL on the test conversations of raw": tested.on_raw,
        }
    tiles = [
        Tile(change(each.value), f"{label}: {interval(each.ends, change)}")
        for label, each in labels.items()
        if each.value is not None
    ]
    if tested is not None and tested.worth.value is not None:
        ends = interval(tested.worth.ends, "{:.2f}".format)
        tiles.insert(2, Tile(f"{tested.worth.value:.2f}", f"tokens of raw that one is worth on the test part: {ends}"))
    return tuple(tiles)


def numbers(found: Search) -> dict[str, Any]:
    """Everything for a script; differences of PPL are relative, below 0 if the plan is better than raw."""
    made = {
        "command": found.command,
        "verdict": headline(found),
        "goal": found.goal,
        "source": found.source,
        "target": {"corpus": found.target.source, "digest": found.target.digest, "parts": dict(found.target.sizes)},
        "budget": found.budget,
        "orders": ORDERS,
        "stopped": found.stopped,
        "left": found.left,
        "picked": found.picked.name,
        "cut": found.cut,
        "plan": str(found.file),
        "folder": str(found.folder),
        "development": found.picked.numbers,
        "confirmed": found.confirmed.numbers,
        "confirmed_before": [one.numbers for one in found.before],
        "trials": [one.numbers for one in found.trials],
        "notes": list(found.notes),
    }
    return cast("dict[str, Any]", finite(made))


def commented(found: Search) -> str:
    """The plan as TOML, with the evidence in comments."""
    one, tested = found.picked.finding, found.confirmed
    measured = sorted((each for each in found.trials if each.finding), key=lambda each: each.level(found.goal))
    parts = ", ".join(f"{size:,} conversations for {part}" for part, size in found.target.sizes.items())
    lines = [
        f"Found by refine {VERSION}: {found.command}",
        f"Source: {found.source}. Target: {found.target.source}, {parts}.",
        f"{len(measured)} of {len(found.trials)} plans were measured, at {found.budget:,} tokens.",
        f"No more were tried: {found.stopped}; {found.left} were left.",
        "",
        f"Picked: {found.picked.name}. PPL against raw, with 95 % intervals:",
        *(_evidence(f"development part, which chose it ({_grams(found.budget)})", one.cells) if one else ()),
        *(_evidence(f"test part ({_models(tested)})", tested.finding.cells) if tested.finding else ()),
        f"- test part, beyond random rules that drop as much: {tested.choice.change}",
        luck(found),
        *_threshold(found),
        *(f"Tested before on the same part: {each.name}, {each.choice.change}" for each in found.before),
        "",
        "All plans on the development part, per token and used up:",
        *(f"- {each.name}: {each.finding.cells[0]}; {each.finding.cells[2]}" for each in measured if each.finding),
    ]
    comments = "".join(f"# {' '.join(visible(text).split())}".rstrip() + "\n" for text in lines)
    return f"{comments}\n{planning.dumps(found.plan)}"


def _evidence(part: str, cells: tuple[str, ...]) -> list[str]:
    per_token, worth, used_up, on_raw = cells
    costs = f"used up {used_up}; on raw-test {on_raw}"
    return [f"- {part}: {per_token} per token; a token is worth {worth} of raw; {costs}"]


def _threshold(found: Search) -> list[str]:
    """The selection as a threshold, for a corpus that is not ranked as a whole; not if noise is in it."""
    tops = [rule for rule in found.plan.rules if isinstance(rule, KeepTop)]
    if found.cut is None or not tops or tops[-1].gumbel or not tops[-1].by.upper().endswith(" DESC"):
        return []
    return [f"As a threshold, the selection is: where = '{tops[-1].by[:-5]} < {found.cut!r}'."]


def print_search(found: Search, *, as_json: bool) -> None:
    """Print both parts of the target, every plan, and the plan's file; or the report as JSON."""
    if as_json:
        print_json(found.page)
        return
    print_rows("Every plan that was tried, on the development part of the target", trial_rows(found), 1)
    print_rows("\nThe picked plan", sides(found), 3)
    print_verdict(f"{headline(found)}\n{found.file}", found.page)
