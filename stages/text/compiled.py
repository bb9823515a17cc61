"""Compiled loops in a process that never loads their compiler.

A loop is a plain Python function in a module named `*kernel`. The module beside it declares the loop's parameters and
calls it: `LOOPS = Kernels("stages.text.shingles_kernel", {"fold": "u4** i8 u4**"})`, `LOOPS.call("fold", ...)`.

1. At the first call, the module's machine code is read from `__pycache__`, or from the user's cache folder.
2. The file's name holds the versions of numba and llvmlite and the processor; its checksum covers the source of the
   kernel module, of the kernel modules that it imports, of this file, and the parameters. Any change recompiles.
3. Without a valid file, numba compiles every loop, in one process at a time. Nothing else imports numba: a kernel
   module is plain Python.
4. The code may call nothing but `EXTERNALS`: no Python, no allocation. A loop gets its scratch space from its caller.
5. llvmlite links the code, and ctypes calls it as numba's functions are called; see `_flat`. A numba that passes
   arguments in another way raises `NotCompiledError` when it compiles.

The first call costs 0.05 s of CPU; with `numba.njit(cache=True)` it costs 0.5 to 1.3 s, most of it imports.
"""

import ctypes
import hashlib
import importlib
import importlib.util
import re
import tempfile
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from fcntl import LOCK_EX, flock
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np

OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "_nrt": False,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}
"""Options of every compiled function: it allocates nothing, raises nothing, and Python never calls it."""
EXTERNALS = {"memcpy", "memset", "memmove", "exp", "log", "sqrt", "sqrtf"}
"""Functions of the C library that the machine code may call, besides LLVM's intrinsics."""
_KERNEL_IMPORT = re.compile(r"^from ([\w.]*kernel) import ", re.MULTILINE)


class NotCompiledError(RuntimeError):
    """numba compiled a loop to something that cannot be called without numba and Python."""


@dataclass(frozen=True)
class Kernels:
    """The compiled loops of a module, `*kernel`, whose functions allocate nothing and raise nothing.

    `loops` are the functions that are called from outside, each of which returns an int64: name -> types of its
    parameters, such as "u1* i8 f8**" (uint8 array, int64, two-dimensional float64 array). Arrays are C-ordered.
    """

    module: str
    loops: Mapping[str, str]
    fastmath: Collection[str] = ()  # floating-point rewrites that LLVM may apply, such as "reassoc"
    _lock: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)

    def call(self, loop: str, *arguments: Any) -> int:  # noqa: ANN401  arrays and numbers
        """Run a loop without holding Python's global lock; return its result."""
        with self._lock:  # the first of several threads loads
            _, functions = self._loaded
        result, flat = ctypes.c_int64(), list[Any]()
        for kind, value in zip(self.loops[loop].split(), arguments, strict=True):
            if not kind.endswith("*"):
                flat.append(value)
            elif value.dtype != kind.rstrip("*") or value.ndim != kind.count("*") or not value.flags.c_contiguous:
                raise TypeError(f"{loop}: an array is {value.dtype}, {value.ndim} dimensions, expected {kind}")
            else:
                flat += (None, None, value.size, value.itemsize, value.ctypes.data, *value.shape, *value.strides)
        functions[loop](ctypes.byref(result), None, *flat)
        return result.value

    @cached_property
    def _loaded(self) -> tuple[Any, dict[str, Any]]:
        """The engine that owns the machine code, and the loops as C functions, valid while the engine lives."""
        import llvmlite.binding as llvm  # type: ignore[import-untyped]  # it has no types

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine(llvm))
        engine.add_object_file(llvm.ObjectFileRef.from_data(self._object(llvm)))
        engine.finalize_object()
        return engine, {
            loop: ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *_flat(kinds))(
                engine.get_function_address(loop)
            )
            for loop, kinds in self.loops.items()
        }

    def _object(self, llvm: Any) -> bytes:  # noqa: ANN401  a module
        """Object code from a cache, or compiled and written to one."""
        from platformdirs import user_cache_path

        sources = _sources(self.module)
        made_by = (version("numba"), version("llvmlite"), llvm.get_process_triple(), *_processor(llvm).values())
        name = f"{self.module}.{hashlib.blake2b(repr(made_by).encode(), digest_size=8).hexdigest()}.o"
        folders = (sources[self.module].parent / "__pycache__", user_cache_path("refine"))
        places = [folder / name for folder in folders]
        key = hashlib.blake2b(repr((sorted(self.loops.items()), sorted(self.fastmath))).encode())
        for path in (*sources.values(), Path(__file__)):
            key.update(path.read_bytes())
        for place in places:
            if code := _read(place, key.digest()):
                return code
        with _one_at_a_time(places):
            for place in places:  # another process may have compiled it meanwhile
                if code := _read(place, key.digest()):
                    return code
            code = _compile(llvm, self, sources)
            any(_write(place, key.digest(), code) for place in places)  # the first that can be
        return code


def _sources(module: str) -> dict[str, Path]:
    """The files of a kernel module and of the kernel modules that it imports, found without importing them."""
    files: dict[str, Path] = {}
    todo = [module]
    while todo:
        name = todo.pop()
        if name not in files:
            files[name] = Path(str(getattr(importlib.util.find_spec(name), "origin", None)))
            todo += _KERNEL_IMPORT.findall(files[name].read_text(encoding="utf-8"))
    return files


def _processor(llvm: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"cpu": llvm.get_host_cpu_name(), "features": llvm.get_host_cpu_features().flatten(), "opt": 3}


def _machine(llvm: Any) -> Any:  # noqa: ANN401
    return llvm.Target.from_default_triple().create_target_machine(jit=True, **_processor(llvm))


def _flat(kinds: str) -> list[Any]:
    """The C types by which numba passes arguments.

    An array is passed as owner, parent, number of items, bytes per item, data, shape, strides.
    """
    flat: list[Any] = []
    for kind in kinds.split():
        if kind.endswith("*"):
            flat += [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 2 + [ctypes.c_void_p]
            flat += [ctypes.c_int64] * 2 * kind.count("*")
        else:
            flat.append(np.ctypeslib.as_ctypes_type(np.dtype(kind)))
    return flat


def _compile(llvm: Any, kernels: Kernels, sources: Collection[str]) -> bytes:  # noqa: ANN401
    """Object code of all loops, each under its own name."""
    from numba import from_dtype, njit, types
    from numba.extending import register_jitable

    options = {**OPTIONS, "fastmath": set(kernels.fastmath)}
    for name in sources:
        for function in vars(importlib.import_module(name)).values():
            if isinstance(function, FunctionType) and function.__module__ == name:
                register_jitable(**options)(function)
    source, whole = importlib.import_module(kernels.module), llvm.parse_assembly("")
    for loop, kinds in kernels.loops.items():
        parameters = []
        for kind in kinds.split():
            number = from_dtype(np.dtype(kind.rstrip("*")))
            parameters.append(types.Array(number, kind.count("*"), "C") if kind.endswith("*") else number)
        compiled: Any = njit(types.int64(*parameters), **options)(getattr(source, loop))
        (signature,) = compiled.signatures
        code = llvm.parse_assembly(compiled.inspect_llvm(signature))
        entry = code.get_function(compiled.overloads[signature].fndesc.llvm_func_name)
        pointers = [kind is ctypes.c_void_p for kind in (ctypes.c_void_p, ctypes.c_void_p, *_flat(kinds))]
        if [argument.type.is_pointer for argument in entry.arguments] != pointers:
            raise NotCompiledError(
                f"numba {version('numba')} passes the arguments of {kernels.module}.{loop} in an unknown way: "
                "install a version that pyproject.toml allows"
            )
        entry.name, entry.linkage = loop, "external"
        whole.link_in(code)
    foreign = {one.name for one in whole.functions if one.is_declaration and not one.name.startswith("llvm.")}
    if foreign := foreign - EXTERNALS:
        raise NotCompiledError(f"the loops of {kernels.module} call {', '.join(sorted(foreign))}")
    return bytes(_machine(llvm).emit_object(whole))


@contextmanager
def _one_at_a_time(places: Iterable[Path]) -> Iterator[None]:
    """Wait for other processes that compile the same loops, unless neither folder can be written."""
    with ExitStack() as stack:
        for place in places:
            with suppress(OSError):
                place.parent.mkdir(parents=True, exist_ok=True)
                flock(stack.enter_context(place.with_suffix(".lock").open("ab")), LOCK_EX)
                break
        yield


def _read(path: Path, key: bytes) -> bytes | None:
    """Object code, if the file exists, was made from this source, and is whole: a damaged file is never linked."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    size = hashlib.blake2b().digest_size
    return content[size:] if content[:size] == hashlib.blake2b(key + content[size:]).digest() else None


def _write(path: Path, key: bytes, code: bytes) -> bool:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            file.write(hashlib.blake2b(key + code).digest() + code)
        Path(file.name).replace(path)
    except OSError:  # a folder that cannot be written, a full disk: compiled again next time
        return False
    return True
