"""Arms of a comparison: one split of the union by near-duplicate clusters, whatever each arm holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.prepare import arms as arming
from trainer.prepare import prepared
from trainer.prepare.arms import Union
from trainer.prepare.choices import Choices
from trainer.prepare.ppmi import ppmi_svd
from trainer.presets import HOUSE, Text

CHOICES = Choices(test_tokens=300, validation_tokens=100)


def union(seed: int, clusters: int = 60, empty: float = 0.0) -> Union:
    """Clusters of three conversations, each conversation in one of two arms or in both."""
    rng, size = np.random.default_rng(seed), 3 * clusters
    side = rng.integers(0, 3, size)
    side[:2] = 0, 1  # neither arm holds the other
    texts = [" ".join(f"w{i}" for i in rng.integers(0, 99, 20)) * (rng.random() >= empty) for _ in range(size)]
    members = {"a": side != 1, "b": side != 0}
    frame = pl.DataFrame({"first": texts, "text": texts})
    return Union(frame, rng.integers(0, 2**63, size).astype(np.uint64), np.arange(size) // 3, members)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_a_cluster_that_either_arm_draws_is_on_one_side_for_both(seed: int) -> None:
    """Neither arm holds the other, and clusters have members in both: no cluster is on two sides."""
    both = union(seed)
    found = arming.split(both, both.frame["text"], CHOICES)
    sides = [set(both.groups[rows].tolist()) for rows in (found.pool, found.validation, found.test)]
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
    assert not sides[1] & sides[2]
    spanning = set(both.groups[both.members["a"]]) & set(both.groups[~both.members["a"]]) & sides[2]
    assert len(spanning) >= 3, "too few test clusters have members in both arms: the promise was not tried"


def test_every_conversation_with_text_is_on_exactly_one_side() -> None:
    """An empty conversation is on none."""
    both = union(1, empty=0.2)
    found = arming.split(both, both.frame["text"], CHOICES)
    rows = np.concatenate([found.pool, found.validation, found.test])
    assert sorted(rows) == np.flatnonzero(both.frame["text"].str.len_bytes().to_numpy() > 0).tolist()


def test_each_corpus_by_itself_has_embeddings_of_its_own_budget(tmp_path: Path) -> None:
    """Both arms share the vocabulary alone: each training run counts its own stream."""
    both, preset = union(4), replace(HOUSE, text=Text(), vocabulary=300, shape=replace(HOUSE.shape, embedding=8))
    arms = arming.prepare(both, preset, replace(CHOICES, embeddings="ppmi-budget"), tmp_path)
    tables = []
    for arm in ("a", "b"):
        data = prepared.load(tmp_path, arms.file(arm))
        stream = data.budget(preset, 1_000, 0)
        tables.append(data.embeddings_for(preset, stream, 0))
        assert np.array_equal(tables[-1], ppmi_svd(stream.ids, stream.starts, data.record.vocabulary, 8).table)
    assert not np.array_equal(tables[0], tables[1])


@pytest.mark.parametrize("arm", ["a", "b"])
def test_each_arm_has_a_test_set_and_half_of_the_validation_set(arm: str) -> None:
    """The test set is as large for each arm as the choice asks for; the validation set is shared."""
    both = union(2, clusters=300)
    found = arming.split(both, both.frame["text"], CHOICES)
    tokens = np.array([-(-len(text) // 5) for text in both.frame["text"]])
    own = both.members[arm]
    assert tokens[found.test][own[found.test]].sum() >= CHOICES.test_tokens
    assert tokens[found.validation][own[found.validation]].sum() >= CHOICES.validation_tokens // 2
    assert tokens[found.validation].sum() < 3 * CHOICES.validation_tokens


def test_the_split_of_an_arm_that_holds_the_other_is_its_own() -> None:
    """The smaller arm changes nothing."""
    both = union(3)
    everything = np.ones(len(both.frame), np.bool_)
    splits = [
        arming.split(Union(both.frame, both.keys, both.groups, members), both.frame["text"], CHOICES)
        for members in ({"raw": everything}, {"raw": everything, "part": both.members["a"]})
    ]
    for side in ("pool", "validation", "test"):
        assert np.array_equal(getattr(splits[0], side), getattr(splits[1], side))
