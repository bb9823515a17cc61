"""Text as the lines of tokens that a language model is trained on and asked about."""

from __future__ import annotations

import hashlib

import polars as pl

_SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
"""Scripts written without spaces: a letter is a token, or every sentence would be one unknown word."""

TOKEN = rf"[{_SPACELESS}]|[\w--[{_SPACELESS}]]+|[^\w\s\p{{Cc}}]"
"""A word, or one mark of punctuation; control characters are neither, kenlm stops at NUL."""

_NOT_LETTERS = r"[^\p{L}\p{M}\p{N}]+"


def tokenise(text: pl.Series) -> pl.DataFrame:
    """Sentences of texts: a sentence is a line that has a token, as in CCNet (cc_net/perplexity.py, DocLM).

    Args:
        text: String.

    Returns:
        `at`, the row of the text it is from (UInt32); `line`, lower-cased tokens with digits as 0 and single spaces
        between them; `n`, its tokens and one sentence end (UInt32). In order.
    """
    lines = pl.DataFrame({"at": pl.int_range(len(text), dtype=pl.UInt32, eager=True), "line": text.str.split("\n")})
    tokens = pl.col("line").str.to_lowercase().str.replace_all(r"\d", "0").str.extract_all(TOKEN)
    return (
        lines.explode("line")
        .with_columns(tokens)
        .filter(pl.col("line").list.len() > 0)
        .select("at", pl.col("line").list.join(" "), n=pl.col("line").list.len() + 1)
    )


def halves(text: pl.Series) -> pl.Series:
    """0 or 1 for each text (UInt8), by a hash of its letters and digits.

    Case, spaces, punctuation and the values of digits make no difference: copies and trivial variants stay together.
    """
    bare = text.str.to_lowercase().str.replace_all(r"\d", "0").str.replace_all(_NOT_LETTERS, "")
    bare = pl.select(pl.when(bare.str.len_bytes() > 0).then(bare).otherwise(text)).to_series()
    # A loop, because polars promises its own hash only within one version, and the halves must never move.
    sides = [hashlib.blake2b(one.encode(), digest_size=1).digest()[0] & 1 for one in bare]
    return pl.Series("half", sides, pl.UInt8)
