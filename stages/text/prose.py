"""The prose of a message: its text without fenced code, and lines that look like code."""

from __future__ import annotations

import polars as pl

FENCED = r"(?s)```.*?(?:```|\z)"
"""Pattern of a fenced block of code."""

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


def prose(content: pl.Expr) -> pl.Expr:
    """Content without fenced blocks and without lines that look like code."""
    return content.str.replace_all(FENCED, "").str.replace_all(CODE_LINES, "")
