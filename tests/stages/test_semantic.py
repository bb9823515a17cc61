"""Near-duplicates by meaning: vectors, pairs, cells, clusters, and a run that balances by them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from stages.files import read_frame, read_json, save_frame
from stages.semantic import Semantic, pairs, vectors
from stages.semantic.cells import best, centres, nearest
from stages.semantic.merge import text_of
from stages.semantic.vectors import Static, Vectors, load, whole_numbers
from stages.stage import COSINES, MissingModelError, StageParameterError
from tests import strategies
from tests.conftest import Refine

ASKED = [
    ("How do I bake bread?", "How can I bake a loaf of bread?"),
    ("Write a poem about the sea", "Please write me a poem about the ocean"),
    ("What is the capital of France?", "Tell me the capital city of France"),
    ("Fix the bug in my Python code", "Debug this Python program for me"),
    ("I would like to book a hotel room", "Can you reserve a room in a hotel?"),
]
"""Questions, each with another wording."""


@pytest.fixture(scope="module")
def static() -> Static:
    return Static.load()


def blobs(rows: int, seed: int = 0, components: int = 16) -> Vectors:
    """Vectors around a few directions."""
    draw = np.random.default_rng(seed)
    heads = draw.normal(size=(max(rows // 12, 2), components))
    return whole_numbers(heads[draw.integers(0, len(heads), rows)] + 0.35 * draw.normal(size=(rows, components)))


def cosines(vectors: Vectors) -> NDArray[np.float64]:
    """All cosines, by whole numbers of Python's own size."""
    whole = vectors.astype(np.int64)
    dots, squares = whole @ whole.T, (whole**2).sum(1)
    return np.asarray(dots / np.sqrt(np.outer(squares, squares)))


def test_another_wording_is_nearer_than_another_question(static: Static) -> None:
    """Of ten questions, each one's nearest is its own other wording."""
    near = cosines(static.encode(pl.Series([text for both in ASKED for text in both])))
    np.fill_diagonal(near, -1)
    assert near.argmax(1).tolist() == [i ^ 1 for i in range(10)]


def test_a_vector_is_the_same_wherever_its_text_stands(static: Static) -> None:
    """To the bit: alone, in a batch, in another case, and whatever the order of the words."""
    texts = pl.Series([text for both in ASKED for text in both])
    whole = static.encode(texts)
    assert all((static.encode(texts[i : i + 1]) == whole[i]).all() for i in range(10))
    assert (static.encode(texts.str.to_uppercase()) == whole).all()
    turned = texts.str.split(" ").list.reverse().list.join(" ")
    assert (static.encode(turned) == whole).all()


def test_a_text_in_parts_and_an_unknown_word_count_as_they_should(
    static: Static, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts change nothing; marks and control characters have no vector."""
    texts = pl.Series(["bread and butter", "", "!?\0\x1b", "👩‍👩‍👧‍👦", "bread", "butter"])
    whole = static.encode(texts)
    assert whole.any(1).tolist() == [True, False, False, False, True, True]
    monkeypatch.setattr("stages.semantic.vectors.PART_BYTES", 4)
    assert (static.encode(texts) == whole).all()


def test_whole_numbers_keep_the_direction() -> None:
    """The largest component is 127 either way; a vector of zeros stays; cosines move by less than 0.01."""
    draw = np.random.default_rng(0).normal(size=(40, 128))
    made = whole_numbers(np.vstack([draw, np.zeros((1, 128))]))
    assert np.abs(made[:40]).max(1).tolist() == [127] * 40
    assert not made[40].any()
    units = draw / np.linalg.norm(draw, axis=1, keepdims=True)
    assert np.abs(cosines(made[:40]) - units @ units.T).max() < 0.01


def test_every_pair_at_the_floor_is_found_with_its_cosine() -> None:
    """By brute force in whole numbers; a floor that a pair reaches exactly includes it."""
    vectors = blobs(300)
    near = cosines(vectors)
    found = pairs.find(vectors, np.arange(300), 0.8, 300)
    assert found.cells == 1
    wanted = np.argwhere(np.triu(near >= 0.8, 1))
    assert found.rows.tolist() == wanted.tolist()
    assert len(wanted) > 300
    assert np.allclose(found.cosine, near[tuple(wanted.T)], atol=1e-6)
    assert not found.crowded.any()
    twins = np.repeat(blobs(1), 2, axis=0)
    assert pairs.find(twins, np.arange(2), 1.0, 8).rows.tolist() == [[0, 1]]


def test_cells_find_nearly_all_pairs_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recall of at least 0.98 against brute force, and the same cosines."""
    vectors, order = blobs(3000, components=32), np.random.default_rng(1).permutation(3000)
    every = pairs.find(vectors, order, 0.8, 3000)
    monkeypatch.setattr(pairs, "EXACT", 100)
    some = pairs.find(vectors, order, 0.8, 3000)
    assert some.cells > 100
    of = {tuple(row): cosine for row, cosine in zip(every.rows.tolist(), every.cosine, strict=True)}
    assert len(some.rows) >= 0.98 * len(every.rows)
    assert all(of[tuple(row)] == pytest.approx(c) for row, c in zip(some.rows.tolist(), some.cosine, strict=True))


def test_of_many_near_duplicates_the_nearest_are_kept() -> None:
    """Every pair is among the nearest of one of its ends, and rows with more are marked."""
    vectors = blobs(400, seed=3)
    near = cosines(vectors)
    np.fill_diagonal(near, -1)
    found = pairs.find(vectors, np.arange(400), 0.7, 3)
    assert (found.crowded == ((near >= 0.7).sum(1) > 3)).all()
    third = np.sort(near, axis=1)[:, -3]
    low, high = found.rows.T
    assert (near[low, high] >= np.minimum(third[low], third[high]) - 1e-6).all()
    assert set(np.flatnonzero((near >= 0.7).any(1))) == set(found.rows.ravel())


def test_ties_go_to_the_first_column() -> None:
    """Otherwise the pairs of a crowd of equal cosines would depend on numpy's partition."""
    near = np.array([[1, 3, 2, 3, 2, 2], [5, 5, 5, 5, 5, 5]], np.float32)
    assert best(near, 3).tolist() == [[1, 3, 2], [0, 1, 2]]


def test_centres_separate_what_is_apart() -> None:
    """Four directions: four clusters, whatever the order of the rows, with a cosine near 1."""
    draw = np.random.default_rng(5)
    truth = np.arange(200) % 4
    vectors = whole_numbers(np.eye(4, 8)[truth] * 10 + draw.normal(size=(200, 8)))
    order = np.concatenate([[0, 1, 2, 3], np.arange(4, 200)])
    heads = centres(vectors, order, 4)
    of, near = nearest(vectors, heads, 1)
    assert (of[:, 0] == truth).all()
    assert near.min() > 0.8
    turned = draw.permutation(200)
    again = centres(vectors[turned], np.argsort(turned)[order], 4)
    assert (again == heads).all()


def test_what_is_compared() -> None:
    """The first prompt, the first reply without its reasoning, or everything; a missing one is empty."""
    talk = [("system", "s"), ("user", "one"), ("assistant", "<think>hm</think>two"), ("user", "x"), ("assistant", "y")]
    messages = [{"role": role, "content": text} for role, text in talk]
    batch = strategies.raw([messages, [{"role": "user", "content": "alone"}]])
    assert text_of("prompt", batch).to_list() == ["one", "alone"]
    assert text_of("reply", batch).to_list() == ["two", ""]
    assert text_of("conversation", batch).to_list() == batch["text"].to_list()


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pl.DataFrame, pl.DataFrame]:
    """The signals and pairs of twenty conversations: both wordings, an exact copy of five, and five without words."""
    folder = tmp_path_factory.mktemp("semantic")
    prompts = [text for both in ASKED for text in both] + [both[0].upper() for both in ASKED] + ["", "?", "?", "!", ""]
    frame = strategies.raw([[{"role": "user", "content": text}] for text in prompts])
    stage, names = Semantic(floor=0.6, clusters=5), ["0.parquet", "1.parquet"]
    for name, part in zip(names, (frame[:7], frame[7:]), strict=True):
        save_frame(folder / "raw" / name, part)
        signals = stage.open(folder)(part.select(stage.reads))
        save_frame(folder / name, part.select("id").hstack(signals))
    stage.merge([folder / "raw" / name for name in names], [folder / name for name in names], folder)
    parts = [read_frame(folder / "merged" / name) for name in names]
    return folder, pl.concat(parts), read_frame(folder / "semantic.parquet")


def test_copies_and_pairs_are_what_keep_best_reads(merged: tuple[Path, pl.DataFrame, pl.DataFrame]) -> None:
    """Copies name the first one, pairs are among first copies, and no text is a copy of none."""
    _, signals, near = merged
    ids = signals["id"]
    first = signals["semantic_copy_of"]
    assert first[10:15].to_list() == ids[0:10:2].to_list()
    assert first[:10].equals(ids[:10])
    assert first[15:].to_list() == [ids[15], ids[16], ids[16], ids[18], ids[19]]
    assert near.schema == COSINES
    assert {(one, other) for one, other, _ in near.iter_rows()} >= {(ids[i], ids[i + 1]) for i in range(0, 10, 2)}
    assert not set(ids[10:]) & set(near["id"].to_list() + near["other"].to_list())
    assert signals["semantic_nearest"][0] == 1  # it has a copy
    assert 0.6 <= signals["semantic_nearest"][1] < 1


def test_clusters_are_described(merged: tuple[Path, pl.DataFrame, pl.DataFrame]) -> None:
    """Largest first, with their words and an example; what has no vector is in none."""
    folder, signals, _ = merged
    found = read_json(folder / "semantic.json")
    sizes = [one["size"] for one in found["clusters"]]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == 15
    assert signals["semantic_cluster"].value_counts().drop_nulls().height == sum(size > 0 for size in sizes)
    assert signals["semantic_cluster"][15:].is_null().all()
    assert signals["semantic_typical"][15:].is_null().all()
    of = {one["cluster"]: one for one in found["clusters"]}
    assert "france" in of[signals["semantic_cluster"][4]]["words"]
    assert "5 of 20 conversations have no vector" in found["notes"][0]


@pytest.mark.parametrize("prompts", [["!", "?", ""], ["bread"], []])
def test_a_corpus_without_vectors_or_with_one_is_merged_too(prompts: list[str], tmp_path: Path) -> None:
    """No pair, no cluster or one, and a row for each conversation."""
    stage, frame = Semantic(), strategies.raw([[{"role": "user", "content": text}] for text in prompts])
    save_frame(tmp_path / "raw" / "0.parquet", frame)
    signals = stage.open(tmp_path)(frame.select(stage.reads))
    save_frame(tmp_path / "0.parquet", frame.select("id").hstack(signals))
    stage.merge([tmp_path / "raw" / "0.parquet"], [tmp_path / "0.parquet"], tmp_path)
    merged = read_frame(tmp_path / "merged" / "0.parquet")
    assert merged["semantic_cluster"].drop_nulls().to_list() == [0] * prompts.count("bread")
    assert merged["semantic_copy_of"].equals(frame["id"], check_names=False)
    assert read_frame(tmp_path / "semantic.parquet").is_empty()


def test_empty_cells_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal vectors leave the centres of other cells without members."""
    monkeypatch.setattr(pairs, "EXACT", 10)
    vectors = np.repeat(blobs(3), 20, axis=0)
    found = pairs.find(vectors, np.arange(60), 0.99, 60)
    assert len(found.rows) >= 3 * 20 * 19 // 2


def test_a_run_keeps_one_wording_and_balances_the_clusters(refine: Refine, tmp_path: Path) -> None:
    """The rule says that it decides by a cosine, which decisions, rejected rows and what is shown of them name so."""
    rows = [{"messages": [{"role": "user", "content": text}]} for both in ASKED for text in both]
    rows += [{"messages": [{"role": "user", "content": f"{ASKED[0][0]}"}, {"role": "assistant", "content": "Yes."}]}]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "plan.toml").write_text(
        """
        [[stage]]
        use = "semantic"
        floor = 0.6
        clusters = 5
        [[stage]]
        use = "dedup"
        [[keep_best]]
        reason = "same_prompt"
        pairs = "prompt"
        at_least = 1.0
        [[keep_best]]
        reason = "same_meaning"
        pairs = "semantic"
        at_least = 0.65
        [[keep_top]]
        reason = "balance"
        by = "semantic_typical DESC"
        conversations = 1
        per = "semantic_cluster"
        """
    )
    done = refine("run", tmp_path / "c.jsonl", "--plan", tmp_path / "plan.toml", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "semantic pair with a better one at cosine >= 0.65" in done.stdout
    kept = set(pl.read_parquet(tmp_path / "run" / "refined" / "*.parquet")["prompt"])
    assert all(len(kept & set(both)) <= 1 for both in ASKED)
    assert len(kept) >= 4
    _check_measures(tmp_path / "run")
    shown = refine("show", tmp_path / "run", "--reason", "same_meaning", "-n", 1).stdout
    assert "(cosine 0." in shown
    assert '"cosine":0.' in shown
    assert "jaccard" not in shown
    one = pl.read_parquet(tmp_path / "run" / "decisions" / "*.parquet").filter(reason="same_meaning")["id"][0]
    assert "(cosine 0." in refine("show", tmp_path / "run", "--id", one).stdout
    assert "(jaccard 1.000)" in refine("show", tmp_path / "run", "--reason", "same_prompt").stdout


def _check_measures(run: Path) -> None:
    """Each duplicate has the measure of the rule that drops it, and not the other one."""
    pairs_ = pl.read_parquet(next(run.glob("signals/semantic*/semantic.parquet")))
    cosines = {frozenset((one, other)): cosine for one, other, cosine in pairs_.iter_rows()}
    for part in ("decisions", "rejected"):
        found = pl.read_parquet(run / part / "*.parquet")
        same, prompt = found.filter(reason="same_meaning"), found.filter(reason="same_prompt")
        assert same.height
        assert same["jaccard"].null_count() == same.height
        if part == "decisions":
            named = same.select("id", "duplicate_of", "cosine").iter_rows()
            assert all(cosines[frozenset((one, other))] == cosine for one, other, cosine in named)
        assert prompt.select("jaccard", "cosine").rows() == [(1.0, None)]


def test_an_encoder_that_is_not_there_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """Never a weaker one instead."""
    with pytest.raises(MissingModelError, match="no sentence encoder at"):
        Semantic(model=str(tmp_path)).models()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MissingModelError, match="is not a sentence encoder"):
        load(str(tmp_path))
    for wrong in ({"of": "title"}, {"floor": 0.0}, {"neighbours": 0}, {"clusters": -1}):
        with pytest.raises(StageParameterError, match=f"semantic: {next(iter(wrong))} is"):
            Semantic(**wrong)


def test_the_encoder_of_the_package_gives_vectors_of_its_own() -> None:
    """all-MiniLM-L6-v2 has 384 components, and finds each other wording."""
    near = cosines(load("minilm")(pl.Series([text for both in ASKED for text in both])))
    np.fill_diagonal(near, -1)
    assert near.argmax(1).tolist() == [i ^ 1 for i in range(10)]
    assert load("minilm")(pl.Series(["", "bread"])).shape == (2, 384)


def test_the_encoder_runs_where_torch_has_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Network and texts are moved there: torch's device `meta` takes its place, and refuses to give a vector back."""
    monkeypatch.setattr("stages.semantic.vectors.device", lambda: "meta")
    monkeypatch.setattr("stages.semantic.vectors._encoder", vectors._encoder.__wrapped__)  # noqa: SLF001
    with pytest.raises((RuntimeError, NotImplementedError), match="meta tensor"):
        load("minilm")(pl.Series(["bread", "salt and stone"]))
    assert Semantic(model="minilm").uses_gpu
    assert not Semantic().uses_gpu
