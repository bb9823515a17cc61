"""Signals of conversations: turns, roles, and replies that decline, repeat or stop in mid-sentence."""

import numpy as np
import polars as pl

from stages.heuristics.replies import NO_FEELINGS, REFUSAL, SELF_REFERENCE, code_chars, fenced_chars, plain, stops_short
from stages.heuristics.words import overlap_statistics
from stages.text.messages import by_row, messages

ASSISTANT, USER, SYSTEM = "assistant", "user", "system"
_KNOWN_ROLES = (ASSISTANT, USER, SYSTEM, "tool", "function", "text")
_LONG_REPLY = 5  # words: shorter replies ("You're welcome!") may repeat

CHAT_SIGNALS = pl.Schema(
    {
        **dict.fromkeys(("n_turns", "user_turns", "assistant_turns"), pl.Int64()),
        **dict.fromkeys(("has_system", "alternates"), pl.Boolean()),
        **dict.fromkeys(("first_role", "last_role"), pl.String()),
        **dict.fromkeys(("odd_roles", "empty_turns", "empty_replies"), pl.Int64()),
        **dict.fromkeys(("empty_last", "truncated_last"), pl.Boolean()),
        **dict.fromkeys(("refusals", "first_refusal", "ai_mentions", "first_ai_mention", "no_feelings"), pl.Int64()),
        **dict.fromkeys(("repeated_replies", "echoes"), pl.Int64()),
        **dict.fromkeys(("self_overlap", "user_overlap", "reply_repetition", "code_share"), pl.Float64()),
        "fenced_share": pl.Float64(),
        **dict.fromkeys(("prompt_chars", "prompt_words", "user_chars", "assistant_chars"), pl.Int64()),
        **dict.fromkeys(("max_turn_chars", "bad_chars"), pl.Int64()),
    }
)


def _turns(conversations: pl.Series) -> pl.DataFrame:
    """One row per message: `row`, `role`, `content`, and the measurements of the message alone."""
    content, reply = pl.col("content"), pl.col("role") == ASSISTANT
    is_turn = pl.col("role") != SYSTEM
    return (
        messages(conversations)
        .with_columns(
            content.str.len_chars().cast(pl.Int64).alias("chars"),
            (content.str.strip_chars() == "").alias("empty"),
            content.str.to_lowercase().str.replace_all(r"[^\p{L}\p{N}]+", " ").str.strip_chars().alias("bare"),
            fenced_chars(content).alias("fenced"),
            code_chars(content).alias("code"),
            content.str.count_matches(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x{FFFD}]").alias("bad"),
            plain(content).alias("plain"),
            reply.alias("reply"),
            is_turn.alias("is_turn"),
        )
        .with_columns(
            (reply & pl.col("plain").str.contains(REFUSAL)).alias("refusal"),
            (reply & pl.col("plain").str.contains(SELF_REFERENCE)).alias("ai"),
            (reply & pl.col("plain").str.contains(NO_FEELINGS)).alias("no_feelings"),
            (reply.cum_sum().over("row") - 1).cast(pl.Int64).alias("nth_reply"),
            pl.col("role").shift(1).over("row").alias("role_before"),
            pl.col("bare").shift(1).over("row").alias("bare_before"),
            (pl.col("bare").str.count_matches(" ") >= _LONG_REPLY - 1).alias("long"),
        )
    )


def _aggregates() -> list[pl.Expr]:
    turn, reply = pl.col("is_turn"), pl.col("reply")
    user = pl.col("role") == USER
    role, chars = pl.col("role"), pl.col("chars")
    again = reply & (pl.col("role_before") == ASSISTANT) | user & (pl.col("role_before") == USER)
    copied = reply & pl.col("long") & pl.struct("row", "role", "bare").is_first_distinct().not_()
    echo = reply & pl.col("long") & (pl.col("role_before") == USER) & (pl.col("bare") == pl.col("bare_before"))
    counts = {
        "n_turns": turn,
        "user_turns": user,
        "assistant_turns": reply,
        "odd_roles": role.is_in(_KNOWN_ROLES).not_(),
        "empty_turns": turn & pl.col("empty"),
        "empty_replies": reply & pl.col("empty"),
        "refusals": pl.col("refusal"),
        "ai_mentions": pl.col("ai"),
        "no_feelings": pl.col("no_feelings"),
        "repeated_replies": copied,
        "echoes": echo,
    }
    return [
        *[condition.sum().cast(pl.Int64).alias(name) for name, condition in counts.items()],
        (role == SYSTEM).any().alias("has_system"),
        again.any().not_().alias("alternates"),
        role.filter(turn).first().alias("first_role"),
        role.last().alias("last_role"),
        pl.col("empty").last().alias("empty_last"),
        pl.col("content").last().alias("last"),
        pl.col("nth_reply").filter("refusal").first().alias("first_refusal"),
        pl.col("nth_reply").filter("ai").first().alias("first_ai_mention"),
        chars.filter(user).sum().alias("user_chars"),
        chars.filter(reply).sum().alias("assistant_chars"),
        chars.max().alias("max_turn_chars"),
        (pl.col("code").sum() / chars.sum()).alias("code_share"),
        (pl.col("fenced").sum() / chars.sum()).alias("fenced_share"),
        pl.col("bad").sum().cast(pl.Int64).alias("bad_chars"),
    ]


def _overlaps(turns: pl.DataFrame, height: int) -> pl.DataFrame:
    """`self_overlap`, `user_overlap`, characters repeated `inside` replies; null if no reply has five words."""
    first = np.searchsorted(turns["row"].to_numpy(), np.arange(height + 1)).astype(np.int64)
    code = pl.when(pl.col("role") == USER).then(1).when(pl.col("role") == ASSISTANT).then(2).otherwise(0)
    roles = turns.select(code.cast(pl.UInt8)).to_series().to_numpy()
    found = pl.DataFrame(
        overlap_statistics(turns["content"], first, roles),
        schema=["grams", "repeated", "later", "from_user", "inside"],
        orient="row",
    )
    some = pl.when(pl.col("grams") > 0)
    return found.select(
        pl.when(pl.col("later") > 0).then(pl.col("repeated") / pl.col("later")).alias("self_overlap"),
        some.then(pl.col("from_user") / pl.col("grams")).alias("user_overlap"),
        some.then(pl.col("inside")).alias("inside"),
    )


def chat_signals(conversations: pl.Series, prompts: pl.Series) -> pl.DataFrame:
    """The signals `CHAT_SIGNALS` of each conversation; without messages, counts are 0 and all others are null."""
    turns = _turns(conversations)
    whole = by_row(turns.group_by("row").agg(_aggregates()), len(conversations))
    frame = pl.concat([whole, _overlaps(turns, len(conversations)), prompts.to_frame("prompt")], how="horizontal")
    counts = [name for name, kind in CHAT_SIGNALS.items() if kind == pl.Int64 and not name.startswith("first_")]
    replied = (pl.col("last_role") == ASSISTANT) & pl.col("empty_last").not_()
    return (
        frame.with_columns(
            pl.when(replied).then(stops_short(pl.col("last"))).alias("truncated_last"),
            pl.col("prompt").fill_null("").str.len_chars().alias("prompt_chars"),
            pl.col("prompt").fill_null("").str.count_matches(r"\S+").alias("prompt_words"),
            pl.col("code_share", "fenced_share").fill_nan(None),
            (pl.col("inside") / pl.col("assistant_chars")).alias("reply_repetition"),
        )
        .with_columns(pl.col(counts).fill_null(0))
        .select(pl.col(name).cast(kind) for name, kind in CHAT_SIGNALS.items())
    )
