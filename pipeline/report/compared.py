"""The page of a comparison: the verdict, laws with intervals, every point, baselines, corpora, checks and the plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from pipeline import compare_corpora
from pipeline.compare_result import Scored
from pipeline.compare_verdict import alpha_said, efficiency_said, ratio_said
from pipeline.report import bars, flows
from pipeline.report.banded import banded
from pipeline.report.compared_numbers import (
    Rows,
    baselines,
    corpora_rows,
    difference_rows,
    law_rows,
    numbers,
    point_rows,
)
from pipeline.report.duplicates import kinds
from pipeline.report.finished import finished
from pipeline.report.laws import laws
from pipeline.report.parts import Figure, Page, Panel, Section, Table, Tile
from pipeline.report.shown import visible
from trainer.scaling import Kind, Law

if TYPE_CHECKING:
    from pipeline.compare import Compared, Trained

STEPS = 40
"""Points of a curve."""
BEYOND = 4
"""How far past the largest budget a law is drawn."""


def page(found: Compared) -> Page:
    """The report of a comparison."""
    first, second = (visible(name, 40) for name in found.pair.names)
    run = found.pair.run
    trained = found.trained
    sections = [] if trained is None else [*_results(found, trained), _plan(found, trained)]
    return Page(
        title=f"{first} against {second}",
        kicker=f"refine compare · {visible(run.folder.resolve().name if run is not None else first, 60)}",
        headline=visible(found.sentence),
        tiles=_tiles(found),
        warnings=tuple(visible(note) for note in found.pair.notes),
        checks=tuple(found.checks),
        sections=(*sections, *_corpora(found), _origin(found)),
        numbers=numbers(found),
    )


def _tiles(found: Compared) -> tuple[Tile, ...]:
    told = compare_corpora.statistics(found.pair)
    sizes = tuple(Tile(f"{one['words']:,}", f"words of {visible(name, 30)}") for name, one in told.items())
    if found.trained is None or "power" not in found.trained.scored[0].differences:
        return sizes
    one = found.trained.scored[0]
    power, name = one.differences["power"], visible(one.test.name, 30)
    return (
        Tile(alpha_said(power).split(" (")[0], f"delta alpha on {name}{_interval(alpha_said(power))}"),
        Tile(
            ratio_said(power).split(" (")[0],
            f"PPL at {power.budget:,.0f} tokens on {name}{_interval(ratio_said(power))}",
        ),
        Tile(
            efficiency_said(power).split(" (")[0].split(",")[0],
            f"tokens of {visible(found.pair.names[0], 30)} that one is worth{_interval(efficiency_said(power))}",
        ),
        *sizes,
    )


def _interval(said: str) -> str:
    return f": {said.partition(' (')[2].replace(')', '')}" if " (" in said else ""


def _results(found: Compared, trained: Trained) -> list[Section]:
    names = found.pair.names
    budget = f"{trained.design.budgets[-1]:,} tokens"
    notes = dict.fromkeys(note for one in trained.scored for note in one.notes)
    return [
        Section(
            "difference",
            "The difference",
            f"{visible(names[1])} less {visible(names[0])}, with 95 % intervals; PPL at {budget}, and how many tokens "
            f"of {visible(names[0])} one of {visible(names[1])} is worth there. Both are scored on the same test sets.",
            tables=(_joined(trained, difference_rows),),
            missing=tuple(f"{visible(note)}." for note in notes),
        ),
        Section(
            "laws",
            "Scaling laws",
            "PPL = A tokens^alpha, and the same with a floor; a point is a training. Foretells: how far off each law "
            "is at the largest budget, fitted without it.",
            tuple(_figure(trained, kind) for kind in ("power", "saturating") if _fitted(trained, kind)),
            (_joined(trained, law_rows),),
        ),
        Section(
            "baselines",
            "Baselines",
            "PPL by training tokens: the network's mean over seeds, and one seed of each baseline"
            + (
                f"; the random frozen block and the GRU are trained on {visible(names[0])} alone, the counts on both."
                if "gru" in trained.design.kinds
                else "; --quick trains counts alone."
            ),
            tables=(_joined(trained, baselines),),
        ),
        Section(
            "points",
            "Every training",
            "PPL of the network's trainings on each test set, and means over seeds.",
            tables=(_joined(trained, point_rows),),
        ),
    ]


def _table(of: tuple[tuple[str, ...], Rows]) -> Table:
    head, rows = of
    return Table(head, tuple(rows))


def _joined(trained: Trained, of: Callable[[Scored], tuple[tuple[str, ...], Rows]]) -> Table:
    """A table of all test sets; its first column says which."""
    found = [(visible(one.test.name, 40), *of(one)) for one in trained.scored]
    rows = tuple((name, *row) for name, _, some in found for row in some)
    return Table(("test set", *found[0][1]), rows)


def _fitted(trained: Trained, kind: Kind) -> bool:
    return all((arm, kind) in one.laws for one in trained.scored for arm in one.points)


def _figure(trained: Trained, kind: Kind) -> Figure:
    panels = []
    for one in trained.scored:
        rows = one.rows.filter(pl.col("kind") == "cvfp").select("arm", "tokens", "ppl").cast({"tokens": pl.Float64})
        curves = pl.concat(curve(arm, one.laws[arm, kind]) for arm in one.points)
        title = f"{visible(one.test.name)}: {one.test.tokens:,} tokens"
        panels.append(Panel(title, laws(rows, curves, tuple(one.points)), curves))
    return Figure(
        f"laws-{kind}",
        {"power": "Power laws", "saturating": "Saturating laws"}[kind],
        "Bands are 95 % intervals of a new training; dashed is extrapolated past the largest budget, which nothing "
        "here can show to hold.",
        tuple(panels),
    )


def curve(arm: str, law: Law) -> pl.DataFrame:
    """A law as points of a line: arm, tokens, ppl, low, high, extrapolated."""
    low, high = law.tokens
    inside = np.geomspace(low, high, STEPS)
    outside = np.geomspace(high, high * BEYOND, STEPS // 2)[1:]
    made = law.predict(np.concatenate([np.minimum(inside, high), outside]))
    return pl.DataFrame(
        {
            "arm": [arm] * len(made),
            "tokens": [one.tokens for one in made],
            "ppl": [one.value for one in made],
            "low": [one.low for one in made],
            "high": [one.high for one in made],
            "extrapolated": [i >= STEPS for i in range(len(made))],
        },
        schema_overrides={"low": pl.Float64, "high": pl.Float64},
    )


def _plan(found: Compared, trained: Trained) -> Section:
    """How the experiment was laid out, and what its test sets are worth."""
    said, design = trained.arms.common.said, trained.design
    rows = [(f"{name}, of the union", *_size(said[name])) for name in ("pool", "validation", "test")]
    tests = tuple(
        (
            visible(one.test.name),
            one.test.conversations,
            round(one.test.effective),
            one.test.tokens,
            visible(one.test.says),
            _error(one),
        )
        for one in trained.scored
    )
    lines = [
        f"preset: {trained.arms.preset.name}: {trained.arms.preset.about}",
        f"budgets: {', '.join(f'{budget:,}' for budget in design.budgets)} tokens, nested within a seed",
        f"seeds: {design.seeds}, paired between the arms: order of conversations, weights and noise",
        f"tokenizer: {said['tokenizer']}; {said['embeddings']}",
        "both are the same for both arms; those that are made here are made of the union of their training pools",
        "split: by near-duplicate cluster of the union of both corpora, before anything else",
        "validation: shared, and it only selects the checkpoint",
        f"training pools: {', '.join(f'{name} {trained.arms.tokens(name):,} tokens' for name in found.pair.names)}",
        f"trainings: {len({job.name for wanted in trained.jobs.values() for job in wanted})}",
        *(f"note: {note}" for note in said["notes"]),
    ]
    return Section(
        "experiment",
        "The experiment",
        "What was trained on what, and what was measured on what. Worth: how many conversations of one length would "
        "say as much, (sum t)\u00b2 / sum t\u00b2. The error of ln PPL is that of a bootstrap over the test conversations.",
        tables=(
            Table(("test set", "conversations", "worth", "tokens", "which", "error of ln PPL"), tests),
            Table(("set", "conversations", "tokens", "bytes"), tuple(rows)),
        ),
        texts=(("Plan of the experiment", visible("\n".join(lines))),),
    )


def _size(said: dict[str, int]) -> tuple[int, int, int]:
    return said["conversations"], said["tokens"], said["bytes"]


def _error(one: Scored) -> float | str:
    """Standard deviation of ln PPL over resamples of the test conversations: the first arm's, at its largest budget."""
    points = next(iter(one.points.values()))
    if points.resampled is None:
        return "not known"
    return round(float(points.resampled[points.tokens == points.tokens.max()].mean(axis=0).std()), 3)


def _corpora(found: Compared) -> list[Section]:
    """Sizes, what was dropped, and the mix of both corpora."""
    figures = [_lengths(found)]
    if found.pair.run is not None:
        run = finished(found.pair.run.folder)
        sorted_ = banded(run, kinds(run.plan, run.store))
        mix = flows.mix(sorted_)
        figures = [flows.retention(sorted_), *([mix] if mix else figures)]
    return [
        Section(
            "corpora",
            "The corpora",
            "Sizes and mixes of what was compared.",
            tuple(figures),
            (_table(corpora_rows(found.pair)),),
        )
    ]


def _lengths(found: Compared) -> Figure:
    frame = compare_corpora.lengths(found.pair)
    both = pl.concat(
        frame.select(
            "y",
            corpus=pl.lit(name),
            share=pl.col(f"{name} share"),
            tip=pl.format(
                f"{{}} words: {{}} conversations of {visible(name, 40).replace('{', '(').replace('}', ')')}, {{}}%",
                *("y", f"{name} conversations", (pl.col(f"{name} share") * 100).round(1)),
            ),
            pick=pl.lit(None, pl.String),
        )
        for name in found.pair.names
    )
    chart = bars.shares(both, "words of a conversation", found.pair.names)
    return Figure("lengths", "Lengths", "Shares of conversations by their words.", (Panel("", chart, frame),))


def _origin(found: Compared) -> Section:
    run = [] if found.pair.run is None else [f"# raw and refined are of the run {found.pair.run.folder}"]
    digests = [f"# {name}: digest {one.digest} of its texts" for name, one in found.pair.corpora.items()]
    command = "\n".join((found.command, *run, *digests))
    return Section(
        "origin",
        "How to repeat it",
        "The same corpora, command and versions give the same numbers on the same kind of machine.",
        texts=(("The command that makes this comparison again", visible(command)),),
    )
