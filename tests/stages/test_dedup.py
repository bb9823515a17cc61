"""Duplicates that `stages.dedup` finds are those of brute force, with their exact Jaccard."""

from __future__ import annotations

import random
import resource
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.rules import KeepBest, Pairs, decide
from stages import columns
from stages.dedup import Dedup
from stages.dedup.bands import chance
from stages.dedup.groups import Groups, equal_rows
from stages.dedup.merge import merge
from stages.dedup.pairs import Near, near_pairs
from stages.dedup.signatures import choose, first_alike, sign_texts
from stages.stage import StageParameterError, StageRefusedError
from tests.stages.dedup_reference import SHARED, jaccard, pairs, run, same, shingles

WORDS = ["the", "a", "Fox", "fox", "über", "中文字", "ΟΔΟΣ", "x_1", "42", "—", "!"]


def edited(draw: random.Random, text: list[str]) -> list[str]:
    """A copy with a few words changed."""
    copy = list(text)
    for _ in range(draw.randrange(4)):
        if copy:
            copy[draw.randrange(len(copy))] = draw.choice([*WORDS, "new", ""])
    return copy


def corpus(seed: int, size: int, longest: int = 60) -> list[str]:
    """Texts of few words, short and repeated ones among them, and edited copies of them."""
    draw = random.Random(seed)
    texts: list[list[str]] = []
    for _ in range(size):
        if texts and draw.random() < 0.6:
            texts.append(edited(draw, draw.choice(texts)))
        else:
            length = draw.choice([0, 1, 3, 4, 5, 6, draw.randrange(longest)])
            texts.append([draw.choice([*WORDS, str(draw.randrange(300))]) for _ in range(length)])
    return [" ".join(text) for text in texts]


@settings(max_examples=16, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(0, 40))
def test_pairs_are_those_of_brute_force(seed: int, size: int) -> None:
    """No false pair, exact Jaccard, and every pair that shares a band, however the corpus is split into shards."""
    texts = corpus(seed, size)
    truth = pairs(texts, 0.5)
    with TemporaryDirectory() as folder:
        whole = run(Path(folder) / "1", texts)
        cut = run(Path(folder) / "7", texts, shards=7)
    found = whole.pairs()
    assert found == {pair: pytest.approx(truth.get(pair), abs=1e-6) for pair in found}
    keys = whole.measured["band_keys"].to_list()
    shared = {pair for pair in truth if any(a == b for a, b in zip(keys[pair[0]], keys[pair[1]], strict=True))}
    assert found.keys() == shared
    assert cut.merged.equals(whole.merged)
    assert cut.near.equals(whole.near)
    assert cut.summary == whole.summary


def test_texts_that_share_a_key_by_chance_are_no_candidates_of_a_large_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys cut to 10 bits stand for one. The pairs are those of whole keys, and far fewer are compared."""
    parts, how = [pl.Series(corpus(7, 600))], Dedup().matching
    signed = sign_texts(parts, how)
    copies = Groups.of(first_alike(signed.keys))

    def near(bits: int) -> Near:
        bands = signed.bands & np.uint32((1 << bits) - 1)
        return near_pairs(copies, signed.words, bands, partial(choose, parts), how, near=0.75)

    whole, many = near(32), near(10)
    monkeypatch.setattr("stages.dedup.pairs.CHANCE", 0.0)
    for few in (near(32), near(10)):
        assert np.array_equal(few.rows, whole.rows)
        assert np.array_equal(few.jaccard, whole.jaccard)
    assert len(whole.rows) > 20
    assert near(32).compared == whole.compared
    assert near(10).compared < many.compared / 10


def test_no_prompt_is_not_the_same_prompt(tmp_path: Path) -> None:
    """Plain documents, whose prompt is empty, are no copies by prompt; empty texts are copies of each other."""
    found = run(tmp_path, ["\na story", "\nan essay", " \na letter", "Hi\nyes", "hi!\nno", "", " "]).merged
    assert found["prompt_copies"].to_list() == [1, 1, 1, 2, 2, 1, 1]
    assert (found["prompt_copy_of"] == found["id"]).to_list() == [True, True, True, True, False, True, True]
    assert found["exact_copies"].to_list() == [1, 1, 1, 1, 1, 2, 2]


@settings(max_examples=16, deadline=None)
@given(
    st.lists(
        st.text(st.characters(codec="utf-8"), max_size=6)
        | st.sampled_from(["", "!!!", "???", " !!! ", "Hi!", "hi", "hi there"]),
        max_size=30,
    )
)
def test_copies_are_those_with_the_same_words(texts: list[str]) -> None:
    """First copies and their number are those of a dictionary over the words, or over the stripped wordless text."""
    with TemporaryDirectory() as folder:
        found = run(Path(folder) / "1", texts, shards=2)
    firsts: dict[object, int] = {}
    count = Counter(same(text) for text in texts)
    assert found.rows("dedup_copy_of") == [firsts.setdefault(same(text), row) for row, text in enumerate(texts)]
    assert found.merged["exact_copies"].to_list() == [count[same(text)] for text in texts]
    prompts = Counter(same(text.split("\n")[0]) for text in texts)
    copies = [prompts[same(prompt)] if prompt.strip() else 1 for prompt in (text.split("\n")[0] for text in texts)]
    assert found.merged["prompt_copies"].to_list() == copies


def test_short_and_wordless_texts_are_neither_equal_nor_dropped(tmp_path: Path) -> None:
    """Texts of fewer than five words are duplicates of their copies only; "!!!", "???" and "" are three texts."""
    texts = ["!!!", "???", "", "yes", "no", "Yes.", "yes no", "no yes", " ", "a b c d", "a b c", "a b c d e", "b c d e"]
    found = run(tmp_path / "1", texts)
    assert found.rows("dedup_copy_of") == [0, 1, 2, 3, 4, 3, 6, 7, 2, 9, 10, 11, 12]
    assert found.pairs() == {}
    assert found.merged["nearest_jaccard"].to_list() == [
        None,
        None,
        1,
        1,
        None,
        1,
        None,
        None,
        1,
        None,
        None,
        None,
        None,
    ]


def test_clusters_are_components(tmp_path: Path) -> None:
    """A cluster is a connected component, named by its first member; its size counts copies."""
    numbers = [str(i) for i in range(104)]
    chain = [numbers[i : i + 100] for i in range(4)]  # neighbours 95 of 97 shingles, 0.979
    far = [numbers[:100] + ["x"] * 60]  # 96 of 157 with the first
    texts = [" ".join(text) for text in [*chain, *far, chain[1]]]
    found = run(tmp_path / "1", texts, Dedup(cluster=0.97))
    assert found.rows("cluster") == [0, 0, 0, 0, 4, 0]
    assert found.merged["cluster_size"].to_list() == [5, 5, 5, 5, 1, 5]
    assert found.merged["nearest_jaccard"].to_list()[3] == pytest.approx(95 / 97)
    assert found.merged["nearest_jaccard"].to_list()[4] == pytest.approx(pairs(texts, 0.5)[0, 4])


WORDS_44 = [f"w{i}" for i in range(44)]
WHOLE, PREFIX = " ".join(WORDS_44), " ".join(WORDS_44[:34])  # 30 of 40 shingles: a Jaccard of exactly 0.75


def test_a_pair_at_exactly_the_clusters_jaccard_is_in_one_cluster(tmp_path: Path) -> None:
    """At or above, not above; the smallest step beyond parts them."""
    assert run(tmp_path / "at", [WHOLE, PREFIX], Dedup(cluster=0.75)).rows("cluster") == [0, 0]
    assert run(tmp_path / "beyond", [WHOLE, PREFIX], Dedup(cluster=0.7500001)).rows("cluster") == [0, 1]


def test_a_pair_at_exactly_the_floor_is_written(tmp_path: Path) -> None:
    """At or above; a floor just beyond it finds nothing."""
    assert run(tmp_path / "at", [WHOLE, PREFIX], Dedup(floor=0.75, recall=0.9)).pairs() == {(0, 1): 0.75}
    assert run(tmp_path / "beyond", [WHOLE, PREFIX], Dedup(floor=0.7501, cluster=0.8, recall=0.9)).pairs() == {}


def test_a_row_at_exactly_the_clusters_jaccard_leads_no_crowd(tmp_path: Path) -> None:
    """In a crowded bucket the second text, at 0.75 of the first, is no leader: the third is compared with the first."""
    texts = [WHOLE, PREFIX, " ".join(WORDS_44[:33])]
    stage = Dedup(
        floor=0.3, permutations=1, bucket=2
    )  # one band of one row: one bucket, if the smallest hash is shared
    crowd = run(tmp_path / "at", texts, stage)
    assert crowd.merged["dedup_crowded"].to_list() == [True] * 3
    assert crowd.pairs().keys() == {(0, 1), (0, 2)}
    full = run(tmp_path / "full", texts, replace(stage, bucket=3))
    assert full.merged["dedup_crowded"].to_list() == [False] * 3  # a bucket of exactly that size is no crowd
    two = run(tmp_path / "beyond", texts, replace(stage, cluster=0.7500001))
    assert two.pairs().keys() == {(0, 1), (0, 2), (1, 2)}


def test_copies_of_one_text_are_a_star(tmp_path: Path) -> None:
    """100,000 copies of one text take seconds and no pair at all."""
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = run(
        tmp_path / "1", ["the very same text, again and again and again"] * 100_000, Dedup(max_cluster=1.0), shards=4
    )
    assert found.merged["exact_copies"].unique().to_list() == [100_000]
    assert found.rows("dedup_copy_of") == [0] * 100_000
    assert found.near.is_empty()
    assert time.process_time() - start < 20  # 5e9 pairs would take hours
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KiB


def test_a_crowd_is_reported(tmp_path: Path) -> None:
    """If a bucket is too large to compare all pairs, its texts are compared with leaders and marked, with a note."""
    draw = random.Random(1)
    template = [str(i) for i in range(400)]
    texts = []
    for _ in range(300):
        text = list(template)
        text[draw.randrange(400)] = f"x{draw.randrange(10_000)}"
        texts.append(" ".join(text))
    texts.append("nothing like the others in any way at all")
    everything = run(tmp_path / "all", texts, Dedup(bucket=1000))
    assert everything.summary["crowded"] == 0
    assert everything.summary["notes"] == []
    found = run(tmp_path / "few", texts, Dedup(bucket=8))
    assert found.merged["dedup_crowded"].to_list() == [True] * 300 + [False]
    assert "300 of 301 conversations" in found.summary["notes"][0]
    assert found.summary["pairs_compared"] <= 25 * 8 * 300
    assert set(found.pairs().items()) <= set(everything.pairs().items())
    assert found.rows("cluster") == [0] * 300 + [300]
    assert (found.merged["nearest_jaccard"][:300] >= 0.75).all()


def test_a_crowd_leaves_one_with_the_longest_first(tmp_path: Path) -> None:
    """The leaders of a crowded bucket are its longest texts: `KeepBest` in that order keeps no two of the crowd."""
    draw, texts = random.Random(3), []
    for _ in range(400):
        text = [str(i) for i in range(300)]
        for at in draw.sample(range(300), 2):
            text[at : at + 1] = draw.choice([[f"x{draw.randrange(10_000)}"], ["y", text[at]]])
        texts.append(" ".join(text))
    found = run(tmp_path / "1", texts, Dedup(bucket=16))
    assert found.summary["crowded"] == 400
    signals = found.merged.select("id").hstack(found.measured.select("dedup_words"))
    near = {"dedup": Pairs(found.merged["dedup_copy_of"], found.near)}
    rules = decide(signals, near, [KeepBest("duplicate", "dedup", 0.7)], ["dedup_words DESC"])
    assert rules["keep"].sum() == 1


def test_a_monster_cluster_stops_the_run_unless_allowed(tmp_path: Path) -> None:
    """Copies and near-duplicates count; the error gives the number, one of them, and the option that allows it."""
    same = [f"the very same words again and again and again, said by\x1b[2J {row % 2}" for row in range(1000)]
    texts = [*same, *(f"{row} is a text of its own with number {row + 1}" for row in range(500))]
    with pytest.raises(StageRefusedError, match=r"1,000 of 1,500 .* '000000' .*max_cluster = 0\.67") as refused:
        run(tmp_path / "1", texts)
    assert "\x1b" not in str(refused.value)
    found = run(tmp_path / "2", texts, Dedup(max_cluster=0.67))
    assert found.summary["largest_clusters"][0] == {"cluster": "000000", "cluster_size": 1000, "example": texts[0]}
    assert run(tmp_path / "3", texts[1:]).merged["cluster_size"].max() == 999  # small corpora may be as they are


def test_recall_is_the_s_curve(tmp_path: Path) -> None:
    """Of 1,500 pairs at a Jaccard of 0.7 to 0.8 the S-curve's share is found, within 3 sigma."""
    draw = random.Random(2)
    texts = []
    for at in range(1500):
        text = [f"{at}w{i}" for i in range(150)]
        texts.append(" ".join(text))
        for _ in range(draw.choice([4, 5])):
            text[draw.randrange(150)] = "other"
        texts.append(" ".join(text))
    truth = {(i, i + 1): jaccard(shingles(texts[i]), shingles(texts[i + 1])) for i in range(0, 3000, 2)}
    wanted = {pair: value for pair, value in truth.items() if 0.7 <= value < 0.8}
    found = run(tmp_path / "1", texts, Dedup(floor=0.7, recall=0.5, cluster=0.8))
    bands, rows = Dedup(floor=0.7, recall=0.5, cluster=0.8).matching.bands()
    expected = chance(np.array(list(wanted.values())), bands, rows)
    assert len(wanted) > 500
    sigma = float(np.sqrt((expected * (1 - expected)).sum()))
    assert abs(len(wanted.keys() & found.pairs().keys()) - float(expected.sum())) < 3 * sigma
    assert min(chance(value, *Dedup().matching.bands()) for value in (0.75, 0.8)) > 0.998


def test_parts_measure_like_the_whole() -> None:
    """Measuring parts and concatenating equals measuring the whole; no rows give no rows; nothing is null."""
    stage = Dedup()
    texts = [*corpus(3, 50), "ש" * 1000, "\0", "x " * 500_000]
    batch = pl.DataFrame({"text": texts, "prompt": texts})
    whole = stage.measure(batch)
    assert whole.schema == stage.writes
    assert whole.equals(pl.concat([stage.measure(batch[:20]), stage.measure(batch[20:20]), stage.measure(batch[20:])]))
    assert whole.null_count().sum_horizontal().item() == 0
    assert stage.measure(batch[:0]).schema == stage.writes


def test_a_corpus_without_rows_merges(tmp_path: Path) -> None:
    """An empty corpus has an empty answer of the same columns."""
    found = run(tmp_path / "1", [])
    assert found.merged.schema == pl.Schema({"id": pl.String(), **Dedup.merges})
    assert found.near.is_empty()


@pytest.mark.parametrize(
    "parameters",
    [
        {"floor": 0.0},
        {"cluster": 0.4},
        {"permutations": 0},
        {"recall": 2.0},
        {"bucket": 1},
        {"seed": -1},
        {"max_cluster": 2.0},
    ],
)
def test_wrong_parameters_are_refused(parameters: dict[str, float]) -> None:
    """A parameter out of range is refused by name."""
    with pytest.raises(StageParameterError, match=next(iter(parameters))):
        Dedup(**parameters)  # type: ignore[arg-type]


@pytest.mark.skipif(not (SHARED / "bench").exists(), reason="needs the benchmark corpus")
def test_benchmark_corpus(tmp_path: Path) -> None:
    """On 20,000 real texts with all-pairs truth: all pairs at 0.75, 99.9 % at 0.7, no false one, Jaccard to 1e-6."""
    docs = pl.read_parquet(SHARED / "bench/corpus/docs.parquet")
    truth = pl.read_parquet(SHARED / "bench/corpus/pairs.parquet")
    found = run(tmp_path / "1", docs["text"].to_list(), shards=3)
    copies = np.array(found.rows("dedup_copy_of"))
    jaccards = {(i, j): value for i, j, value in truth.iter_rows()}
    for pair, value in found.pairs().items():
        assert jaccards[pair] == pytest.approx(value, abs=1e-6)
    known = found.pairs()
    for least, recall in ((0.75, 1.0), (0.7, 0.999)):
        wanted = [(i, j) for (i, j), value in jaccards.items() if value >= least]
        there = [(copies[i], copies[j]) for i, j in wanted]
        hits = sum(a == b or (min(a, b), max(a, b)) in known for a, b in there)
        assert hits >= recall * len(wanted)


@pytest.mark.skipif(not (SHARED / "data/neardup").exists(), reason="needs the plagiarism corpus")
def test_plagiarised_answers(tmp_path: Path) -> None:
    """Clough & Stevenson (2011): pairs are those of brute force; "cut" answers are the nearest, "non" are none."""
    answers = pl.read_parquet(SHARED / "data/neardup/clough_stevenson.parquet")
    texts = [*answers["text_a"], *answers["text_b"]]
    found = run(tmp_path / "1", texts, Dedup(floor=0.2, recall=0.9)).pairs()
    truth = pairs(texts, 0.2)
    assert found == {pair: pytest.approx(truth[pair], abs=1e-6) for pair in found}
    assert len(found) >= 0.9 * len(truth)
    by_label: dict[str, list[float]] = {label: [] for label in ("cut", "light", "heavy", "non")}
    for row, label in enumerate(answers["label"]):
        by_label[label].append(found.get((row, row + len(answers)), 0.0))
    assert max(by_label["non"]) == 0
    assert np.mean(by_label["cut"]) > np.mean(by_label["light"]) > np.mean(by_label["heavy"])


@settings(max_examples=16, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(0, 40), st.integers(1, 50))
def test_columns_read_in_chunks_give_the_same_files(seed: int, size: int, chunk: int) -> None:
    """However little of a column is in memory at once, every file of the merge has the same bytes."""
    stage = Dedup()
    with TemporaryDirectory() as name:
        whole, parts = Path(name) / "whole", Path(name) / "parts"
        run(whole, corpus(seed, size), shards=3)
        raw, measured = (sorted(folder.glob("*.parquet")) for folder in (whole / "raw", whole))
        measured = [path for path in measured if path.stem.isdigit()]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(columns, "CHUNK", chunk)
            merge(raw, measured, parts, stage.matching, cluster=0.75, max_cluster=0.05, turn_jaccard=0.75)
        for path in (*parts.glob("merged/*"), parts / "dedup.parquet", parts / "dedup.json"):
            assert path.read_bytes() == (whole / path.relative_to(parts)).read_bytes()
        assert len(list(parts.glob("merged/*"))) == 3


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0, 1, 1 << 63, (1 << 64) - 1]), st.integers(0, 2)), max_size=30),
    st.integers(1, 9),
)
def test_copies_are_rows_with_both_halves_of_a_key(keys: list[tuple[int, int]], chunk: int) -> None:
    """Groups and their sizes are those of a dictionary, also where only the first or the second halves are equal."""
    rows = [3 * at for at in range(len(keys))]
    of: dict[tuple[int, int], list[int]] = {}
    for row, key in zip(rows, keys, strict=True):
        of.setdefault(key, []).append(row)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "CHUNK", chunk)
        members = np.array([(row, *key) for row, key in zip(rows, keys, strict=True)], np.uint64).reshape(-1, 3)
        groups = equal_rows(members, None)
        largest, later = groups.largest(2), groups.later()
    first, sizes = groups.between(0, 3 * len(keys))
    assert first[::3].tolist() == [of[key][0] for key in keys]
    assert sizes[::3].tolist() == [len(of[key]) for key in keys]
    several = sorted((-len(some), some[0]) for some in of.values() if len(some) > 1)
    assert largest == [(first, -size) for size, first in several[:2]]
    assert later == len(keys) - len(of)
