"""Refine chat corpora from Python: the functions behind the commands of `refine`, each with a typed result.

Every function takes the options of its command, with the same names and defaults:

    >>> import refine
    >>> run = refine.run("chats.jsonl", stages="heuristics", drop="n_words < 20", out="my-run")
    >>> run.counts.refined, run.counts.rejected
    (150, 50)
    >>> run.signals.select("id", "n_words").collect()   # a polars frame; also raw, decisions, refined, rejected
    >>> run = refine.decide(run, drop="n_words < 10")   # other rules on the same signals, in seconds
    >>> refine.report(run).page
    >>> refine.compare(run=run, train=False)            # a table in a notebook

An error that a user can cause is one of the classes in `RefineError`. A subclass of `Stage` in a module of your own,
say `mine.py`, is named in a plan or in `stages` as "mine:Class".
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.api.compare import compare
    from pipeline.api.distill import distill
    from pipeline.api.errors import RefineError
    from pipeline.api.models import Adapter, Scores, Transfer, score, transfer_apply, transfer_extract
    from pipeline.api.plant import Audit, Damage, audit, plant
    from pipeline.api.push import Push, push
    from pipeline.api.report import Report, report
    from pipeline.api.run import Run, decide, open_run, run
    from pipeline.api.search import search
    from pipeline.compare.result import Comparison
    from pipeline.search.result import Search
    from stages.stage import FittedStage, GlobalStage, Stage

__version__: str

__all__ = [
    "Adapter",
    "Audit",
    "Comparison",
    "Damage",
    "FittedStage",
    "GlobalStage",
    "Push",
    "RefineError",
    "Report",
    "Run",
    "Scores",
    "Search",
    "Stage",
    "Transfer",
    "__version__",
    "audit",
    "compare",
    "decide",
    "distill",
    "open_run",
    "plant",
    "push",
    "report",
    "run",
    "score",
    "search",
    "transfer_apply",
    "transfer_extract",
]

_HOMES = {
    "pipeline.api.run": ("Run", "decide", "open_run", "run"),
    "pipeline.api.distill": ("distill",),
    "pipeline.api.plant": ("Audit", "Damage", "audit", "plant"),
    "pipeline.api.push": ("Push", "push"),
    "pipeline.api.report": ("Report", "report"),
    "pipeline.api.compare": ("compare",),
    "pipeline.api.search": ("search",),
    "pipeline.api.models": ("Adapter", "Scores", "Transfer", "score", "transfer_apply", "transfer_extract"),
    "pipeline.compare.result": ("Comparison",),
    "pipeline.search.result": ("Search",),
    "pipeline.api.errors": ("RefineError",),
    "stages.stage": ("FittedStage", "GlobalStage", "Stage"),
}


def __getattr__(name: str) -> Any:  # noqa: ANN401  typed above; imported on first use, so that `import refine` is light
    if name == "__version__":
        return import_module("pipeline").VERSION
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'refine' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
