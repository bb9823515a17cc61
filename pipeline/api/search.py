"""`refine.search`: a search for a plan from Python."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from pipeline import plan as planning
from pipeline import sources, terminal
from pipeline.api.compare import text, token_counts, words
from pipeline.api.run import Run
from pipeline.compare.data import TrainingOptions
from pipeline.ingest import Limits
from pipeline.plan import PlanError
from pipeline.search import SearchOptions
from pipeline.search import search as carry_out
from pipeline.search.findings import Goal
from pipeline.search.result import Search
from pipeline.store.bucket import check_local
from trainer.prepare.choices import Choices


def search(
    source: Run | Path | str | None = None,
    *,
    target: Run | Path | str,
    minutes: float = 10.0,
    candidates: int | None = None,
    plan: Path | str | None = None,
    shares: str | Sequence[float] = "0.2,0.1,0.4,0.05",
    goal: str = "token",
    screen: bool = False,
    budgets: str | Sequence[int] | None = None,
    seeds: int | None = None,
    out: Path | str | None = None,
    workers: int = 0,
    test_tokens: int = 100_000,
    split: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    shape: str | None = None,
    limit: int | None = None,
    progress: bool = False,
) -> Search:
    """Search for the plan that selects the best corpus for a target, as `refine search` does, and write the report.

    Args:
        source: a file of records, a folder of them, a saved Dataset, a run or a hub id; by default the embedded corpus.
        target: what you train for, or held-out conversations of it: a run, a file, a folder or a hub id.
        minutes: how long plans are tried; the run before and the test after it take their own time.
        candidates: number of plans to try, whatever the time; by default as many as the minutes suffice for.
        plan: the rules and stages of every plan, and what selections rank by (its `[[keep_top]]`); by default the
            default plan.
        shares: shares of the conversations to select, as a list or comma-separated, in the order of trying.
        goal: "token" for the best corpus per token, "corpus" for the best one if each is read to its end.
        screen: test the picked plan by n-gram models too, in the place of networks.
        budgets: training tokens of the test; by default 6,250 to 200,000, each twice the previous one; half of that for
            a screen.
        seeds: training runs per budget of the test; by default 16 for all budgets together, and 24 of a screen.
        out: folder of the search, which the same call continues; by default one in data/experiments/.
        workers: worker processes and parallel training runs; 0: one per core.
        test_tokens: tokens of the development and of the test part of the target.
        split: split of a hub dataset or a saved DatasetDict.
        config: configuration of a hub dataset.
        revision: revision of a hub dataset.
        shape: shape of the records; recognised by default.
        limit: number of rows of the source to read; by default all.
        progress: show progress and notes on stderr.

    Raises:
        RefineError: the search cannot be carried out; the message says why and what to do.
    """
    given = dict(locals())
    check_local(out)
    name = None if source is None else text(source)
    options = SearchOptions(
        source=sources.find(name, split=split, config=config, revision=revision),
        target=text(target),
        minutes=minutes,
        candidates=candidates,
        plan=None if plan is None else planning.find(plan),
        shares=numbers(shares),
        goal=goal_named(goal),
        limits=Limits(limit=limit, shape=shape),
        out=None if out is None else Path(out),
        training=TrainingOptions(
            choices=Choices(test_tokens=test_tokens),
            budgets=token_counts(budgets),
            seeds=seeds,
            screen=screen,
            workers=workers,
        ),
        words=words("search", search, given, ("source",)),
    )
    with terminal.progress(show=progress):
        return carry_out(options)


def numbers(shares: str | Sequence[float]) -> tuple[float, ...]:
    """Shares, as a list or comma-separated, as numbers; raises `PlanError` if they are none."""
    try:
        return tuple(map(float, shares.split(",") if isinstance(shares, str) else shares))
    except ValueError:
        raise PlanError(f"--shares is {shares!r}, expected numbers such as 0.1,0.3") from None


def goal_named(goal: str) -> Goal:
    """The goal of this name; raises `PlanError` if there is none."""
    if goal not in {"token", "corpus"}:
        raise PlanError(f"--goal is {goal!r}, expected token or corpus")
    return cast("Goal", goal)
