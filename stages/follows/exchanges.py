"""Prompts and the replies to them, and what scores a reply."""

from collections.abc import Callable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.text.messages import spoken

Score = Callable[[pl.DataFrame, NDArray[np.uint8]], NDArray[np.float64]]
"""From pairs (`prompt`, `reply`) and the half of each: the number of tokens scored, nats with the prompt, and without,
[n, 3]."""


def exchanges(batch: pl.DataFrame) -> pl.DataFrame:
    """Each prompt that a reply follows at once: `row`, `prompt`, `reply`; those without a word are omitted."""
    turns = spoken(batch).select("row", "role", "content").filter(pl.col("role") != "system")
    after = {name: pl.col(name).shift(-1).over("row") for name in ("role", "content")}
    both = turns.with_columns(then=after["role"], reply=after["content"])
    both = both.filter(role="user", then="assistant").rename({"content": "prompt"}).select("row", "prompt", "reply")
    return both.filter(pl.all_horizontal(pl.col("prompt", "reply").str.contains(r"\w")))
