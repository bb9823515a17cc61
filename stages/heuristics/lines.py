"""Line statistics of texts: those of Gopher, C4 and FineWeb. Blank lines are never counted.

Some systems count blank lines as duplicates of each other (datatrove#273), and so drop texts that separate paragraphs
by a blank line.
"""

import polars as pl

from stages.text.messages import by_row

TERMINAL = r"[.!?\"'”’…。！？」』।॥؟۔။።]$"  # noqa: RUF001 - end marks of other scripts are meant
POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
"""Phrases for which C4 drops a line (tensorflow_datasets c4_utils.py)."""

_ELLIPSIS = r"(?:\.\.\.|…)$"
_BULLET = r"^[•‣◦·*-]"
_SENTENCE_END = r"[.!?][\"'”’)\]]*(?:\s|$)"  # noqa: RUF001 - typographic quotes are meant
_LONG_LINE = 200  # characters; mC4's paragraph
_SHORT_LINE = 30  # characters; FineWeb
_FEW_WORDS = 3  # C4
_LONG_WORD = r"\S{1001}"  # C4

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


def _pieces(texts: pl.Series, between: str) -> pl.DataFrame:
    """The non-blank pieces of each text: `row`, `length` in characters, and `copy`, whether it occurs earlier in it."""
    return (
        pl.DataFrame({"piece": texts})
        .with_row_index("row")
        .with_columns(pl.col("piece").str.split(between))
        .explode("piece")
        .with_columns(pl.col("piece").str.strip_chars("\n"))
        .with_columns(pl.col("piece").str.strip_chars().alias("bare"))
        .filter(pl.col("bare") != "")
        .with_columns(
            pl.col("piece").str.len_chars().cast(pl.Int64).alias("length"),
            pl.struct("row", "piece").is_first_distinct().not_().alias("copy"),
        )
    )


def _conditions() -> dict[str, pl.Expr]:
    """Conditions of a line, by the signal that is the share of lines that meet it."""
    bare = pl.col("bare")
    terminal, ellipsis_ = bare.str.contains(TERMINAL), bare.str.contains(_ELLIPSIS)
    few_words = bare.str.contains(rf"^\S+(?:\s+\S+){{{_FEW_WORDS - 1},}}").not_()
    javascript = bare.str.contains("(?i)javascript")
    policy = bare.str.contains(f"(?i){'|'.join(POLICY)}")
    return {
        "punct_lines": terminal,
        "ellipsis_lines": ellipsis_,
        "no_punct_lines": (terminal & ~ellipsis_).not_(),
        "bullet_lines": bare.str.contains(_BULLET),
        "few_word_lines": few_words,
        "javascript_lines": javascript,
        "policy_lines": policy,
        "c4_lines": terminal & ~ellipsis_ & ~few_words & ~javascript & ~policy & ~bare.str.contains(_LONG_WORD),
    }


def line_signals(texts: pl.Series, words: pl.DataFrame) -> pl.DataFrame:
    """The signals `LINE_SIGNALS` of each text (no nulls); shares are null if it has no line, ratios if it has no word.

    `words` has `n_chars` and `n_words` of each text.
    """
    length, copy = pl.col("length"), pl.col("copy")
    copied = length.filter(copy).sum()
    conditions = _conditions()
    sentences = pl.max_horizontal(pl.col("bare").str.count_matches(_SENTENCE_END), 1)
    lines = _pieces(texts, "\n").with_columns(**conditions).group_by("row")
    of_lines = lines.agg(
        pl.len().cast(pl.Int64).alias("n_lines"),
        *[pl.col(name).mean() for name in conditions],
        (length <= _SHORT_LINE).mean().alias("short_lines"),
        (length >= _LONG_LINE).sum().cast(pl.Int64).alias("long_lines"),
        copy.mean().alias("dup_lines"),
        copied.alias("line_copies"),
        sentences.filter("c4_lines").sum().cast(pl.Int64).alias("c4_sentences"),
    )
    paragraphs = _pieces(texts, "\n\n").group_by("row")
    of_paragraphs = paragraphs.agg(copy.mean().alias("dup_paras"), copied.alias("para_copies"))
    frame = by_row(len(texts), of_lines, of_paragraphs).with_columns(
        texts.alias("text"), *words.select("n_chars", "n_words")
    )
    return frame.with_columns(_ratios()).select(pl.col(name).cast(kind) for name, kind in LINE_SIGNALS.items())


def _ratios() -> list[pl.Expr]:
    text, chars = pl.col("text"), pl.col("n_chars")
    newlines = text.str.count_matches("\n", literal=True)
    ellipses = text.str.count_matches("...", literal=True) + text.str.count_matches("…", literal=True)
    has_words, has_lines = pl.when(pl.col("n_words") > 0), pl.when(pl.col("n_lines").is_not_null())
    return [
        pl.col("n_lines", "long_lines", "c4_sentences").fill_null(0),
        has_words.then(text.str.count_matches("#", literal=True) / pl.col("n_words")).alias("hash_ratio"),
        has_words.then(ellipses / pl.col("n_words")).alias("ellipsis_ratio"),
        has_words.then(newlines / pl.col("n_words")).alias("newline_ratio"),
        has_lines.then(pl.col("line_copies") / chars).alias("dup_line_chars"),
        has_lines.then(pl.col("para_copies") / chars).alias("dup_para_chars"),
        has_lines.then(pl.col("line_copies") / (chars - newlines.cast(pl.Int64))).alias("fineweb_dup_chars"),
        text.str.contains("(?i)lorem ipsum").alias("lorem_ipsum"),
        text.str.contains("{", literal=True).alias("curly_bracket"),
    ]
