"""The page of a comparison: the verdict, the results of training, the corpora, the figures of their run, the origin."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import polars as pl

from pipeline.compare import mixes
from pipeline.compare.corpora import Pair
from pipeline.compare.numbers import corpora_rows, numbers
from pipeline.compare.screen import page as screen_page
from pipeline.compare.sections import both_scopes, by_network, plan, results, terms
from pipeline.report import charts
from pipeline.report.charts import Chart
from pipeline.report.parts import Figure, Page, Panel, Section, Table, Tile
from pipeline.report.run import sections
from pipeline.report.run.bands import BandedRun, in_bands
from pipeline.report.text import visible
from stages.stage import MissingModelError

if TYPE_CHECKING:
    from pipeline.compare.result import Comparison


def page(comparison: Comparison) -> Page:
    """The report of a comparison; for raw and refined of a run, it includes the figures of `refine report`."""
    first, second = (visible(name, 40) for name in comparison.pair.names)
    run = comparison.pair.run
    bands = None if comparison.run is None else in_bands(comparison.run.read, comparison.run.kinds)
    names, trained, about = comparison.pair.names, list[Section](), ""
    screened = comparison.screened
    if screened is not None:
        trained = [*both_scopes(comparison.primary, comparison.beside), *screen_page.sections(screened)]
        about = screen_page.TERMS
    if comparison.experiment is not None and screened is not None:
        test = "" if comparison.primary is None else comparison.primary.test.name
        trained = [
            *both_scopes(comparison.primary, comparison.beside),
            *by_network(names, comparison.networks, comparison.agreement, test),
            *results(names, comparison.scored),
            *screen_page.shared_sections(screened),
            plan(names, comparison.experiment, comparison.scored),
        ]
        about = " ".join(filter(None, [visible(comparison.agreement), terms(names, comparison.scored)]))
    return Page(
        title=f"{first} against {second}",
        kicker=f"refine compare · {visible(run.folder.resolve().name if run is not None else first, 60)}",
        headline=visible(comparison.verdict.sentence),
        chip=None if screened is None else comparison.verdict.chip(),
        tiles=_tiles(comparison),
        warnings=(*(visible(note) for note in comparison.notes), *sections.failed(comparison.checks)),
        checks=tuple(comparison.checks),
        sections=(
            *trained,
            corpora_section(comparison.pair, frozenset() if bands is None else frozenset(bands.bands)),
            *([] if bands is None else sections.of_run(bands)),
            _origin(comparison, bands),
        ),
        about=about,
        answers=screen_page.answers(comparison),
        examples=None if bands is None else sections.cell_examples(bands),
        numbers=numbers(comparison) | screen_page.findings(comparison),
    )


def _tiles(comparison: Comparison) -> tuple[Tile, ...]:
    sizes = mixes.statistics(comparison.pair).items()
    words = (
        Tile(f"{one['words']:,}", f"words of {visible(name, 30)}, in {one['conversations']:,} conversations")
        for name, one in sizes
    )
    return screen_page.tiles(comparison) or tuple(words)


def _origin(comparison: Comparison, bands: BandedRun | None) -> Section:
    run = (
        [] if comparison.pair.run is None else [f"# raw and refined are parts of the run {comparison.pair.run.folder}"]
    )
    digests = [f"# {name}: digest {one.digest} of its texts" for name, one in comparison.pair.corpora.items()]
    command = "\n".join((comparison.command, *run, *digests))
    return Section(
        "origin",
        "How to repeat it",
        "The same corpora, command and versions give the same numbers on the same kind of machine.",
        texts=(
            ("The command that makes this comparison again", visible(command)),
            *(() if bands is None else sections.origin(bands)),
        ),
    )


def corpora_section(pair: Pair, measured: frozenset[str]) -> Section:
    """Sizes of both corpora, and their lengths and languages unless they are among the bands `measured` of a run."""
    head, rows = corpora_rows(pair)
    figures, missing = list[Figure](), list[str]()
    if not measured & {"length", "prompt"}:
        about = "Shares of conversations by number of words."
        figures.append(_shares(pair, "lengths", about, mixes.lengths, "words per conversation"))
    if "lang" not in measured:
        about = "Shares of conversations by the language of most of their letters; unknown if the model is not sure."
        try:
            figures.append(_shares(pair, "languages", about, mixes.languages, "language"))
        except MissingModelError as error:
            missing.append(f"{visible(str(error))}.")
    if pair.run is None:
        missing.append(
            "For perplexity and toxicity, make a run of a corpus with refine run; refine compare raw refined then "
            "shows them as heatmaps."
        )
    about = "Sizes of the corpora. Copies: conversations with the same text as another one"
    if pair.grouped:
        about += "; near-duplicates: conversations in a cluster with others at a Jaccard similarity of 0.5 or more, "
        about += "which the split keeps on one side"
    table = Table(head, tuple(rows))
    return Section("corpora", "The corpora", f"{about}.", tuple(figures), (table,), missing=tuple(missing))


def _shares(pair: Pair, name: str, about: str, mix: Callable[[Pair], pl.DataFrame], axis: str) -> Figure:
    frame = mix(pair)
    return Figure(name, name.capitalize(), about, (Panel("", _bars(pair, frame, axis), frame),))


def _bars(pair: Pair, frame: pl.DataFrame, axis: str) -> Chart:
    both = pl.concat(
        frame.select(
            "y",
            corpus=pl.lit(name),
            share=pl.col(f"{name} share"),
            tip=pl.format(
                "{}: {} conversations of {}, {}%; {} words, {}%",
                *("y", f"{name} conversations", pl.lit(visible(name, 40)), (pl.col(f"{name} share") * 100).round(1)),
                *(f"{name} words", (pl.col(f"{name} share of words") * 100).round(1)),
            ),
            pick=pl.lit(None, pl.String),
        )
        for name in pair.names
    )
    return charts.shares(both, axis, pair.names)
