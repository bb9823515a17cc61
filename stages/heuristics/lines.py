"""Line statistics of texts: those of Gopher, C4 and FineWeb. Blank lines are never counted.

Some systems count blank lines as duplicates of each other (datatrove#273), and so drop texts that separate paragraphs
by a blank line.
"""

import numpy as np
import polars as pl

from stages.heuristics.lines_kernel import COLUMNS
from stages.heuristics.words_kernel import slots
from stages.text.characters import properties
from stages.text.compiled import Kernels
from stages.text.shingles import utf8_buffers

LOOPS = Kernels("stages.heuristics.lines_kernel", {"line_statistics": "u1* i8* u1* u1* u8* i8** f8**"})

LINE_SIGNALS = pl.Schema(
    {
        "n_lines": pl.Int64(),
        **dict.fromkeys(("hash_ratio", "ellipsis_ratio", "bullet_lines", "ellipsis_lines", "dup_lines"), pl.Float64()),
        **dict.fromkeys(("dup_line_chars", "dup_paras", "dup_para_chars", "punct_lines", "short_lines"), pl.Float64()),
        **dict.fromkeys(("fineweb_dup_chars", "newline_ratio", "no_punct_lines", "few_word_lines"), pl.Float64()),
        "long_lines": pl.Int64(),
        "c4_lines": pl.Float64(),
        "c4_sentences": pl.Int64(),
        **dict.fromkeys(("lorem_ipsum", "curly_bracket"), pl.Boolean()),
        **dict.fromkeys(("javascript_lines", "policy_lines"), pl.Float64()),
    }
)


_PHRASED = pl.any_horizontal(
    pl.col("text").str.contains(f"(?i){part}") for part in ("javascript|lorem ipsum", "terms of use", "policy|cookies")
)
"""Whether a text may hold one of `PHRASES`; most texts do not, and the loop spares them the search."""
_SHARES = (
    *("punct_lines", "ellipsis_lines", "no_punct_lines", "bullet_lines", "few_word_lines", "javascript_lines"),
    *("policy_lines", "c4_lines", "short_lines", "dup_lines"),
)
"""Signals that are shares of the lines."""


def line_signals(texts: pl.Series, words: pl.DataFrame) -> pl.DataFrame:
    """The signals `LINE_SIGNALS` of each text (no nulls); shares are null if it has no line, ratios if it has no word.

    `words` has `n_chars` and `n_words` of each text.
    """
    data, offsets = utf8_buffers(texts)
    phrased = texts.to_frame("text").select(_PHRASED.cast(pl.UInt8)).to_series().to_numpy()
    counts = np.empty((len(offsets) - 1, len(COLUMNS)))
    size = slots(int(np.diff(offsets).max(initial=0)) + 2)  # of two keys per line that is not empty
    scratch = np.empty(size, np.uint64), np.zeros((3, size), np.int64)
    LOOPS.call("line_statistics", data, offsets, phrased, properties(), *scratch, counts)
    frame = pl.DataFrame(counts, schema=COLUMNS).with_columns(words.select("n_chars", "n_words"))
    return frame.with_columns(_ratios()).select(pl.col(name).cast(kind) for name, kind in LINE_SIGNALS.items())


def _ratios() -> list[pl.Expr]:
    lines, chars = pl.col("n_lines"), pl.col("n_chars")
    has_words, has_lines = pl.when(pl.col("n_words") > 0), pl.when(lines > 0)
    return [
        *[has_lines.then(pl.col(name) / lines).alias(name) for name in _SHARES],
        has_words.then(pl.col("hashes") / pl.col("n_words")).alias("hash_ratio"),
        has_words.then(pl.col("ellipses") / pl.col("n_words")).alias("ellipsis_ratio"),
        has_words.then(pl.col("newlines") / pl.col("n_words")).alias("newline_ratio"),
        has_lines.then(pl.col("line_copies") / chars).alias("dup_line_chars"),
        has_lines.then(pl.col("dup_paras") / pl.col("paragraphs")).alias("dup_paras"),
        has_lines.then(pl.col("para_copies") / chars).alias("dup_para_chars"),
        has_lines.then(pl.col("line_copies") / (chars - pl.col("newlines"))).alias("fineweb_dup_chars"),
        pl.col("lorem_ipsum", "curly_bracket") > 0,
    ]
