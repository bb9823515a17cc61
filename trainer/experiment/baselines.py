"""Baselines on the same split: count models of the ids."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages import ngram
from trainer.prepare.streams import Stream

Nats = NDArray[np.float64]
CHUNK = 1 << 12
"""Conversations converted to text at a time."""


def unigram(train: Stream, test: Stream, size: int) -> Nats:
    """Nats [N - 1] of each target under the training frequencies with add-one smoothing (Laplace)."""
    counts = np.bincount(train.ids, minlength=size).astype(np.float64) + 1
    nats: Nats = -np.log(counts / counts.sum())[test.ids[1:]]
    return nats


def kneser_ney(train: Stream, test: Stream, size: int, *, order: int = 5) -> Nats:
    """Nats [N - 1] of each target under an interpolated modified Kneser-Ney model of the ids (Chen and Goodman 1998).

    A conversation is a sentence, so the end-of-text token is its start and its end. The lowest order is interpolated
    with the uniform distribution over the V = `size` ids, so the model sums to one over the same ids as a network.
    """
    import kenlm

    with tempfile.TemporaryDirectory(prefix="refine-ngram-") as folder:
        path = Path(folder) / "model.arpa"
        types = size if train.separated else size + 1  # the end of a sentence is an id, or an additional event
        ngram.train(_sentences(train), path, order=order, prune=(0,), types=types)
        settings = kenlm.Config()
        settings.show_progress = False
        settings.arpa_complain = kenlm.ARPALoadComplain.NONE
        model = kenlm.Model(str(path), settings)
        scores: list[float] = []
        for ids, whole in _conversations(test):
            each = [score for score, _, _ in model.full_scores(" ".join(map(str, ids)), bos=True, eos=True)]
            scores += each if whole else each[:-1]
    nats = np.array(scores) * -math.log(10)
    return nats if test.separated else nats[1:]  # the very first id is no target


def _conversations(stream: Stream) -> Iterator[tuple[NDArray[np.int32], bool]]:
    """The ids of each conversation, and whether its end is a target. kenlm scores one sentence at a time."""
    first = int(stream.separated)
    for k, (start, length) in enumerate(zip(stream.starts, stream.lengths(), strict=True)):
        whole = stream.separated and (k < len(stream) - 1 or stream.whole())
        yield stream.ids[start + first : start + first + length], whole


def _sentences(stream: Stream) -> Iterator[pl.Series]:
    """Conversations as text, with ids as decimal numbers."""
    conversations = _conversations(stream)
    while some := list(itertools.islice(conversations, CHUNK)):
        yield pl.Series("line", [" ".join(map(str, ids)) for ids, _ in some], pl.String())
