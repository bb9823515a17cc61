"""The kenlm library that perplexity asks gives kenlm's own expected answers, word by word."""

from __future__ import annotations

import json
from pathlib import Path

import kenlm
import pytest


@pytest.mark.parametrize("name", ["kenlm_test.arpa", "kenlm_test_nounk.arpa"])
def test_each_word_scores_in_its_context_as_kenlm_says(shared: Path, name: str) -> None:
    """Every `lm_score` row of ../shared/data/ngram (kenlm, lm/model_test.cc) whose model lies there, to 1e-5."""
    rows = [json.loads(line) for line in (shared / "ngram" / "ngram_lm.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["kind"] == "lm_score" and row["model"] == name]
    assert rows
    model = kenlm.Model(str(shared / "ngram" / name))
    for row in rows:
        state, after = kenlm.State(), kenlm.State()
        context = list(row["input"]["context"])
        if context[:1] == ["<s>"]:
            model.BeginSentenceWrite(state)
            context = context[1:]
        else:
            model.NullContextWrite(state)
        for word in context:
            model.BaseScore(state, word, after)
            state, after = after, kenlm.State()
        score = model.BaseScore(state, row["input"]["word"], after)
        assert score == pytest.approx(row["expected"]["log10_prob"], rel=1e-5, abs=1e-5), row["id"]
