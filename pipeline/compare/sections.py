"""The results of training as sections of a page: differences, laws, baselines, every training run, the design."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import polars as pl

from pipeline.compare.checks import last_best
from pipeline.compare.design import Experiment
from pipeline.compare.figures import CHANGES, HOW_TO_READ, figure, laws, panel
from pipeline.compare.numbers import (
    SCOPES,
    HeadAndRows,
    baseline_sentences,
    baselines,
    difference_rows,
    law_rows,
    network_rows,
    point_rows,
    scope_rows,
)
from pipeline.compare.scored import Scored, TestSet
from pipeline.compare.verdict import NetworkFinding
from pipeline.experiments.formats import coverage
from pipeline.experiments.laws import LAWS
from pipeline.report.parts import Figure, Panel, Section, Table
from pipeline.report.text import visible
from trainer.experiment import kinds
from trainer.experiment.kinds import KINDS
from trainer.scaling import Kind, Law, Points

CURVE_POINTS = 40
"""Points of a law's line over the budgets trained."""
EXTRAPOLATION = 4
"""How far past the largest budget a law is drawn, as a factor."""
PREDICTS = 0.02
"""Error of PPL at the largest budget, fitted without it, up to which a law is drawn past the budgets."""
EFFECTIVE_SIZE = (
    "Effective size: Kish's effective sample size (\u03a3 t)\u00b2 / \u03a3 t\u00b2 over the tokens t of each cluster "
    "of near-duplicates (a conversation without one is a cluster of its own). Error of ln PPL: the standard deviation "
    "over a bootstrap of the clusters."
)


def results(names: tuple[str, str], scored: Sequence[Scored]) -> list[Section]:
    """The sections of differences, laws, baselines and training runs."""
    first, second = map(visible, names)
    power = next((one.differences["power"] for one in reversed(scored) if "power" in one.differences), None)
    at = "" if power is None else f", at {power.budget:,.0f} tokens"
    level = coverage(0.95 if power is None else power.level)
    notes = dict.fromkeys(note for one in scored for note in one.notes)
    alone = [KINDS[kind].label for kind in kinds.baselines(scored[0].networks) if not KINDS[kind].cheap]
    trained = f"; {' and '.join(alone)} on {first} alone" if alone else ""
    return [
        Section(
            "difference",
            "The difference",
            f"{second} compared with {first} on the same test sets, with {level} intervals over pairs of training runs "
            f"and test conversations. {scored_sentence(scored[0].test)} PPL differs by the weighted mean over all "
            f"pairs{at}; the headline takes off the mean of placebo rules. A token's worth is the number of tokens of "
            f"{first} that lower PPL as much as one of {second}.",
            tuple(filter(None, [differences(scored)])),
            tables=(joined(scored, difference_rows),),
            missing=tuple(f"{visible(note)}." for note in notes),
        ),
        Section(
            "laws",
            "Scaling laws",
            "The power law is PPL = A tokens^alpha; the saturating law adds a floor. A point is a training run. In "
            "brackets are 95 % intervals. Held-out error: the error at the largest budget of a law that is fitted "
            "without it.",
            tuple(
                law_figure(scored, kind)
                for kind in LAWS
                if all((arm, kind) in one.laws.fits for one in scored for arm in one.points)
            ),
            (joined(scored, law_rows),),
        ),
        Section(
            "baselines",
            "Baselines",
            f"PPL by training tokens with seed 0: the same tokens in the same order{trained}. A random frozen block is "
            "CVFP without phase 1."
            + "".join(f" {visible(sentence, 200)}." for one in scored for sentence in baseline_sentences(one)),
            tables=(joined(scored, baselines),),
        ),
        Section(
            "points",
            "Every training run",
            "PPL of each network on each test set for every seed, and the means over seeds.",
            tables=(joined(scored, point_rows),),
        ),
    ]


def scored_sentence(test: TestSet) -> str:
    """What of a test set is scored."""
    if test.scope == "replies":
        return "PPL is that of replies, the messages of the assistant with their ends."
    return "PPL is that of all messages."


def both_scopes(primary: Scored | None, beside: Scored | None) -> list[Section]:
    """The section on replies and on all messages; none if the verdict is about everything."""
    if primary is None or beside is None or not (primary.differences and beside.differences):
        return []
    head, rows = scope_rows([primary, beside])
    return [
        Section(
            "replies",
            "Replies and all messages",
            f"On {visible(primary.test.name)}. Replies are the messages of the assistant, which a chat model is "
            "trained to produce; the verdict is about them. Tokens of roles and ends of conversations are learned but "
            "not scored. Beyond random rules: less the mean of placebo rules, which is what the choice of the rules "
            "did; the interval contains their spread. PPL differs by what a reader of both corpora gets.",
            tables=(Table(head, tuple(rows)),),
        )
    ]


def by_network(names: tuple[str, str], findings: Sequence[NetworkFinding], sentence: str, test: str) -> list[Section]:
    """The section on whether the networks agree; none for a single network."""
    if len(findings) < 2:  # noqa: PLR2004
        return []
    rows = [
        (one.label, test, replace(one.difference, ln_ratio=one.choice.ln_ratio, ln_ratio_interval=one.choice.interval))
        for one in findings
        if one.difference is not None
    ]
    panels = [panel(title, key, rows) for key, title in CHANGES.items()]
    head, table = network_rows(findings)
    second, first = map(visible, reversed(names))
    return [
        Section(
            "networks",
            "By network",
            f"{visible(sentence)} {second} compared with {first} on {visible(test)}, by networks of the same size that "
            "read the same pieces in the same orders. Beyond random rules: less the mean of placebo rules, with their "
            f"spread in the interval, as in the figure. The verdict is that of {findings[0].label}, which was chosen "
            "before any training.",
            tuple(filter(None, [figure("networks", "Differences by network", f"{HOW_TO_READ}.", panels)])),
            (Table(head, tuple(table)),),
        )
    ]


def terms(names: tuple[str, str], scored: Sequence[Scored]) -> str:
    """What the headline's terms mean."""
    first, second = map(visible, names)
    network = KINDS[scored[0].networks[0]]
    tests = "; ".join(f"{visible(one.test.name)}: {visible(one.test.about)}" for one in scored)
    return (
        f"{network.label}, {network.about}, is trained on growing parts of each corpus, and PPL = A tokens^alpha is "
        f"fitted. Delta alpha is the exponent of {second} minus that "
        f"of {first}: below 0, PPL falls faster with training tokens on {second}. Test sets: {tests}."
    )


def joined(scored: Sequence[Scored], rows_of: Callable[[Scored], HeadAndRows]) -> Table:
    """One table of all test sets, with the test set as its first column."""
    tables = [(visible(one.test.name, 40), *rows_of(one)) for one in scored]
    return Table(("test set", *tables[0][1]), tuple((name, *row) for name, _, rows in tables for row in rows))


def differences(scored: Sequence[Scored]) -> Figure | None:
    """Delta alpha and the PPL ratio by law and test set; None if no law could be fitted."""
    rows = [
        (f"{kind} law", one.test.name, one.differences[kind])
        for kind in LAWS
        for one in scored
        if kind in one.differences
    ]
    panels = [panel(title, key, rows) for key, title in CHANGES.items()]
    about = f"{HOW_TO_READ}. If an interval crosses the line, the two corpora cannot be distinguished."
    return figure("differences", "Differences with their intervals", about, panels)


def law_figure(scored: Sequence[Scored], kind: Kind) -> Figure:
    """The laws of both arms on each test set, with the model runs that they are fitted to."""
    panels = []
    first, second = (visible(arm, 40) for arm in scored[0].points)
    for one in scored:
        rows = pl.concat(
            pl.DataFrame({"arm": [arm] * len(points.ppl), "tokens": points.tokens, "ppl": points.ppl})
            for arm, points in one.points.items()
        )
        curves = pl.concat(curve(arm, one.laws.fits[arm, kind], past=_predicts(one, arm, kind)) for arm in one.points)
        title = f"{visible(one.test.name)}: {one.test.tokens:,} tokens"
        panels.append(Panel(title, laws(rows, curves, tuple(one.points)), curves))
    return Figure(
        f"laws-{kind}",
        {"power": "Power laws", "saturating": "Saturating laws"}[kind],
        f"{first}: rings; {second}: dots. Bands are 95 % prediction intervals for a training run with a new seed, "
        "scored on other conversations of the same kind. Dashed lines are extrapolations, which no measurement "
        f"supports; a law that misses the largest budget by more than {PREDICTS:.0%}, if fitted without it, has none.",
        tuple(panels),
    )


def _predicts(one: Scored, arm: str, kind: Kind) -> bool:
    held = one.laws.held_out.get(arm)
    return held is not None and abs(held.power_error if kind == "power" else held.saturating_error) <= PREDICTS


def curve(arm: str, law: Law, *, past: bool = True) -> pl.DataFrame:
    """A law as points of a line, also past the largest budget: arm, tokens, ppl, low, high, extrapolated."""
    low, high = law.tokens
    inside = np.geomspace(low, high, CURVE_POINTS)
    outside = np.geomspace(high, high * EXTRAPOLATION, CURVE_POINTS // 2)[1:]
    made = law.predict(np.concatenate([np.minimum(inside, high), outside[: len(outside) * past]]))
    return pl.DataFrame(
        {
            "arm": [arm] * len(made),
            "tokens": [one.tokens for one in made],
            "ppl": [one.value for one in made],
            "low": [one.low for one in made],
            "high": [one.high for one in made],
            "extrapolated": [i >= CURVE_POINTS for i in range(len(made))],
        },
        schema_overrides={"low": pl.Float64, "high": pl.Float64},
    )


def plan(names: tuple[str, str], experiment: Experiment, scored: Sequence[Scored]) -> Section:
    """The design of the experiment, and the sizes of its test sets."""
    data, design, preset = experiment.arms.common.record, experiment.design, experiment.arms.preset
    pools = ", ".join(f"{name} {experiment.arms.tokens(name):,} tokens" for name in names)
    lines = [
        f"networks: {', '.join(KINDS[kind].label for kind in design.networks)}; the verdict is that of the first",
        f"preset: {preset.name}: {preset.about}",
        f"budgets: {', '.join(f'{budget:,}' for budget in design.budgets)} tokens, each run in an order of its own",
        f"loss: {'replies alone' if preset.phase2.loss == 'replies' else 'all tokens'}; n-gram models learn all tokens",
        f"scored: {SCOPES[scored[0].test.scope]}, without tokens of roles and ends of conversations",
        f"seeds: {', '.join(map(str, design.seeds))} by budget, paired between the corpora: order, weights and noise",
        f"intervals of differences: {coverage(design.level)}, so 95 % of conclusions hold though it may stop early",
        f"unit: pieces of at most {preset.piece} tokens; near-duplicates stay together",
        "control: n-gram models of the same streams, whose deviation from their mean is taken off the difference",
        f"tokenizer: {data.tokenizer}; {data.embeddings}",
        f"shared by both corpora: tokenizer{' and embeddings' if data.table else ''}, from the union of their pools",
        "split: by near-duplicate clusters of the union of both corpora, before anything else",
        "validation: shared by both corpora; it only selects the checkpoint",
        f"steps: {last_best(experiment)}",
        f"training pools: {pools}",
        f"training runs: {experiment.count()}",
    ]
    return Section(
        "experiment",
        "The experiment",
        f"The training data, the test sets and the protocol. {EFFECTIVE_SIZE}",
        tables=(
            test_table(scored),
            Table(
                ("set", "conversations", "tokens", "bytes"),
                tuple(
                    (f"{name}, of the union", size.conversations, size.tokens, size.bytes)
                    for name, size in data.sizes().items()
                ),
            ),
        ),
        texts=(("Plan of the experiment", visible("\n".join(lines))),),
        missing=tuple(f"{visible(note)}." for note in data.notes),
    )


def test_table(scored: Sequence[Scored]) -> Table:
    """The sizes of test sets; see `EFFECTIVE_SIZE`."""
    head = ("test set", "conversations", "clusters", "effective size", "tokens", "contents", "error of ln PPL")
    rows = [
        (
            visible(one.test.name),
            one.test.conversations,
            one.test.distinct,
            round(one.test.effective),
            one.test.tokens,
            visible(one.test.about),
            _error(next(iter(one.points.values()))),
        )
        for one in scored
    ]
    return Table(head, tuple(rows))


def _error(points: Points) -> str:
    """Standard deviation of ln PPL over resamples of the test clusters, at the largest budget."""
    if points.resampled is None:
        return "unknown"
    return f"{points.resampled[points.tokens == points.tokens.max()].mean(axis=0).std():.3f}"
