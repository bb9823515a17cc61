"""The folder of a report: written under another name and renamed; other folders are never replaced."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from pipeline import VERSION
from pipeline.report.text import visible

if TYPE_CHECKING:
    from pipeline.report.parts import Page

MARK = "report.json"
"""File that identifies the folder of a report; its field `files` names all other files."""
REPORTS = Path("reports")
"""Default parent folder of reports, relative to the working directory."""


class ReportError(Exception):
    """The requested folder cannot hold a report; the message says why."""


@contextmanager
def write(out: Path) -> Iterator[Path]:
    """Yield an empty folder for a report; at the end rename it to `out`, replacing an older report; see `check`."""
    out.parent.mkdir(parents=True, exist_ok=True)
    aside, old = (out.with_name(f".{out.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir()
        yield aside
        check(out)  # drawing takes seconds, in which a file may have appeared there
        if out.exists():
            out.rename(old)
        aside.rename(out)
    finally:
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def replacement_note(out: Path, command: str) -> str:
    """A note if `out` holds the report of another command (--json and --check do not count), else an empty string."""
    report = _read(out)
    before = str(report.get("command") or f"refine report {report.get('run')}")
    words = [[word for word in text.split() if word not in {"--json", "--check"}] for text in (before, command)]
    if not report or words[0] == words[1]:
        return ""
    return f"the report of `{visible(before, 200)}` in {out} will be replaced; --out keeps both"


def check(out: Path) -> None:
    """Refuse a folder that holds anything but a report by a ReportError."""
    problem = ""
    if out.name in {"", ".."}:
        problem = f"--out is {str(out)!r}, expected a folder for the report"
    elif out.is_symlink():
        problem = f"{out} is a link, expected a folder for the report"
    elif out.exists() and not out.is_dir():
        problem = f"{out} is a file, expected a folder for the report"
    elif out.exists():
        names = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()}
        report = _read(out)
        if foreign := sorted(names - {MARK, *report["files"]} if report else names):
            problem = f"{out} is not a report folder of refine: it holds {', '.join(foreign[:3])}"
    if problem:
        raise ReportError(f"{problem}; choose another folder with --out")


def _read(out: Path) -> dict[str, Any]:
    """The contents of a report.json of refine; empty if the folder holds none."""
    try:
        report = json.loads((out / MARK).read_text(encoding="utf-8"))
        return {**report, "files": list(map(str, report["files"]))} if "refine_report" in report else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def build(page: Page, place: Path) -> dict[str, Any]:
    """Write a page, its pictures and report.json into a folder as `write` does; return the contents of report.json."""
    from pipeline.report.page import html, png  # altair takes 0.5 s to import, and `refine run` draws nothing

    numbers = {
        "refine_report": VERSION,
        **page.numbers,
        "title": page.title,
        "headline": page.headline,
        "checks": [asdict(check) for check in page.checks],
        "figures": {
            figure.name: {
                "title": figure.title,
                "panels": [{"title": panel.title, "rows": _exact(panel.numbers)} for panel in figure.panels],
            }
            for figure in page.figures
        },
        "tables": {
            section.name: [{"head": table.head, "rows": table.rows} for table in section.tables]
            for section in page.sections
            if section.tables
        },
        "files": ["index.html", *(f"{figure.name}.png" for figure in page.pictures)],
    }

    with write(place) as aside:
        (aside / "index.html").write_text(html(page), encoding="utf-8")
        for figure in page.pictures:
            (aside / f"{figure.name}.png").write_bytes(png(figure))
        (aside / MARK).write_text(json.dumps(numbers, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    return numbers


def _exact(numbers: pl.DataFrame) -> list[dict[str, Any]]:
    """Numbers in nine significant digits; the rest depends on the order of summation by threads."""
    return numbers.with_columns(pl.col(pl.Float32, pl.Float64).round_sig_figs(9)).to_dicts()
