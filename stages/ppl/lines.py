"""Text as the lines of tokens that a language model is trained on and scores."""

import hashlib

import polars as pl

_SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
"""Scripts without spaces between words. Each letter is a token; otherwise a sentence would be one unknown word."""

TOKEN = rf"[{_SPACELESS}]|[\w--[{_SPACELESS}]]+|[^\w\s\p{{Cc}}]"
"""A word, or a punctuation mark. Control characters are neither: kenlm stops at NUL."""

_NOT_LETTERS = r"[^\p{L}\p{M}\p{N}]+"


def tokenise(text: pl.Series) -> pl.DataFrame:
    """Sentences of texts: the lines that have a token, as in CCNet (cc_net/perplexity.py, DocLM).

    Args:
        text: String.

    Returns:
        In order: `at`, the row of the text (UInt32); `line`, its tokens in lower case, with 0 for each digit, joined by
        spaces; `n`, the number of tokens, the end of the sentence included (UInt32).
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

    It ignores case, spaces, punctuation and the values of digits, so that copies and trivial variants stay together.
    """
    bare = text.str.to_lowercase().str.replace_all(r"\d", "0").str.replace_all(_NOT_LETTERS, "")
    bare = pl.select(pl.when(bare.str.len_bytes() > 0).then(bare).otherwise(text)).to_series()
    # A loop, because the hash of polars may change between versions, and the halves must never change.
    sides = [hashlib.blake2b(one.encode(), digest_size=1).digest()[0] & 1 for one in bare]
    return pl.Series("half", sides, pl.UInt8)
