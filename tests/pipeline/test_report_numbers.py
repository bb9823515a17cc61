"""The numbers and colours of a report by themselves: against slow references and what a reader can tell apart."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from pipeline import plan as planning
from pipeline.duplicates import Bin
from pipeline.report import charts, theme
from pipeline.report.charts import Colour
from pipeline.report.page import script_json
from pipeline.report.parts import Page
from pipeline.report.run.bands import Band, deciles, make_bins, places, split_at_edges, split_by_name
from pipeline.report.run.counts import spearman
from pipeline.report.run.frame import Kind, Signal, both, have_duplicates, select_signals, thresholds
from pipeline.report.text import labels, narrow, short, visible
from pipeline.rules import Pairs
from stages.stage import Axis
from tests.pipeline.toy_stages import Words

TRICKY = st.text(alphabet=st.characters(codec="utf-8") | st.sampled_from("</>&!-\u2028\u2029\u202e\u200b\x00"))


@given(st.recursive(TRICKY, lambda inner: st.lists(inner) | st.dictionaries(TRICKY, inner), max_leaves=8))
def test_json_in_the_page_ends_no_element_and_comes_back(value: object) -> None:
    """No text can close the script element that holds it, and the page reads what was written."""
    said = script_json(value)
    assert not set("<>&\u2028\u2029") & set(said)
    assert json.loads(said) == value


@given(TRICKY)
def test_nothing_invisible_is_shown(text: str) -> None:
    """Characters that hide, or turn what is around them, are named; all others stay."""
    said = visible(text)
    assert not set(said) & set("\u202a\u202b\u202d\u202e\u2066\u2067\u2068\u2069\u200b\u200e\u200f\ufeff\x00\x1b\u2028")
    if text.isascii() and text.isprintable():
        assert said == text


def test_labels_of_an_axis_are_short_and_differ() -> None:
    """Two names that would look alike stay two rows."""
    said = labels(["a" * 100, "a" * 99, "b\nb", "b b", "", "\u202ec"])
    assert len(set(said)) == 6
    assert max(map(len, said)) <= 32
    assert said[2:] == ("b b", "b b (2)", "(empty)", "⟨U+202E⟩c")


def test_duplicates_are_counted_within_the_corpus() -> None:
    """0 and 1 are copies, 2 is near them, 3 near 2 at less, 4 near 5: by hand for all, and without 1, 2 and 5."""
    first = pl.Series(["0", "0", "2", "3", "4", "5"])
    near = pl.DataFrame({"id": ["0", "2", "4"], "other": ["2", "3", "5"], "jaccard": [0.9, 0.6, 0.75]})
    pairs = {"dedup": Pairs(first, near.with_columns(pl.col("jaccard").cast(pl.Float32)))}
    kind = Kind("dedup", 0.75, [Bin(first.to_frame("id"), pl.Series(range(6)), pairs)])
    everyone = pl.Series([True] * 6)
    assert have_duplicates(kind, everyone).to_list() == [True, True, True, False, True, True]
    assert both(kind, everyone) == 3
    some = pl.Series([True, False, True, True, True, False])
    assert have_duplicates(kind, some).to_list() == [True, False, True, False, False, False]
    assert both(kind, some) == 1
    copy_only = pl.Series([False, True, True, True, False, False])  # the copy stands for its group
    assert have_duplicates(kind, copy_only).to_list() == [False, True, True, False, False, False]


def test_rank_correlation_is_scipys() -> None:
    """Ties and unknown values included; unknown where one of the two does not vary."""
    draw = np.random.default_rng(0)
    a, b = draw.integers(0, 9, 400), draw.integers(0, 9, 400)
    frame = pl.DataFrame({"a": a, "b": a + b, "c": [1] * 400}).with_columns(
        a=pl.when(pl.int_range(pl.len()) % 7 > 0).then("a")
    )
    known = frame.drop_nulls()
    exact = pytest.approx(spearmanr(known["a"], known["b"]).statistic, abs=1e-12)
    assert spearman(frame, "a", "b") == exact
    assert spearman(frame.cast({"a": pl.Float32, "b": pl.Float32}), "a", "b") == exact  # signals are Float32
    assert spearman(frame, "a", "c") is None


@given(st.lists(st.floats(0, 1e6) | st.integers(0, 50) | st.none(), max_size=60), st.booleans())
def test_every_known_value_is_in_its_bin(values: list[float | None], log: bool) -> None:
    """Edges rise, and a value lies between those of its bin; the outer bins take what is beyond."""
    series = pl.Series(values, dtype=pl.Float32, strict=False)
    bins = make_bins(series, Signal("x", "", log), [0.5])
    found = places(series, bins.edges)
    assert all(low < high for low, high in pairwise(bins.edges))
    for value, place in zip(series, found, strict=True):
        assert (value is None) == (place is None)
        if value is not None and 0 < place < len(bins.edges) - 2:
            assert np.float32(bins.edges[place]) <= value < np.float32(bins.edges[place + 1])


def test_bands_part_at_their_edges_and_keep_the_unknown() -> None:
    """A value on an edge belongs above it; what was not measured has a band of its own."""
    band, index = split_at_edges(pl.Series([1.0, 10.0, 99.0, None]), Band("length", "", "", edges=(10, 50)))
    assert band.labels == ("< 10", "10 to 50", "≥ 50", "unknown")
    assert index.to_list() == [0, 1, 2, 3]
    many = pl.Series([f"s{i}" for i in range(15) for _ in range(20 - i)])
    band, index = split_by_name(many, Band("source", "", ""))
    assert band.labels == (*(f"s{i}" for i in range(10)), "5 others")
    assert index.value_counts().height == 11


def test_a_decile_says_where_it_ends() -> None:
    """Below its edge, the last from its edge on; a value on an edge is in the decile above; unknown has a band."""
    ppl = Band("ppl", "perplexity", "")
    band, index = deciles(pl.Series([*range(1, 101), None], dtype=pl.Float32), ppl)
    assert band.labels[:2] == ("D1|<10.9", "D2|<20.8")
    assert band.labels[8:] == ("D9|<90.1", "D10|≥90.1", "unknown")
    assert [index[10 * i] for i in range(10)] == list(range(10))
    assert index[100] == 10
    band, index = deciles(pl.Series([5.0] * 7 + [6.0] * 3), ppl)  # fewer edges where many values are equal
    assert band.labels == ("D1|<5", "D2|<5.3", "D3|<6", "D4|≥6")
    assert index.to_list() == [1] * 7 + [3] * 3
    assert deciles(pl.Series([None], dtype=pl.Float32), ppl)[0].labels == ("D1|all", "unknown")


def test_thresholds_are_those_of_the_rules() -> None:
    """Numbers that a signal is compared with; text in quotes is none."""
    plan = planning.read(
        {
            "stage": [{"use": "heuristics"}],
            "drop": [
                {"reason": "a", "where": "n_words < 5 AND n_turns >= 2"},
                {"reason": "b", "where": "first_role = 'n_words < 7' OR n_words > 1e3"},
            ],
        },
        "test",
    )
    assert [(one.reason, one.text, one.at) for one in thresholds(plan, "n_words")] == [
        ("a", "n_words < 5", 5.0),
        ("b", "n_words > 1e3", 1000.0),
    ]


def test_a_users_stage_is_drawn_like_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own axes where it has them, else all its numbers on linear axes, after the main built-in signals."""
    tables = [{"use": "heuristics"}, {"use": "tests.pipeline.toy_stages:Words"}]
    plan = planning.read({"stage": tables}, "test")
    names = [signal.name for signal in select_signals(plan)]
    assert names[:5] == ["n_words", "n_turns", "prompt_words", "words", "assistant_chars"]
    assert "stop_words" not in names
    assert Signal("words", "", log=False) in select_signals(plan)
    monkeypatch.setattr(Words, "axes", {"words": Axis("white-space separated words", log=True, rank=1)})
    assert select_signals(plan)[0] == Signal("words", "white-space separated words", log=True)


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0"), (0.03456, "0.035"), (3.14159, "3.1"), (28.23, "28.2"), (1234, "1,234"), (12345, "12.3k"), (2e6, "2M")],
)
def test_numbers_are_short(value: float, said: str) -> None:
    """About five characters, so that they fit in a cell."""
    assert short(value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0"), (0.00068, "≈0"), (-0.004, "≈0"), (0.01, ".01"), (-0.345, "\N{MINUS SIGN}.34"), (10.5, "10.5")],
)
def test_numbers_in_a_heatmap_fit_their_cell(value: float, said: str) -> None:
    """Small ones have no digits: a cell shows four."""
    assert narrow(value) == said


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def lightness(colour: str) -> float:
    """CIE L*."""
    y = luminance(colour)
    return 116 * y ** (1 / 3) - 16 if y > 216 / 24389 else y * 24389 / 27


def test_equal_steps_of_colour_are_equal_steps_of_lightness() -> None:
    """Perceptually uniform; since lightness alone tells the order, colour-blind readers see it too."""
    steps = -np.diff([lightness(colour) for colour in theme.SEQUENTIAL])
    assert steps.min() > 0
    assert steps.max() / steps.min() < 1.5
    for name in (theme.DIVERGING, theme.NIGHT[theme.DIVERGING[0]]):
        away = np.diff([lightness(colour) for colour in name])
        half = len(away) // 2
        assert (away[:half] > 0).all() or (away[:half] < 0).all()
        assert (np.sign(away[:half]) == -np.sign(away[half:][::-1])).all()


@pytest.mark.parametrize("diverging", [False, True])
@pytest.mark.parametrize("night", [False, True])
def test_numbers_in_cells_can_be_read(*, diverging: bool, night: bool) -> None:
    """A contrast of at least 3 on every colour, on paper and at night."""
    colours = theme.DIVERGING if diverging else theme.SEQUENTIAL
    colour = Colour("", (0.0, 1.0), diverging=diverging)
    inks: tuple[str, ...] = (theme.INK, theme.PAPER)
    shown: tuple[str, ...] = colours
    if night:
        shown, inks = theme.NIGHT[colours[0]], theme.NIGHT[theme.INK]
    for i, cell in enumerate(shown):
        ink = inks[int(colour.dark(i / (len(shown) - 1)))]
        bright, dim = sorted([luminance(ink), luminance(cell)], reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 3, (cell, ink)


def test_a_headline_leads_with_its_first_sentence() -> None:
    """A point within a number or a name ends none."""
    page = Page("", "", "b.jsonl is better: 0.59 % lower (0.3 to 0.9 %). The rest. And more.", (), (), (), ())
    assert page.lead == ("b.jsonl is better: 0.59 % lower (0.3 to 0.9 %).", "The rest. And more.")
    assert Page("", "", "One.", (), (), (), ()).lead == ("One.", "")


def test_a_logarithmic_axis_has_ticks() -> None:
    """Powers of ten over many decades, more where there are few; zero where it belongs."""
    assert charts.decades(3, 20_000) == [10, 100, 1000, 10_000]
    assert charts.decades(0, 30) == [0, 1, 2, 5, 10, 20]
