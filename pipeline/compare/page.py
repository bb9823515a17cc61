"""The page of a comparison: the verdict, what training said, the run's own figures where there is one, origins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from pipeline.compare import mixes
from pipeline.compare.corpora import Pair
from pipeline.compare.numbers import corpora_rows, numbers
from pipeline.compare.sections import plan, results
from pipeline.compare.verdict import alpha_said, efficiency_said, ratio_said
from pipeline.report import bars
from pipeline.report.heatmap import Drawn
from pipeline.report.parts import Figure, Page, Panel, Section, Table, Tile
from pipeline.report.run import sections
from pipeline.report.run.bands import BandedRun, banded
from pipeline.report.text import visible
from stages.stage import MissingModelError

if TYPE_CHECKING:
    from pipeline.compare.result import Compared


def page(found: Compared) -> Page:
    """The report of a comparison; of raw and refined of one run, all that `refine report` shows of it is in it."""
    first, second = (visible(name, 40) for name in found.pair.names)
    run = found.pair.run
    trained = found.trained
    sorted_ = None if found.run is None else banded(found.run.read, found.run.kinds)
    measured = [] if sorted_ is None else sections.of_run(sorted_)
    return Page(
        title=f"{first} against {second}",
        kicker=f"refine compare · {visible(run.folder.resolve().name if run is not None else first, 60)}",
        headline=visible(found.sentence),
        tiles=_tiles(found),
        warnings=(*(visible(note) for note in found.notes), *sections.failed(found.checks)),
        checks=tuple(found.checks),
        sections=(
            *([] if trained is None else [*results(found, trained), plan(found, trained)]),
            corpora_section(found.pair, frozenset() if sorted_ is None else frozenset(sorted_.bands)),
            *measured,
            _origin(found, sorted_),
        ),
        examples=None if sorted_ is None else sections.clicked(sorted_),
        numbers=numbers(found),
    )


def _tiles(found: Compared) -> tuple[Tile, ...]:
    told = mixes.statistics(found.pair)
    sizes = tuple(Tile(f"{one['words']:,}", f"words of {visible(name, 30)}") for name, one in told.items())
    if found.trained is None or "power" not in found.trained.scored[0].differences:
        return sizes
    one = found.trained.scored[0]
    power, name = one.differences["power"], visible(one.test.name, 30)
    first, second = (visible(each, 30) for each in found.pair.names)
    return (
        Tile(alpha_said(power).split(" (")[0], f"delta alpha on {name}{_interval(alpha_said(power))}"),
        Tile(
            ratio_said(power).split(" (")[0],
            f"PPL at {power.budget:,.0f} tokens on {name}{_interval(ratio_said(power))}",
        ),
        Tile(
            efficiency_said(power).split(" (")[0].split(",")[0],
            f"tokens of {first} that one of {second} is worth{_interval(efficiency_said(power))}",
        ),
        *sizes,
    )


def _interval(said: str) -> str:
    return f": {said.partition(' (')[2].replace(')', '')}" if " (" in said else ""


def _origin(found: Compared, sorted_: BandedRun | None) -> Section:
    run = [] if found.pair.run is None else [f"# raw and refined are of the run {found.pair.run.folder}"]
    digests = [f"# {name}: digest {one.digest} of its texts" for name, one in found.pair.corpora.items()]
    command = "\n".join((found.command, *run, *digests))
    return Section(
        "origin",
        "How to repeat it",
        "The same corpora, command and versions give the same numbers on the same kind of machine.",
        texts=(
            ("The command that makes this comparison again", visible(command)),
            *(() if sorted_ is None else sections.origin(sorted_)),
        ),
    )


def corpora_section(pair: Pair, measured: frozenset[str]) -> Section:
    """Sizes of both; lengths and languages too, where no run has measured them, whose own figures follow else.

    Args:
        pair: the corpora.
        measured: keys of the bands that figures of a run show.
    """
    head, rows = corpora_rows(pair)
    figures = [] if measured & {"length", "prompt"} else [_lengths(pair)]
    missing: list[str] = []
    try:
        figures += [] if "lang" in measured else [_languages(pair)]
    except MissingModelError as error:
        missing.append(f"{visible(str(error))}.")
    if pair.run is None:
        missing.append(
            "Perplexity and toxicity are measured by refine run, and refine compare raw refined shows them as heatmaps."
        )
    says = "Sizes of what was compared. Copies: conversations whose text another one has"
    if pair.grouped:
        says += "; near-duplicates: those in a group with others at a Jaccard of 0.5 or more, which the split keeps on "
        says += "one side"
    return Section(
        "corpora", "The corpora", f"{says}.", tuple(figures), (Table(head, tuple(rows)),), missing=tuple(missing)
    )


def _lengths(pair: Pair) -> Figure:
    chart, frame = _shares(pair, mixes.lengths(pair), "words of a conversation")
    return Figure("lengths", "Lengths", "Shares of conversations by their words.", (Panel("", chart, frame),))


def _languages(pair: Pair) -> Figure:
    chart, frame = _shares(pair, mixes.languages(pair), "language")
    says = "Shares of conversations by the language of most of their letters; unknown where the model is not sure."
    return Figure("languages", "Languages", says, (Panel("", chart, frame),))


def _shares(pair: Pair, frame: pl.DataFrame, title: str) -> tuple[Drawn, pl.DataFrame]:
    """A mix as bars."""
    both = pl.concat(
        frame.select(
            "y",
            corpus=pl.lit(name),
            share=pl.col(f"{name} share"),
            tip=pl.format(
                f"{{}}: {{}} conversations of {visible(name, 40).replace('{', '(').replace('}', ')')}, {{}}%",
                *("y", f"{name} conversations", (pl.col(f"{name} share") * 100).round(1)),
            ),
            pick=pl.lit(None, pl.String),
        )
        for name in pair.names
    )
    return bars.shares(both, title, pair.names), frame
