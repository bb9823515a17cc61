"""Pretrained embeddings: GPT-2's from the hub or a file, or any table in a .npy file."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from trainer.prepare.ppmi import Embeddings, EmbeddingsError, Matrix

GPT2 = ("openai-community/gpt2", "model.safetensors")
"""Repository and file of GPT-2's weights on the hub."""
TENSORS = ("wte.weight", "transformer.wte.weight")
"""Names of the embeddings in a file of GPT-2's weights."""
MAX_COMPONENT = 1e6
"""Size of a component at or above which a table is refused, because norms square components in float32."""


def gpt2(path: Path | None = None) -> Embeddings:
    """GPT-2's embeddings (wte), 50,257 x 768, of a file or folder, by default of the hub; else an EmbeddingsError."""
    table = _weights(path if path is not None else _download())
    if table.shape[0] != 50257:  # noqa: PLR2004  GPT-2's vocabulary
        raise EmbeddingsError(f"{path or GPT2[0]} holds embeddings of {table.shape}, expected GPT-2's 50,257 rows")
    about = f"embeddings: GPT-2's, {table.shape[0]:,} x {table.shape[1]}, trained on WebText (about 9 billion tokens)"
    return Embeddings(table, -1, about)


def from_file(path: Path) -> Embeddings:
    """Embeddings in a .npy file with an array [V, E] of numbers; an EmbeddingsError if it holds something else."""
    table = _weights(path, (".npy",))
    about = f"embeddings: from {path.name}, {table.shape[0]:,} x {table.shape[1]}; their training text is unknown"
    return Embeddings(table, -1, about)


def _download() -> Path:
    """Path of GPT-2's weights in the hub's cache, after a download if necessary."""
    import huggingface_hub as hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        with suppress(LocalEntryNotFoundError):
            return Path(hub.hf_hub_download(*GPT2, local_files_only=True))
        if not hub.is_offline_mode():  # one quick attempt; the library's retries take half a minute and print each
            hub.get_session().head(hub.hf_hub_url(*GPT2), timeout=10)
        return Path(hub.hf_hub_download(*GPT2))
    except Exception as error:  # the type depends on where the network fails
        first = (str(error).splitlines() or [""])[0].strip()
        cached = isinstance(error, LocalEntryNotFoundError)
        why = type(error).__name__ if cached else f"{type(error).__name__}: {first}"
        raise EmbeddingsError(
            f"GPT-2's embeddings are not in the cache and cannot be downloaded ({why}): name a file with them "
            "(--embeddings model.safetensors, or a .npy), or take --embeddings ppmi, which is made from the corpus"
        ) from error


def _weights(path: Path, endings: tuple[str, ...] = (".safetensors", ".npy", ".bin", ".pt", ".pth")) -> Matrix:
    if path.is_dir():
        path = next((path / one for one in ("model.safetensors", "pytorch_model.bin") if (path / one).is_file()), path)
    if not path.is_file() or path.suffix not in endings:
        raise EmbeddingsError(
            f"{path} is not a file of embeddings: expected ppmi, ppmi-budget, gpt2, random, or a file that ends in "
            f"{', '.join(endings)}"
        )
    try:
        array = np.asarray(_read(path))
        usable = np.isfinite(array).all() and np.abs(array).max(initial=0) < MAX_COMPONENT
    except Exception as error:  # each format raises its own type
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise EmbeddingsError(f"{path} cannot be read as embeddings ({why}): name another file") from error
    if array.ndim != 2 or not array.size:  # noqa: PLR2004  a matrix
        raise EmbeddingsError(f"{path} holds an array of {array.shape}, expected a matrix of numbers, V x E")
    if not usable:
        raise EmbeddingsError(
            f"{path} holds numbers that are not finite, or at least {MAX_COMPONENT:g}, which overflow in a norm: "
            "name another file"
        )
    return array.astype(np.float32)


def _read(path: Path) -> Any:  # noqa: ANN401  an array of whatever type
    """Read the embeddings of a file, and nothing else of a file of weights."""
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(str(path), "np") as file:
            return file.get_tensor(_tensor(list(file.keys())))
    import torch

    weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return weights[_tensor(list(weights))].float().numpy()


def _tensor(names: list[str]) -> str:
    """The name of the embeddings among the names of a file's tensors."""
    for name in TENSORS:
        if name in names:
            return name
    raise ValueError(f"it has the tensors {', '.join(names[:3])} ..., expected {' or '.join(TENSORS)}")
