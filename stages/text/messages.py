"""Messages of conversations as rows, and the prose in them: what is neither fenced nor a line of code."""

import re
import zlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.stage import DETAILS, require
from stages.text.characters import properties
from stages.text.compiled import Kernels
from stages.text.shingles import Part, utf8_buffers

LOOPS = Kernels("stages.text.prose_kernel", {"prose": "u1* i8* u1* u1* i8* i8**"})

_OPEN = r"(?:<(?:think|thinking|reasoning)>|<\|begin_of_thought\|>)"
_CLOSE = r"(?:</(?:think|thinking|reasoning)>|<\|end_of_thought\|>)"
THOUGHT = rf"(?s)^\s*{_OPEN}(.*?)(?:{_CLOSE}|\z)"
"""Pattern of the reasoning before a reply, in the tags of DeepSeek-R1 and others; its end is missing if it was cut."""
UNOPENED = rf"(?s)^(.*?){_CLOSE}"
"""Pattern of the same where the opening tag was part of the prompt; it holds if the reply has no opening tag."""

INLINE_CALL = r"(?s)<tool_call>(.*?)(?:</tool_call>|\z)"
"""Pattern of a call in the text of a reply, in the tags of Hermes and Qwen."""

_INLINE_NAME = re.compile(r'<tool_call>\s*\{.{0,1000}?"name"\s*:\s*"([^"]*)"', re.DOTALL)
_TAGS = rf"{_OPEN}|{_CLOSE}|<tool_call>"

_CALL = pl.format("{} {}", pl.element().struct.field("name"), pl.element().struct.field("arguments"))

PROSE, REASONING, CALLS = "content", "reasoning", "calls"
"""What there is to read of a message."""


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


def spoken(batch: pl.DataFrame) -> pl.DataFrame:
    """The messages of a batch as `messages` gives them, with what is no prose taken apart.

    `content` of a reply is without reasoning and calls in tags. `reasoning` and `calls` (names and arguments) are texts
    or null, `media` is a number of parts. Columns of the batch: `messages`, and `details` if some messages have any.
    """
    turns = messages(batch["messages"]).with_columns(
        pl.lit(None, pl.String).alias(REASONING), pl.lit(None, pl.String).alias(CALLS), media=pl.lit(0, pl.Int64)
    )
    details = batch.get_column("details", default=None)
    if details is not None and details.null_count() < len(details):
        turns = turns.drop(REASONING, CALLS, "media").hstack(_details(batch["messages"], details))
    tagged = (pl.col("role") == "assistant") & pl.col("content").str.contains(_TAGS)
    return _without_tags(turns, tagged) if turns.select(tagged.any()).item() else turns


def _details(conversations: pl.Series, details: pl.Series) -> pl.DataFrame:
    """`reasoning`, `calls` and `media` of each message."""
    lists = pl.DataFrame({"messages": conversations, "details": details})
    none = pl.col("messages").list.eval(pl.lit(None, DETAILS.inner))  # type: ignore[attr-defined]
    each = (
        lists.select(pl.when(pl.col("details").is_null()).then(none).otherwise("details").alias("details"))
        .filter(pl.col("details").list.len() > 0)
        .explode("details")
        .unnest("details")
    )
    return each.select(REASONING, pl.col(CALLS).list.eval(_CALL).list.join("\n"), pl.col("media").fill_null(0))


def call_texts(batch: pl.DataFrame) -> pl.Series | None:
    """Names and arguments of the tool calls of each conversation, a line per call; None if no message has details."""
    details = batch.get_column("details", default=None)
    if details is None or details.null_count() == len(details):
        return None
    calls = pl.element().struct.field(CALLS).list.eval(_CALL).list.join("\n").drop_nulls()
    texts: pl.Series = details.list.eval(calls).list.join("\n").fill_null("").alias(CALLS)
    return texts


def whole_texts(batch: pl.DataFrame) -> pl.Series:
    """The text of each conversation, and after it its tool calls."""
    calls = call_texts(batch)
    if calls is None:
        return batch["text"]
    both = pl.when(pl.col(CALLS) != "").then(pl.concat_str("text", CALLS, separator="\n")).otherwise("text")
    return batch.select("text").with_columns(calls).select(both.alias("text")).to_series()


def function_keys(batch: pl.DataFrame) -> NDArray[np.uint32]:
    """A key of the names of the functions that each conversation calls, uint32 [n]; 0 if it calls none.

    Columns: `text`, and `details` if some messages have any. Loops over conversations that have calls.
    """
    keys, text = np.zeros(batch.height, np.uint32), batch["text"]
    names: dict[int, set[str]] = defaultdict(set)
    for row in text.str.contains("<tool_call>", literal=True).arg_true():
        names[row].update(_INLINE_NAME.findall(text[row]))
    details = batch.get_column("details", default=None)
    if details is not None and details.null_count() < len(details):
        call = pl.element().struct.field(CALLS).list.explode(empty_as_null=False)
        calls = details.list.eval(call.struct.field("name"))
        for row in (calls.list.drop_nulls().list.len().fill_null(0) > 0).arg_true():
            names[row].update(calls[row].drop_nulls())
    for row, functions in names.items():
        keys[row] = zlib.crc32("\n".join(sorted(functions)).encode()) if functions else 0
    return keys


def _without_tags(turns: pl.DataFrame, tagged: pl.Expr) -> pl.DataFrame:
    content = pl.col("content")
    opened = pl.when(content.str.contains(rf"^\s*{_OPEN}"))
    unopened = content.str.contains(_OPEN).not_()
    thought = opened.then(content.str.extract(THOUGHT)).when(unopened).then(content.str.extract(UNOPENED))
    reply = opened.then(content.str.replace(THOUGHT, "")).when(unopened).then(content.str.replace(UNOPENED, ""))
    inline = content.str.extract_all(INLINE_CALL).list.join("\n")
    bare = reply.otherwise(content).str.replace_all(INLINE_CALL, "")
    return turns.with_columns(
        pl.when(tagged).then(pl.coalesce(REASONING, thought)).otherwise(REASONING).alias(REASONING),
        pl.when(tagged & (inline != "")).then(pl.coalesce(CALLS, inline)).otherwise(CALLS).alias(CALLS),
        pl.when(tagged).then(bare).otherwise("content").alias("content"),
    )


def check_reading(stage: str, read: Sequence[str]) -> None:
    """Raise `StageParameterError` if the parameter `read` names something that no message has."""
    known = (PROSE, REASONING, CALLS)
    require(f"{stage}: read", list(read), bool(read) and set(read) <= set(known), f"some of {', '.join(known)}")


def prose_messages(batch: pl.DataFrame, roles: Sequence[str], read: Sequence[str]) -> pl.DataFrame:
    """Messages as `messages` gives them, `content` being what a stage reads of each, and `is_read` whether it does.

    `roles` are those that are read, by default all but tools; `read` are `content`, `reasoning` and `calls`. What is
    not read is empty.
    """
    turns = spoken(batch)
    is_read = pl.col("role").is_in(list(roles)) if roles else pl.col("role") != "tool"
    parts = [pl.col(name) for name in (REASONING, PROSE, CALLS) if name in read]
    text = parts[0].fill_null("") if len(parts) == 1 else pl.concat_str(parts, separator="\n", ignore_nulls=True)
    content = pl.when(is_read).then(text).otherwise(pl.lit("")).alias("content")
    return turns.select("row", "role", content, is_read.alias("is_read"))


def by_row(height: int, *signals: pl.DataFrame) -> pl.DataFrame:
    """One row per conversation, numbered by `row`, with all its `signals`, or nulls if they have no such row."""
    rows = pl.DataFrame({"row": pl.int_range(height, dtype=pl.UInt32, eager=True)})
    for some in signals:
        rows = rows.join(some, on="row", how="left", maintain_order="left")
    return rows


def prose(contents: pl.Series) -> tuple[Part, NDArray[np.int64]]:
    """Contents (no nulls) without fenced blocks and without lines that look like code.

    Beside them, int64 [n, 3], their characters before, without fenced blocks, and without any code.
    """
    data, offsets = utf8_buffers(contents)
    text, ends = np.empty(offsets[-1] - offsets[0], np.uint8), np.empty(len(offsets), np.int64)
    lengths = np.empty((len(contents), 3), np.int64)
    LOOPS.call("prose", data, offsets, properties(), text, ends, lengths)
    return (text, ends), lengths
