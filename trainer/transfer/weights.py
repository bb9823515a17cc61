"""Checkpoints in safetensors, read a tensor at a time, and a writer that holds one tensor at a time.

Files are read, not mapped: the pages of a mapped file would count as memory of the process.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from trainer import TrainerError
from trainer.causal import locate, read_config

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Types by their names in safetensors."""
FLOATS = ("F64", "F32", "F16", "BF16")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_HEADER = 100_000_000
"""Maximum size of a header in bytes, as in the format's own library."""
BLOCK = 1 << 24
"""Bytes copied at a time."""


class WeightsError(TrainerError):
    """A checkpoint cannot be read, or does not suit."""


@dataclass(frozen=True)
class TensorFile:
    """Where a tensor is: its file, its type in the format's name, its shape, the position and number of its bytes."""

    path: Path
    kind: str
    shape: tuple[int, ...]
    begin: int
    size: int


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a model's folder by name, and its config.json."""

    folder: Path
    name: str
    tensors: Mapping[str, TensorFile]
    config: Mapping[str, Any]

    @classmethod
    def open(cls, name: str) -> Self:
        """Open a folder, or a model of the hub, whose files are downloaded; no tensor is read yet.

        Raises:
            WeightsError: it holds no complete safetensors, or quantised weights.
        """
        folder = fetch(name)
        config = read_config(folder / "config.json")
        if config.get("quantization_config"):
            raise WeightsError(
                f"{name} is quantised, and differences of quantised weights are rounding: name the unquantised models"
            )
        tensors: dict[str, TensorFile] = {}
        for path in _files(folder, name):
            tensors |= header(path)
        if strange := [key for key, one in tensors.items() if one.kind not in DTYPES]:
            raise WeightsError(
                f"{name} has {strange[0]} of type {tensors[strange[0]].kind}, and differences of quantised weights are "
                "rounding: name the unquantised models"
            )
        return cls(folder, name, tensors, config)

    def read(self, name: str) -> Tensor:
        """A tensor in its own type."""
        return read(self.tensors[name])

    def digest(self) -> str:
        """16 hex digits of config.json, and of names, types and bytes of all tensors in the order of names."""
        state = hashlib.blake2b(json.dumps(self.config, sort_keys=True).encode(), digest_size=8)
        for name in sorted(self.tensors):
            one = self.tensors[name]
            state.update(f"{name} {one.kind} {one.shape}".encode())
            with one.path.open("rb") as file:
                file.seek(one.begin)
                left = one.size
                while left:
                    block = file.read(min(left, BLOCK))
                    state.update(block)
                    left -= len(block)
        return state.hexdigest()


def fetch(name: str) -> Path:
    """The folder of a model: a local one, or the files of a model of the hub in its cache; else a TrainerError."""
    place, revision = locate(name)
    if Path(place).is_dir():
        return Path(place)
    import huggingface_hub as hub

    patterns = ["*.safetensors", "*.json", "tokenizer*", "*.model", "*.txt"]
    try:
        return Path(hub.snapshot_download(place, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the type depends on where the network fails
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            f"{name} is no folder, and cannot be had from the hub ({why[:300]}): name the folder of a model"
        ) from error


def header(path: Path) -> dict[str, TensorFile]:
    """The tensors of a safetensors file, checked against its size; a WeightsError if it is damaged."""
    try:
        total = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            entries = json.loads(file.read(length)) if length <= min(MAX_HEADER, total - 8) else None
        if not isinstance(entries, dict):
            raise WeightsError(f"{path} is no safetensors file, or its header is cut: get it again")
        entries.pop("__metadata__", None)
        tensors = {name: _entry(path, name, entry, 8 + length, total) for name, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path} is no complete safetensors file ({error}): get it again") from error
    ends = [8 + length, *sorted(one.begin + one.size for one in tensors.values())]
    if ends != [*sorted(one.begin for one in tensors.values()), total]:
        raise WeightsError(f"{path} has tensors that overlap, or bytes that belong to none: get it again")
    return tensors


def _entry(path: Path, name: str, entry: Mapping[str, Any], start: int, total: int) -> TensorFile:
    (begin, end), shape, kind = entry["data_offsets"], tuple(entry["shape"]), str(entry["dtype"])
    if not all(isinstance(n, int) and n >= 0 for n in (begin, end, *shape)):
        raise WeightsError(f"{path} says that {name} has the shape {entry['shape']}, at {begin} to {end}: get it again")
    begin, end = begin + start, end + start
    if not start <= begin <= end <= total:
        raise WeightsError(f"{path} ends within {name}, at byte {total:,} of {end:,}: get it again")
    if kind in DTYPES and end - begin != DTYPES[kind].itemsize * math.prod(shape):
        raise WeightsError(f"{path} has {end - begin:,} bytes of {name}, which is not its shape {shape}: get it again")
    return TensorFile(path, kind, shape, begin, end - begin)


def read(one: TensorFile, rows: slice | None = None) -> Tensor:
    """A tensor of a file in its own type, or some of its rows."""
    begin, shape = one.begin, one.shape
    if rows is not None:
        width = one.size // max(shape[0], 1)
        first, last, _ = rows.indices(shape[0])
        begin, shape = begin + first * width, (max(last - first, 0), *shape[1:])
    dtype = DTYPES[one.kind]
    count = math.prod(shape) * dtype.itemsize
    data = np.fromfile(one.path, np.uint8, count, offset=begin)
    if len(data) != count:
        raise WeightsError(f"{one.path} ended early: get it again")
    return torch.from_numpy(data).view(dtype).view(shape) if count else torch.empty(shape, dtype=dtype)


def equal(a: TensorFile, b: TensorFile) -> bool:
    """Whether two tensors have the same bytes, type and shape."""
    if (a.kind, a.shape) != (b.kind, b.shape):
        return False
    with a.path.open("rb") as first, b.path.open("rb") as second:
        first.seek(a.begin)
        second.seek(b.begin)
        left = a.size
        while left:
            size = min(left, BLOCK)
            if first.read(size) != second.read(size):
                return False
            left -= size
    return True


class Writer:
    """Writes one safetensors file, a tensor at a time, whose names and shapes need not be known beforehand."""

    def __init__(self, path: Path) -> None:
        self.path, self._entries, self._at = path, dict[str, dict[str, Any]](), 0
        self._data = path.with_name(f".{path.name}.data")
        self._file = self._data.open("wb")

    def add(self, name: str, tensor: Tensor) -> None:
        """Add a tensor; names are unique."""
        kind = next(kind for kind, dtype in DTYPES.items() if dtype == tensor.dtype)
        data = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
        self._entries[name] = {
            "dtype": kind,
            "shape": list(tensor.shape),
            "data_offsets": [self._at, self._at + data.nbytes],
        }
        data.tofile(self._file)
        self._at += data.nbytes

    @property
    def size(self) -> int:
        """Bytes of the tensors so far."""
        return self._at

    def close(self) -> None:
        """Write the file."""
        self._file.close()
        text = json.dumps({"__metadata__": {"format": "pt"}, **self._entries}).encode()
        text += b" " * (-len(text) % 8)
        with self.path.open("wb") as out, self._data.open("rb") as data:
            out.write(len(text).to_bytes(8, "little") + text)
            shutil.copyfileobj(data, out, BLOCK)
        self._data.unlink()


def _files(folder: Path, name: str) -> list[Path]:
    """The files of a model's tensors: those that transformers reads, which prefers a single one to an index."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        places = read_config(folder / INDEX).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(one, str) for one in places.values()):
            raise WeightsError(f"{folder / INDEX} does not say which file holds which tensor: get it again")
        names = sorted(set(places.values()))
        if wrong := [one for one in names if Path(one).name != one or not (folder / one).is_file()]:
            raise WeightsError(f"{folder} lacks the file {wrong[0]!r} that {INDEX} names: get it again")
        return [folder / one for one in names]
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles:
        raise WeightsError(
            f"{name} holds {pickles[0]} and no {SINGLE}: pickles run code, so convert it to safetensors "
            "(model.save_pretrained of transformers writes them)"
        )
    raise WeightsError(f"{name} holds no {SINGLE}: name the folder of a model in safetensors")
