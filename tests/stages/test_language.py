"""The language stage: which languages it names, when it names none, and how often it is right."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from stages.language import Language
from stages.stage import MESSAGES, MissingModelError

SHARED = Path(__file__).parents[3] / "shared" / "data"

ENGLISH = "The weather was fine all day, so we walked along the river until it was dark."
SPANISH = "El tiempo fue bueno todo el día, así que caminamos junto al río hasta que oscureció."
GERMAN = "Das Wetter war den ganzen Tag schön, also sind wir am Fluss entlang gegangen."
RUSSIAN = "Погода была хорошая весь день, поэтому мы гуляли вдоль реки до темноты."
CODE = "```python\ndef f(values):\n    return sorted(values, key=len)[::-1]\n```"


def batch(*conversations: list[str]) -> pl.DataFrame:
    roles = ("user", "assistant")
    rows = [[{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)] for texts in conversations]
    return pl.DataFrame({"messages": rows}, schema={"messages": MESSAGES})


def measure(*conversations: list[str]) -> list[dict[str, Any]]:
    return Language().measure(batch(*conversations)).to_dicts()


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (ENGLISH, "en"),
        (SPANISH, "es"),
        (GERMAN, "de"),
        (RUSSIAN, "ru"),
        ("私は日本語を話します。", "ja"),
        ("我今天很高兴见到你。", "zh"),
    ],
)
def test_a_language_is_named_by_its_code(text: str, language: str) -> None:
    """A conversation in one language has its ISO 639-1 code, a score between 0 and 1 and no turn in another one."""
    found = measure([text, text])[0]
    assert (found["language"], found["user_language"], found["assistant_language"]) == (language,) * 3
    assert 0.0 < found["language_score"] <= 1.0
    assert (found["judged_turns"], found["other_language_turns"], found["other_language"]) == (2, 0.0, 0.0)


def test_turns_in_another_language_are_weighed() -> None:
    """One turn of four in another language is a quarter of the turns, and its letters' share of the letters."""
    found = measure([ENGLISH, ENGLISH * 3, ENGLISH, SPANISH])[0]
    letters = [sum(c.isalpha() for c in text) for text in (ENGLISH * 5, SPANISH)]
    assert (found["language"], found["assistant_language"], found["judged_turns"]) == ("en", "en", 4)
    assert found["other_language_turns"] == 0.25
    assert found["other_language"] == pytest.approx(letters[1] / sum(letters))


@pytest.mark.parametrize(
    "turn", ["ok", "Hello?", "12345 67", "", CODE, "https://example.org/el/tiempo/fue/bueno/todo/el/dia", ":-)", "mmm"]
)
def test_short_and_wordless_turns_count_as_no_language(turn: str) -> None:
    """Greetings, numbers, code and addresses among English turns are neither judged nor another language."""
    found = measure([ENGLISH, turn, ENGLISH])[0]
    assert (found["language"], found["judged_turns"], found["other_language_turns"]) == ("en", 2, 0.0)


@pytest.mark.parametrize(
    "texts", [[], [""], ["12 + 12", "24"], [CODE, CODE], ["\x00\x00", "\ufffd" * 50], ["asdkjh qweoiu zxmcnb"]]
)
def test_null_where_nothing_can_be_said(texts: list[str]) -> None:
    """No words, no messages, or letters that are no language: no language is named, and no share is made up."""
    found = measure(texts)[0]
    assert found == dict.fromkeys(Language.writes) | {"judged_turns": 0}


def test_short_turns_together_name_the_language() -> None:
    """Turns too short to be judged alone are judged together for the conversation."""
    found = measure(["Hi, how are you?", "I'm fine, thanks.", "What do you do?", "I go to school."])[0]
    assert (found["language"], found["judged_turns"], found["other_language_turns"]) == ("en", 0, None)


def test_short_turns_and_ends_are_no_other_language() -> None:
    """Short turns count for the conversation only, and the few letters past a long turn's last thousand not at all."""
    long = (ENGLISH + " ") * 13
    short = ["¿Qué tal, amigo?", "Muy bien, gracias.", "¿Dónde está?"]
    found = measure([ENGLISH, ENGLISH, *short], [long[:1000] + "son y ça"])
    assert [(row["language"], row["other_language_turns"], row["other_language"]) for row in found] == [
        ("en", 0, 0)
    ] * 2


def test_code_around_the_words_does_not_hide_them() -> None:
    """An answer that is mostly code is judged by its words."""
    found = measure(
        [
            "Please write a function that sorts the words by their length.",
            f"Here it is:\n{CODE * 20}\nI hope that it helps you!",
        ]
    )
    assert (found[0]["language"], found[0]["other_language_turns"]) == ("en", 0.0)


def test_a_missing_model_is_named_with_the_fix(tmp_path: Path) -> None:
    """A path without a model is one sentence that names the path and what to do."""
    with pytest.raises(MissingModelError, match=r"lid\.176\.bin.*omit `model`"):
        Language(model=str(tmp_path / "absent.ftz")).open(tmp_path)


def test_a_fasttext_model_is_used_when_given(tmp_path: Path) -> None:
    """A fastText file is taken in place of the default model, and is part of the identity."""
    import fasttext

    lines = [f"__label__xx {ENGLISH}", f"__label__yy {SPANISH}"] * 200
    (tmp_path / "train.txt").write_text("\n".join(lines))
    model = fasttext.train_supervised(
        str(tmp_path / "train.txt"), epoch=20, minn=2, maxn=3, bucket=999, dim=9, thread=1
    )
    model.save_model(str(tmp_path / "tiny.bin"))
    stage = Language(model=str(tmp_path / "tiny.bin"))
    found = stage.open(tmp_path)(batch([ENGLISH, SPANISH, SPANISH], [""], [])).to_dicts()
    assert [row["language"] for row in found] == ["yy", None, None]
    assert (found[0]["user_language"], found[0]["assistant_language"], found[0]["judged_turns"]) == ("yy", "yy", 3)
    assert stage.digest() != Language().digest()


TEXT = st.sampled_from(
    [ENGLISH, SPANISH, GERMAN, RUSSIAN, CODE, "ok", "", "Hello there", "\x00", "مرحبا كيف حالك اليوم يا صديقي العزيز"]
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(TEXT, max_size=6), max_size=6), st.integers(0, 6))
def test_parts_and_whole_give_the_same(conversations: list[list[str]], cut: int) -> None:
    """Measuring the parts of a batch and concatenating equals measuring the whole: as many rows, in the same order."""
    whole = batch(*conversations)
    measured = Language().measure(whole)
    assert (measured.height, measured.schema) == (whole.height, Language.writes)
    assert_frame_equal(measured, pl.concat([Language().measure(whole[:cut]), Language().measure(whole[cut:])]))


def test_long_and_hostile_texts_do_no_harm() -> None:
    """1 MB without a space, 1 MB of words and of code, and marker-like text are measured."""
    found = measure(["a" * 1_000_000], [ENGLISH * 13_000], ["```" * 99_999], ["x = 1;\n" * 150_000], ["<" * 99_999])
    assert [row["language"] for row in found] == [None, "en", None, None, None]


def test_the_same_parameters_give_the_same_identity() -> None:
    """Two stages of the same parameters name the same measurement; another parameter names another."""
    assert Language().digest() == Language().digest() != Language(min_letters=30).digest()


@pytest.mark.skipif(not (SHARED / "langid").is_dir(), reason="the shared test data (langid/) is not here")
@pytest.mark.parametrize(("unit", "judged", "right"), [("sentences", 0.96, 0.995), ("word-pairs", 0.85, 0.96)])
def test_languages_are_right_where_named(unit: str, judged: float, right: float) -> None:
    """Of texts in the 60 languages of the default model most get a language, and nearly all of those the right one."""
    known = [*import_module("eldc").LANGUAGES, "nb", "nn"]
    texts = pl.read_parquet(SHARED / "langid" / "lingua.parquet").filter(pl.col("lang").is_in(known), unit=unit)
    texts = texts.gather_every(5)
    found = Language(min_letters=1).measure(batch(*([text] for text in texts["text"])))["language"].to_list()
    wanted = texts["lang"].replace({"nb": "no", "nn": "no"}).to_list()
    named = [(a, b) for a, b in zip(found, wanted, strict=True) if a]
    assert len(named) / len(wanted) >= judged
    assert sum(a == b for a, b in named) / len(named) >= right


@pytest.mark.skipif(not (SHARED / "rules").is_dir(), reason="the shared test data (rules/) is not here")
def test_datatroves_language_filter_agrees() -> None:
    """Datatrove's own language cases (English and Italian kept, French and Portuguese not) come out the same."""
    rows = [json.loads(line) for line in (SHARED / "rules" / "datatrove.jsonl").open()]
    rows = [row for row in rows if row["component"] == "LanguageFilter"]
    found = measure(*([row["input"]] for row in rows))
    kept = [signals["language"] in row["params"]["languages"] for signals, row in zip(found, rows, strict=True)]
    assert kept == [row["expected"]["keep"] for row in rows]
    assert len(rows) == 4


@pytest.mark.skipif(not (SHARED / "chat").is_dir(), reason="the shared test data (chat/) is not here")
@pytest.mark.parametrize("corpus", ["gpteacher", "sgd", "ultrachat_small", "vicuna_identity", "mtbench101"])
def test_english_chat_is_not_misjudged(corpus: str) -> None:
    """Code, templates, identity questions and short turns of English corpora are English or unknown, never another."""
    conversations = pl.read_parquet(SHARED / "chat" / f"{corpus}.parquet").head(2000)
    found = Language().measure(conversations)
    assert (found["language"] != "en").sum() == 0
    assert (found["other_language"] > 0.25).sum() <= 0.005 * found.height  # translations, which are there
