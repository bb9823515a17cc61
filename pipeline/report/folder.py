"""The folder of a report: written aside and renamed, and never one that is not ours."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from pipeline import VERSION
from pipeline.report.page import figures, html, png
from pipeline.report.parts import Page, Panel
from pipeline.report.text import visible

MARK = "report.json"
"""The file by which a report's folder is known; its `files` names all others."""


class ReportError(Exception):
    """A report cannot be written where it was asked for; the message says what is there."""


def write(out: Path, into: Callable[[Path], None]) -> None:
    """Have a report written into an empty folder aside, then put it in the place of an older one.

    Raises:
        ReportError: `out` is a file, a link, or a folder that holds what no report of ours wrote.
    """
    check(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside, old = (out.with_name(f".{out.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir()
        into(aside)
        check(out)  # drawing takes seconds, in which someone may have put a file there
        if out.exists():
            out.rename(old)
        aside.rename(out)
    finally:
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def replaced(out: Path, command: str) -> str:
    """What to say where a report of something else lies there, which is about to be replaced; else nothing.

    Args:
        out: the folder of the report.
        command: that makes the new one; whether it prints JSON or exits with 1 makes no other report.
    """
    try:
        said = json.loads((out / MARK).read_text(encoding="utf-8"))
        before = str(said["command"]) if "command" in said else f"refine report {said['run']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    if _plain(before) == _plain(command):
        return ""
    return f"the report of `{visible(before, 200)}` in {out} will be replaced; --out keeps both"


def _plain(command: str) -> list[str]:
    return [word for word in command.split() if word not in {"--json", "--check"}]


def check(out: Path) -> None:
    """Refuse a folder that is not a report's.

    Raises:
        ReportError: see `write`.
    """
    other = "choose another folder with --out"
    if out.name in {"", ".."}:
        raise ReportError(f"--out is {str(out)!r}, expected a folder for the report: {other}")
    if out.is_symlink():
        raise ReportError(f"{out} is a link, and a report is only written into a folder of its own: {other}")
    if not out.exists():
        return
    if not out.is_dir():
        raise ReportError(f"{out} is a file, expected a folder for the report: {other}")
    ours = _ours(out)
    foreign = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir())
    foreign = [name for name in foreign if name not in ours]
    if foreign:
        raise ReportError(f"{out} is not a report folder of refine: it holds {', '.join(foreign[:3])}; {other}")


def _ours(out: Path) -> set[str]:
    """The files that the report lying there says it consists of."""
    try:
        said = json.loads((out / MARK).read_text(encoding="utf-8"))
        return {MARK, *map(str, said["files"])} if "refine_report" in said else set()
    except (OSError, ValueError, KeyError, TypeError):
        return set()


REPORTS = Path("reports")
"""Where reports are written by default, in the folder that refine is started in."""


def build(made: Page, place: Path) -> dict[str, Any]:
    """Write a page with its pictures and its numbers into a folder; the numbers are returned.

    Raises:
        ReportError: the folder is not a report's.
    """
    files = ["index.html", *(f"{figure.name}.png" for figure in figures(made))]
    numbers = {
        "refine_report": VERSION,
        **made.numbers,
        "title": made.title,
        "headline": made.headline,
        "checks": [asdict(one) for one in made.checks],
        "figures": {
            figure.name: {
                "title": figure.title,
                "panels": [{"title": panel.title, "rows": _exact(panel)} for panel in figure.panels],
            }
            for figure in figures(made)
        },
        "files": files,
    }

    def into(aside: Path) -> None:
        said = json.dumps(numbers, ensure_ascii=False, allow_nan=False) + "\n"
        (aside / "index.html").write_text(html(made), encoding="utf-8")
        for figure in figures(made):
            (aside / f"{figure.name}.png").write_bytes(png(figure))
        (aside / MARK).write_text(said, encoding="utf-8")

    write(place, into)
    return numbers


def _exact(panel: Panel) -> list[dict[str, Any]]:
    """The numbers of a panel, without the last digits, which depend on the order in which threads add up."""
    return panel.numbers.with_columns(pl.col(pl.Float32, pl.Float64).round_sig_figs(9)).to_dicts()
