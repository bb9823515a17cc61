"""The data of a comparison: shared conversations, no leaks from training to test, paired and nested streams."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.compare import data, scored
from pipeline.compare.checks import paired
from pipeline.compare.corpora import lineage_keys, pair, unite
from pipeline.compare.data import LeakError, leaks
from pipeline.experiments import corpus as corpora
from tests.pipeline.compare_corpus import BLINK, WANTED, how
from trainer import presets
from trainer.experiment.jobs import arm_jobs, order_seed
from trainer.prepare import arms as arming
from trainer.prepare.arms import Arms, ArmsError, Union, distinct
from trainer.prepare.template import TURNS


def frame(*rows: tuple[str, str]) -> pl.DataFrame:
    """Conversations of (id, text)."""
    ids, texts = [row[0] for row in rows], [row[1] for row in rows]
    turns = pl.Series([[{"role": 0, "length": len(text)}] for text in texts], dtype=TURNS)
    return pl.DataFrame({"id": ids, "first": texts, "text": texts, "turns": turns, "source": [""] * len(rows)})


def test_a_shared_conversation_counts_once() -> None:
    """It has the same id and text, or is the n-th copy of its text in both; a changed text is another conversation."""
    a = frame(("1", "x"), ("2", "y"), ("3", "x"), ("4", "z"))
    b = frame(("3", "x"), ("9", "x"), ("2", "changed"), ("7", "z"))
    made, (in_a, in_b) = unite(a, b)
    assert made["id"].to_list() == ["1", "2", "3", "4", "2"]
    assert made["text"].to_list() == ["x", "y", "x", "z", "changed"]
    assert in_a.tolist() == [True, True, True, True, False]
    assert in_b.tolist() == [True, False, True, True, True]


def test_a_text_whose_messages_are_told_apart_otherwise_is_another_conversation() -> None:
    """Equal words of other speakers train another model."""
    a = frame(("1", "Hello\nHi"), ("2", "Bye"))
    turns = pl.Series([[{"role": 0, "length": 5}, {"role": 1, "length": 2}], [{"role": 1, "length": 3}]], dtype=TURNS)
    made, (in_a, in_b) = unite(a, a.with_columns(turns=turns))
    assert made["text"].to_list() == ["Hello\nHi", "Bye"] * 2
    assert (in_a.tolist(), in_b.tolist()) == ([True, True, False, False], [False, False, True, True])
    keys = lineage_keys(made, in_a, in_b)
    assert keys[:2].tolist() == keys[2:].tolist(), "versions of a conversation come in the same place"


def test_a_part_of_a_corpus_adds_nothing() -> None:
    """The union is the whole corpus, and the second arm has its rows, copies included."""
    a = frame(*[(str(i), f"text {i % 7}") for i in range(40)])
    made, (in_a, in_b) = unite(a, a[[3, 10, 17, 39]])
    assert made.equals(a)
    assert in_a.all()
    assert np.flatnonzero(in_b).tolist() == [3, 10, 17, 39]


def test_hostile_names_are_escaped_and_equal_corpora_noted(tmp_path: Path) -> None:
    """A direction override in a name becomes visible; a note says that a copy of a corpus is one."""
    rows = [{"id": str(i), "messages": [{"role": "user", "content": f"Question {i} of many?"}]} for i in range(3)]
    both = [tmp_path / "a.jsonl", tmp_path / "\u202eb.jsonl"]
    for path in both:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = pair(str(both[0]), str(both[1]), None, None, grouped=False)
    assert found.names == ("a.jsonl", "\u27e8U+202E\u27e9b.jsonl")
    assert any("hold the same 3 conversations: no difference can be found" in note for note in found.notes)


def test_copies_have_keys_of_their_own() -> None:
    """The first keeps its key, so its place in an order does not depend on copies."""
    keys = np.array([7, 8, 7, 7, 8], np.uint64)
    made = distinct(keys)
    assert len(np.unique(made)) == 5
    assert made[:2].tolist() == [7, 8]
    assert np.array_equal(distinct(keys[:3]), made[:3])


def test_versions_of_a_conversation_have_one_key() -> None:
    """By their id, if the texts differ; other conversations by their text, from wherever they come."""
    a = frame(*[(str(i), f"text number {i}") for i in range(5)])
    b = frame(("0", "text number 0"), ("1", "text number 1, please subscribe"), ("x", "text number 3"), ("y", "new"))
    made, (in_a, in_b) = unite(a, b)
    keys = lineage_keys(made, in_a, in_b)
    key = dict(zip(made["text"], keys.tolist(), strict=True))
    assert key["text number 1, please subscribe"] == key["text number 1"]
    assert len(set(keys.tolist())) == len(made) - 1
    for part, members in ((a, in_a), (b, in_b)):
        assert len(set(keys[members].tolist())) == len(part)


def check_of(share: float, *, run: bool) -> bool | None:
    """The check of two arms of which the second has this share of its keys in common with the first."""
    keys = np.concatenate([np.arange(100), np.arange(100)]).astype(np.uint64)
    keys[100 + int(100 * share) :] += np.uint64(1000)
    pools = {"raw": np.arange(200) < 100, "refined": np.arange(200) >= 100}
    arms = SimpleNamespace(common=SimpleNamespace(keys=keys), pools=pools)
    both = SimpleNamespace(names=("raw", "refined"), run=object() if run else None)
    return paired(arms, both).passed  # type: ignore[arg-type]


def test_arms_of_a_run_must_be_paired() -> None:
    """If less than half is, the check fails; two other corpora may be independent."""
    assert [check_of(share, run=True) for share in (1.0, 0.5, 0.49, 0.0)] == [True, True, False, False]
    assert [check_of(share, run=False) for share in (1.0, 0.5, 0.49, 0.0)] == [True, True, None, None]


def sample(size: int = 400) -> Union:
    """Real conversations, and an arm of every other one."""
    texts = corpora.read(None, limit=size).frame
    keys, groups = distinct(corpora.keys(texts["text"])), corpora.groups(texts["text"])
    half = np.arange(len(texts)) % 2 == 0
    return Union(texts, keys, groups, {"raw": np.ones(len(texts), np.bool_), "refined": half})


@pytest.fixture(scope="module")
def union() -> Union:
    return sample()


@pytest.fixture
def made(union: Union, tmp_path: Path) -> Arms:
    return arming.prepare(union, BLINK, WANTED, tmp_path / "data")


def test_a_leak_is_found_in_the_texts_themselves() -> None:
    """A near-duplicate that differs by a word, and an exact copy; other texts do not count."""
    text = "the quick brown fox jumps over the lazy dog and runs into the deep green forest for the whole long night"
    tested = pl.Series([text, "hello you", "a text about something that nobody else has ever said in any other place"])
    trained = pl.Series([text.replace("deep", "dark"), "hello you", "hello me", "nothing alike"])
    assert leaks(trained, tested).leaks == 2
    assert leaks(trained[2:], tested).leaks == 0


def test_a_planted_leak_stops_the_comparison(union: Union, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A split without clusters puts copies on both sides, and nothing is trained."""
    monkeypatch.setitem(presets.PRESETS, "blink", BLINK)
    copies = pl.concat([union.frame.with_columns(id=pl.format(f"{{}}-{i}", "id")) for i in range(2)])
    keys = distinct(corpora.keys(copies["text"]))
    members = {"raw": np.ones(len(copies), np.bool_)}
    blind = Union(copies, keys, np.arange(len(copies)), members)
    with pytest.raises(LeakError, match="have a near-duplicate in the training data"):
        data.arms(blind, how(), tmp_path / "blind")
    seeing = replace(blind, groups=corpora.groups(copies["text"]))
    counted = data.arms(seeing, how(), tmp_path / "seeing").leaks
    assert counted is not None
    assert counted.leaks == 0
    assert counted.tested > 0


def test_no_cluster_is_on_two_sides(union: Union, made: Arms) -> None:
    """Of training pool, validation and test set."""
    sides = [set(union.groups[rows]) for rows in (made.split.pool, made.split.validation, made.split.test)]
    assert len(set.union(*sides)) == sum(map(len, sides))


def test_two_corpora_have_a_test_set_each(union: Union, tmp_path: Path) -> None:
    """Each of about the requested size, if neither contains the other."""
    odd = ~union.members["refined"]
    apart = replace(union, members={"a": odd, "b": ~odd})
    made = arming.prepare(apart, BLINK, WANTED, tmp_path / "data")
    lengths = made.common.test.lengths()
    sizes = [int(lengths[made.tests[name]].sum()) for name in ("a", "b")]
    assert min(sizes) > WANTED.test_tokens / 2
    assert not (made.tests["a"] & made.tests["b"]).any()


def test_a_test_set_without_replies_is_not_scored_on_replies(union: Union, made: Arms) -> None:
    """Its perplexity would be that of no token."""
    first = np.flatnonzero(made.tests["raw"])[:30]
    tests = {"raw": np.zeros_like(made.tests["raw"]), "refined": made.tests["raw"].copy()}
    tests["raw"][first], tests["refined"][first] = True, False
    counts = np.full_like(made.common.test.target_counts(), 5)
    counts[1, first] = 0
    made = replace(
        made,
        tests=tests,
        common=SimpleNamespace(test=SimpleNamespace(target_counts=lambda: counts), clusters=made.common.clusters),  # type: ignore[arg-type]
    )
    both: Any = SimpleNamespace(names=("raw", "refined"), union=union, subset=False, target=None)
    primary, found = scored.test_sets_in_scope(both, made)
    assert primary.scope == "replies"
    assert [one.name for one in found] == ["refined-test"]


def conversations(made: Arms, arm: str, budget: int, seed: int) -> list[bytes]:
    """The whole conversations of a training stream, in order."""
    stream = replace(made.common, rows=np.flatnonzero(made.pools[arm])).budget(made.preset, budget, seed)
    return [part.tobytes() for part in np.split(stream.ids, stream.starts)[1:-1]]


def test_arms_are_paired_and_budgets_nested(made: Arms) -> None:
    """Shared conversations come in the same order in both arms; a smaller budget is a prefix of a larger one."""
    raw, refined = (conversations(made, arm, 40_000, 1) for arm in ("raw", "refined"))
    shared = set(raw) & set(refined)
    assert len(shared) >= 10
    assert [one for one in raw if one in shared] == [one for one in refined if one in shared]
    assert raw != refined
    assert raw[: len(conversations(made, "raw", 9000, 1))] == conversations(made, "raw", 9000, 1)
    assert conversations(made, "raw", 40_000, 2) != raw


PAIRS = [(500, 0), (2000, 0)]


def test_arms_with_the_same_stream_share_a_training_run(union: Union, tmp_path: Path) -> None:
    """Whatever their names; another stream, seed or budget is another run."""
    everything = union.members["raw"]
    but_one = everything.copy()
    named = replace(union, members={"raw": everything, "same": everything.copy(), "less": but_one})
    first = arming.prepare(named, BLINK, WANTED, tmp_path / "data")
    pieces = first.common.pool.pieces(BLINK.piece)
    whole = np.bincount(pieces.rows) == 1
    ranks = [np.argsort(pieces.order(first.common.keys, order_seed(*pair))) for pair in PAIRS]
    late = first.split.pool[pieces.rows[np.argmax(np.minimum(*ranks) * whole[pieces.rows])]]  # late in both orders
    but_one[late] = False
    made = arming.prepare(named, BLINK, WANTED, tmp_path / "data")
    names = {arm: [job.name for job in arm_jobs(made, "cvfp", arm, PAIRS)] for arm in named.members}
    assert names["raw"] == names["same"]
    assert names["raw"] == names["less"]
    assert len(set(names["raw"])) == 2
    assert set(names["raw"]).isdisjoint(job.name for job in arm_jobs(made, "cvfp", "raw", [(500, 1), (2000, 1)]))
    largest = made.tokens("less")
    assert (
        arm_jobs(made, "cvfp", "raw", [(largest, 1)])[0].name != arm_jobs(made, "cvfp", "less", [(largest, 1)])[0].name
    )


def test_presets_without_a_test_set_are_refused(union: Union, tmp_path: Path) -> None:
    """The presets of the original experiments report the set that selects the weights."""
    with pytest.raises(ArmsError, match="preset e1 reports the set that selects its weights"):
        arming.prepare(union, presets.find("e1"), WANTED, tmp_path / "data")
