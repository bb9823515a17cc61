"""Kneser-Ney models that learn piece by piece: the probabilities of `stages.ngram`, at any point of a text."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.experiments import corpus as corpora
from trainer.counts.kneser_ney import Grams, KneserNey
from trainer.experiment.baselines import kneser_ney
from trainer.prepare import streams, vocabulary
from trainer.prepare.streams import Rows, Stream
from trainer.prepare.template import TEXT
from trainer.presets import Text


def drawn(sizes: list[int], ids: int, seed: int) -> Stream:
    """A stream of random conversations of some sizes, whose frequencies fall as in a language."""
    rng = np.random.default_rng(seed)
    parts = [np.append(ids - 1, np.minimum(rng.zipf(1.3, size), ids - 2)).astype(np.int32) for size in sizes]
    starts = np.cumsum([0, *map(len, parts[:-1])])
    made = np.append(np.concatenate(parts), ids - 1).astype(np.int32)
    said, widths = np.full(len(made), TEXT, np.uint8), np.ones(ids, np.int32)
    return Stream(made, starts, np.zeros(len(starts), np.int64), widths, said, ids - 1, separated=True)


def as_library(pool: Stream, order: Rows, size: int, test: Stream, types: int) -> np.ndarray:
    """Nats of each test conversation under the model that `stages.ngram` makes of the same pieces."""
    pieces = pool.pieces(size)
    train = pool.gather(pieces.starts[order], pieces.sizes[order] + 1)
    sums: np.ndarray = np.add.reduceat(kneser_ney(train, test, types), test.bounds()[:-1])
    return sums


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=30, max_size=80),
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.integers(0, 99),
)
def test_the_probabilities_are_those_of_the_library(sizes: list[int], tested: list[int], seed: int) -> None:
    """On random texts, to a thousandth of a nat per token: one n-gram counts in another way in lmplz."""
    pool, test = drawn(sizes, 200, seed), drawn(tested, 200, seed + 1)
    pieces = pool.pieces(16)
    order = pieces.order(np.arange(len(pool), dtype=np.uint64), seed)[: len(pieces.rows) * 3 // 4]
    model = KneserNey(Grams.of(pool, pieces, test))
    model.learn(order)
    off = np.abs(model.nats().sum(axis=0) - as_library(pool, order, 16, test, 200)) / np.diff(test.bounds())
    assert off.max() < 0.01


def test_real_text_agrees_to_a_ten_thousandth_of_a_nat() -> None:
    """On conversations of the embedded default, at two budgets of one order; what is learned first is not lost."""
    frame = corpora.read(None, limit=600).frame.filter(pl.col("text").str.len_bytes() > 0)
    words = vocabulary.train(frame["text"], 800)
    pool, test = (streams.encode(part, words, Text()) for part in (frame[100:], frame[:100]))
    pieces = pool.pieces(128)
    order = pieces.order(np.arange(len(pool), dtype=np.uint64), 0)
    model = KneserNey(Grams.of(pool, pieces, test))
    before = 0
    for count in (100, 700):
        stop = int((pieces.sizes[order[:count]] + 1).sum())
        model.learn(order, before, stop)
        before = stop
        off = np.abs(model.nats().sum(axis=0) - as_library(pool, order[:count], 128, test, words.size)) / np.diff(
            test.bounds()
        )
        assert off.max() < 1e-4


def test_a_text_may_be_learned_in_any_parts_and_forgotten() -> None:
    """Cut in the middle of pieces, the counts are the same as at once; an empty model knows nothing."""
    pool, test = drawn([40] * 50, 100, 0), drawn([30] * 3, 100, 1)
    pieces = pool.pieces(16)
    order = np.arange(len(pieces.rows))
    model = KneserNey(Grams.of(pool, pieces, test))
    nothing = np.diff(test.bounds()) * np.log(100)
    assert model.nats().sum(axis=0) == pytest.approx(nothing)
    model.learn(order)
    whole = model.nats().sum(axis=0)
    model.forget()
    assert model.nats().sum(axis=0) == pytest.approx(nothing)
    stops = [0, 1, 7, 40, 41, 700, int((pieces.sizes + 1).sum())]
    for begin, stop in pairwise(stops):
        model.learn(order, begin, stop)
    assert np.array_equal(model.nats().sum(axis=0), whole)


def test_no_token_is_impossible() -> None:
    """With counts of counts that make a discount 0, as those of a real selection did, every text has a probability."""
    pool, test = drawn([40] * 50, 100, 0), drawn([30] * 3, 100, 1)
    pieces = pool.pieces(16)
    model = KneserNey(Grams.of(pool, pieces, test))
    model.learn(np.arange(len(pieces.rows)))
    model.classes[:] = 0, 2128, 152, 28, 24  # the discount of 3 and more is 3 - 4 * 0.875 * 24 / 28
    model.contexts[:, 1:] = 0, 0, 5
    assert np.isfinite(model.nats()).all()
