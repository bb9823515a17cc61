"""The numbers of rules that peers have under the same name agree with those tools' own tests.

Datatrove's definitions are taken where tools differ. The rows are read from the shared test data and skipped where it
is absent; `test_heuristics_reference` needs none.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from stages.heuristics import Heuristics

RULES = Path(__file__).parents[3] / "shared" / "data" / "rules"
pytestmark = pytest.mark.skipif(not RULES.is_dir(), reason="the shared test data (rules/) is not here")

# A filter's reasons in datatrove's order: the reason, and when it drops, over our signals and its parameters.
FILTERS: dict[str, list[tuple[str, str]]] = {
    "GopherRepetitionFilter": [
        ("dup_para_frac", "dup_paras > {dup_para_frac}"),
        ("dup_para_char_frac", "dup_para_chars > {dup_para_char_frac}"),
        ("dup_line_frac", "dup_lines > {dup_line_frac}"),
        ("dup_line_char_frac", "dup_line_chars > {dup_line_char_frac}"),
        *[(f"top_{n}_gram", f"top_{n}gram > {{top_n_grams[{i}][1]}}") for i, n in enumerate(range(2, 5))],
        *[(f"duplicated_{n}_n_grams", f"dup_{n}gram > {{dup_n_grams[{i}][1]}}") for i, n in enumerate(range(5, 11))],
    ],
    "GopherQualityFilter": [
        ("gopher_short_doc", "n_words < {min_doc_words}"),
        ("gopher_long_doc", "n_words > {max_doc_words}"),
        ("gopher_below_avg_threshold", "mean_word_len < {min_avg_word_length}"),
        ("gopher_above_avg_threshold", "mean_word_len > {max_avg_word_length}"),
        ("gopher_too_many_hashes", "hash_ratio > {max_symbol_word_ratio}"),
        ("gopher_too_many_ellipsis", "ellipsis_ratio > {max_symbol_word_ratio}"),
        ("gopher_too_many_bullets", "bullet_lines > {max_bullet_lines_ratio}"),
        ("gopher_too_many_end_ellipsis", "ellipsis_lines > {max_ellipsis_lines_ratio}"),
        ("gopher_below_alpha_threshold", "alpha_words < {max_non_alpha_words_ratio}"),
        ("gopher_enough_stop_words", "stop_words < {min_stop_words}"),
    ],
    "C4QualityFilter": [
        ("lorem_ipsum", "lorem_ipsum"),
        ("curly_bracket", "curly_bracket"),
        ("too_few_sentences", "c4_sentences < {min_num_sentences}"),
    ],
    "C4ParagraphFilter": [("< 3 paragraphs", "long_lines < 3")],
    "FineWebQualityFilter": [
        ("empty", "n_lines = 0"),
        ("line_punct_ratio", "punct_lines < {line_punct_thr}"),
        ("short_line_ratio", "short_lines > {short_line_thr}"),
        ("char_dup_ratio", "fineweb_dup_chars > {char_duplicates_ratio}"),
        ("list_ratio", "newline_ratio > {new_line_ratio}"),
    ],
}

# Dolma's scores by our names.
DOLMA_SCORES = {
    "character_count": "n_chars",
    "word_count": "n_words",
    "symbol_to_word_ratio": "hash_ratio",
    "fraction_of_words_with_alpha_character": "alpha_words",
    "required_word_count": "stop_words",
    "fraction_of_lines_starting_with_bullet_point": "bullet_lines",
    "fraction_of_lines_ending_with_ellipsis": "ellipsis_lines",
    "fraction_of_duplicate_lines": "dup_lines",
    "fraction_of_characters_in_duplicate_lines": "dup_line_chars",
    **{f"fraction_of_characters_in_duplicate_{n}grams": f"dup_{n}gram" for n in range(5, 11)},
}
OTHER_DEFINITION = {
    "median_word_length": "the median of white-space tokens; datatrove takes the mean of words",
    **dict.fromkeys(
        [f"fraction_of_characters_in_most_common_{n}grams" for n in (2, 3, 4)],
        "counts n-grams that stand once; ours is 0 where nothing repeats, a short chat is no repetition",
    ),
}
# Lines or documents that a dolma tagger marks, by our share of them.
DOLMA_SPANS = {
    "has_curly_brace": "curly_bracket",
    "has_javascript": "javascript_lines",
    "has_lorem_ipsum": "lorem_ipsum",
    "lines_with_no_ending_punctuation": "no_punct_lines",
    "lines_with_too_few_words": "few_word_lines",
}

INAPPLICABLE = {
    **{f"datatrove-{n:04}": "language filter: see test_language" for n in range(14, 18)},
    **{f"datatrove-{n:04}": "a user's own regular expression, no statistic" for n in (18, 19)},
    **{f"datatrove-{n:04}": "unigram log-probability, no heuristic of ours (ppl)" for n in (20, 21)},
    **{f"datatrove-{n:04}": "a formatter changes text; nothing here does" for n in (33, 34, 35, 36)},
    "dolma-0002": "counts '!!!' between white space as a word; datatrove's words are no punctuation",
    **{f"dolma-{n:04}": "list of naughty words: toxicity's matter, and hostile to chat" for n in (13, 14, 15, 16)},
    **{f"dolma-{n:04}": "length without outer white space is no signal" for n in (18, 20, 22, 24, 26)},
    **{
        f"dolma-{n:04}": "runs of one period, found by regular expression; Gopher's n-grams here" for n in range(27, 31)
    },
    **{f"dolma-{n:04}": "runs of tokens of a particular tokenizer" for n in range(31, 36)},
}


def rows() -> list[dict[str, Any]]:
    if not RULES.is_dir():
        return []
    return [json.loads(line) for tool in ("datatrove", "dolma") for line in (RULES / f"{tool}.jsonl").open()]


def applicable(tool: str) -> list[Any]:
    return [pytest.param(row, id=row["id"]) for row in rows() if row["tool"] == tool and row["id"] not in INAPPLICABLE]


def measure(text: str) -> pl.DataFrame:
    messages = [[{"role": "text", "content": text}]]
    return Heuristics().measure(pl.DataFrame({"text": [text], "prompt": [""], "messages": messages}))


@pytest.mark.parametrize("row", applicable("datatrove"))
def test_verdict_and_reason_equal_datatroves(row: dict[str, Any]) -> None:
    """Datatrove's filter, written as rules over our signals with its thresholds, gives its verdict and its reason."""
    limits = {**row["defaults"], **row["params"]}
    signals = measure(row["input"])
    fired = [
        reason
        for reason, condition in FILTERS[row["component"]]
        if signals.select(pl.sql_expr(condition.format(**limits))).item()
    ]
    expected = row["expected"]
    assert bool(fired) is not expected["keep"]
    if "reason" in expected:
        assert fired[0] == expected["reason"]
    if "reason_contains" in expected:
        assert expected["reason_contains"] in fired[0]


@pytest.mark.parametrize("row", applicable("dolma"))
def test_scores_equal_dolmas(row: dict[str, Any]) -> None:
    """Dolma's tagger and our signal of the same meaning give the same number."""
    signals = measure(row["input"]).to_dicts()[0]
    assertions = row["expected"]["assertions"]
    checked = sum(_check(assertion, signals, row) for assertion in assertions)
    assert checked > 0


def _check(assertion: dict[str, Any], signals: dict[str, Any], row: dict[str, Any]) -> bool:
    if "spans" in assertion:
        found, spans = signals[DOLMA_SPANS[assertion["type"]]], assertion["spans"]
        if assertion["type"].startswith("lines_"):  # dolma counts the empty line after a last newline, nobody else does
            spans = [span for span in spans if span["end"] > span["start"]]
            assert round(found * signals["n_lines"]) == len(spans)
        else:
            assert bool(found) is bool(spans)
        return True
    value = assertion["equals"]
    if row["component"] == "CharLengthV1":
        assert signals["n_chars"] == value
        return True
    if assertion["at"][-1] == "score":
        value = {"type": assertions_type(row, assertion), "score": value}
    if not isinstance(value, dict) or value["type"] in OTHER_DEFINITION:
        return False
    assert signals[DOLMA_SCORES[value["type"]]] == value["score"], value["type"]
    return True


def assertions_type(row: dict[str, Any], assertion: dict[str, Any]) -> str:
    """The type that another assertion gives to the span whose score this one gives."""
    position = assertion["at"][:-1]
    return next(
        str(other["equals"]) for other in row["expected"]["assertions"] if other.get("at") == [*position, "type"]
    )


def test_every_row_is_checked_or_named() -> None:
    """No row is omitted silently: each is checked above, or listed in INAPPLICABLE with a reason."""
    known = {row["id"] for row in rows()}
    assert set(INAPPLICABLE) <= known
    checked = {param.id for tool in ("datatrove", "dolma") for param in applicable(tool)}
    assert len(known) == 73
    assert checked | set(INAPPLICABLE) == known
