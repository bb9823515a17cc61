"""The errors that a user of refine can cause."""

from pipeline.engine import WorkerKilledError
from pipeline.measure import StageFailedError
from pipeline.plan import PlanError
from pipeline.report.folder import ReportError
from pipeline.rules import RuleError
from pipeline.sources import SourceError
from pipeline.store import RunFolderError
from stages import UnknownStageError
from stages.stage import CorruptInputError, MissingModelError, StageParameterError, StageRefusedError
from trainer import TrainerError

RefineError = (
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
"""The exception classes whose message is one sentence for the user; `except refine.RefineError` catches them all."""
