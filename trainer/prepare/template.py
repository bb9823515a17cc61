"""The chat template: conversations as ids, with tokens of the roles, and which of the ids are scored.

    EOT <|user|> How are you? <|end|> <|assistant|> Fine, thanks. <|end|> EOT <|user|> ...

A message is the token of its role, its content and the end-of-message token. Scored are contents and ends of messages.
Tokens of roles and ends of conversations are learned but not scored: they belong to the template, are nearly free to
predict, and would only dilute the perplexity. A message of the role "text" is a plain document: content alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from trainer import TrainerError
from trainer.prepare.vocabulary import MESSAGE_END, ROLES, Vocabulary

UNSCORED, TEXT, REPLY = 0, 1, 2
"""Classes of ids: of the template, of text that is no reply, and of replies, which are messages of the assistant."""
DOCUMENT = len(ROLES)
"""Code of the role "text"; the codes of `ROLES` are their positions."""
ROLE_CODES = {**{role: code for code, role in enumerate(ROLES)}, "text": DOCUMENT}
CLASSES = np.array([REPLY if role == "assistant" else TEXT for role in (*ROLES, "text")], np.uint8)
"""Class of the contents and ends of messages by the code of their role, uint8 [6]."""
TURNS = pl.List(pl.Struct({"role": pl.UInt8(), "length": pl.UInt32()}))
"""Type of the messages of a conversation: the code of the role, and the length of the content in characters."""


class TemplateError(TrainerError):
    """The messages of a conversation do not add up to its text."""


class Chat(NamedTuple):
    """Concatenated conversations: ids and their classes [N], and the positions of the EOTs before them [K]."""

    ids: NDArray[np.int32]
    classes: NDArray[np.uint8]
    starts: NDArray[np.int64]


def lay_out(texts: pl.Series, turns: pl.Series, vocabulary: Vocabulary) -> Chat:
    """Conversations by the chat template; one without a message is a row too.

    Args:
        texts: contents of each conversation, joined by newlines.
        turns: its messages, of the type `TURNS`.
        vocabulary: with the tokens of the template.

    Raises:
        TemplateError: the lengths of the messages do not add up to the text.
        VocabularyError: the vocabulary lacks a token of the template.
    """
    role, length, opens = _messages(texts, turns)
    parts = list(vocabulary.encode(_contents(texts, length, opens)))
    sizes = np.concatenate([np.empty(0, np.int64), *(part.lengths for part in parts)])
    framed = role != DOCUMENT
    whole = opens + sizes + 2 * framed
    ends = np.cumsum(whole)
    begins = ends - whole
    count = int(ends[-1]) if len(ends) else 0
    ids, content = np.empty(count + 1, np.int32), np.ones(count + 1, np.bool_)
    classes = np.append(np.repeat(CLASSES[role], whole), np.uint8(UNSCORED))
    starts, heads, tails = begins[opens], (begins + opens)[framed], ends[framed] - 1
    special = vocabulary.template
    for at, token in ((starts, vocabulary.end), (heads, special[role[framed]]), (tails, special[-1])):
        ids[at], content[at] = token, False
    ids[-1], content[-1] = vocabulary.end, False
    ids[content] = np.concatenate([np.empty(0, np.int32), *(part.ids for part in parts)])
    classes[starts], classes[heads] = UNSCORED, UNSCORED
    return Chat(ids, classes, starts)


def contents(texts: pl.Series, turns: pl.Series) -> Iterator[str]:
    """The contents of all messages in order; a conversation without a message has one that is empty."""
    _, length, opens = _messages(texts, turns)
    return _contents(texts, length, opens)


def messages(ids: NDArray[np.int32], vocabulary: Vocabulary) -> list[tuple[int, NDArray[np.int32]]]:
    """Role and content of each message of a conversation, whose ids are given without the end-of-text tokens."""
    if vocabulary.tokenizer.token_to_id(MESSAGE_END) is None:
        return [(DOCUMENT, ids)]
    special = vocabulary.template
    role, begin, made = DOCUMENT, 0, []
    for at in np.flatnonzero(np.isin(ids, special)).tolist():
        ends = ids[at] == special[-1]
        if ends or at > begin:
            made.append((role, ids[begin:at]))
        role, begin = (DOCUMENT, at + 1) if ends else (int(np.flatnonzero(special == ids[at])[0]), at + 1)
    return [*made, (role, ids[begin:])] if begin < len(ids) else made


def _messages(texts: pl.Series, turns: pl.Series) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Role and length of each message, and whether it is the first of its conversation."""
    each = turns.cast(TURNS).to_frame("turn").with_row_index("row").explode("turn", empty_as_null=True)
    each = each.select("row", pl.col("turn").struct.field("role", "length"))
    role, length = (
        each[name].cast(pl.Int64).fill_null(value).to_numpy() for name, value in (("role", DOCUMENT), ("length", 0))
    )
    opens = np.diff(each["row"].to_numpy().astype(np.int64), prepend=-1) > 0
    total = np.bincount(np.cumsum(opens) - 1, length + ~opens, minlength=len(texts))
    if (wrong := np.flatnonzero(total != texts.str.len_chars().to_numpy())).size:
        k = int(wrong[0])
        raise TemplateError(
            f"conversation {k:,} has {len(texts[k]):,} characters, and its messages with the newlines between them "
            f"{int(total[k]):,}: make the columns text and turns from the same messages"
        )
    return role, length, opens


def _contents(texts: pl.Series, length: NDArray[np.int64], opens: NDArray[np.bool_]) -> Iterator[str]:
    """A loop over messages, because the tokenizer takes Python strings."""
    rows, text, begin = iter(texts), "", 0
    for size, first in zip(length.tolist(), opens.tolist(), strict=True):
        if first:
            text, begin = next(rows), 0
        yield text[begin : begin + size]
        begin += size + 1
