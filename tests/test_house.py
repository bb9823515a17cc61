"""The house: which room may import which, no circles, and few enough modules in a room to find one's way."""

from __future__ import annotations

import ast
import graphlib
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT

STAGE = ("stages.stage", "stages.files", "stages.columns", "stages.models", "stages.readers", "stages.text.compiled")
LINE = (
    *("pipeline", "pipeline.card", "pipeline.diagnosis", "pipeline.duplicates", "pipeline.engine"),
    *("pipeline.estimate", "pipeline.ingest"),
    *("pipeline.manifest", "pipeline.measure"),
    *("pipeline.ownership", "pipeline.plan", "pipeline.repair", "pipeline.rules", "pipeline.signals", "pipeline.store"),
    *("pipeline.write", "pipeline.sources"),
)

ROOMS: dict[str, tuple[str, ...]] = {
    # stages: the contract, files and readers at the bottom; a room of stages knows no other room of stages
    "stages.text.compiled": (),
    "stages.stage": (),
    "stages.files": ("stages.stage",),
    "stages.columns": ("stages.files",),
    "stages.models": ("stages.stage",),
    "stages.readers": ("stages.stage",),
    "stages.text": STAGE,
    "stages.language": (*STAGE, "stages.text"),
    "stages.heuristics": (*STAGE, "stages.text"),
    "stages.toxicity": (*STAGE, "stages.text"),
    "stages.pii": (*STAGE, "stages.text"),
    "stages.ngram": (*STAGE, "stages.text"),
    "stages.dedup": (*STAGE, "stages.text"),
    "stages.overlap": (*STAGE, "stages.text"),
    "stages.value": (*STAGE, "stages.text", "stages.dedup", "stages.ngram", "stages.ppl"),
    "stages.semantic": (*STAGE, "stages.text", "stages.dedup"),
    "stages.follows": (
        *(*STAGE, "stages.text", "stages.ppl"),
        *("trainer.cvfp", "trainer.prepare", "trainer.transformer"),
    ),
    "stages.ppl": (*STAGE, "stages.text", "stages.ngram"),
    "stages": ("stages.stage",),
    # trainer: laws and network are pure, experiments stand on prepared data
    "trainer": (),
    "trainer.scaling": ("trainer",),
    "trainer.cvfp": ("trainer", "stages.text.compiled"),
    "trainer.transformer": ("trainer", "trainer.cvfp"),
    "trainer.presets": ("trainer", "trainer.cvfp"),
    "trainer.prepare": ("trainer", "trainer.presets", "stages.files"),
    "trainer.causal": ("trainer", "trainer.cvfp", "trainer.prepare"),
    "trainer.transfer": ("trainer", "trainer.causal", "trainer.prepare", "stages.files"),
    "trainer.distill": (
        *("trainer", "trainer.causal", "trainer.cvfp", "trainer.experiment", "trainer.prepare", "trainer.presets"),
        "trainer.transfer",
    ),
    "trainer.counts": ("trainer", "trainer.prepare", "stages.ngram", "stages.text.compiled"),
    "trainer.experiment": (
        *("trainer", "trainer.causal", "trainer.presets", "trainer.prepare", "trainer.cvfp", "trainer.transformer"),
        *("trainer.scaling", "trainer.counts", "stages.files", "stages.ngram"),
    ),
    # pipeline: a run, one file a verb
    "pipeline": (),
    "pipeline.engine": (),
    "pipeline.rules": ("stages.stage", "stages.files"),
    "pipeline.store": ("stages.stage", "stages.files"),
    "pipeline.terminal": ("stages.stage", "stages.files"),
    "pipeline.plan": ("pipeline.rules", "stages", "stages.stage", "stages.pii"),
    "pipeline.ownership": ("pipeline.store", "stages.files", "stages.readers"),
    # the damage itself knows no source and no run, so that one embedded source is made of it; the audit reads runs
    "pipeline.plant": (*STAGE, "stages.text", "stages.language", "stages.overlap", "stages.toxicity"),
    "pipeline.plant.audit": ("pipeline.plant", "pipeline.plan", "pipeline.signals", "pipeline.store", *STAGE),
    "pipeline.sources": ("pipeline.ownership", "pipeline.store", "pipeline.plant", "stages.toxicity", *STAGE),
    "pipeline.repair": (
        *("pipeline.plan", "pipeline.rules", "pipeline.store", "pipeline.engine", "pipeline.sources"),
        *("stages.heuristics", "stages.text", *STAGE),
    ),
    "pipeline.duplicates": ("pipeline.rules", "stages.dedup", *STAGE),
    "pipeline.signals": (
        "pipeline.duplicates",
        *("pipeline.plan", "pipeline.rules", "pipeline.store", "pipeline.engine", "pipeline.ownership"),
        *("stages", *STAGE),
    ),
    "pipeline.diagnosis": ("pipeline.plan", "pipeline.rules", "pipeline.signals", "pipeline.store", *STAGE),
    "pipeline.measure": ("pipeline.plan", "pipeline.rules", "pipeline.store", "pipeline.engine", "stages", *STAGE),
    "pipeline.estimate": (
        *("pipeline.plan", "pipeline.rules", "pipeline.store", "pipeline.engine", "pipeline.terminal", "stages"),
        *STAGE,
    ),
    "pipeline.card": ("pipeline", "pipeline.manifest", "pipeline.plan", "pipeline.rules", "pipeline.store", *STAGE),
    "pipeline.write": (
        *("pipeline", "pipeline.plan", "pipeline.rules", "pipeline.store", "pipeline.engine", "pipeline.signals"),
        "pipeline.sources",
        *STAGE,
    ),
    "pipeline.manifest": (
        *("pipeline", "pipeline.plan", "pipeline.rules", "pipeline.store", "pipeline.ownership", "pipeline.write"),
        *("stages", *STAGE),
    ),
    "pipeline.ingest": (
        *("pipeline.plan", "pipeline.store", "pipeline.engine", "pipeline.ownership", "pipeline.sources"),
        *("stages", *STAGE),
    ),
    "pipeline.run": (*LINE, "stages", *STAGE),
    # pipeline: what is made of runs
    "pipeline.dedup": ("pipeline.sources", "pipeline.terminal", *STAGE, "stages.dedup", "stages.text"),
    "pipeline.report": ("pipeline",),
    "pipeline.report.run": (
        "pipeline.duplicates",
        *("pipeline", "pipeline.report", "pipeline.signals", "pipeline.manifest", "pipeline.ownership"),
        *("pipeline.plan", "pipeline.rules", "pipeline.store", "pipeline.write", "pipeline.terminal"),
        *("pipeline.plant", "pipeline.plant.audit", *STAGE),
    ),
    "pipeline.experiments": (
        *("pipeline.ingest", "pipeline.manifest", "pipeline.sources", "pipeline.store", "pipeline.ownership"),
        *("pipeline.engine", "pipeline.terminal", "stages.dedup", "stages.text", *STAGE),
        *("trainer", "trainer.presets", "trainer.prepare", "trainer.experiment", "trainer.scaling"),
    ),
    "pipeline.compare": (
        *("pipeline", "pipeline.experiments", "pipeline.report", "pipeline.report.run", "pipeline.sources"),
        *("pipeline.ownership", "pipeline.plan", "pipeline.store", "pipeline.terminal", "pipeline.manifest"),
        *("stages.language", "stages.text", "stages.value", "stages.stage", "stages.files", "stages.readers"),
        *("trainer", "trainer.presets", "trainer.prepare", "trainer.experiment", "trainer.scaling"),
    ),
    "pipeline.ablate": (
        *("pipeline.compare", "pipeline.experiments", "pipeline.report", "pipeline.report.run", "pipeline.plan"),
        *("pipeline.rules", "pipeline.signals", "pipeline.store", "pipeline.terminal", "trainer.prepare"),
        "trainer.scaling",
    ),
    "pipeline.models": (
        *("pipeline", "pipeline.compare", "pipeline.experiments", "pipeline.ownership", "pipeline.report"),
        *("pipeline.store", "pipeline.terminal", "stages.files", "trainer", "trainer.causal", "trainer.experiment"),
        *("trainer.distill", "trainer.prepare", "trainer.presets", "trainer.scaling", "trainer.transfer"),
    ),
    "pipeline.search": (
        *("pipeline", "pipeline.compare", "pipeline.experiments", "pipeline.report", "pipeline.terminal"),
        *("pipeline.engine", "pipeline.ingest", "pipeline.ownership", "pipeline.plan", "pipeline.rules"),
        *("pipeline.run", "pipeline.signals", "pipeline.sources", "pipeline.store"),
        *("stages.files", "stages.value", "trainer.prepare", "trainer.experiment"),
    ),
    "pipeline.api": (
        *(*LINE, "pipeline.run", "pipeline.terminal", "pipeline.report", "pipeline.report.run"),
        *(
            "pipeline.plant",
            "pipeline.plant.audit",
            "pipeline.experiments",
            "pipeline.compare",
            "pipeline.models",
            "pipeline.search",
            "stages",
            *STAGE,
            "trainer",
            "trainer.prepare",
            "trainer.transfer",
        ),
    ),
    "pipeline.cli": ("*",),
    "refine": ("*",),
}
"""Room -> the rooms it may import, besides itself. A room is the longest of these names that a module begins with."""

MAX_MODULES = 15
"""Maximum number of modules in a folder."""


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def _modules() -> dict[str, Path]:
    """Every module of the project outside its tests: name -> file."""
    paths = [path for top in ("pipeline", "stages", "trainer") for path in sorted((ROOT / top).rglob("*.py"))]
    return {_name(path): path for path in [*paths, *ROOT.glob("refine.py")]}


def _room(module: str) -> str:
    """The room that a module is in; a folder's own `__init__` of one that has rooms in it stands for itself."""
    rooms = [room for room in ROOMS if module == room or module.startswith(f"{room}.")]
    return max(rooms, key=len) if rooms else module


def _imports(module: str) -> list[tuple[str, int]]:
    """Our modules that a module imports, wherever it does, with the line."""
    found = []
    for node in ast.walk(ast.parse(_modules()[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names if alias.name in _modules()]
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found += [(name, node.lineno) for name in [inner if inner in _modules() else node.module]]
    return [(name, line) for name, line in found if name in _modules()]


def test_a_room_imports_only_what_the_table_names() -> None:
    """Arrows run one way, those inside functions and under TYPE_CHECKING too."""
    wrong = [
        f"{_modules()[module].relative_to(ROOT)}:{line}: {_room(module)} may not import {_room(name)} ({name})"
        for module in _modules()
        for name, line in _imports(module)
        if _room(name) != _room(module) and not {"*", _room(name)} & set(ROOMS[_room(module)])
    ]
    assert not wrong, "\n".join(wrong)


def test_each_module_has_a_room() -> None:
    """A new folder is a line in the table."""
    assert [name for name in _modules() if _room(name) not in ROOMS] == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    """No circle, even where only functions close it."""
    graph = {module: {name for name, _ in _imports(module)} - {module} for module in _modules()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_room_leads_back_to_itself() -> None:
    """The table itself has no circle."""
    graph = {room: set(ROOMS if "*" in may else may) - {room, "refine"} for room, may in ROOMS.items()}
    graph["refine"].add("pipeline.cli")
    graph["pipeline.cli"].discard("refine")
    graphlib.TopologicalSorter(graph).prepare()


def test_inner_modules_do_not_import_the_face_of_their_room() -> None:
    """`stages/dedup/merge.py` knows nothing of `stages/dedup/__init__.py`."""
    wrong = [
        f"{_modules()[module].relative_to(ROOT)}:{line}"
        for module in _modules()
        if module.startswith(("stages.dedup.", "stages.ppl.", "stages.toxicity.", "stages.heuristics."))
        for name, line in _imports(module)
        if name == module.rpartition(".")[0]
    ]
    assert not wrong


def test_a_folder_is_short_enough_to_read() -> None:
    """`ls` names the room for any change."""
    folders = {path.parent for path in _modules().values()} - {ROOT}
    assert {f.name: n for f in folders if (n := len(list(f.glob("*.py")))) > MAX_MODULES} == {}
