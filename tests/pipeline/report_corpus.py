"""A corpus for tests of reports: cheap stages that measure what the real ones would, and text that attacks a page."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from stages.stage import Stage
from tests.conftest import call, chat

PLAN = """
order = ["dedup_words DESC"]
columns = ["ppl"]
[[stage]]
use = "dedup"
[[stage]]
use = "tests.pipeline.report_corpus:Scores"
[[drop]]
reason = "too_short"
where = "n_words < 6"
because = "a test"
[[drop]]
reason = "toxic"
where = "toxicity > 0.9"
because = "<b>a test</b>"
[[keep_best]]
reason = "near_duplicate"
pairs = "dedup"
at_least = 0.75
"""

POISON = (
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "<img src=x onerror=alert(3)>",
    "<!--<script>",
    "\u202egnirts desrever a\u202c and \u200bzero\u200bwidth\ufeff",
    "'\"><svg/onload=alert(4)>{{7*7}}{% raw %}",
    "javascript:alert(5) https://example.com/pixel.png",
    "\x00\x07\x1b[31m\ud7ff\U000e0041 \u2028\u2029",
    "datum.x'; alert(6); '| split(datum.label)",
    "<" * 1_000_000,
)


@dataclass(frozen=True)
class Scores(Stage):
    """n_words, prompt_words, ppl, toxicity, language: numbers that spread over all bands; some are unknown."""

    summary = "numbers by the words of a text"
    writes = pl.Schema(
        {
            "n_words": pl.Int64(),
            "prompt_words": pl.Int64(),
            "ppl": pl.Float64(),
            "toxicity": pl.Float32(),
            "language": pl.String(),
        }
    )

    def measure(self, batch: pl.DataFrame) -> pl.DataFrame:
        words = pl.col("text").str.count_matches(r"\S+").cast(pl.Int64)
        draw = pl.col("text").hash(1) % 1000
        return batch.select(
            n_words=words,
            prompt_words=words // 2,
            ppl=pl.when(draw % 17 > 0).then(20.0 + draw),
            toxicity=pl.when(draw % 13 > 0).then((draw / 1000) ** 3).cast(pl.Float32),
            language=pl.when(draw % 3 > 0).then(pl.lit("en")),
        )


def records(n: int = 240) -> list[dict[str, Any]]:
    """Conversations of two sources, every tenth of them a copy."""
    return [{**chat(i - i % 10 if i % 10 == 9 else i), "source": ("web", "books")[i % 2]} for i in range(n)]


def poisoned() -> list[dict[str, Any]]:
    """The same with attacks as prompts, replies, roles and sources."""
    attacks = [
        {
            "prompt": text[:100],
            "prompt_id": str(i),
            "source": text[:200],
            "messages": [
                {"role": "user", "content": f"{text} {'tell me more about it ' * j}"},
                {"role": text[:50], "content": text},
            ],
        }
        for i, text in enumerate(POISON)
        for j in range(3)
    ]
    return [*attacks, *records(120)]


def refine(here: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """`refine` in a folder; tests of a module share what it makes there."""
    return call(*words, cwd=here)


def run(here: Path, corpus: list[dict[str, Any]], plan: str = PLAN, *options: object) -> Path:
    """Refine a corpus into the folder `my-run`."""
    (here / "corpus.jsonl").write_text("".join(json.dumps(record) + "\n" for record in corpus))
    (here / "plan.toml").write_text(plan)
    done = refine(here, "run", "corpus.jsonl", "--plan", "plan.toml", "--out", "my-run", "--workers", 1, *options)
    assert done.returncode == 0, done.stderr
    return here / "my-run"
