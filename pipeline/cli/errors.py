"""The sentence that is printed for an error."""

import errno

from pipeline.api.errors import RefineError
from pipeline.run import AccountingError
from pipeline.terminal import safe


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
