"""What tests share: the real data where it is there, small corpora, and refine as a user starts it."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import settings
from typer.main import get_command

from stages.files import read_frame

# One thread for torch in each of pytest's workers and in what they start: two that share two cores wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Byte code is kept, whatever the shell says: hundreds of processes would each compile the package, and its tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that names a model of the hub must not wait for the network

# The same cases each time and no deadline: a test must not fail because the machine is busy.
settings.register_profile("refine", deadline=None, derandomize=True)
settings.load_profile("refine")

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"


def pytest_collection_finish() -> None:
    """Keep the garbage collector from going through the half million objects of the imports again and again."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _no_fsync() -> Iterator[None]:
    """Files of a test need not outlive a power failure; thousands of them wait for the disk otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _file: None)
        yield


@pytest.fixture
def shared() -> Path:
    """The folder of real test data; the test is skipped where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the real test data (../shared/data) is not on this machine")
    return SHARED / "data"


def chat(i: int, turns: int = 2) -> dict[str, Any]:
    """The i-th conversation of a small corpus in UltraChat's schema."""
    words = ["river", "stone", "lamp", "cloud", "seven", "walks", "under", "green", "paper", "music", "quiet", "engine"]
    said = [" ".join(words[(i * 7 + j * 5 + k * k) % 12] for k in range(4 + (i + j) % 9)) for j in range(turns)]
    messages = [{"role": ("user", "assistant")[j % 2], "content": f"{text} {i}."} for j, text in enumerate(said)]
    return {"prompt": messages[0]["content"], "prompt_id": f"p{i}", "messages": messages}


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Write records (or raw lines) to a JSONL file."""

    def write(records: Iterable[object], name: str = "corpus.jsonl") -> Path:
        path = tmp_path / name
        lines = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
        path.write_bytes(b"\n".join(lines) + b"\n")
        return path

    return write


command = cache(get_command)
"""typer's commands of an app, which it builds again at each call: 0.02 CPU seconds."""
Refine = Callable[..., "subprocess.CompletedProcess[str]"]


def start(*words: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Start `refine` in a process of its own, as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *map(str, words)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def call(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The same in this process, which spares a second of imports; modules of the folder are forgotten afterwards."""
    from pipeline.cli import main

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before, path, argv, code = set(sys.modules), [*sys.path], sys.argv, 0
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(cwd), pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        patch.setattr("typer.main.get_command", command)
        sys.argv = ["refine", *map(str, words)]
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        finally:
            sys.argv, sys.path[:] = argv, path
            for number, handler in handlers.items():
                signal.signal(number, handler)
            for name in set(sys.modules) - before:
                if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(cwd)):
                    del sys.modules[name]
    return subprocess.CompletedProcess(list(map(str, words)), code, out.getvalue(), err.getvalue())


@pytest.fixture
def refine(tmp_path: Path) -> Refine:
    """`refine` in an empty folder: in this process, or, where the environment matters, in one of its own."""

    def either(*words: object, cwd: Path = tmp_path, **env: str) -> subprocess.CompletedProcess[str]:
        return start(*words, cwd=cwd, **env) if env else call(*words, cwd=cwd)

    return either


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An S3 server with one bucket, named bucket; see `tests.pipeline.cluster.S3`."""
    from tests.pipeline.cluster import s3_server

    with s3_server(tmp_path_factory.mktemp("s3")) as made:
        yield made


@pytest.fixture
def s3(s3_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """That server without faults, for clients of this process, which have a new cache."""
    for name, value in {**s3_server.env, "REFINE_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    s3_server.requests.clear()
    yield s3_server
    s3_server.well()


@pytest.fixture(scope="session")
def cluster(s3_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Ray cluster of two nodes on this machine."""
    from tests.pipeline.cluster import two_nodes

    with two_nodes(tmp_path_factory.mktemp("nodes"), s3_server.env) as made:
        yield made


@pytest.fixture
def workers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start workers for any work, however little."""
    monkeypatch.setattr("pipeline.engine.local.WORKER_START", 1e-9)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not draw the PNGs of a report, which take most of its time; tests of the report itself draw them."""
    monkeypatch.setattr("pipeline.report.page.png", lambda _figure: b"\x89PNG")


@pytest.fixture
def no_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures of the run out of the page of a comparison; they take most of its time."""
    monkeypatch.setattr("pipeline.report.run.sections.of_run", lambda _run: [])


def lessen_orders(patch: pytest.MonkeyPatch) -> None:
    """Learn fewer n-gram models in a comparison: what they are for is tested elsewhere."""
    patch.setattr("pipeline.compare.screen.CONTROL_SEEDS", 12)
    patch.setattr("trainer.experiment.screen.PLACEBOS", 3)
    patch.setattr("trainer.experiment.screen.MIN_PLACEBOS", 2)


@pytest.fixture(scope="module")
def few_orders() -> Iterator[None]:
    """The same in all tests of a module."""
    with pytest.MonkeyPatch.context() as patch:
        lessen_orders(patch)
        yield


def read_shards(folder: Path) -> pl.DataFrame:
    """The conversations of a run's raw or repaired shards."""
    return pl.concat(read_frame(path) for path in sorted(folder.glob("*.parquet")))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a run but the lock and the manifest, whose timings differ."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in {".lock", "manifest.json", "shards.json"}
    }
