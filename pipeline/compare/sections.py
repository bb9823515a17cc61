"""What training says of two corpora, as sections of a page: differences, laws, baselines, every point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from pipeline.compare.checks import last_best
from pipeline.compare.figures import SAYS, figure, laws, panel
from pipeline.compare.numbers import Rows, baselines, difference_rows, law_rows, point_rows, standing
from pipeline.compare.scored import Scored
from pipeline.report.parts import Figure, Panel, Section, Table
from pipeline.report.text import visible
from trainer.experiment.kinds import CVFP, GRU
from trainer.scaling import Kind, Law

if TYPE_CHECKING:
    from pipeline.compare.result import Compared, Trained

STEPS = 40
"""Points of a curve."""
WORTH = (
    "Worth: how many conversations of one length, none like another, would say as much: (sum t)\u00b2 / sum t\u00b2 of "
    "the tokens t of each cluster of near-duplicates; one that is like no other is a cluster too. The error of ln PPL "
    "is a bootstrap's over them."
)
BEYOND = 4
"""How far past the largest budget a law is drawn."""


def results(found: Compared, trained: Trained) -> list[Section]:
    """Differences, laws, baselines and points."""
    names = found.pair.names
    budget = f"{trained.design.budgets[-1]:,} tokens"
    notes = dict.fromkeys(note for one in trained.scored for note in one.notes)
    return [
        Section(
            "difference",
            "The difference",
            f"{visible(names[1])} less {visible(names[0])}, with 95 % intervals; PPL at {budget}, and how many tokens "
            f"of {visible(names[0])} one of {visible(names[1])} is worth there. Both are scored on the same test sets.",
            tuple(figure for figure in [_differences(trained)] if figure is not None),
            tables=(_joined(trained, difference_rows),),
            missing=tuple(f"{visible(note)}." for note in notes),
        ),
        Section(
            "laws",
            "Scaling laws",
            "PPL = A tokens^alpha, and the same with a floor; a point is a training. In brackets are 95 % intervals. "
            "Foretells: how far off each law is at the largest budget, fitted without it.",
            tuple(_figure(trained, kind) for kind in ("power", "saturating") if _fitted(trained, kind)),
            (_joined(trained, law_rows),),
        ),
        Section(
            "baselines",
            "Baselines",
            "PPL by training tokens, all of seed 0: the same tokens in the same order"
            + (
                f"; the random frozen block and the GRU are trained on {visible(names[0])} alone, the counts on both."
                if GRU.name in trained.design.kinds
                else "; --quick trains counts alone."
            )
            + "".join(f" {visible(said, 200)}." for one in trained.scored for said in standing(one)),
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


def _differences(trained: Trained) -> Figure | None:
    """Delta alpha and the difference of PPL, each law's on each test set; None where nothing could be fitted."""
    kinds: tuple[Kind, ...] = ("power", "saturating")
    found = [
        (f"{kind} law", one.test.name, one.differences[kind])
        for kind in kinds
        for one in trained.scored
        if kind in one.differences
    ]
    panels = [
        panel("Change of the exponent", "delta_alpha", found),
        panel("Change of PPL at the largest budget", "ln_ratio", found),
    ]
    says = f"{SAYS}; where an interval crosses it no difference can be told."
    return figure("differences", "Differences with their intervals", says, panels)


def _figure(trained: Trained, kind: Kind) -> Figure:
    panels = []
    first, second = trained.scored[0].points
    for one in trained.scored:
        rows = one.rows.filter(pl.col("kind") == CVFP.name).select("arm", "tokens", "ppl").cast({"tokens": pl.Float64})
        curves = pl.concat(curve(arm, one.laws[arm, kind]) for arm in one.points)
        title = f"{visible(one.test.name)}: {one.test.tokens:,} tokens"
        panels.append(Panel(title, laws(rows, curves, tuple(one.points)), curves))
    return Figure(
        f"laws-{kind}",
        {"power": "Power laws", "saturating": "Saturating laws"}[kind],
        f"{visible(first, 40)}: rings; {visible(second, 40)}: dots. Bands are 95 % intervals of a training with a new "
        "seed, scored on other conversations of the same kind; dashed is extrapolated past the largest budget, which "
        "nothing here can show to hold.",
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


def plan(found: Compared, trained: Trained) -> Section:
    """How the experiment was laid out, and what its test sets are worth."""
    made, design = trained.arms.common.record, trained.design
    rows = [
        (f"{name}, of the union", size.conversations, size.tokens, size.bytes) for name, size in made.sizes().items()
    ]
    lines = [
        f"preset: {trained.arms.preset.name}: {trained.arms.preset.about}",
        f"budgets: {', '.join(f'{budget:,}' for budget in design.budgets)} tokens, nested within a seed",
        f"seeds: {design.seeds}, paired between the arms: order of conversations, weights and noise",
        f"tokenizer: {made.tokenizer}; {made.embeddings}",
        "both are the same for both arms; those that are made here are made of the union of their training pools",
        "split: by near-duplicate cluster of the union of both corpora, before anything else",
        "validation: shared, and it only selects the checkpoint",
        f"steps: {last_best(trained.jobs, trained.folder / 'trainings', falls=trained.arms.preset.phase2.decay)}",
        f"training pools: {', '.join(f'{name} {trained.arms.tokens(name):,} tokens' for name in found.pair.names)}",
        f"trainings: {len({job.name for wanted in trained.jobs.values() for job in wanted})}",
    ]
    return Section(
        "experiment",
        "The experiment",
        f"What was trained on what, and what was measured on what. {WORTH}",
        tables=(
            tests(trained.scored),
            Table(("set", "conversations", "tokens", "bytes"), tuple(rows)),
        ),
        texts=(("Plan of the experiment", visible("\n".join(lines))),),
        missing=tuple(f"{visible(note)}." for note in made.notes),
    )


def tests(scored: Sequence[Scored]) -> Table:
    """What test sets are worth; see `WORTH`."""
    head = ("test set", "conversations", "clusters", "worth", "tokens", "which", "error of ln PPL")
    rows = [
        (
            visible(one.test.name),
            one.test.conversations,
            one.test.distinct,
            round(one.test.effective),
            one.test.tokens,
            visible(one.test.says),
            _error(one),
        )
        for one in scored
    ]
    return Table(head, tuple(rows))


def _error(one: Scored) -> str:
    """Standard deviation of ln PPL over resamples of the test clusters: the first arm's, at its largest budget."""
    points = next(iter(one.points.values()))
    if points.resampled is None:
        return "not known"
    return f"{points.resampled[points.tokens == points.tokens.max()].mean(axis=0).std():.3f}"
