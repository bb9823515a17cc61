"""What tests of the pipeline share: one finished run, made once in each process and only read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.compare_corpus import run


@pytest.fixture(scope="session")
def my_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over the first conversations of the embedded default. Who changes it takes a copy."""
    return run(tmp_path_factory.mktemp("finished"))
