"""The messages of a column of conversations as rows."""

from __future__ import annotations

import polars as pl


def messages(conversations: pl.Series) -> pl.DataFrame:
    """One row per message: `row` (of its conversation), `role` (lower case), `content`; a null is an empty string."""
    return (
        pl.DataFrame({"messages": conversations})
        .with_row_index("row")
        .filter(pl.col("messages").list.len() > 0)
        .explode("messages")
        .unnest("messages")
        .with_columns(pl.col("role").fill_null("").str.to_lowercase(), pl.col("content").fill_null(""))
    )
