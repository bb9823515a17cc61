"""Stages by name: the ones that come with refine, installed ones (entry points), and a user's own class."""

from __future__ import annotations

import difflib
import importlib
import sys
from importlib.metadata import entry_points
from pathlib import Path

from stages.stage import RAW, Axis, GlobalStage, Stage, StageParameterError

BUILTIN = {
    "heuristics": "stages.heuristics:Heuristics",
    "language": "stages.language:Language",
    "dedup": "stages.dedup:Dedup",
    "ppl": "stages.ppl:Perplexity",
    "toxicity": "stages.toxicity:Toxicity",
    "turns": "stages.overlap.turns:Turns",
    "substrings": "stages.overlap.substrings:Substrings",
    "contamination": "stages.overlap.contamination:Contamination",
    "against": "stages.dedup.against:Against",
}


class UnknownStageError(LookupError):
    """No stage has this name; the message lists the ones there are."""


def names() -> dict[str, str]:
    """Every stage that can be named in a plan: name -> "module:Class"."""
    installed = {point.name: point.value for point in entry_points(group="refine.stages")}
    return {**installed, **BUILTIN}


def find(use: str) -> type[Stage]:
    """The class of a stage by its name, or by "module:Class" for a user's own.

    Raises:
        UnknownStageError: there is no such stage, or what is there is not one.
    """
    known = names()
    if ":" not in use and use not in known:
        close = difflib.get_close_matches(use, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UnknownStageError(
            f"unknown stage {use!r}: {hint}there are {', '.join(known)}, or your own class as 'my_module:MyStage'"
        )
    module, _, name = known.get(use, use).partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), name)):
        raise UnknownStageError(f"stage {use!r}: expected module:Class, such as my_module:MyStage")
    here = str(Path.cwd())
    if here not in sys.path:  # a user's own stage usually stands in the folder that refine is started in
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # a user's module may raise anything
        said = (str(error).splitlines() or [""])[0]
        raise UnknownStageError(f"stage {use!r} cannot be loaded: {type(error).__name__}: {said}") from error
    if not (isinstance(found, type) and issubclass(found, Stage)):
        raise UnknownStageError(f"stage {use!r}: {module}.{name} is not a subclass of stages.stage.Stage")
    _check(use, found)
    return found


def _check(use: str, kind: type[Stage]) -> None:
    """Refuse a class that does not say what it reads and writes."""
    for name in ("summary", "writes", *(("merges",) if issubclass(kind, GlobalStage) else ())):
        if not hasattr(kind, name):
            raise UnknownStageError(f"stage {use!r}: the class has no `{name}`; see stages.stage.Stage")
    if getattr(kind, "__abstractmethods__", None):
        missing = ", ".join(sorted(kind.__abstractmethods__))
        raise UnknownStageError(f"stage {use!r}: the class does not implement {missing}")
    if strange := [column for column in kind.reads if column not in RAW or column == "id"]:
        there = ", ".join(name for name in RAW if name != "id")
        raise UnknownStageError(f"stage {use!r} reads {', '.join(strange)}; a stage can read {there}")
    columns = {*kind.writes, *(kind.merges if issubclass(kind, GlobalStage) else ())}
    if strange := [name for name, axis in kind.axes.items() if name not in columns or not isinstance(axis, Axis)]:
        raise UnknownStageError(
            f"stage {use!r}: axes[{strange[0]!r}] must be an Axis of a column that the stage writes"
        )
    try:
        hash(kind())
    except StageParameterError:
        raise
    except Exception as error:
        raise UnknownStageError(
            f"stage {use!r}: {error}; each parameter needs a default, and values that can be hashed"
        ) from error
