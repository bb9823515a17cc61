"""Models of transformers that a stage reads: a folder, or a repository of the hub."""

from pathlib import Path

from stages.stage import MissingModelError, reason

MODEL_FILES = (".jinja", ".json", ".model", ".safetensors", ".txt")
"""Endings of the files of a model: settings, tokenizer, weights. Pickles are not among them."""


def device() -> str:
    """Where a stage runs a model of torch: "cuda" if torch sees a GPU, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def model_folder(stage: str, model: str, kind: str, expected: str) -> Path:
    """The folder of a model, given as a path or as organisation/name on the hub, from where it is downloaded once.

    Args:
        stage: which reads it, for the error.
        model: as the user named it.
        kind: what it should be, such as "language model".
        expected: what else than a name of the hub would do, such as "the folder of an encoder".

    Raises:
        MissingModelError: there is none, or it cannot be downloaded.
    """
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file() or (folder / "modules.json").is_file():
        return folder
    if model.count("/") == 1 and not model.startswith((".", "/", "~")):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(model, allow_patterns=[f"*{ending}" for ending in MODEL_FILES]))
        except Exception as error:  # the hub's client raises errors of many kinds
            raise MissingModelError(f"{stage}: {model!r} cannot be downloaded ({reason(error)})") from error
    raise MissingModelError(f"{stage}: no {kind} at {model!r}: expected {expected}, or organisation/name on the hub")
