"""Train the probe of toxicity's encoder: `python -m tests.bench.toxicity_probe` writes stages/toxicity/probe.npy.

It learns from the comments of the fast models, and from every second dialogue of the embedded default corpus as
inoffensive chat, since in the comments casual language occurs mostly in insulting tweets. Messages that the fast models
are sure about are omitted; most of the others are ones that the encoder reads in use. `tests.bench.toxicity_train` runs
before it, `tests.bench.toxicity_calibrate` after it.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from stages.toxicity import MIN_KNOWN_SHARE, UNCERTAIN, encoder, words
from stages.toxicity.words import Model, Windows
from tests.bench.toxicity_train import chat, worst

POSITIVE, NEGATIVE = 8000, 10000
CHAT_HARD, CHAT_EASY, SURELY_ABUSIVE = 3000, 1500, 2.0
DECAY, STEPS, RATE = 4.0, 600, 0.01


def fast(windows: Windows) -> NDArray[np.float64]:
    """The mean of the fast models' logits, whatever the number of words."""
    return (windows.words.astype(np.float64) + 2 * windows.student) / 3


def worst_windows(model: Model) -> tuple[list[str], NDArray[np.int64]]:
    """The worst window of a sample of comments, and their labels."""
    table = words.comments()
    windows = model.windows(table["text"])
    first = worst(windows, fast(windows))
    label = table["is_offensive"].to_numpy()[windows.row[first]].astype(np.int64)
    random = np.random.default_rng(0)
    sizes = ((1, POSITIVE), (0, NEGATIVE))
    chosen = np.concatenate([random.permutation(np.flatnonzero(label == one))[:size] for one, size in sizes])
    return windows.texts(first[chosen]), label[chosen]


def inoffensive_chat(model: Model) -> list[str]:
    """Windows of the messages of every second dialogue of the embedded default corpus."""
    windows = model.windows(chat(0))
    logit, read = fast(windows), windows.known >= MIN_KNOWN_SHARE
    random = np.random.default_rng(0)
    hard = random.permutation(np.flatnonzero(read & (logit > UNCERTAIN) & (logit < SURELY_ABUSIVE)))
    easy = random.permutation(np.flatnonzero(read & (logit <= UNCERTAIN)))
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


def main() -> None:
    """Train the probe and save it."""
    torch.set_num_threads(1)
    model, minilm = Model.load(words.MODEL), encoder.Encoder.load()
    texts, label = worst_windows(model)
    said = inoffensive_chat(model)
    label = np.append(label, np.zeros(len(said), np.int64))
    probe = fit(minilm.means(texts + said).astype(np.float64), label, DECAY, STEPS)
    np.save(encoder.PROBE, probe.astype(np.float32))


if __name__ == "__main__":
    main()
