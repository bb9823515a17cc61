"""The two corpora of a comparison as a section of its page: sizes, and the mix where no run has measured them."""

from __future__ import annotations

import polars as pl

from pipeline.compare import mixes
from pipeline.compare.corpora import Pair
from pipeline.compare.numbers import corpora_rows
from pipeline.report import bars
from pipeline.report.heatmap import Drawn
from pipeline.report.parts import Figure, Panel, Section, Table
from pipeline.report.text import visible
from stages.stage import MissingModelError


def corpora(pair: Pair, measured: frozenset[str]) -> Section:
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
