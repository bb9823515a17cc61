"""Stages by name: built-in ones, installed ones (entry points), and a class of the user's own."""

import difflib
import importlib
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType

from stages.stage import RAW, Axis, GlobalStage, Stage, StageParameterError, reason

BUILTIN = {
    "heuristics": "stages.heuristics:Heuristics",
    "language": "stages.language:Language",
    "dedup": "stages.dedup:Dedup",
    "ppl": "stages.ppl:Perplexity",
    "toxicity": "stages.toxicity:Toxicity",
    "pii": "stages.pii:Pii",
    "quality": "stages.value.quality:Quality",
    "target": "stages.value.target:Target",
    "semantic": "stages.semantic:Semantic",
    "follows": "stages.follows:Follows",
    "turns": "stages.overlap.turns:Turns",
    "substrings": "stages.overlap.substrings:Substrings",
    "contamination": "stages.overlap.contamination:Contamination",
    "against": "stages.dedup.against:Against",
}


class UnknownStageError(LookupError):
    """No stage has this name, or the class is not a valid stage; the message lists the known names or the fault."""


@cache  # the metadata of all installed packages take 0.03 s
def names() -> Mapping[str, str]:
    """Every stage that a plan can name: name -> "module:Class"."""
    installed = {point.name: point.value for point in entry_points(group="refine.stages")}
    return MappingProxyType({**installed, **BUILTIN})


def find(use: str) -> type[Stage]:
    """The class of a stage, by its name or as "module:Class"."""
    known = BUILTIN if use in BUILTIN else names()
    if ":" not in use and use not in known:
        close = difflib.get_close_matches(use, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UnknownStageError(
            f"unknown stage {use!r}: {hint}the stages are {', '.join(known)}, or your own class as 'my_module:MyStage'"
        )
    module, _, name = known.get(use, use).partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), name)):
        raise UnknownStageError(f"stage {use!r}: expected module:Class, such as my_module:MyStage")
    here = str(Path.cwd())
    if here not in sys.path:  # a user's stage is usually a file in the current folder
        sys.path.append(here)
    try:
        kind = getattr(importlib.import_module(module), name)
    except Exception as error:  # a user's module may raise anything
        raise UnknownStageError(f"stage {use!r} cannot be loaded: {type(error).__name__}: {reason(error)}") from error
    if not (isinstance(kind, type) and issubclass(kind, Stage)):
        raise UnknownStageError(f"stage {use!r}: {module}.{name} is not a subclass of stages.stage.Stage")
    _check(use, kind)
    return kind


def _check(use: str, kind: type[Stage]) -> None:
    """Refuse a class that breaks the contract of a stage, before anything is measured."""
    for name in ("summary", "writes", *(("merges",) if issubclass(kind, GlobalStage) else ())):
        if not hasattr(kind, name):
            raise UnknownStageError(f"stage {use!r}: the class has no `{name}`; see stages.stage.Stage")
    annotations = vars(kind).get("__annotations__", {}).items()
    parameters = [name for name, annotation in annotations if "ClassVar" not in str(annotation)]
    if parameters and "__dataclass_params__" not in vars(kind):
        raise UnknownStageError(
            f"stage {use!r}: the class has the parameter {parameters[0]}; decorate it with @dataclass(frozen=True)"
        )
    if getattr(kind, "__abstractmethods__", None):
        missing = ", ".join(sorted(kind.__abstractmethods__))
        raise UnknownStageError(f"stage {use!r}: the class does not implement {missing}")
    if unknown := [column for column in kind.reads if column not in RAW or column == "id"]:
        allowed = ", ".join(name for name in RAW if name != "id")
        raise UnknownStageError(f"stage {use!r} reads {', '.join(unknown)}; a stage can read {allowed}")
    columns = {*kind.writes, *(kind.merges if issubclass(kind, GlobalStage) else ())}
    if wrong := [name for name, axis in kind.axes.items() if name not in columns or not isinstance(axis, Axis)]:
        raise UnknownStageError(f"stage {use!r}: axes[{wrong[0]!r}] must be an Axis of a column that the stage writes")
    try:
        hash(kind())
    except StageParameterError:
        raise
    except Exception as error:
        raise UnknownStageError(
            f"stage {use!r}: {error}; each parameter needs a default and a hashable value"
        ) from error
