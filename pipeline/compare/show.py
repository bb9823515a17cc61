"""Output of `refine compare` and `refine ablate`."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from pipeline.compare import mixes
from pipeline.compare.corpora import Pair
from pipeline.compare.numbers import (
    HeadAndRows,
    baseline_sentences,
    baselines,
    difference_rows,
    law_rows,
    network_rows,
    scope_rows,
)
from pipeline.compare.result import Comparison
from pipeline.compare.scored import Scored
from pipeline.compare.screen import page as screen_page
from pipeline.report.folder import MARK
from pipeline.report.parts import Check
from pipeline.store import read_json
from pipeline.terminal import console, safe, table


def print_comparison(result: Comparison, *, as_json: bool) -> None:
    """Print the tables of a comparison, its checks and its verdict, or its report as JSON."""
    if as_json:
        print_json(result.page)
        return
    for one in result.scored:
        _print_test_set(one, result.pair.names, trained=result.experiment is not None)
    if result.screened is not None and "power" in result.screened.primary.differences:
        print_rows("\nBeside placebo rules, which drop as much at random", screen_page.placebo_rows(result.screened), 1)
        print_rows("\nBoth corpora read to their ends", screen_page.used_up_rows(result.screened), 1)
    if result.beside is not None and result.primary is not None and "power" in result.beside.differences:
        title = f"\nReplies and all messages, on {result.primary.test.name}"
        print_rows(title, scope_rows([result.primary, result.beside]), 1)
    if len(result.networks) > 1 and result.primary is not None:
        print_rows(f"\nBy network, on {result.primary.test.name}", network_rows(result.networks), 1)
    if not result.scored:
        _print_corpora(result.pair)
    print_checks(result.checks)
    print_verdict("\n".join(filter(None, [result.verdict.sentence, result.agreement])), result.page)


def print_json(page: Path) -> None:
    """Print the numbers of a report."""
    report = {"report": str(page), **read_json(page.parent / MARK)}
    sys.stdout.write(json.dumps(report, indent=2) + "\n")


def print_checks(checks: Sequence[Check]) -> None:
    """Print checks as a table; without any, print nothing."""
    words = {True: "pass", False: "FAIL", None: "n/a"}
    rows: list[tuple[object, ...]] = [(words[one.passed], one.name, one.found) for one in checks]
    if rows:
        console().print(table("\nChecks", ("", "check", "found"), rows))


def print_verdict(sentence: str, page: Path) -> None:
    """Print a verdict and, as the last line, the file of the page."""
    out = console()
    out.print(Text(safe(f"\n{sentence}")))
    out.print(Text(safe(f"\n{page}")), soft_wrap=True)


def print_rows(title: str, head_and_rows: HeadAndRows, numbers: int) -> None:
    """Print a table whose columns from the index `numbers` are right-aligned."""
    head, rows = head_and_rows
    console().print(table(title, head, list(rows), frozenset(range(numbers, len(head)))))


def _print_corpora(pair: Pair) -> None:
    keys = ("conversations", "words", "bytes", "median_words", "copies", "shared")
    sizes = mixes.statistics(pair).items()
    head = ("", *(key.replace("_", " ") for key in keys))
    print_rows("Corpora", (head, [(name, *(f"{one[key]:,.0f}" for key in keys)) for name, one in sizes]), 1)


def _print_test_set(one: Scored, names: tuple[str, str], *, trained: bool) -> None:
    out, test = console(), one.test
    of = "tokens of replies in" if test.scope == "replies" else "tokens of"
    title = f"\n{test.name}: {test.tokens:,} {of} {test.conversations:,} conversations, {test.about}"
    out.print(Text(safe(title), style="bold"))
    print_rows("laws, with 95 % intervals", law_rows(one), 2)
    print_rows(f"\n{names[1]} against {names[0]}; a token's worth is in tokens of {names[0]}", difference_rows(one), 1)
    if not trained:
        return
    print_rows("\nPPL by training tokens, with seed 0", baselines(one), 2)
    for sentence in baseline_sentences(one):
        out.print(Text(safe(sentence)))
