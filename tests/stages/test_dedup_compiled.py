"""Compiled loops are kept as machine code, and never run with what they were not compiled for."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from stages.text import compiled
from stages.text.compiled import Kernels, NotCompiledError
from tests.conftest import ROOT, Refine

LOOPS = """
import numpy as np
from stages.text.compiled import inner

@inner
def _square(value):
    return value * value

def squares(values, factor, table):
    total = 0
    for i in range(len(values)):
        table[i, 1] = factor * _square(values[i])
        total += values[i]
    return total

def printing(values):
    print(values[0])
    return 0
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of loops in a folder of its own."""
    name = f"loops_{uuid.uuid4().hex}"
    (tmp_path / f"{name}.py").write_text(LOOPS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    sys.modules.pop(name, None)


def squared(module: str) -> tuple[int, list[float]]:
    """What the loop gives, loaded anew."""
    table = np.zeros((4, 2))
    total = Kernels(module, {"squares": "i8* f8 f8**"}).call("squares", np.arange(4), 0.5, table)
    return total, table[:, 1].tolist()


def test_machine_code_is_made_once(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time nothing is compiled; a changed source or a damaged file is compiled again."""
    right = (6, [0.0, 0.5, 2.0, 4.5])
    assert squared(module) == right
    (file,) = (tmp_path / "__pycache__").glob("*.o")
    made = file.read_bytes()
    for damage in (made, made[:-1000] + bytes(1000), made[:100], b""):
        file.write_bytes(damage)
        if damage != made:
            assert squared(module) == right
        with monkeypatch.context() as patch:
            patch.setattr(compiled, "_compile", None)
            assert squared(module) == right
    (tmp_path / f"{module}.py").write_text(LOOPS.replace("factor *", "2 * factor *"))
    sys.modules.pop(module)
    assert squared(module) == (6, [0.0, 1.0, 4.0, 9.0])


def test_a_folder_that_cannot_be_written_is_no_obstacle(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code goes to the user's cache instead; where there is none either, it is compiled each time."""
    (tmp_path / "__pycache__").write_text("a file, not a folder")
    monkeypatch.setattr(compiled, "_user_cache", lambda: tmp_path / "cache")
    assert squared(module)[0] == 6
    assert len(list((tmp_path / "cache").iterdir())) == 1
    monkeypatch.setattr(compiled, "_user_cache", lambda: tmp_path / f"{module}.py")
    assert squared(module)[0] == 6


def test_threads_load_it_once(module: str) -> None:
    """Many threads that call at once get right answers."""
    kernels = Kernels(module, {"squares": "i8* f8 f8**"})
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda n: kernels.call("squares", np.arange(n), 1.0, np.zeros((n, 2))), range(1, 50))
        assert list(found) == [n * (n - 1) // 2 for n in range(1, 50)]


@pytest.mark.parametrize(
    "values",
    [
        np.arange(4, dtype=np.int32),
        np.arange(4.0),
        np.zeros((2, 2), np.int64),
        np.arange(8)[::2],
    ],
)
def test_another_array_is_refused(module: str, values: np.ndarray) -> None:
    """Type, dimensions and order in memory are checked before the machine sees an address."""
    with pytest.raises(TypeError, match="squares: an array is"):
        Kernels(module, {"squares": "i8* f8 f8**"}).call("squares", values, 1.0, np.zeros((4, 2)))


def test_a_loop_that_calls_python_is_refused(module: str) -> None:
    """It would jump to nowhere in a process without numba."""
    with pytest.raises(NotCompiledError, match=r"call .*Py"):
        Kernels(module, {"printing": "i8*"}).call("printing", np.arange(4))


def test_dedup_needs_no_compiler_the_second_time(refine: Refine, tmp_path: Path) -> None:
    """Neither numba nor pandas, torch or datasets is loaded by `refine dedup`."""
    (tmp_path / "c.jsonl").write_text('{"text": "a b c d e f"}\n' * 3)
    assert refine("dedup", "c.jsonl", "--kept", "k.txt").returncode == 0
    code = (
        "import sys; sys.argv = ['refine', 'dedup', 'c.jsonl', '--kept', 'k.txt']\n"
        "from pipeline.cli import app\n"
        "try: app()\n"
        "except SystemExit: print([m for m in ('numba', 'pandas', 'torch', 'datasets', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"
