"""Embeddings that others made: GPT-2's, from the hub or a file, and any table in a .npy file."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from trainer.prepare.ppmi import Embeddings, EmbeddingsError, Table

GPT2 = ("openai-community/gpt2", "model.safetensors")
"""Where the hub keeps GPT-2's weights."""
NAMES = ("wte.weight", "transformer.wte.weight")
"""What a file of GPT-2's weights calls its embeddings."""
MOST = 1e6
"""Size of a component from which on a table is refused: norms square components, and float32 ends at 3e38."""


def gpt2(path: Path | None = None) -> Embeddings:
    """GPT-2's embeddings (wte, 50,257 x 768), of which nothing else is read.

    Args:
        path: a .safetensors, .npy, .bin, .pt or .pth file, or a folder with model.safetensors or pytorch_model.bin; by
            default the hub's, kept in its cache.

    Raises:
        EmbeddingsError: they are not there, or are of another shape.
    """
    table = _weights(path if path is not None else _downloaded())
    if table.shape[0] != 50257:  # noqa: PLR2004  GPT-2's vocabulary
        raise EmbeddingsError(f"{path or GPT2[0]} holds embeddings of {table.shape}, expected GPT-2's 50,257 rows")
    said = f"embeddings: GPT-2's, {table.shape[0]:,} x {table.shape[1]}, trained on WebText (some 9 billion tokens)"
    return Embeddings(table, "gpt2", -1, said)


def from_file(path: Path, size: int | None = None) -> Embeddings:
    """Embeddings of a .npy file.

    Args:
        path: an array [V, E] of numbers.
        size: V of the vocabulary that they are for; not checked by default.

    Raises:
        EmbeddingsError: it cannot be read, or is no such array.
    """
    table = _weights(path, (".npy",))
    if size is not None and len(table) != size:
        raise EmbeddingsError(f"{path} holds {len(table):,} rows and the vocabulary has {size:,}: they do not belong")
    said = f"embeddings: from {path.name}, {table.shape[0]:,} x {table.shape[1]}; what they were made from is not known"
    return Embeddings(table, "file", -1, said)


def _downloaded() -> Path:
    """GPT-2's weights in the hub's cache, downloaded where they are not there and the hub can be reached."""
    import huggingface_hub as hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        with suppress(LocalEntryNotFoundError):
            return Path(hub.hf_hub_download(*GPT2, local_files_only=True))
        if not hub.is_offline_mode():  # one try, before the library's own, which take half a minute and say each
            hub.get_session().head(hub.hf_hub_url(*GPT2), timeout=10)
        return Path(hub.hf_hub_download(*GPT2))
    except Exception as error:  # what a network raises depends on where it fails
        why = type(error).__name__ if isinstance(error, LocalEntryNotFoundError) else _said(error)
        raise EmbeddingsError(
            f"GPT-2's embeddings are not on this machine and the hub gave none ({why}): name a file that holds them "
            "(--embeddings model.safetensors, or a .npy), or take --embeddings ppmi, which are made from the corpus"
        ) from error


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0].strip()}"


def _weights(path: Path, endings: tuple[str, ...] = (".safetensors", ".npy", ".bin", ".pt", ".pth")) -> Table:
    """A matrix of embeddings from a file or folder.

    Raises:
        EmbeddingsError: there is none, or it is no matrix of finite numbers.
    """
    if path.is_dir():
        path = next((path / one for one in ("model.safetensors", "pytorch_model.bin") if (path / one).is_file()), path)
    if not path.is_file() or path.suffix not in endings:
        raise EmbeddingsError(
            f"{path} is no file of embeddings: expected ppmi, ppmi-budget, gpt2, random, or a file that ends in "
            f"{', '.join(endings)}"
        )
    try:
        found = np.asarray(_read(path))
        table = found.astype(np.float32) if np.isfinite(found).all() and np.abs(found).max(initial=0) < MOST else None
    except Exception as error:  # each format has its own
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise EmbeddingsError(f"{path} cannot be read as embeddings ({why}): name another file") from error
    if found.ndim != 2 or not found.size:  # noqa: PLR2004  a matrix
        raise EmbeddingsError(f"{path} holds an array of {found.shape}, expected a matrix of numbers, V x E")
    if table is None:
        raise EmbeddingsError(
            f"{path} holds numbers that are not finite, or as large as {MOST:g}, which overflow in a norm: mend it, or "
            "name another file"
        )
    return table


def _read(path: Path) -> Any:  # noqa: ANN401  an array of whatever type
    """The embeddings of a file; of a file of weights only these are read."""
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(str(path), "np") as file:
            return file.get_tensor(_named(list(file.keys())))
    import torch

    weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return weights[_named(list(weights))].float().numpy()


def _named(there: list[str]) -> str:
    """The name of the embeddings among those of a file's tensors."""
    for name in NAMES:
        if name in there:
            return name
    raise ValueError(f"it has the tensors {', '.join(there[:3])} ..., expected {' or '.join(NAMES)}")
