"""Signals of the whole text equal those of a slow, plain reference that shares no code with the stage."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.heuristics import Heuristics, lines, lines_kernel

STOP = {"the", "be", "to", "of", "and", "that", "have", "with"}
TERMINAL = ".!?\"'”’…。！？」』।॥؟۔។።"  # noqa: RUF001 - end marks of other scripts are meant
POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
SPACE = " \t\n\r\x0b\x0c\x85\xa0\u2000\u2028\u2029\u3000"


def is_syllable(c: str) -> bool:
    blocks = ("CJK", "HIRAGANA LETTER", "KATAKANA LETTER", "THAI CHARACTER")
    return unicodedata.category(c).startswith("L") and unicodedata.name(c, "").startswith(blocks)


def reference_words(text: str) -> list[str]:
    """Walk the characters; a joiner is kept only between two characters of a word."""
    words: list[str] = []
    current = ""
    for i, c in enumerate(text):
        inside = unicodedata.category(c)[0] in "LMN" or c == "_"
        if is_syllable(c):
            words += [current] if current else []
            words.append(c)
            current = ""
        elif inside or (c in "'.-’" and current and _continues(text, i)):  # noqa: RUF001 - the apostrophe is meant
            current += c
        else:
            words += [current] if current else []
            current = ""
    return words + ([current] if current else [])


def _continues(text: str, i: int) -> bool:
    before, after = text[i - 1], text[i + 1 : i + 2]
    return all(c and (unicodedata.category(c)[0] in "LMN" or c == "_") and not is_syllable(c) for c in (before, after))


def copies(pieces: list[str]) -> tuple[int, int]:
    seen: set[str] = set()
    number = characters = 0
    for piece in pieces:
        number += piece in seen
        characters += len(piece) if piece in seen else 0
        seen.add(piece)
    return number, characters


def top_gram(words: list[str], n: int) -> int:
    grams = [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
    if not grams:
        return 0
    gram, count = Counter(grams).most_common(1)[0]
    return len(gram) * count if count > 1 else 0


def duplicate_grams(words: list[str], n: int) -> int:
    seen: set[tuple[str, ...]] = set()
    i = characters = 0
    while i <= len(words) - n:
        gram = tuple(words[i : i + n])
        if gram in seen:
            characters += sum(map(len, gram))
            i += n
        else:
            seen.add(gram)
            i += 1
    return characters


def share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def strip(text: str) -> str:
    return text.strip(SPACE)


def reference(text: str) -> dict[str, Any]:
    words = reference_words(text)
    tokens = [token for token in re.split(f"[{SPACE}]+", text) if token]
    n, chars = len(words), len(text)
    lines = [line for line in text.split("\n") if strip(line)]
    paragraphs = [p.strip("\n") for p in re.split("\n{2,}", text) if strip(p)]
    bare = [strip(line) for line in lines]
    dup_lines, dup_line_chars = copies(lines)
    dup_paras, dup_para_chars = copies(paragraphs)
    terminal = [line[-1] in TERMINAL for line in bare]
    ellipsis = [line.endswith(("...", "…")) for line in bare]
    few = [len(re.split(f"[{SPACE}]+", line)) < 3 for line in bare]
    javascript = ["javascript" in line.lower() for line in bare]
    policy = [any(phrase in line.lower() for phrase in POLICY) for line in bare]
    too_long = [any(len(word) > 1000 for word in re.split(f"[{SPACE}]+", line)) for line in bare]
    faults = list(zip(ellipsis, few, javascript, policy, too_long, strict=True))
    kept = [end and not any(fault) for end, fault in zip(terminal, faults, strict=True)]
    ends = [len(re.findall(rf"[.!?][\"'”’)\]]*(?=[{SPACE}]|$)", line)) for line in bare]  # noqa: RUF001 - quotes
    out: dict[str, Any] = {
        "n_chars": chars,
        "n_words": n,
        "mean_word_len": share(sum(map(len, words)), n),
        "alpha_words": share(sum(any(c.isalpha() for c in token) for token in tokens), len(tokens)),
        "stop_words": len(STOP & set(words)),
        "longest_token": max(map(len, tokens), default=0),
        "n_lines": len(lines),
        "hash_ratio": share(text.count("#"), n),
        "ellipsis_ratio": share(text.count("...") + text.count("…"), n),
        "newline_ratio": share(text.count("\n"), n),
        "bullet_lines": share(sum(line[0] in "•‣◦·*-" for line in bare), len(lines)),
        "ellipsis_lines": share(sum(ellipsis), len(lines)),
        "dup_lines": share(dup_lines, len(lines)),
        "dup_line_chars": share(dup_line_chars, chars) if lines else None,
        "dup_paras": share(dup_paras, len(paragraphs)),
        "dup_para_chars": share(dup_para_chars, chars) if lines else None,
        "punct_lines": share(sum(terminal), len(lines)),
        "short_lines": share(sum(len(line) <= 30 for line in lines), len(lines)),
        "fineweb_dup_chars": share(dup_line_chars, chars - text.count("\n")) if lines else None,
        "no_punct_lines": share(sum(not t or e for t, e in zip(terminal, ellipsis, strict=True)), len(lines)),
        "few_word_lines": share(sum(few), len(lines)),
        "long_lines": sum(len(line) >= 200 for line in lines),
        "c4_lines": share(sum(kept), len(lines)),
        "c4_sentences": sum(max(1, number) for number, keep in zip(ends, kept, strict=True) if keep),
        "lorem_ipsum": "lorem ipsum" in text.lower(),
        "curly_bracket": "{" in text,
        "javascript_lines": share(sum(javascript), len(lines)),
        "policy_lines": share(sum(policy), len(lines)),
    }
    out |= {f"top_{k}gram": min(1.0, top_gram(words, k) / chars) if n else None for k in (2, 3, 4)}
    return out | {f"dup_{k}gram": min(1.0, duplicate_grams(words, k) / chars) if n else None for k in range(5, 11)}


def measure(texts: list[str]) -> list[dict[str, Any]]:
    batch = pl.DataFrame(
        {"text": texts, "prompt": texts, "messages": [[{"role": "user", "content": text}] for text in texts]}
    )
    return Heuristics().measure(batch).to_dicts()


def assert_agrees(text: str, found: dict[str, Any]) -> None:
    for name, value in reference(text).items():
        if isinstance(value, float) and found[name] is not None:
            assert math.isclose(found[name], value, rel_tol=1e-12, abs_tol=1e-15), (name, text)
        else:
            assert found[name] == value, (name, text)


SPECIMENS = (
    "the|and|be|I|am|don't|e.g.|a-b|x_1|42|été|Привет|مرحبا|日本|ไทย|…|...|#|-|•|{|”|。|!|?!|'quoted'|(end.)|JavaScript|"
    "use cookies|\x00|\ufffd|Lorem ipsum|👩\u200d💻|e\u0301|\u200f|well-|-known|’s|word.word."  # noqa: RUF001 - typographic marks are meant
)
VOCABULARY = st.sampled_from(SPECIMENS.split("|"))
GAPS = st.sampled_from([" ", " ", " ", "\n", "\n\n", "\n\n\n", " \n", "\t", "\r\n", "\u3000", "", ". ", ".\n"])
TEXTS = st.lists(st.tuples(VOCABULARY, GAPS), max_size=60).map(lambda pieces: "".join(a + b for a, b in pieces))


@settings(max_examples=90, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=4))
@example([""])
@example(["\n\n \n", "a", "   "])
@example(["x y long longer long longer x y"])
@example(["I am. " * 40, "a\n\nb\n\na\n\nb", "x" * 250 + ".\n" + "y" * 1001 + " z w."])
def test_signals_of_the_text_equal_the_reference(texts: list[str]) -> None:
    """Every signal of the whole text equals a slow reading of its definition, for any mix of scripts."""
    for text, found in zip(texts, measure(texts), strict=True):
        assert_agrees(text, found)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.characters(codec="latin-1"), max_size=300))
def test_any_latin_text_equals_the_reference(text: str) -> None:
    """The same for every character of Latin-1, control characters included."""
    assert_agrees(text, measure([text])[0])


def test_a_long_text_equals_the_reference() -> None:
    """A text of many words with repeats far apart gives the reference's numbers: the hash tables lose nothing."""
    words = [f"w{(i * i) % 977}" for i in range(20_000)]
    text = " ".join(a + ("\n" if i % 40 == 0 else "") for i, (a, _) in enumerate(pairwise(words)))
    assert_agrees(text, measure([text])[0])


@pytest.mark.parametrize("blanks", [1, 2, 3, 9])
def test_blank_lines_are_no_duplicate_lines(blanks: int) -> None:
    """Paragraphs separated by blank lines have no duplicate line (datatrove#273 counted the blank ones)."""
    text = ("\n" * (blanks + 1)).join(["One line.", "Another line.", "A third one."])
    found = measure([text])[0]
    assert (found["dup_lines"], found["dup_line_chars"], found["dup_paras"]) == (0.0, 0.0, 0.0)


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_a_text_of_empty_lines_stays_within_its_scratch_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop is run as plain Python, where a place outside an array is an error: compiled, it overwrote memory."""
    texts = ["\n" * 200 + "a", "\n" * 200, "a\n" * 100 + "a", "\n\na" * 70]
    compiled = measure(texts)
    plain = SimpleNamespace(call=lambda loop, *arrays: getattr(lines_kernel, loop)(*arrays))
    monkeypatch.setattr(lines, "LOOPS", plain)
    assert [measure([text])[0] for text in texts] == compiled
