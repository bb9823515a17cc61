"""Compiled loops without their compiler: numba makes machine code once, later processes only load it.

Loading numba and taking functions from its own cache costs 0.6 s of CPU in every process, more than the near-duplicates
of 20,000 documents do. Here the object code of a module's loops is kept in one file, which llvmlite links in 0.05 s.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import importlib.util
import os
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

TYPES = {"u1": "uint8", "u4": "uint32", "i4": "int32", "i8": "int64", "u8": "uint64", "f4": "float32", "f8": "float64"}
OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "_nrt": False,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}
"""Of every numba function here: it allocates nothing, raises nothing, and is called by no Python."""
NEEDED = {"memcpy", "memset", "memmove"}
"""What the machine code may call: there is no Python in it, and no allocation."""


Function = TypeVar("Function", bound=Callable[..., Any])


class NotCompiledError(RuntimeError):
    """The compiler made something else than what is called here: another numba than those that were tested."""


def inner(function: Function) -> Function:
    """A function that compiled loops call: for decorating it in their module, which only the compiler imports."""
    from numba import njit

    compiled: Function = njit(**OPTIONS)(function)
    return compiled


@dataclass(frozen=True)
class Kernels:
    """The compiled loops of a module.

    Attributes:
        module: its name; it is imported only to compile it. Its loops are numba functions that allocate nothing, raise
            nothing, and return an int64.
        loops: for each loop its parameters, such as "u1* i8 f8**": NumPy types, a star a dimension of an array in C
            order.
    """

    module: str
    loops: Mapping[str, str]
    _lock: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)

    def call(self, loop: str, *arguments: Any) -> int:  # noqa: ANN401  arrays and numbers
        """Run a loop, without Python's lock; its number.

        Raises:
            TypeError: an array is of another type, shape or order than the loop says.
        """
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
        """The machine code's owner, as long as which the code lives, and the loops as C functions."""
        import llvmlite.binding as llvm  # type: ignore[import-untyped]  # it has no types

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_default_triple().create_target_machine(jit=True, **_processor(llvm))
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        engine.add_object_file(llvm.ObjectFileRef.from_data(self._object(llvm)))
        engine.finalize_object()
        return engine, {
            loop: ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *_flat(kinds))(
                engine.get_function_address(loop)
            )
            for loop, kinds in self.loops.items()
        }

    def _object(self, llvm: Any) -> bytes:  # noqa: ANN401  a module
        """Object code from the cache, or compiled and put there."""
        source = Path(str(getattr(importlib.util.find_spec(self.module), "origin", None)))
        made_by = (version("numba"), version("llvmlite"), llvm.get_process_triple(), *_processor(llvm).values())
        name = f"{source.stem}.{hashlib.blake2b(repr(made_by).encode(), digest_size=8).hexdigest()}.o"
        places = [folder / name for folder in (source.parent / "__pycache__", _user_cache())]
        key = hashlib.blake2b(source.read_bytes() + repr(sorted(self.loops.items())).encode()).digest()
        for place in places:
            if code := _read(place, key):
                return code
        code = _compile(llvm, self.module, self.loops)
        any(_written(place, key, code) for place in places)  # the first that can be
        return code


def _processor(llvm: Any) -> dict[str, Any]:  # noqa: ANN401
    features = llvm.get_host_cpu_features().flatten()
    return {"cpu": llvm.get_host_cpu_name(), "features": features, "opt": 3}


def _flat(kinds: str) -> list[Any]:
    """How numba passes arguments: an array as owner, parent, items, bytes an item, data, shape, strides."""
    flat: list[Any] = []
    for kind in kinds.split():
        if kind.endswith("*"):
            dimensions = kind.count("*")
            flat += [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 2 + [ctypes.c_void_p] + [ctypes.c_int64] * 2 * dimensions
        else:
            flat.append(np.ctypeslib.as_ctypes_type(np.dtype(kind)))
    return flat


def _compile(llvm: Any, module: str, loops: Mapping[str, str]) -> bytes:  # noqa: ANN401
    """Object code of all loops, each under its own name."""
    from numba import njit, types

    source, whole = importlib.import_module(module), llvm.parse_assembly("")
    for loop, kinds in loops.items():
        parameters = [
            types.Array(getattr(types, TYPES[kind.rstrip("*")]), kind.count("*"), "C")
            if kind.endswith("*")
            else getattr(types, TYPES[kind])
            for kind in kinds.split()
        ]
        function: Any = njit(types.int64(*parameters), **OPTIONS)(getattr(source, loop))
        (signature,) = function.signatures
        code = llvm.parse_assembly(function.inspect_llvm(signature))
        entry = code.get_function(function.overloads[signature].fndesc.llvm_func_name)
        if len(list(entry.arguments)) != 2 + len(_flat(kinds)):
            raise NotCompiledError(f"numba passes the arguments of {loop} in another way than expected")
        entry.name, entry.linkage = loop, "external"
        whole.link_in(code)
    foreign = {one.name for one in whole.functions if one.is_declaration and not one.name.startswith("llvm.")} - NEEDED
    if foreign:
        raise NotCompiledError(f"the loops of {module} call {', '.join(sorted(foreign))}")
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True, **_processor(llvm))
    return bytes(machine.emit_object(whole))


def _user_cache() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("refine")


def _read(path: Path, key: bytes) -> bytes | None:
    """Object code, if the file is there, made from this source, and whole: a damaged one is not even loaded."""
    try:
        found = path.read_bytes()
    except OSError:
        return None
    size = hashlib.blake2b().digest_size
    return found[size:] if found[:size] == hashlib.blake2b(key + found[size:]).digest() else None


def _written(path: Path, key: bytes, code: bytes) -> bool:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.blake2b(key + code).digest() + code)
        Path(aside).replace(path)
    except OSError:  # a folder that cannot be written, a full disk: compiled again next time
        return False
    return True
