"""Stages by name: the ones that come with refine, installed ones (entry points), and a user's own class."""

from __future__ import annotations

import difflib
import importlib
import sys
from importlib.metadata import entry_points
from pathlib import Path

from stages.stage import Stage

BUILTIN = {
    "heuristics": "stages.heuristics:Heuristics",
    "language": "stages.language:Language",
    "dedup": "stages.dedup:Dedup",
    "ppl": "stages.ppl:Perplexity",
    "toxicity": "stages.toxicity:Toxicity",
    "turns": "stages.turns:Turns",
    "substrings": "stages.substrings:Substrings",
    "contamination": "stages.contamination:Contamination",
    "against": "stages.against:Against",
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
    here = str(Path.cwd())
    if here not in sys.path:  # a user's own stage usually stands in the folder that refine is started in
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UnknownStageError(f"stage {use!r} cannot be loaded: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Stage)):
        raise UnknownStageError(f"stage {use!r}: {module}.{name} is not a subclass of stages.stage.Stage")
    return found
