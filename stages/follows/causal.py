"""A causal language model of a folder or of the hub, as a scorer of replies."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.follows.exchanges import Score
from stages.models import MODEL_FILES, device, model_folder
from stages.stage import MissingModelError, reason

MAX_CONTEXT = 1024
"""Maximum number of tokens of a prompt and its reply."""
MAX_CHARACTERS = 16
"""Characters of a text that are encoded, per token that is read of it."""
BATCH = 8


def files(model: str) -> tuple[Path, ...]:
    """The files of a model, or `MissingModelError`; one of the hub is downloaded once."""
    return tuple(sorted(path for path in _folder(model).rglob("*") if path.is_file() and path.suffix in MODEL_FILES))


def load(model: str) -> Score:
    """A scorer; the halves of the corpus make no difference to it."""
    tokenizer, network = _load(model)

    def score(pairs: pl.DataFrame, sides: NDArray[np.uint8]) -> NDArray[np.float64]:
        del sides
        most = min(getattr(network.config, "max_position_embeddings", MAX_CONTEXT), MAX_CONTEXT) // 2
        given, alone = [], []
        for prompt, reply in pairs.select("prompt", "reply").iter_rows():  # a tokenizer takes one template at a time
            ids = _ids(tokenizer, reply[: MAX_CHARACTERS * most])[:most]
            given.append((_prefix(tokenizer, prompt[-MAX_CHARACTERS * most :], most), ids))
            alone.append((_prefix(tokenizer, "", most), ids))
        sizes = [float(len(ids)) for _, ids in given]
        return np.column_stack([sizes, _nats(network, given), _nats(network, alone)]) if sizes else np.zeros((0, 3))

    return score


def _ids(tokenizer: Any, text: str) -> list[int]:  # noqa: ANN401  transformers has no types
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _prefix(tokenizer: Any, prompt: str, most: int) -> list[int]:  # noqa: ANN401
    """What stands before a reply: the prompt as a user's message, or as text after the first token."""
    prompt = tokenizer.decode(_ids(tokenizer, prompt)[-(most * 3 // 4) :]) if prompt else ""
    if tokenizer.chat_template:
        talk = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        return _ids(tokenizer, text)[-most:]
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return [first, *(_ids(tokenizer, f"{prompt}\n")[1 - most :] if prompt else [])]


def _nats(network: Any, pairs: Sequence[tuple[list[int], list[int]]]) -> NDArray[np.float64]:  # noqa: ANN401
    """Mean nats of the ids of each reply after its prefix; 0 for an empty one."""
    import torch

    out, order = np.zeros(len(pairs)), sorted(range(len(pairs)), key=lambda i: sum(map(len, pairs[i])))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # workers are processes; more threads wait for each other and round differently
    try:
        for begin in range(0, len(order), BATCH):
            rows = order[begin : begin + BATCH]
            width = max(sum(map(len, pairs[i])) for i in rows)
            both = [[*prefix, *reply] for prefix, reply in (pairs[i] for i in rows)]
            ids = torch.tensor([each + [0] * (width - len(each)) for each in both], device=network.device)
            mask = torch.tensor([[1] * len(each) + [0] * (width - len(each)) for each in both], device=network.device)
            with torch.inference_mode():
                logits = network(input_ids=ids, attention_mask=mask).logits
            for at, i in enumerate(rows):
                start, size = len(pairs[i][0]), len(pairs[i][1])
                if size:
                    own = torch.log_softmax(logits[at, start - 1 : start - 1 + size].float(), -1)
                    out[i] = -own.gather(1, ids[at, start : start + size, None]).double().mean()
    finally:
        torch.set_num_threads(threads)
    return out


@functools.lru_cache(maxsize=1)
def _load(model: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(_folder(model))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        network: Any = AutoModelForCausalLM.from_pretrained(folder)
        network.eval().to(device())
    except Exception as error:  # a folder of the user's own may hold anything
        raise MissingModelError(f"follows: {model!r} is not a causal language model ({reason(error)})") from error
    if not tokenizer.chat_template and tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise MissingModelError(
            f"follows: the tokenizer of {model!r} has no chat template and no first token, after which a reply could "
            f"stand alone: set bos_token in its tokenizer_config.json"
        )
    return tokenizer, network


def _folder(model: str) -> Path:
    return model_folder("follows", model, "language model", "the folder of a causal language model")
