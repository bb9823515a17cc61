"""The errors that a user of refine can cause, and the sentence that is printed for an error."""

import errno

from pipeline.api.push import PushError
from pipeline.engine import EngineError
from pipeline.measure import StageFailedError
from pipeline.plan import PlanError
from pipeline.plant import PlantError
from pipeline.report.folder import ReportError
from pipeline.rules import RuleError
from pipeline.run import AccountingError
from pipeline.sources import SourceError
from pipeline.store import RunFolderError
from pipeline.store.bucket import PlaceError
from pipeline.terminal import safe
from stages import UnknownStageError
from stages.stage import CorruptInputError, MissingModelError, StageParameterError, StageRefusedError
from trainer import TrainerError

RefineError = (
    SourceError,
    PlanError,
    PlantError,
    RuleError,
    RunFolderError,
    PlaceError,
    ReportError,
    CorruptInputError,
    StageFailedError,
    EngineError,
    PushError,
    UnknownStageError,
    MissingModelError,
    StageParameterError,
    StageRefusedError,
    TrainerError,
)
"""The exception classes whose message is one sentence for the user; `except refine.RefineError` catches them all."""


def sentence(error: BaseException) -> str:
    """Return the error as one sentence: what happened and what to do."""
    if isinstance(error, RefineError):
        return safe(str(error))
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full: free some space and start the same command with the same --out again, to resume"
    if isinstance(error, OSError) and error.strerror:
        return safe(f"{error.filename or 'a file'}: {error.strerror}")
    if isinstance(error, MemoryError):
        return "out of memory: start again with fewer --workers or a smaller --shard-rows"
    fault = "the counts do not add up: " if isinstance(error, AccountingError) else ""
    return safe(f"{fault}{type(error).__name__}: {error}") + " (a bug in refine; --debug shows the traceback)"
