"""The page of a comparison: the verdict, what training said, the run's own figures where there is one, origins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.compare import mixes
from pipeline.compare.compared_corpora import corpora
from pipeline.compare.numbers import numbers
from pipeline.compare.sections import plan, results
from pipeline.compare.verdict import alpha_said, efficiency_said, ratio_said
from pipeline.report.parts import Page, Section, Tile
from pipeline.report.run import sections
from pipeline.report.run.banded import Banded, banded
from pipeline.report.text import visible

if TYPE_CHECKING:
    from pipeline.compare.command import Compared


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
            corpora(found.pair, frozenset() if sorted_ is None else frozenset(sorted_.bands)),
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


def _origin(found: Compared, sorted_: Banded | None) -> Section:
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
