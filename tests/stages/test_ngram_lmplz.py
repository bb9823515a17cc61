"""Agreement with kenlm: its trainer on a small text, and its own expected scores through our loader."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from stages.ngram import train
from stages.ppl.score import load

TEXT = [
    "the miller opened the gate before the sun was up",
    "the gate was old and the hinges were old too",
    "before the rain came the miller closed the gate",
    "a boy came down the road with a basket of pears",
    "the boy asked the miller for a cup of water",
    "the miller gave the boy a cup of water and a chair",
    "where does the road go , asked the boy",
    "the road goes to the river , said the miller",
    "the road goes to the hills , said the old woman",
    "and the river goes to the sea , said the boy",
    "the boy sat down and ate a pear",
    "the old woman sat down and asked for a pear",
    "then the sun came out and the boy went down the road",
    "then the rain came and the old woman went home",
    "in the evening the miller closed the gate",
    "in the evening the old woman closed the window",
    "the basket was old and the pears were good",
    "a cup of water and a pear , said the boy",
    "the sea , said the miller , is a long way down the road",
    "the hills are a long way off , said the miller",
]

# kenlm 0.3.0 (PyPI source), lm/builder: lmplz -o ORDER --prune PRUNE --discount_fallback < TEXT; sizes as it printed
# them; scores of the lines of ASKED by the kenlm library from the ARPA file that it wrote.
ASKED = [
    "the miller closed the gate",
    "the road goes to the sea , said the old woman",
    "a stranger came down the road with a lantern",
    "pears and water",
    "",
]
GOLDEN: list[tuple[int, tuple[int, ...], tuple[int, ...], list[float]]] = [
    (5, (0,), (60, 125, 159, 164, 155), [-2.88628, -5.16839, -11.19364, -6.69586, -1.39568]),
    (5, (0, 0, 1), (60, 125, 34, 19, 10), [-2.79277, -6.468, -12.29946, -6.69586, -1.39568]),
    (3, (0, 0, 1), (60, 125, 34), [-3.69657, -7.64403, -12.68476, -6.69586, -1.39568]),
    (2, (0,), (60, 125), [-4.92912, -9.0755, -12.66359, -6.78978, -1.36674]),
]


@pytest.mark.parametrize(("order", "prune", "sizes", "scores"), GOLDEN)
def test_scores_are_lmplz_own(
    tmp_path: Path, order: int, prune: tuple[int, ...], sizes: tuple[int, ...], scores: list[float]
) -> None:
    """As many n-grams as lmplz keeps, and scores that differ by no more than float printing does."""
    trained = train([pl.Series(TEXT)], tmp_path / "model.arpa", order=order, prune=prune)
    score = load(trained.path)
    assert trained.sizes == sizes
    assert [score(line) for line in ASKED] == pytest.approx(scores, abs=2e-5)


def test_degenerate_orders_are_named(tmp_path: Path) -> None:
    """The fallback, as lmplz substituted it, is reported for its order "4" (from 0) of TEXT, and for no other."""
    assert train([pl.Series(TEXT)], tmp_path / "model.arpa", prune=(0,)).fallback == (5,)


@pytest.mark.parametrize("model", ["kenlm_test.arpa", "kenlm_test_nounk.arpa"])
def test_kenlm_gives_its_own_expected_scores(shared: Path, model: str) -> None:
    """Whole sentences of kenlm's own expectations, through the loader that the stage uses."""
    rows = [json.loads(line) for line in (shared / "ngram" / "ngram_lm.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["model"] == model and row["kind"] == "sentence_score"]
    rows = [row for row in rows if row["input"]["bos"] and row["input"]["eos"]]
    score = load(shared / "ngram" / model)
    assert rows or model != "kenlm_test.arpa"
    for row in rows:
        assert score(row["input"]["sentence"]) == pytest.approx(row["expected"]["log10_total"], abs=1e-4), row["id"]
