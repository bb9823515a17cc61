"""Detoxify as the second, more accurate model of the toxicity stage (Hanu & Unitary 2020).

A checkpoint is loaded as data only (`weights_only`), because Detoxify's own loader would run code from the file. Two
faults are worked around: given a local configuration, Detoxify still reads `config.arch.args.model_type` as a folder or
hub name and loses the number of classes; and in transformers 5 a tokenizer built from a vocabulary file is silently
empty.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.models import device
from stages.stage import MissingModelError, StageParameterError
from stages.toxicity.encoder import batches

RELEASES = {
    "unbiased": ("toxic_debiased-c7548aa0.ckpt", "roberta-base"),
    "original": ("toxic_original-c1212f89.ckpt", "bert-base-uncased"),
    "multilingual": ("multilingual_debiased-0b549669.ckpt", "xlm-roberta-base"),
    "unbiased-small": ("unbiased-albert-c8519128.ckpt", "albert-base-v2"),
    "original-small": ("original-albert-0e1d6498.ckpt", "albert-base-v2"),
}
"""Detoxify's releases, best first: name -> file in torch's hub cache, hub name of configuration and tokenizer."""
_FAMILIES = ("Bert", "Roberta", "XLMRoberta", "Albert", "DistilBert")
_CLASSES = {f"{family}ForSequenceClassification" for family in _FAMILIES}
_TOKENIZERS = {f"{family}Tokenizer{fast}" for family in _FAMILIES for fast in ("", "Fast")}


def find_checkpoint(name: str) -> Path | None:
    """The checkpoint of a release in torch's hub cache, or None."""
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch"
    path = Path(home) / "hub" / "checkpoints" / RELEASES[name][0]
    return path if path.is_file() else None


def has_configuration(name: str) -> bool:
    """Whether the configuration and tokenizer of a release are in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    paths = (try_to_load_from_cache(RELEASES[name][1], file) for file in ("config.json", "tokenizer.json"))
    return all(isinstance(path, str) for path in paths)


def checkpoint(model: str) -> Path | None:
    """The checkpoint that the parameter `model` names; None for "fast", "careful", and "auto" with none in the cache.

    A release given by name is downloaded unless it is in the cache.
    """
    if model in {"fast", "careful"}:
        return None
    if model == "auto":
        cached = (path for name in RELEASES if (path := find_checkpoint(name)) and has_configuration(name))
        return next(cached, None)
    if model in RELEASES:
        return find_checkpoint(model) or _download(model)
    if not Path(model).expanduser().is_file():
        raise MissingModelError(
            f"toxicity: model {model!r} is neither a file nor one of fast, careful, auto, {', '.join(RELEASES)}: "
            "give the path of a Detoxify checkpoint (.ckpt)"
        )
    return Path(model).expanduser()


def _download(name: str) -> Path:
    import torch
    from detoxify.detoxify import MODEL_URLS

    file = RELEASES[name][0]
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(MODEL_URLS[name], str(path), hash_prefix=file.rpartition("-")[2][:8])
    except (OSError, RuntimeError) as error:
        raise MissingModelError(
            f"toxicity: Detoxify's {name!r} model is not in {path.parent} and cannot be downloaded ({error}): "
            f"download {file} elsewhere and put it there, or omit `model`"
        ) from error
    return path


def load(path: Path, config: str = "") -> Callable[[list[str]], NDArray[np.float64]]:
    """Load a checkpoint; `config` is as in the stage.

    Returns a function that gives the probability that each of some short texts is abusive, float64 [n].
    """
    from detoxify.detoxify import Detoxify, get_model_and_tokenizer

    arguments, classes, weights = _contents(path)
    if config:  # not as `huggingface_config_path`: then Detoxify loses the number of classes
        arguments["model_type"] = str(Path(config).expanduser())
    try:
        network, tokenizer = get_model_and_tokenizer(**arguments, state_dict=weights)
    except OSError as error:
        raise MissingModelError(
            f"toxicity: configuration and tokenizer {arguments['model_type']!r} of {path} cannot be loaded "
            f"({error}): set `config` to a folder with its config.json and tokenizer.json"
        ) from error
    if missing := sorted(network.state_dict().keys() - weights.keys()):
        raise StageParameterError(
            f"toxicity: {path} lacks {len(missing)} weights, such as {missing[0]}: download it again"
        )
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise StageParameterError(
            f"toxicity: the tokenizer in {config or arguments['model_type']!r} is empty; "
            "expected a folder with a tokenizer.json (a vocabulary file alone is not enough)"
        )
    reader = Detoxify.__new__(Detoxify)  # its constructor would unpickle the file
    reader.model, reader.tokenizer = network.eval().to(device()), tokenizer
    reader.class_names, reader.device = classes, device()

    def scores(texts: list[str]) -> NDArray[np.float64]:
        out = np.zeros(len(texts))
        for rows in batches([len(text) for text in texts]):
            out[rows] = reader.predict([texts[i] for i in rows])["toxicity"]
        return out

    return scores


def _contents(path: Path) -> tuple[dict[str, Any], list[str], Any]:
    """The architecture's arguments, the names of the classes, the weights."""
    import pickle

    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        arguments = dict(loaded["config"]["arch"]["args"])
        classes = [{"toxic": "toxicity"}.get(name, name) for name in loaded["config"]["dataset"]["args"]["classes"]]
        weights = loaded["state_dict"]
    except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError, EOFError, ValueError) as error:
        raise StageParameterError(  # torch's message advises to run the code in the file
            f"toxicity: {path} is not a Detoxify checkpoint ({type(error).__name__} when read as data); expected a "
            "file with `config` and `state_dict`, such as Detoxify's releases"
        ) from error
    known = {"model_type", "model_name", "tokenizer_name", "num_classes"}
    names = (arguments.get("model_name"), arguments.get("tokenizer_name"))
    if set(arguments) != known or names[0] not in _CLASSES or names[1] not in _TOKENIZERS or "toxicity" not in classes:
        raise StageParameterError(
            f"toxicity: {path} asks for {arguments} with classes {classes}; expected {sorted(known)} with one of "
            f"{sorted(_CLASSES)} and a class `toxicity`"
        )
    return arguments, classes, weights
