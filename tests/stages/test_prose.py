"""Prose and pieces of plain words are what regular expressions make of a text."""

from __future__ import annotations

from itertools import pairwise

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.language import cut_pieces
from stages.text.messages import prose
from tests.strategies import ODD

FENCED = r"(?s)```.*?(?:```|\z)"
KEYWORD = (
    r"(?:def|class|import|from|return|public|private|static|void|const|let|var|function|func|fn|struct|package|using"
    r"|namespace|SELECT|INSERT|UPDATE|DELETE|CREATE|FROM|WHERE)"
)
CODE_LINES = "(?m)^[ \t]*(?:{})[ \t]*$".format(
    "|".join(
        (
            rf"{KEYWORD} .*[;:{{(,)=\w]",
            r"#include.*",
            r"(?:if|for|while|elif|else|try|except|switch)\b.*[{:]",
            r".*[;{}]",
            r".*\)\s*(?:=>|->).*",
            r"[\w.\[\]]+ ?(?:=|\+=|-=|:=) ?[^ ].*",
            r"[\w.]+\(.*\)",
            r"</?\w[^>]*>.*",
            r"//.*",
            r"@\w+.*",
        )
    )
)
NO_LANGUAGE = (
    r"(?:https?://|www\.)\S+|\S+@\S+|</?\w[^>]*>|\S*\d\S*|[_|=#*<>{}\[\]\\/]+|[\x00-\x1f\x{FFFD}]"  # in this order
)

PIECES = [
    *("def", "import", "FROM", "WHERE", "if", "for", "else", "switch", "#include", "return", "class", "iffy", "foré"),
    *(" ", " ", " ", "  ", "\t", "\n", "\n", "\n\n", "\r\n", "\u00a0", "\u2028", "\x00", "\x1f", "\ufffd"),
    *("x", "a.b", "f(", ")", "()", "[0]", "=", "+=", ":=", "-=", "=>", "->", ">", "<", "</", "<b", "<b>", "</é>", "//"),
    *("@", "@a", "a@b", "a@b.c", "@@", "foo@", ";", "{", "}", ":", ",", "(", "_", "|", "#", "*", "\\", "/", "]", "["),
    *(
        "`",
        "```",
        "http://",
        "https://a",
        "www.",
        "www.a",
        "w.",
        "now.",
        "1",
        "a1",
        "\u0663",
        "\u00b2",
        "é",
        "今天",
        "한",
    ),
    *("Hello", "今天", "한", "the river", "e\u0301", "I\u2019m", "\u3005", "\U0001f600", "\U0010ffff"),
]
TEXTS = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=25).map("".join),
    st.sampled_from(ODD),
    st.text(st.characters(codec="utf-8"), max_size=40),
)


def texts_of(contents: list[str]) -> list[str]:
    (data, offsets), _ = prose(pl.Series(contents, dtype=pl.String))
    return [data[begin:end].tobytes().decode() for begin, end in pairwise(offsets.tolist())]


@settings(max_examples=500)
@given(st.lists(TEXTS, min_size=1, max_size=8))
@example(["a =\nb\nc", "f(x)\n=> y\nz", "<b\nc\nd> e\nf", "x = \n\n", "a\n```b\nc``` d;\ne"])
@example(["def f(x) ", "def ", "def  (", "def a.", "for x:", "for:", "fore:", "else", "if \u00e9{"])
def test_prose_is_what_the_patterns_leave(contents: list[str]) -> None:
    """Fenced blocks go first, then lines of code; their characters are counted."""
    before = pl.Series(contents, dtype=pl.String)
    unfenced = before.str.replace_all(FENCED, "")
    bare = unfenced.str.replace_all(CODE_LINES, "")
    assert texts_of(contents) == bare.to_list()
    lengths = [column.str.len_chars().to_list() for column in (before, unfenced, bare)]
    assert prose(before)[1].T.tolist() == lengths


@settings(max_examples=250)
@given(st.lists(TEXTS, min_size=1, max_size=8), st.integers(0, 12))
@example(["<b x>foo@bar", "<a>1 b", "a|</p> c", "x<b>a1", "www.", "now.then", "a\x1cb@c d", "@@@ a"], 1)
@example(["the river " * 250, "\u4eca" * 1500, "a" * 1000, "b" * 1001], 3)
def test_pieces_are_what_the_patterns_leave(contents: list[str], minimum: int) -> None:
    """Each turn with enough letters, and the other turns of a conversation together, in pieces of 1,000 characters."""
    rows = [at // 3 for at in range(len(contents))]
    messages = pl.DataFrame({"row": pl.Series(rows, dtype=pl.UInt32), "role": "user", "content": contents})
    found, texts = cut_pieces(messages, minimum)
    bare = pl.Series(texts_of(contents), dtype=pl.String)
    plain = bare.str.replace_all(NO_LANGUAGE, " ").str.replace_all(r"\s+", " ").to_list()
    short = [text for text in plain if letters(text) < minimum]
    joined = [
        " ".join(text for text, its in zip(plain, rows, strict=True) if its == row and letters(text) < minimum)
        for row in dict.fromkeys(rows)
    ]
    whole = [text for text in plain if letters(text) >= minimum] + (joined if short else [])
    expected = [
        text[at : at + 1000]
        for text in whole
        for at in range(0, len(text), 1000)
        if letters(text) >= minimum and letters(text[at : at + 1000]) >= minimum
    ]
    assert texts == expected
    assert found["letters"].to_list() == [letters(text) for text in expected]


def letters(text: str) -> int:
    one = pl.Series([text])
    dense = one.str.count_matches(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]")[0]
    return int(one.str.count_matches(r"\p{L}")[0] + 2 * dense)


@pytest.mark.parametrize(
    "text", ["<a", "<a\n", "<a>", "<a> ", ")\n", ") ", "a@", "@", "```", "1<b", "w.", "x =\n", "www. "]
)
def test_a_megabyte_of_openings_takes_a_moment(text: str) -> None:
    """What begins like code, a tag or an address, a million times over, is read in linear time."""
    messages = pl.DataFrame({"row": pl.Series([0], dtype=pl.UInt32), "role": "user", "content": text * 300_000})
    found, texts = cut_pieces(messages, 1)
    assert len(found) == len(texts)
