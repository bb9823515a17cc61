"""Signals of value: importance weights towards a target, and resemblance to examples."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from stages.files import read_json, save_frame
from stages.ngram import train
from stages.ppl.tokens import halves
from stages.stage import MissingModelError, StageParameterError
from stages.text.shingles import text_keys
from stages.value.quality import Quality, fold_of
from stages.value.target import Target, features
from tests import strategies
from tests.conftest import Refine

COOK = ["stir", "chop", "bake", "flour", "butter", "oven", "salt", "pan", "onion", "garlic", "simmer", "dough"]
CODE = [
    "loop",
    "array",
    "pointer",
    "compile",
    "stack",
    "function",
    "return",
    "integer",
    "thread",
    "mutex",
    "heap",
    "cache",
]
COMMON = ["the", "a", "of", "and", "to", "in", "it", "is", "that", "for", "on", "with", "you", "this"]


def text(words: list[str], seed: int, length: int = 40) -> str:
    """Words of a subject among common words."""
    draw = random.Random(seed)
    return " ".join(draw.choice(words if draw.random() < 0.4 else COMMON) for _ in range(length))


def chats(words: list[str], seeds: range) -> list[list[dict[str, str]]]:
    """Conversations about a subject."""
    return [
        [
            {"role": "user", "content": text(words, 2 * seed)},
            {"role": "assistant", "content": text(words, 2 * seed + 1)},
        ]
        for seed in seeds
    ]


def corpus(path: Path, conversations: list[list[dict[str, str]]]) -> str:
    """A file of records."""
    path.write_text("".join(json.dumps({"messages": each}) + "\n" for each in conversations))
    return str(path)


def shards(folder: Path, conversations: list[list[dict[str, str]]]) -> list[Path]:
    """Raw shards of a hundred conversations."""
    paths = []
    for at in range(0, len(conversations), 100):
        frame = strategies.raw(conversations[at : at + 100])
        frame = frame.with_columns(id=pl.format("{}-{}", pl.lit("x"), pl.int_range(at, at + pl.len())))
        paths.append(folder / "raw" / f"{at:05}.parquet")
        save_frame(paths[-1], frame)
    return paths


def test_weights_equal_those_of_a_loop_over_the_features(tmp_path: Path) -> None:
    """The sum of log probability ratios with the package's smoothing, over words and pairs within a conversation."""
    mixed = chats(CODE, range(60)) + chats(COOK, range(60, 70))
    raw, target = shards(tmp_path, mixed), chats(COOK, range(200, 230))
    stage = Target(target=corpus(tmp_path / "target.jsonl", target), buckets=500)
    stage.fit(raw, tmp_path / "stage")
    batch = strategies.raw(mixed)
    found = stage.open(tmp_path / "stage")(batch.select(stage.reads))
    rows: list[list[int]] = [[] for _ in mixed]
    for buckets, row in features(batch["text"], 500):
        for bucket, at in zip(buckets.tolist(), row.tolist(), strict=True):
            rows[at].append(bucket)
    assert [len(row) for row in rows] == [2 * 80 - 1] * len(mixed)  # words and pairs
    here = Counter(bucket for row in rows for bucket in row)
    wanted = Counter(b for buckets, _ in features(strategies.raw(target)["text"], 500) for b in buckets.tolist())
    total, aim = sum(here.values()), sum(wanted.values())
    expected = [sum(math.log(wanted[b] / aim + 1e-8) - math.log(here[b] / total + 1e-8) for b in row) for row in rows]
    assert np.allclose(found["target_weight"], expected, rtol=1e-9)
    assert np.allclose(found["target_weight_mean"], np.array(expected) / 159, rtol=1e-9)
    weights = found["target_weight"].to_numpy()
    assert weights[60:].min() > weights[:60].max()


def test_pairs_do_not_cross_conversations_and_order_counts() -> None:
    """A pair is two adjacent words of one text; "a b" and "b a" share words, not their pair."""
    per_text: list[list[int]] = [[], [], []]
    for buckets, rows in features(pl.Series(["red blue", "blue red", "green"]), 1 << 20):
        for bucket, row in zip(buckets.tolist(), rows.tolist(), strict=True):
            per_text[row].append(bucket)
    one, other, alone = map(set, per_text)
    assert (len(one), len(other), len(alone), len(one & other)) == (3, 3, 1, 2)


def test_a_conversation_without_words_and_a_stage_without_target_give_null(tmp_path: Path) -> None:
    """Unknown, not zero."""
    batch = strategies.raw([[{"role": "user", "content": "!?"}], [{"role": "user", "content": "bake"}]])
    assert Target().measure(batch.select(Target.reads)).null_count().row(0) == (2, 2, 2)
    stage = Target(target=corpus(tmp_path / "t.jsonl", chats(COOK, range(5))))
    stage.fit(shards(tmp_path, chats(CODE, range(5))), tmp_path / "stage")
    found = stage.open(tmp_path / "stage")(batch.select(stage.reads))
    assert found["target_weight"].is_null().to_list() == [True, False]


@pytest.fixture(scope="module")
def difference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pl.Series, list[list[dict[str, str]]]]:
    """Cross-entropy differences of a corpus of two subjects, one of which is the target's."""
    folder = tmp_path_factory.mktemp("difference")
    mixed = chats(CODE, range(120)) + chats(COOK, range(120, 150))
    stage = Target(target=corpus(folder / "target.jsonl", chats(COOK, range(500, 560))))
    stage.fit(shards(folder, mixed), folder / "stage")
    found = stage.open(folder / "stage")(strategies.raw(mixed).select(stage.reads))
    return folder, found["target_entropy_difference"], mixed


def test_the_difference_is_that_of_two_models_of_the_other_halves(
    difference: tuple[Path, pl.Series, list[list[dict[str, str]]]],
) -> None:
    """Of each text: nats per token and line end, by KenLM, corpus less target, none of them trained on the text."""
    import kenlm

    folder, found, mixed = difference
    texts = strategies.raw(mixed)["text"]
    for text, side, value in zip(texts, halves(texts).tolist(), found, strict=True):
        lines = [" ".join(line.split()) for line in text.split("\n")]
        models = [kenlm.Model(str(folder / "stage" / f"{name}{1 - side}.bin")) for name in ("target", "raw")]
        target, raw = (sum(model.score(line) for line in lines) for model in models)
        assert math.isclose(value, (target - raw) * math.log(10) / (80 + 2), abs_tol=1e-6)
    texts = strategies.raw([*chats(COOK, range(500, 560))])["text"]
    own = [line for text, side in zip(texts, halves(texts), strict=True) if side for line in text.split("\n")]
    summary = read_json(folder / "stage" / "target.json")
    train([pl.Series(own)], folder / "own.bin", order=4, prune=(0, 0, 1), types=summary["words"])
    assert (folder / "own.bin").read_bytes() == (folder / "stage" / "target1.bin").read_bytes()


def test_what_is_like_the_target_has_the_larger_difference(
    difference: tuple[Path, pl.Series, list[list[dict[str, str]]]],
) -> None:
    """The subject decides; the corpus was sampled down; the summary's AUC counts its own share of the subject."""
    folder, found, mixed = difference
    values = found.to_numpy()
    assert values[:120].max() < 0 < values[120:].min()
    summary = read_json(folder / "stage" / "target.json")
    sizes = [int(strategies.raw(some)["text"].str.len_bytes().sum()) for some in (chats(COOK, range(500, 560)), mixed)]
    assert summary["share"] == sizes[0] / sizes[1]
    assert summary["auc"] == pytest.approx(1 - 30 / 150 / 2, abs=0.05)  # a fifth of the corpus is like the target
    assert summary["median_raw"] < 0 < summary["median_target"]
    assert "ROC-AUC" in Target(target="x").remarks(folder / "stage")[0]


def test_a_corpus_differs_from_itself_by_nothing(tmp_path: Path) -> None:
    """The same texts as corpus and target: both models are one, whatever the half."""
    some = chats(COOK, range(20)) + chats(CODE, range(20))
    stage = Target(target=corpus(tmp_path / "t.jsonl", some))
    stage.fit(shards(tmp_path, some), tmp_path / "stage")
    found = stage.open(tmp_path / "stage")(strategies.raw(some).select(stage.reads))
    assert found["target_entropy_difference"].to_list() == [0.0] * 40


def test_without_models_the_difference_is_null_and_the_weights_are_there(tmp_path: Path) -> None:
    """`order` 0 trains none; a target of one conversation leaves one of the halves without a model."""
    raw, some = shards(tmp_path, chats(CODE, range(20))), chats(CODE, range(20))
    batch = strategies.raw(some).select(Target.reads)
    none = Target(target=corpus(tmp_path / "t.jsonl", chats(COOK, range(9))), order=0)
    none.fit(raw, tmp_path / "none")
    assert none.open(tmp_path / "none")(batch).null_count().row(0) == (0, 0, 20)
    one = Target(target=corpus(tmp_path / "one.jsonl", chats(COOK, range(1))))
    one.fit(raw, tmp_path / "one")
    side = halves(strategies.raw(chats(COOK, range(1)))["text"])[0]
    known = one.open(tmp_path / "one")(batch)["target_entropy_difference"].is_not_null().to_numpy()
    assert not known[halves(batch["text"]) == side].any()
    assert Target(target="x").remarks(tmp_path / "none") == ()
    with pytest.raises(StageParameterError, match="from 2 to 6"):
        Target(order=1)


def test_a_target_that_is_missing_or_empty_is_refused(tmp_path: Path) -> None:
    """Before anything is measured, in a sentence with its name."""
    with pytest.raises(MissingModelError, match="target corpus"):
        Target(target=str(tmp_path / "nowhere")).models()
    stage = Target(target=corpus(tmp_path / "t.jsonl", [[{"role": "user", "content": "..."}]]))
    with pytest.raises(StageParameterError, match="holds no word"):
        stage.fit([], tmp_path / "stage")


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pl.DataFrame, list[list[dict[str, str]]]]:
    """A corpus of two subjects with an exact copy, a near-copy of an example and the example itself, scored."""
    folder = tmp_path_factory.mktemp("quality")
    likes = chats(COOK, range(1000, 1120))
    near = [dict(likes[0][0]), {**likes[0][1], "content": likes[0][1]["content"] + " yes"}]
    mixed = [*chats(CODE, range(150)), *chats(COOK, range(150, 200)), near, likes[1], chats(CODE, range(1))[0]]
    raw = shards(folder, mixed)
    stage = Quality(like=corpus(folder / "like.jsonl", likes))
    stage.fit(raw, folder / "stage")
    return folder, stage.open(folder / "stage")(strategies.raw(mixed).select(stage.reads)), mixed


def test_what_resembles_the_examples_scores_high(judged: tuple[Path, pl.DataFrame, object]) -> None:
    """As probabilities, for the conversation and for each role; an exact copy scores as its original."""
    _, scores, _ = judged
    whole, user, reply = (scores[name].to_numpy() for name in scores.columns)
    assert whole[:150].max() < 0.5 < whole[150:200].min()
    assert user[:150].mean() < 0.3
    assert reply[150:200].mean() > 0.7
    assert whole[0] == whole[-1]


def test_no_conversation_is_scored_by_a_model_that_has_seen_a_near_duplicate(
    judged: tuple[Path, pl.DataFrame, list[list[dict[str, str]]]],
) -> None:
    """The fold of an example, of its copy and of its near-copy is one, though their texts differ."""
    folder, _, mixed = judged
    moved = pl.read_parquet(folder / "stage" / "moved.parquet")
    texts = strategies.raw([mixed[200], chats(COOK, range(1000, 1001))[0]])["text"]
    keys = pl.Series("key", text_keys(texts)[:, 0])
    assert keys[0] != keys[1]
    assert fold_of(keys, moved).n_unique() == 1


def test_the_fit_tells_how_well_it_separates_and_by_which_words(judged: tuple[Path, pl.DataFrame, object]) -> None:
    """An AUC below one, since others are like the examples too; words of the subjects; the same bytes again."""
    folder, _, _ = judged
    found = read_json(folder / "stage" / "quality.json")
    assert 0.75 < found["auc"] < 0.95
    assert found["like"] == 120
    assert set(found["words_like"][:5]) <= set(COOK)
    assert set(found["words_other"][:5]) <= set(CODE)
    assert "ROC-AUC" in Quality(like="x").remarks(folder / "stage")[0]
    before = {path.name: path.read_bytes() for path in (folder / "stage").iterdir() if path.is_file()}
    stage = Quality(like=str(folder / "like.jsonl"))
    stage.fit(sorted((folder / "raw").iterdir()), folder / "stage")
    assert before == {path.name: path.read_bytes() for path in (folder / "stage").iterdir() if path.is_file()}


def test_examples_that_cannot_be_told_apart_have_an_auc_of_a_half(tmp_path: Path) -> None:
    """Examples drawn like the corpus: the held-out AUC does not reward what a model has learned by heart."""
    raw = shards(tmp_path, chats(COOK, range(300)))
    Quality(like=corpus(tmp_path / "like.jsonl", chats(COOK, range(300, 600)))).fit(raw, tmp_path / "stage")
    assert 0.4 < read_json(tmp_path / "stage" / "quality.json")["auc"] < 0.6


def test_a_classifier_of_ones_own_is_used_as_it_is(tmp_path: Path) -> None:
    """Its probability of the label, uncalibrated; a label that it does not have is refused with those that it has."""
    import fasttext

    lines = [f"__label__hq {text(COOK, n)}" for n in range(100)] + [f"__label__lq {text(CODE, n)}" for n in range(100)]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    model = fasttext.train_supervised(input=str(tmp_path / "train.txt"), thread=1, verbose=0, epoch=20)
    model.save_model(str(tmp_path / "mine.bin"))
    stage = Quality(model=str(tmp_path / "mine.bin"))
    batch = strategies.raw([*chats(COOK, range(2)), *chats(CODE, range(2))]).select(stage.reads)
    scores = stage.open(tmp_path)(batch)["quality"]
    expected = [
        dict(zip(*model.predict(line.replace("\n", " "), k=-1), strict=True))["__label__hq"] for line in batch["text"]
    ]
    assert np.allclose(scores, expected, atol=1e-5)
    with pytest.raises(StageParameterError, match="__label__lq"):
        Quality(model=str(tmp_path / "mine.bin"), label="__label__good").open(tmp_path)
    with pytest.raises(MissingModelError, match="no model"):
        Quality(model=str(tmp_path / "none.bin")).models()
    with pytest.raises(StageParameterError, match="no model beside examples"):
        Quality(model="a", like="b")


def test_a_run_selects_towards_a_target(refine: Refine, tmp_path: Path) -> None:
    """From examples to a selected corpus: the signals are measured by workers, and the rule takes the right subject."""
    source = corpus(tmp_path / "mixed.jsonl", chats(CODE, range(90)) + chats(COOK, range(90, 120)))
    liked = corpus(tmp_path / "like.jsonl", chats(COOK, range(200, 260)))
    (tmp_path / "plan.toml").write_text(
        f"""
        [[stage]]
        use = "quality"
        like = {liked!r}
        [[stage]]
        use = "target"
        target = {liked!r}
        [[keep_top]]
        reason = "not_selected"
        by = "target_weight_mean DESC"
        conversations = 30
        """
    )
    done = refine("run", source, "--plan", tmp_path / "plan.toml", "--out", tmp_path / "run", "--shard-rows", 40)
    assert done.returncode == 0, done.stderr
    assert "quality: held-out ROC-AUC" in done.stderr
    kept = pl.read_parquet(tmp_path / "run" / "refined" / "*.parquet")["prompt"]
    assert all(len(set(prompt.split()) & set(COOK)) > len(set(prompt.split()) & set(CODE)) for prompt in kept)
    assert len(kept) == 30


def test_too_few_examples_are_refused(tmp_path: Path) -> None:
    """With the number found and the number needed."""
    few = corpus(tmp_path / "few.jsonl", chats(COOK, range(5)))
    with pytest.raises(StageParameterError, match="5 examples, expected at least 20"):
        Quality(like=few).fit(shards(tmp_path, chats(CODE, range(30))), tmp_path / "stage")
    same = corpus(tmp_path / "same.jsonl", chats(COOK, range(1)) * 30)
    with pytest.raises(StageParameterError, match="near-duplicates of each other: name more examples"):
        Quality(like=same).fit(shards(tmp_path, chats(CODE, range(30))), tmp_path / "stage")
    enough = corpus(tmp_path / "enough.jsonl", chats(COOK, range(60)))
    with pytest.raises(StageParameterError, match=r"quality: 2 different .* take a larger corpus"):
        Quality(like=enough).fit(shards(tmp_path, chats(CODE, range(2))), tmp_path / "stage")
