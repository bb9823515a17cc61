"""Train the static vectors of `semantic`: `python -m tests.bench.semantic_train WORDNET [--teacher FOLDER]`.

It writes stages/semantic/static.npz, and takes about 9 CPU minutes, 6 of them for the vectors of the teacher
all-MiniLM-L6-v2, which `--teacher` keeps. WORDNET is the folder with data.noun and so on of WordNet 3.0 (Princeton
University; Debian's package wordnet-base).

1. Each word piece starts with the teacher's vector of the piece as a text, as in model2vec.
2. A text is the sum of its pieces' vectors. Sums learn to point where the teacher does (1 - cosine), and to be as near
   to each other as the teacher's vectors are (squared difference of cosines in a batch), on 24,000 messages of the
   embedded default corpus and 30,000 glosses of WordNet with their examples. This is tokenlearn's idea.
3. Vectors are projected to the principal components of the teacher's, and rounded to 8 bits.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from stages.semantic.vectors import STATIC
from stages.toxicity.encoder import Encoder

COMPONENTS = 128
CHATS, GLOSSES, CHAT_PIECES, GLOSS_PIECES = 24_000, 30_000, 64, 48
"""Texts of each kind, and word pieces that the teacher reads of them."""
EPOCHS, BATCH, RATES = 6, 512, (0.02, 4e-3, 1e-3)
"""Rates are those of lengths, vectors and projection."""
PAIRWISE, DECAY, RARE = 10.0, 0.3, 1e-3
_WORD = re.compile(r"[^\W_]+")

Floats = NDArray[np.float32]


def chats() -> list[str]:
    """Messages of at least four words of the embedded default corpus."""
    import chitchat_dataset

    dialogues = json.loads(Path(chitchat_dataset.__file__).with_name("dataset.json").read_text(encoding="utf-8"))
    turns = (turn for dialogue in dialogues.values() for turn in dialogue["messages"])
    texts = ("\n".join(part["text"] for part in turn if part.get("text")) for turn in turns)
    return _drawn({text for text in texts if len(text.split()) >= 4}, CHATS)


def glosses(wordnet: Path) -> list[str]:
    """Words, gloss and examples of each synset."""
    texts = set()
    for kind in ("noun", "verb", "adj", "adv"):
        for line in (wordnet / f"data.{kind}").read_text(encoding="latin-1").splitlines():
            head, _, gloss = line.partition(" | ")
            if not line.startswith("  "):  # the licence
                fields = head.split()
                words = [fields[4 + 2 * i].replace("_", " ") for i in range(int(fields[3], 16))]
                texts.add(f"{', '.join(words[:3])}: {gloss.strip()}")
    return _drawn(texts, GLOSSES)


def _drawn(texts: set[str], count: int) -> list[str]:
    ordered = sorted(texts)
    return [ordered[i] for i in np.random.default_rng(0).permutation(len(ordered))[:count]]


def teach(encoder: Encoder, texts: list[str], pieces: int, cache: Path | None) -> Floats:
    """The teacher's vectors of texts, of length 1."""
    if cache and cache.exists():
        return np.asarray(np.load(cache), np.float32)
    encoder.tokenizer.enable_truncation(pieces)
    vectors = encoder.means(texts)[:, encoder.network.config.hidden_size :]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    if cache:
        np.save(cache, vectors)
    return vectors


def piece_vectors(encoder: Encoder, cache: Path | None) -> Floats:
    """The teacher's vector of each word piece as a text of its own."""
    if cache and cache.exists():
        return np.asarray(np.load(cache), np.float32)
    first, last = (encoder.tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    parts = []
    with torch.inference_mode():
        for ids in torch.split(torch.arange(encoder.tokenizer.get_vocab_size()), 512):
            three = torch.stack([torch.full_like(ids, first), ids, torch.full_like(ids, last)], 1)
            parts.append(encoder.network(input_ids=three).last_hidden_state.mean(1).numpy())
    vectors = np.concatenate(parts)
    if cache:
        np.save(cache, vectors)
    return vectors


def learn(texts: list[NDArray[np.int64]], taught: Floats, pieces: Floats) -> Floats:
    """Vectors of the word pieces, float32 [V, COMPONENTS]; `texts` are their ids."""
    torch.manual_seed(0)
    seen = np.bincount(np.concatenate(texts), minlength=len(pieces))
    share = (seen + 0.5) / seen.sum()
    axes = np.linalg.svd(taught[:20_000], full_matrices=False)[2][:COMPONENTS].T
    goal = functional.normalize(torch.tensor(taught @ axes), dim=1)
    start = pieces / np.linalg.norm(pieces, axis=1, keepdims=True)
    begin = torch.tensor((start - start[seen > 0].mean(0)) @ axes)
    lengths = nn.Parameter(torch.tensor(np.log(RARE / (RARE + share)), dtype=torch.float32))  # SIF, Arora et al. 2017
    moved, turned = nn.Parameter(torch.zeros_like(begin)), nn.Parameter(torch.eye(COMPONENTS))
    optimiser = torch.optim.Adam(
        [{"params": [one], "lr": rate} for one, rate in zip((lengths, moved, turned), RATES, strict=True)]
    )
    steps = EPOCHS * (len(texts) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 0.5 * (1 + np.cos(np.pi * step / steps)))

    def table() -> torch.Tensor:
        return lengths.exp()[:, None] * (begin @ turned + moved)

    for epoch in range(EPOCHS):
        order = np.random.default_rng(epoch).permutation(len(texts))
        for at in range(0, len(order) - BATCH + 1, BATCH):
            rows = order[at : at + BATCH]
            flat, starts = np.concatenate([texts[i] for i in rows]), np.cumsum([0, *(len(texts[i]) for i in rows[:-1])])
            sums = functional.embedding_bag(torch.tensor(flat), table(), torch.tensor(starts), mode="sum")
            ours, theirs = functional.normalize(sums, dim=1), goal[rows]
            apart = ((ours @ ours.T - theirs @ theirs.T) ** 2).mean()
            loss = (1 - (ours * theirs).sum(1)).mean() + PAIRWISE * apart + DECAY * moved.square().sum() / len(texts)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
        sys.stdout.write(f"epoch {epoch + 1}: loss {loss.item():.4f}\n")
        sys.stdout.flush()
    return np.asarray(table().detach().numpy())


def main() -> None:
    """Train and write the file."""
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("wordnet", type=Path)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--out", type=Path, default=STATIC)
    given = parser.parse_args()
    torch.set_num_threads(1)
    encoder: Any = Encoder.load()
    kept = {name: given.teacher and given.teacher / f"{name}.npy" for name in ("train", "gloss", "tokens")}
    kinds = ((chats(), CHAT_PIECES, "train"), (glosses(given.wordnet), GLOSS_PIECES, "gloss"))
    taught = np.concatenate([teach(encoder, texts, pieces, kept[name]) for texts, pieces, name in kinds])
    pieces = piece_vectors(encoder, kept["tokens"])
    encoder.tokenizer.enable_truncation(64)
    words = [" ".join(_WORD.findall(text)) for texts, _, _ in kinds for text in texts]
    ids = [np.array(one.ids, np.int64) for one in encoder.tokenizer.encode_batch(words, add_special_tokens=False)]
    some = np.array([len(each) > 0 for each in ids])
    vectors = learn([each for each in ids if len(each)], taught[some], pieces)
    unit = np.quantile(np.abs(vectors), 0.9999) / 127
    np.savez_compressed(given.out, pieces=np.clip(np.rint(vectors / unit), -127, 127).astype(np.int8))


if __name__ == "__main__":
    main()
