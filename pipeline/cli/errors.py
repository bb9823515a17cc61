"""Errors as the one sentence that a user reads."""

from __future__ import annotations

import errno

from pipeline.engine import WorkerKilledError
from pipeline.measure import StageFailedError
from pipeline.plan import PlanError
from pipeline.report.folder import ReportError
from pipeline.rules import RuleError
from pipeline.run import AccountingError
from pipeline.sources import SourceError
from pipeline.store import RunFolderError
from pipeline.terminal import safe
from stages import UnknownStageError
from stages.stage import CorruptInputError, MissingModelError, StageParameterError, StageRefusedError
from trainer import TrainerError

USER_ERRORS = (
    SourceError,
    PlanError,
    RuleError,
    RunFolderError,
    ReportError,
    CorruptInputError,
    StageFailedError,
    WorkerKilledError,
    UnknownStageError,
    MissingModelError,
    StageParameterError,
    StageRefusedError,
    TrainerError,
)
"""Errors whose message is the sentence that a user needs."""


def sentence(error: BaseException) -> str:
    """An error as the sentence that a user reads."""
    if isinstance(error, USER_ERRORS):
        return safe(str(error))
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return (
            "the disk is full: make room and start the same command again with the same --out; it goes on where it was"
        )
    if isinstance(error, OSError) and error.strerror:
        return safe(f"{error.filename or 'a file'}: {error.strerror}")
    if isinstance(error, MemoryError):
        return "out of memory: start again with fewer --workers or a smaller --shard-rows"
    fault = "the counts do not add up: " if isinstance(error, AccountingError) else ""
    return safe(f"{fault}{type(error).__name__}: {error}") + " (a fault of refine; --debug shows where)"
