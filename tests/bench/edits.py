"""Edits of conversations: of the contents of messages, which keep their roles."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from trainer.prepare.template import TURNS, contents


def edited(
    frame: pl.DataFrame, edit: Callable[[str], str], last: Callable[[str], str] = lambda text: text
) -> pl.DataFrame:
    """A corpus with an edit of each content, and another one of the last of each conversation.

    `frame` has the columns of `pipeline.experiments.corpus`; each conversation has a message.
    """
    said = pl.Series("said", map(edit, contents(frame["text"], frame["turns"])), pl.String)
    each = frame.select("turns").with_row_index("row").explode("turns", empty_as_null=True).with_columns(said)
    ends = each["row"].is_last_distinct()
    each = each.with_columns(said=pl.Series(last(text) if end else text for text, end in zip(said, ends, strict=True)))
    turn = pl.struct(role=pl.col("turns").struct.field("role"), length=pl.col("said").str.len_chars())
    made = each.group_by("row", maintain_order=True).agg(
        first=pl.col("said").first(), text=pl.col("said").str.join("\n"), turns=turn
    )
    return frame.with_columns(made["first"], made["text"], made["turns"].cast(TURNS))
