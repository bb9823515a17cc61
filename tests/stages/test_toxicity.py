"""Toxicity: which texts are flagged, the laws of a stage, and its quality on labelled data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import find, toxicity
from stages.stage import MESSAGES, Measure, StageParameterError
from stages.toxicity import Toxicity, encoder, words
from stages.toxicity.words import Model
from stages.toxicity.words_kernel import WINDOW_MAX, join_spaced, split_words
from tests.bench import toxicity_quality as bench
from tests.conftest import ROOT

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="the shared test data is not beside the checkout")

DEFAULT_RULE = 0.8  # pipeline/plans/default.toml drops above it

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
def measure() -> Measure:
    """The stage as it is by default."""
    return Toxicity().open(Path())


@pytest.fixture(scope="module")
def careful() -> Measure:
    """The stage with the encoder."""
    return Toxicity(model="careful").open(Path())


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
    assert (row["toxicity_turn"], row["toxicity_role"], row["toxicity_by"]) == (2, "assistant", "fast")
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
    """Every signal is the same to the bit whatever the batch; every score is null or 0 to 1."""
    batch = talks(*said)
    whole = measure(batch)
    assert len(whole) == len(batch)
    parts = pl.concat([measure(batch[i : i + 1]) for i in range(len(batch))]) if len(batch) else whole
    assert parts.equals(whole)
    for name in ("toxicity", "toxicity_user", "toxicity_assistant", "toxicity_mean", "toxicity_share"):
        assert whole[name].drop_nulls().is_between(0, 1).all()


def test_a_megabyte_of_text_is_read(measure: Measure) -> None:
    """A text of 1 MB, of one word or of many, is scored, and the cost of insults alone is bounded."""
    insults = " ".join(f"You are idiot number {i}, you stupid pig." for i in range(25_000))
    found = measure(talks([("user", "x" * 1_000_000)], [("user", "Nice to meet you. " * 60_000)], [("user", insults)]))
    _, nice, worst = found["toxicity"].to_list()
    assert nice < 0.1
    assert worst > 0.9


def test_windows_cover_a_text_without_overlap() -> None:
    """The windows of a text cover it from its first byte to its last."""
    model = Model.load(words.MODEL)
    texts = pl.Series(["One. " * 100, "no end " * 300, "", "**bold** f*** #tag", "a b c d!"])
    windows = model.windows(texts)
    lengths = words.normalise(texts).str.len_bytes().to_list()
    for row, length in enumerate(lengths):
        mine = windows.row == row
        covered = (windows.stop - windows.start)[mine].sum()
        assert covered == (length if mine.any() else 0)
        assert (windows.start[mine][1:] == windows.stop[mine][:-1]).all()


def test_the_student_is_the_network_it_was_folded_from() -> None:
    """A slow reference over the same table gives the kernel's logit."""
    model = Model.load(words.MODEL)
    rows = {piece: row for row, piece in enumerate(model.pieces)}
    normal = [rows[piece] for piece in ("you", "are", "kind", "im", "sure")]
    written = [rows[piece] for piece in ("you", "are", "kind", ",", "i", "'", "m", "sure", "!")]
    width = len(model.offset)
    means = model.units[normal, :width].mean(0) + model.units[written, width:].mean(0)
    hidden = np.maximum(model.offset + model.unit * means, 0)
    found = model.windows(pl.Series(["You are KIND, I'm sure!"]))
    assert found.student.tolist() == [pytest.approx(hidden @ model.output[:-1] + model.output[-1], abs=1e-5)]
    assert found.length.tolist() == [5]
    assert found.known.tolist() == [1]


def test_spaces_between_letters_cost_no_memory() -> None:
    """A megabyte of single letters is words of bounded length, in windows of bounded length."""
    windows = Model.load(words.MODEL).windows(pl.Series(["a b c d e " * 100_000]))
    assert windows.length.max() <= WINDOW_MAX
    assert np.isfinite(windows.words).all()


def test_spaced_letters_after_tags_are_no_tag() -> None:
    """What another word left in the table is not read."""
    data = np.frombuffer(b"a b c #one #two #three i d i o t", np.uint8)
    text, table = np.zeros(2 * len(data), np.uint8), np.zeros((len(data), 6), np.int64)
    count = join_spaced(table, split_words(data, 0, len(data), text, table))
    found = [(bytes(text[begin:end]), bool(tag)) for begin, end, *_, tag in table[:count].tolist()]
    assert found == [(b"abc", False), (b"one", True), (b"two", True), (b"three", True), (b"idiot", False)]


def test_signs_and_emoji_separate_words(measure: Measure) -> None:
    """Curly quotes, dashes and emoji beside an insult do not hide it, and a text of emoji alone is not read."""
    said = (
        "You are a stupid idiot, a stupid idiot",
        "\u201cYou are a stupid idiot\u201d \u2014a stupid idiot\U0001f602",
    )
    scores = measure(talks(*[[("user", text)] for text in said], [("user", "\U0001f602\U0001f602")]))["toxicity"]
    assert scores[1] == pytest.approx(scores[0], abs=0.2)
    assert scores[2] is None


def test_one_rude_word_is_weak_evidence(measure: Measure) -> None:
    """A rude word alone does not reach the default rule, the same insult in a sentence does."""
    alone, sentence = measure(talks([("user", "Crap")], [("user", TOXIC[0])]))["toxicity"].to_list()
    assert alone < 0.5
    assert sentence > DEFAULT_RULE


def test_the_encoder_decides_what_the_fast_models_leave_uncertain(measure: Measure, careful: Measure) -> None:
    """`careful` scores an insult by the encoder, an inoffensive message as `fast` does, to the bit."""
    batch = talks([("user", TOXIC[0])], [("user", "The weather is nice today and the sea is calm.")])
    found, fast = careful(batch), measure(batch)
    assert found["toxicity_by"].to_list() == ["encoder", "fast"]
    assert found["toxicity"][0] > Toxicity().threshold
    assert found["toxicity"][1] == fast["toxicity"][1]


def test_the_default_imports_no_network() -> None:
    """Scoring with the fast models imports neither torch nor transformers nor numba."""
    code = "import sys, polars as pl; from pathlib import Path; from stages.toxicity import Toxicity\n"
    code += "said = pl.DataFrame({'messages': [[{'role': 'user', 'content': 'You are an idiot.'}]]})\n"
    code += "assert Toxicity().open(Path())(said)['toxicity'][0] > 0.1\n"
    code += "sys.exit(bool({'torch', 'transformers', 'tokenizers', 'numba'} & set(sys.modules)))"
    Toxicity().open(Path())(talks([("user", "Hello there")]))  # compiles the kernel, if it is not cached
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_models_are_part_of_the_digest() -> None:
    """`fast` depends on the shipped model alone, `careful` also on the encoder and its probe."""
    assert Toxicity().models() == (words.MODEL,)
    assert Toxicity(model="careful").models() == (words.MODEL, *encoder.files())
    assert Toxicity().digest() != Toxicity(model="careful").digest()


def test_a_threshold_is_a_probability() -> None:
    """A threshold outside 0 to 1 is refused by name, with the expected range."""
    with pytest.raises(StageParameterError, match=r"threshold is 1\.5, expected"):
        Toxicity(threshold=1.5)


def test_the_stage_is_found_by_name() -> None:
    """A plan names it `toxicity`."""
    assert find("toxicity") is toxicity.Toxicity


@needs_shared
@pytest.mark.parametrize(
    ("name", "auc", "precision", "recall"), [("surge", 0.915, 0.96, 0.18), ("hatecheck", 0.55, 0.6, 0.08)]
)
def test_labelled_sets(measure: Measure, name: str, auc: float, precision: float, recall: float) -> None:
    """ROC-AUC, precision and recall at the default threshold do not fall; recall is low: 0.5 is meant for chat."""
    table = bench.labelled(measure, name)
    label, score = table["label"].to_numpy(), table["score"].to_numpy()
    flagged = score > Toxicity().threshold
    assert bench.roc_auc(label, score) > auc
    assert label[flagged].mean() > precision
    assert flagged[label == 1].mean() > recall


@needs_shared
def test_real_chat_is_left_alone(measure: Measure) -> None:
    """Less than 0.4 % of UltraChat's messages are flagged at the threshold of 60 % recall on surge."""
    table = bench.labelled(measure, "surge")
    threshold = table.filter(pl.col("label") == 1)["score"].quantile(0.4, "lower")
    assert threshold is not None
    flagged = bench.chat(measure, "ultrachat_small")["score"].fill_null(0) >= threshold
    assert flagged.to_numpy().mean() < 0.004


def test_the_encoder_runs_where_torch_has_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Network and texts are moved there: torch's device `meta` takes its place, and refuses to give a score back."""
    monkeypatch.setattr("stages.toxicity.encoder.device", lambda: "meta")
    with pytest.raises((RuntimeError, NotImplementedError), match="meta tensor"):
        encoder.Encoder.load().logits(["you fool", "a longer text of words"])
    assert Toxicity(model="careful").uses_gpu
