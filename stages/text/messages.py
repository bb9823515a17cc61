"""Messages of conversations as rows, and the prose in them: what is neither fenced code nor a line of code."""

import polars as pl

FENCED = r"(?s)```.*?(?:```|\z)"
"""Pattern of a fenced block of code, fences included; an open fence extends to the end."""

_KEYWORD = (
    r"(?:def|class|import|from|return|public|private|static|void|const|let|var|function|func|fn|struct|package|using"
    r"|namespace|SELECT|INSERT|UPDATE|DELETE|CREATE|FROM|WHERE)"
)

CODE_LINES = "(?m)^[ \t]*(?:{})[ \t]*$".format(
    "|".join(
        (
            rf"{_KEYWORD} .*[;:{{(,)=\w]",
            r"#include.*",
            r"(?:if|for|while|elif|else|try|except|switch)\b.*[{:]",
            r".*[;{}]",
            r".*\)\s*(?:=>|->).*",
            r"[\w.\[\]]+ ?(?:=|\+=|-=|:=) ?[^ ].*",
            r"[\w.]+\(.*\)",
            r"</?\w[^>]*>.*",
            r"//.*",
            r"@\w+.*",
        )
    )
)
"""Pattern of a line that looks like code."""


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


def by_row(height: int, *signals: pl.DataFrame) -> pl.DataFrame:
    """One row per conversation, numbered by `row`, with all its `signals`, or nulls if they have no such row."""
    rows = pl.DataFrame({"row": pl.int_range(height, dtype=pl.UInt32, eager=True)})
    for some in signals:
        rows = rows.join(some, on="row", how="left", maintain_order="left")
    return rows


def prose(content: pl.Expr) -> pl.Expr:
    """Content without fenced blocks and without lines that look like code."""
    return content.str.replace_all(FENCED, "").str.replace_all(CODE_LINES, "")
