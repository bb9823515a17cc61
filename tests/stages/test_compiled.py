"""Compiled loops are kept as machine code, and never run with what they were not compiled for."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import llvmlite.binding as llvm  # type: ignore[import-untyped]  # it has no types
import numpy as np
import pytest
from numba.core.errors import NumbaError

from stages.text import compiled
from stages.text.compiled import Kernels, NotCompiledError
from tests.conftest import ROOT, Refine

LOOPS = """
import numpy as np
from power_kernel import square

def squares(values, factor, table):
    total = 0
    for i in range(len(values)):
        table[i, 1] = factor * square(values[i])
        total += values[i]
    return total

def every_type(flag, byte, small, signed, long, key, single, double, cube, out):
    out[0], out[1], out[2], out[3], out[4] = flag, byte, small, signed, long
    out[5], out[6], out[7] = key >> np.uint64(32), single, double
    total = 0
    for i in range(cube.shape[0]):
        for j in range(cube.shape[1]):
            for k in range(cube.shape[2]):
                total += cube[i, j, k] * (100 * i + 10 * j + k)
    return total

def printing(values):
    print(values[0])
    return 0

def allocating(values):
    return len(np.zeros(len(values)))
"""
IMPORTED = """
def square(value):
    return value * value
"""
SQUARES = {"squares": "i8* f8 f8**"}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of loops in a folder of its own."""
    name, imported = f"loops_{uuid.uuid4().hex}_kernel", f"power_{uuid.uuid4().hex}_kernel"
    (tmp_path / f"{name}.py").write_text(LOOPS.replace("power_kernel", imported))
    (tmp_path / f"{imported}.py").write_text(IMPORTED)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    for made in (name, imported):
        sys.modules.pop(made, None)


def squared(module: str) -> tuple[int, list[float]]:
    """What the loop gives, loaded anew."""
    table = np.zeros((4, 2))
    total = Kernels(module, SQUARES).call("squares", np.arange(4), 0.5, table)
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
    source = tmp_path / f"{module}.py"
    source.write_text(source.read_text().replace("factor *", "2 * factor *"))
    sys.modules.pop(module)
    assert squared(module) == (6, [0.0, 1.0, 4.0, 9.0])


def test_a_change_in_an_imported_kernel_module_recompiles(module: str, tmp_path: Path) -> None:
    """The cache covers every kernel module whose functions the code may contain."""
    assert squared(module)[1] == [0.0, 0.5, 2.0, 4.5]
    (imported,) = tmp_path.glob("power_*_kernel.py")
    imported.write_text(IMPORTED.replace("value * value", "value * value * value"))
    for name in (module, imported.stem):
        sys.modules.pop(name)
    assert squared(module)[1] == [0.0, 0.5, 4.0, 13.5]


def test_another_compiler_recompiles(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer numba has its own file; nothing compiled by another version is linked."""
    squared(module)
    monkeypatch.setattr(compiled, "version", lambda name: f"{name} of tomorrow")
    assert squared(module)[0] == 6
    assert len(list((tmp_path / "__pycache__").glob("*.o"))) == 2


def test_every_type_of_parameter_arrives(module: str) -> None:
    """Scalars of each type, and three dimensions in order: what the installed numba is checked for."""
    kernels = Kernels(module, {"every_type": "b1 u1 u4 i4 i8 u8 f4 f8 i8*** f8*"})
    out, cube = np.empty(8), np.arange(24).reshape(2, 3, 4)
    total = kernels.call("every_type", True, 200, 1 << 31, -5, -(1 << 40), (1 << 63) + (7 << 32), 0.5, 0.1, cube, out)  # noqa: FBT003
    assert total == sum(int(cube[i, j, k]) * (100 * i + 10 * j + k) for i, j, k in np.ndindex(2, 3, 4))
    assert out.tolist() == [1, 200, 1 << 31, -5, -(1 << 40), (1 << 31) + 7, 0.5, 0.1]


def test_a_numba_that_passes_arguments_otherwise_is_refused(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown calling convention is noticed when compiling, not when memory is already overwritten."""
    monkeypatch.setattr(compiled, "_flat", lambda _: [ctypes.c_void_p, ctypes.c_int64])
    with pytest.raises(NotCompiledError, match=r"numba \S+ passes the arguments of .*squares in an unknown way"):
        squared(module)


def test_a_folder_that_cannot_be_written_is_no_obstacle(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code goes to the user's cache instead; without one, it is compiled each time."""
    (tmp_path / "__pycache__").write_text("a file, not a folder")
    monkeypatch.setattr("platformdirs.user_cache_path", lambda _: tmp_path / "cache")
    assert squared(module)[0] == 6
    assert len(list((tmp_path / "cache").glob("*.o"))) == 1
    monkeypatch.setattr("platformdirs.user_cache_path", lambda _: tmp_path / f"{module}.py")
    assert squared(module)[0] == 6


def test_threads_load_it_once(module: str) -> None:
    """Many threads that call at once get right answers."""
    kernels = Kernels(module, SQUARES)
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda n: kernels.call("squares", np.arange(n), 1.0, np.zeros((n, 2))), range(1, 50))
        assert list(found) == [n * (n - 1) // 2 for n in range(1, 50)]


def test_one_of_several_processes_compiles(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait for its machine code. They share nothing but the folder, as these threads do."""
    compiling, made, start = compiled._compile, list[bytes](), Barrier(4)  # noqa: SLF001

    def counted(*arguments: Any) -> bytes:
        made.append(compiling(*arguments))
        return made[-1]

    def at_once(kernels: Kernels) -> bytes:
        start.wait()
        return kernels._object(llvm)  # noqa: SLF001

    monkeypatch.setattr(compiled, "_compile", counted)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(at_once, [Kernels(module, SQUARES) for _ in range(4)]))
    assert len(made) == 1
    assert found == made * 4


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
        Kernels(module, SQUARES).call("squares", values, 1.0, np.zeros((4, 2)))


def test_a_loop_that_calls_python_is_refused(module: str) -> None:
    """It would jump to nowhere in a process without numba."""
    with pytest.raises(NotCompiledError, match=r"call .*Py"):
        Kernels(module, {"printing": "i8*"}).call("printing", np.arange(4))


def test_a_loop_that_allocates_is_refused(module: str) -> None:
    """Numba's allocator is not linked."""
    with pytest.raises(NumbaError, match="array"):
        Kernels(module, {"allocating": "i8*"}).call("allocating", np.arange(4))


IMPORT = re.compile(r"^\s*(?:from|import) numba", re.MULTILINE)
KERNELS = sorted(path.relative_to(ROOT) for top in ("stages", "trainer") for path in (ROOT / top).rglob("*kernel.py"))


def test_no_module_imports_the_compiler() -> None:
    """There is one way of compiling: `stages.text.compiled`, which alone imports numba, and only to compile."""
    code = (
        "import sys, importlib\nfor name in sys.argv[1:]: importlib.import_module(name)\nprint('numba' in sys.modules)"
    )
    names = [".".join(path.with_suffix("").parts) for path in KERNELS]
    assert len(names) > 6
    done = subprocess.run([sys.executable, "-c", code, *names], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    sources = [path for top in ("pipeline", "stages", "trainer") for path in (ROOT / top).rglob("*.py")]
    users = [path.relative_to(ROOT).as_posix() for path in sources if IMPORT.search(path.read_text(encoding="utf-8"))]
    assert users == ["stages/text/compiled.py"]


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
