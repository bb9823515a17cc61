"""The transformer that the run trains on half of the corpus, and scores the other half with.

    EOT <|user|> prompt <|end|> <|assistant|> reply <|end|> EOT <|assistant|> reply <|end|> EOT ...

An exchange is a window of the template of `refine train`, and its reply alone is another, so that the model knows both.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from stages.files import save
from stages.follows.exchanges import Score, exchanges
from stages.ppl.tokens import halves
from stages.text.shingles import text_keys
from trainer.cvfp import phase2
from trainer.cvfp.scan import Tape
from trainer.cvfp.settings import Phase2
from trainer.prepare import vocabulary
from trainer.prepare.vocabulary import ROLES, Vocabulary
from trainer.transformer import training
from trainer.transformer.model import Shape, Transformer

PROMPT, REPLY = 60, 64
"""Maximum tokens of a prompt, its last, and of a reply, its first; with the template's they fit a window."""
MIN_EXCHANGES = 200
"""Minimum number of exchanges to train a model on."""
MAX_JUDGED = 1000
"""Maximum number of exchanges that the model is judged by."""
VOCABULARY, WIDTH = 2048, 128
"""Maximum number of ids, and components of a token's vector."""
BYTES = 4
"""About how many bytes of text a token has."""
MAX_CHARACTERS = 16
"""Characters of a text that are encoded, per token that is read of it."""
SETTINGS = Phase2(epochs=2, evaluations=1, patience=0, batch=256, rate=0.003, warmup=0.05, decay=True, weight_decay=0.1)
_FILES = ("vocabulary.json", "half0.safetensors", "half1.safetensors")
_END, _USER, _REPLY = len(ROLES), ROLES.index("user"), ROLES.index("assistant")  # places in `Vocabulary.template`

Ids = list[NDArray[np.int32]]


class _Sample(NamedTuple):
    """Exchanges of one half (`prompt`, `reply`, `key`), those with the lowest keys, of about so many bytes."""

    frame: pl.DataFrame
    most: int

    def add(self, more: pl.DataFrame) -> _Sample:
        frame = pl.concat([self.frame, more]).sort("key", maintain_order=True)
        sizes = frame.select(size=pl.sum_horizontal(pl.col("prompt", "reply").str.len_bytes()).cum_sum())
        return self._replace(frame=frame.filter(sizes["size"] <= self.most))


def fit(shards: Iterable[pl.DataFrame], folder: Path, tokens: int) -> dict[str, Any]:
    """Train a model on each half and write both; gives their files and how well they know a reply's own prompt."""
    none = pl.DataFrame(schema={"prompt": pl.String, "reply": pl.String, "key": pl.UInt64})
    samples = [_Sample(none, BYTES * tokens) for _ in (0, 1)]
    for batch in shards:
        sides, keys = halves(batch["text"]), pl.Series(text_keys(batch["text"])[:, 0])
        both = exchanges(batch)
        both = both.with_columns(pl.col("prompt").str.tail(MAX_CHARACTERS * PROMPT), _head("reply"))
        both = both.with_columns(key=keys.gather(both["row"]), side=pl.Series(sides).gather(both["row"]))
        for side in (0, 1):
            samples[side] = samples[side].add(both.filter(side=side).select("prompt", "reply", "key"))
    frames = [sample.frame for sample in samples]
    pairs = sum(frame.height for frame in frames)
    if min(frame.height for frame in frames) < MIN_EXCHANGES:
        return {"files": [], "pairs": pairs, "preference": None, "judged": 0}
    texts = pl.concat([frame[name] for frame in frames for name in ("prompt", "reply")])
    words = vocabulary.train(texts, VOCABULARY, chats=True)
    words.save(folder / _FILES[0])
    for side, frame in enumerate(frames):
        model = _train(_encode(words, frame), words)
        save(folder / _FILES[1 + side], partial(save_file, model.state_dict()))
    score = load(folder)
    preferred = np.concatenate(
        [_preference(score, frame.head(MAX_JUDGED // 2), side) for side, frame in enumerate(frames)]
    )
    return {"files": list(_FILES), "pairs": pairs, "preference": float(preferred.mean()), "judged": len(preferred)}


def _head(name: str) -> pl.Expr:
    return pl.col(name).str.head(MAX_CHARACTERS * REPLY)


def _preference(score: Score, frame: pl.DataFrame, side: int) -> NDArray[np.float64]:
    """Whether each reply is more likely after its own prompt than after one far from it; a tie counts half."""
    sides = np.full(frame.height, side, np.uint8)
    others = frame.with_columns(
        prompt=pl.Series(np.roll(frame["prompt"].to_numpy(), frame.height // 2), dtype=pl.String)
    )
    own, other = (score(each, sides)[:, 1] for each in (frame, others))
    return np.asarray((own < other) + 0.5 * (own == other))


def _encode(words: Vocabulary, frame: pl.DataFrame) -> tuple[Ids, Ids]:
    """The ids of prompts and replies that are read."""
    found = []
    for texts in (frame["prompt"].str.tail(MAX_CHARACTERS * PROMPT), frame["reply"].str.head(MAX_CHARACTERS * REPLY)):
        parts = [np.split(part.ids, np.cumsum(part.lengths)[:-1]) for part in words.encode(texts)]
        found.append([ids for part in parts for ids in part])
    return [ids[-PROMPT:] for ids in found[0]], [ids[:REPLY] for ids in found[1]]


class _Windows(NamedTuple):
    """Exchanges as a stream: each with its prompt, then each reply alone."""

    tape: Tape
    replies: NDArray[np.int64]  # [2n], position of the first token of each reply
    sizes: NDArray[np.int64]  # [2n], number of its tokens


def _windows(prompts: Ids, replies: Ids, words: Vocabulary) -> _Windows:
    special = words.template
    user, reply, end = special[[_USER]], special[[_REPLY]], special[[_END]]
    first = np.array([words.end], np.int32)
    heads = [np.concatenate([first, user, ids, end, reply]) for ids in prompts]
    heads += [np.concatenate([first, reply])] * len(replies)
    whole = [np.concatenate([head, ids, end]) for head, ids in zip(heads, [*replies, *replies], strict=True)]
    starts = np.cumsum([0, *map(len, whole)])
    ids = torch.from_numpy(np.concatenate([*whole, first]).astype(np.int64))
    at = starts[:-1] + np.fromiter(map(len, heads), np.int64)
    sizes = np.fromiter(map(len, [*replies, *replies]), np.int64)
    return _Windows(Tape(ids, torch.from_numpy(starts[:-1])), at, sizes)


def _train(encoded: tuple[Ids, Ids], words: Vocabulary) -> Transformer:
    """A transformer trained on exchanges and on their replies alone."""
    tape = _windows(*encoded, words).tape
    model = Transformer(Shape(words.size, WIDTH))
    state = phase2.start(dict(model.named_parameters()), SETTINGS, 0)
    last = Tape(tape.ids[: int(tape.starts[1]) + 1], tape.starts[:1])  # an evaluation is needed, and its scores are not
    rows, threads = len(tape) - 1, torch.get_num_threads()
    torch.set_num_threads(1)  # more threads round differently
    try:
        batches = training.batches(model, tape, SETTINGS, state)
        phase2.optimise(
            "follows",
            model.output,
            batches,
            lambda: training.evaluate(model, last),
            SETTINGS,
            state,
            rows,
            lambda *_: None,
        )
    finally:
        torch.set_num_threads(threads)
    return model


def open_vocabulary(folder: Path) -> Vocabulary:
    return vocabulary.load(folder / _FILES[0]).for_chats()


def open_models(folder: Path) -> list[Transformer]:
    """The models of both halves."""
    models = []
    for name in _FILES[1:]:
        weights = load_file(folder / name)
        models.append(Transformer(Shape(*weights["embedding.weight"].shape)))
        models[-1].load_state_dict(weights)
    return models


def load(folder: Path) -> Score:
    """The models of a fit; an exchange is scored by that of the other half."""
    words, models = open_vocabulary(folder), open_models(folder)

    def score(pairs: pl.DataFrame, sides: NDArray[np.uint8]) -> NDArray[np.float64]:
        out = np.zeros((pairs.height, 3))
        for side in (0, 1):
            mine = np.flatnonzero(sides == side)
            if len(mine):
                out[mine] = _score(models[1 - side], words, pairs[mine])
        return out

    return score


def _score(model: Transformer, words: Vocabulary, pairs: pl.DataFrame) -> NDArray[np.float64]:
    made = _windows(*_encode(words, pairs), words)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        nats = training.evaluate(model, made.tape).nats.double().numpy()
    finally:
        torch.set_num_threads(threads)
    sums = np.append(0, np.cumsum(nats))
    begin = made.replies - 1  # `nats` are of targets, from position 1 on
    means = (sums[begin + made.sizes] - sums[begin]) / np.maximum(made.sizes, 1)
    return np.column_stack([made.sizes[: pairs.height], means[: pairs.height], means[pairs.height :]])
