"""`refine transfer extract`: the difference of two models as an adapter, and a page on what changed."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from rich.text import Text

from pipeline import VERSION
from pipeline.experiments.formats import finite
from pipeline.models.score import ScoreTable, print_scores, tabulate
from pipeline.models.work import open_work
from pipeline.report import folder as reports
from pipeline.report.charts import Colour, Side, heatmap
from pipeline.report.parts import Figure, Page, Panel, Section, Table, Tile
from pipeline.report.text import labels, short, visible
from pipeline.store import RunFolderError
from pipeline.terminal import console, safe, say, table
from stages.files import save_json
from trainer.transfer.extract import Extraction, ExtractOptions, Job, TensorRecord, extract, plan

RECORD = "record.json"
KEY = "refine_transfer"
"""Field of record.json that identifies the folder of a transfer, with the version of refine."""
PARTS = ("attention", "MLP", "norms", "embeddings", "other")


@dataclass(frozen=True)
class Extracted:
    """The outcome of `extract_adapter`: what was found, the folder and its page, and scores if they were asked for."""

    found: Extraction
    folder: Path | None
    page: Path | None
    scores: ScoreTable | None


def extract_adapter(  # noqa: PLR0917  what the command takes
    base: str,
    tuned: str,
    out: Path,
    options: ExtractOptions,
    score: Path | None = None,
    report: Path | None = None,
    command: str = "",
) -> Extracted:
    """Write the difference of two models as an adapter into a folder, and a page about it.

    Raises:
        WeightsError, ModelError: the models cannot be read or do not suit.
        RunFolderError, ReportError: a folder holds something else.
    """
    check_out(out, base, tuned, *([] if report is None else [report]))
    place = report or reports.REPORTS / f"{out.name}-transfer"
    reports.check(place)
    work = None if score is None else open_work(score)
    job = plan(base, tuned, options)
    say(f"{len(job.changed):,} of {len(job.base.tensors):,} tensors differ")
    aside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        found = extract(job, aside, _Progress())
        if not found.size:
            return Extracted(found, None, None, None)
        scores = None
        if work is not None:
            names = [(base, None), (tuned, None), (base, aside)]
            scores = tabulate(work.test(None), names)
        (aside / "README.md").write_text(card(found, out, scores), encoding="utf-8")
        record: dict[str, Any] = {KEY: VERSION, "command": command, **found.as_dict()}
        record |= {"scores": None if scores is None else scores.as_dict()}
        save_json(aside / RECORD, finite(record))
        if out.exists():
            shutil.rmtree(out)
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    reports.build(page(found, out, command), place)
    return Extracted(found, out, place / "index.html", scores)


class _Progress:
    """Reports every fiftieth tensor."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, line: str) -> None:
        self._count += 1
        if self._count % 50 == 0:
            say(line)


def check_out(out: Path, *read: Path | str) -> None:
    """Refuse a folder that holds anything but the result of an earlier transfer, or that is `read`."""
    if same := [one for one in read if Path(one).expanduser().resolve() == out.resolve()]:
        raise RunFolderError(f"--out is {out}, which would take the place of {same[0]}: choose another folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        try:
            ours = KEY in json.loads((out / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError, RecursionError):
            ours = False
        if not ours:
            raise RunFolderError(f"{out} holds something else than an adapter of refine: choose another --out")


def by_part(found: Extraction) -> list[tuple[str, int, int, float, float, str, float]]:
    """For each part of the model: tensors, those that changed, |D|/|W|, share of |D|^2, ranks, share kept."""
    total = sum(one.difference**2 for one in found.tensors) or 1.0
    rows = []
    for part in PARTS:
        every = [one for one in found.tensors if one.part == part]
        changed = [one for one in every if one in found.changed]
        if not every:
            continue
        energy = sum(one.difference**2 for one in changed)
        size = sum((one.difference / one.relative) ** 2 for one in changed if one.relative)
        ranks = sorted(one.rank for one in changed if one.rank is not None and one.how == "low rank")
        text = "-" if not ranks else str(ranks[0]) if ranks[0] == ranks[-1] else f"{ranks[0]} to {ranks[-1]}"
        kept = sum(one.kept * one.difference**2 for one in changed) / energy if energy else 1.0
        rows.append(
            (part, len(every), len(changed), (energy / size) ** 0.5 if size else 0.0, energy / total, text, kept)
        )
    return rows


HEAD = ("part", "tensors", "changed", "relative change", "share of the change", "ranks", "kept")
"""Heads of `by_part`; the change is the squared norm of differences, a relative one the norm over that of weights."""


def cells(row: tuple[str, int, int, float, float, str, float]) -> tuple[str, ...]:
    """A row of `by_part` as it is shown."""
    part, every, changed, relative, share, ranks, kept = row
    return part, f"{every:,}", f"{changed:,}", f"{relative:.3f}", f"{share:.1%}", ranks, f"{kept:.1%}"


def headline(found: Extraction) -> str:
    """What training changed, in two sentences."""
    rows = by_part(found)
    part, *_, share, _, _ = max(rows, key=lambda row: row[4])
    where = "other tensors" if part == "other" else f"the {part}"
    kept = sum(one.kept * one.difference**2 for one in found.changed)
    kept /= sum(one.difference**2 for one in found.changed) or 1.0
    return (
        f"Training changed {len(found.changed):,} of {len(found.tensors):,} tensors, most of it in {where} "
        f"({share:.0%} of the squared difference). The adapter keeps {kept:.1%} of the squared difference in "
        f"{short(found.size / 1e6)} MB."
    )


def nothing(found: Extraction) -> str:
    """That two models are equal."""
    return f"nothing differs between {found.base} and {found.tuned}; nothing is written"


def page(found: Extraction, out: Path, command: str) -> Page:
    """The report of an extraction: where the model changed, by layer and role."""
    figures = (
        _figure(found, "change", "How much changed", "relative change", lambda one: one.relative, ".2f"),
        _figure(found, "rank", "In how many directions", "rank at 95 %", lambda one: one.rank95, "~s"),
    )
    rows = tuple(tensor_row(one) for one in found.changed)
    return Page(
        title=f"{visible(found.tuned, 60)} against {visible(found.base, 60)}",
        kicker=f"refine transfer extract \u00b7 {visible(out.name, 60)}",
        headline=visible(headline(found)),
        tiles=(
            Tile(f"{len(found.changed):,}", "tensors changed"),
            Tile(f"{short(found.size / 1e6)} MB", "size of the adapter"),
        ),
        warnings=tuple(visible(note) for note in found.notes),
        checks=(),
        sections=(
            Section(
                "where",
                "Where the model changed",
                "The relative change of a weight is the norm of its difference over its own norm; the rank is the "
                "smallest that keeps 95 % of the squared difference.",
                figures,
            ),
            Section("parts", "By part", "", tables=(Table(HEAD, tuple(map(cells, by_part(found)))),)),
            Section("tensors", "Every tensor that changed", "", tables=(Table(TENSOR_HEAD, rows),)),
            Section("origin", "How to repeat it", "", texts=(("Command", visible(command)),)),
        ),
        about="Stable rank is |D|\u00b2 over the square of its largest singular value: in how many directions it goes.",
        numbers={"command": command, "record": str(out / RECORD)},
    )


TENSOR_HEAD = ("tensor", "kept as", "relative change", "rank", "kept", "stable rank", "rank at 95 %", "noise")


def tensor_row(one: TensorRecord) -> tuple[str | int | float | None, ...]:
    """A tensor that changed, as a row of the page's table."""
    stable = None if one.stable_rank is None else round(one.stable_rank, 1)
    rank = one.rank if one.how == "low rank" else None
    shares = f"{one.kept:.1%}", f"{one.noise:.0%}"
    relative = "from zero" if one.relative is None else f"{one.relative:.4f}"
    return visible(one.name, 90), one.how, relative, rank, shares[0], stable, one.rank95, shares[1]


def _figure(found: Extraction, name: str, title: str, unit: str, value: Any, form: str) -> Figure:  # noqa: ANN401, PLR0917
    """A heatmap of a number of each weight, by layer and role."""
    weights = [one for one in found.tensors if one.layer is not None and not one.role.endswith(".bias")]
    weights = [one for one in weights if len(one.shape) > 1 or name == "change"]
    roles = list(dict.fromkeys(one.role for one in weights))
    layers = sorted({one.layer for one in weights if one.layer is not None})
    shown = dict(zip(roles, labels(roles, 26), strict=True))
    rows = [
        {
            "x": shown[one.role],
            "y": str(one.layer),
            "value": None if one.how == "unchanged" else value(one),
            "text": "" if one.how == "unchanged" or value(one) is None else f"{value(one):.2g}",
            "tip": visible(f"{one.name}: {unit} {short(value(one))}, kept as {one.how}", 200),
        }
        for one in weights
    ]
    empty = "did not change" if name == "change" else "did not change, or are no matrices"
    says = f"{unit} of each weight, by layer (rows) and role (columns); empty cells {empty}."
    schema = {"x": pl.String, "y": pl.String, "value": pl.Float64, "text": pl.String, "tip": pl.String}
    cells = pl.DataFrame(rows, schema=schema)
    known = cells["value"].drop_nulls()
    if known.is_empty():
        return Figure(name, title, says, (Panel("", None, cells, ("No weight within a layer changed.",)),))
    low, high = float(known.min()), float(known.max())  # type: ignore[arg-type]  # numbers
    colour = Colour(unit, (low, high if high > low else low + 1e-9), form=form)
    chart = heatmap(
        cells,
        Side("role", tuple(shown.values()), upright=True),
        Side("layer", tuple(map(str, layers))),
        colour,
    )
    return Figure(name, title, says, (Panel("", chart, cells),))


def card(found: Extraction, out: Path, scores: ScoreTable | None) -> str:
    """The model card of an adapter."""
    lines = [f"| {' | '.join(cells(row))} |" for row in by_part(found)]
    scored = [] if scores is None else [f"- {row.name}: {row.bits_per_byte:.4f} bits per byte" for row in scores.rows]
    biased = any(one.how == "bias" for one in found.changed)
    return "\n".join(
        (
            *("---", "library_name: peft", "---", f"# {out.name}", "", headline(found), ""),
            f"- base: `{found.base}` (digest {found.digests[0]})",
            f"- tuned: `{found.tuned}` (digest {found.digests[1]})",
            *(f"- {note}" for note in found.notes),
            *scored,
            "",
            *(f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}", *lines, ""),
            "```python",
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM",
            "",
            f"model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({found.base!r}), {str(out)!r})",
            "```",
            "",
            *(["`disable_adapter()` does not give the base back, because biases are replaced.", ""] if biased else []),
        )
    )


def print_plan(job: Job, *, as_json: bool) -> None:
    """Print what an extraction would keep, and how."""
    kinds: dict[str, int] = {}
    for name in job.changed:
        role = job.roles.by_name[name]
        kinds[role.part] = kinds.get(role.part, 0) + 1
    made = {"tensors": len(job.base.tensors), "changed": kinds, "whole": list(job.whole), "added_tokens": job.added}
    if as_json:
        sys.stdout.write(json.dumps(made, indent=2) + "\n")
        return
    parts = ", ".join(f"{count} of {part}" for part, count in kinds.items()) or "nothing differs"
    say(f"{len(job.changed):,} of {len(job.base.tensors):,} tensors differ: {parts}")
    say(f"{len(job.whole)} modules are kept whole{': ' + ', '.join(job.whole[:5]) if job.whole else ''}")


def print_extraction(made: Extracted, *, as_json: bool) -> None:
    """Print what changed by part, or the record as JSON."""
    if as_json:
        scores = None if made.scores is None else made.scores.as_dict()
        record = {"folder": made.folder and str(made.folder), **made.found.as_dict(), "scores": scores}
        sys.stdout.write(json.dumps(finite(record), indent=2) + "\n")
        return
    shown = console()
    if made.folder is None:
        shown.print(Text(safe(nothing(made.found))))
        return
    rows: Sequence[tuple[object, ...]] = [cells(row) for row in by_part(made.found)]
    shown.print(table("\nWhat training changed", HEAD, list(rows), frozenset(range(1, len(HEAD)))))
    for line in (*made.found.notes, headline(made.found)):
        shown.print(Text(safe(line)))
    if made.scores is not None:
        print_scores(made.scores, None, as_json=False)
    shown.print(Text(safe(f"\n{made.folder}: adapter_model.safetensors, adapter_config.json, README.md, {RECORD}")))
    shown.print(Text(safe(str(made.page))))
