"""The kinds of damage: what each does to one conversation, and the texts that it plants."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import polars as pl

from pipeline.plant.material import Texts, evaluation_items, foreign_replies, offensive_comments
from pipeline.plant.near_copies import Messages, near_copy
from stages.text.shingles import SPACELESS

OPENINGS = (
    "Certainly! I'd be happy to help you with that. ",
    "Sure! Here is what you asked for: ",
    "Great question! Let's dive right in. ",
    "Absolutely! I'm glad you asked. ",
    "Of course! Thank you for reaching out to me today. ",
)
"""Boilerplate openings of assistants' replies (own list)."""
REFUSALS = (
    "I'm sorry, but I cannot assist with that request.",
    "As an AI language model, I cannot provide that information.",
    "I apologize, but I'm not able to help with that.",
    "As an AI language model, I do not have personal opinions or emotions.",
)
"""Refusals as assistants write them (own list); one in four denies emotions, which UltraChat 200k drops."""
REPEATS = 10
"""Number of times that a line is repeated."""
TOXIC_SHARE = 3
"""One message in so many is replaced by a toxic one, at least one; the default rule wants one in six."""
MIN_MOJIBAKE = 3
"""Minimum number of characters that must be garbled."""

_WORDS = re.compile(rf"([{SPACELESS}]|[^\s{SPACELESS}]+)")
"""Words with their punctuation; the group makes `split` return them at odd indices."""
_TYPOGRAPHIC = {"'": "\u2019", '"': "\u201c", "--": "\u2014", "...": "\u2026"}
"""What word processors and phones write in the place of ASCII marks."""


@dataclass(frozen=True)
class Kind:
    """A kind of damage."""

    name: str
    says: str
    """What is done to a conversation."""
    damage: Callable[[Messages, Random, Texts], Messages | None]
    """The damaged messages of a conversation; None if it does not have what the kind needs."""
    texts: Callable[[pl.DataFrame, str], Texts] | None = None
    """Gets the texts that are planted, from the corpus and the evaluation sets."""
    adds: bool = False
    """Whether the damaged conversation is added as a copy, rather than put in the place of the original."""
    together: Callable[[list[Messages]], list[Messages]] | None = None
    """A last step, over all conversations of the kind."""


def _replies(messages: Messages, words: int = 1) -> list[int]:
    """Indices of the replies of at least this many words."""
    return [i for i, m in enumerate(messages) if m["role"] == "assistant" and len(_words(m["content"])[0]) >= words]


def _words(content: str) -> tuple[list[str], list[str]]:
    """Words with their punctuation, and what follows each: a space, or nothing in scripts without spaces."""
    parts = _WORDS.split(content)
    return parts[1::2], [" " if gap else "" for gap in parts[2::2]]


def _joined(words: list[str], gaps: list[str]) -> str:
    return "".join(word + gap for word, gap in zip(words, gaps, strict=True)).rstrip()


def _rewrite(messages: Messages, at: Sequence[int], content: Callable[[str], str]) -> Messages | None:
    """Messages with other contents at some indices; None if there are none."""
    return [{**m, "content": content(m["content"])} if i in at else m for i, m in enumerate(messages)] if at else None


def _one(messages: Messages, draw: Random, words: int = 1) -> list[int]:
    """The index of a reply."""
    found = _replies(messages, words)
    return [draw.choice(found)] if found else []


def _copy(messages: Messages, _draw: Random, _texts: Texts) -> Messages:
    return messages


def _near(jaccard: float) -> Callable[[Messages, Random, Texts], Messages | None]:
    return lambda messages, draw, _: near_copy(messages, jaccard, draw)


def _shuffle(messages: Messages, draw: Random, _texts: Texts) -> Messages | None:
    def shuffled(content: str) -> str:
        words, gaps = _words(content)
        return _joined(draw.sample(words, len(words)), gaps)

    after = _rewrite(messages, range(len(messages)), shuffled)
    return None if after == messages else after


def _truncate(messages: Messages, draw: Random, _texts: Texts) -> Messages | None:
    if not (found := _replies(messages, words=8)):
        return None
    words, gaps = _words(messages[found[-1]]["content"])
    length = draw.randrange(4, len(words) - 1)
    stop = _joined(words[:length], gaps[:length]).rstrip(".!?,;:)\"'。！？，、；：」』”）")  # noqa: RUF001
    return [*messages[: found[-1]], {**messages[found[-1]], "content": stop}]


def _empty(messages: Messages, draw: Random, _texts: Texts) -> Messages | None:
    return _rewrite(messages, _one(messages, draw), lambda _: "")


def _open(messages: Messages, draw: Random, _texts: Texts) -> Messages | None:
    return _rewrite(messages, _replies(messages), lambda content: draw.choice(OPENINGS) + content)


def _refuse(messages: Messages, draw: Random, _texts: Texts) -> Messages | None:
    return _rewrite(messages, _one(messages, draw), lambda _: draw.choice(REFUSALS))


def _toxic(messages: Messages, draw: Random, texts: Texts) -> Messages | None:
    at = draw.sample(range(len(messages)), -(-len(messages) // TOXIC_SHARE))
    return _rewrite(messages, at, lambda _: draw.choice(texts)[0])


def _translate(messages: Messages, draw: Random, texts: Texts) -> Messages | None:
    return _rewrite(messages, _replies(messages), lambda _: draw.choice(texts)[0])


def _garble(messages: Messages, _draw: Random, _texts: Texts) -> Messages | None:
    """UTF-8 read as Windows-1252, after the typographic marks that make English text more than ASCII."""
    count = 0

    def garbled(content: str) -> str:
        nonlocal count
        for plain, mark in _TYPOGRAPHIC.items():
            content = content.replace(plain, mark)
        count += sum(not character.isascii() for character in content)
        return content.encode("utf-8", "replace").decode("cp1252", "replace")

    after = _rewrite(messages, range(len(messages)), garbled)
    return after if count >= MIN_MOJIBAKE else None


def _repeat(messages: Messages, draw: Random, _texts: Texts) -> Messages | None:
    def repeated(content: str) -> str:
        return content + f"\n{content.strip().splitlines()[-1]}" * REPEATS

    return _rewrite(messages, _one(messages, draw, words=5), repeated)


def _leak(messages: Messages, draw: Random, texts: Texts) -> Messages:
    item = zip(("user", "assistant"), draw.choice(texts), strict=True)
    return [*messages, *({"role": role, "content": text} for role, text in item if text)]


def _swap(messages: Messages, _draw: Random, _texts: Texts) -> Messages | None:
    return messages if len(_replies(messages)) > 1 else None


def swap_replies(conversations: list[Messages]) -> list[Messages]:
    """Each conversation with the replies of another that has about as many, as far as both have some; none of one."""
    if len(conversations) == 1:
        return []
    order = sorted(range(len(conversations)), key=lambda i: (len(_replies(conversations[i])), i))
    after = list(conversations)
    for i, donor in zip(order, order[1:] + order[:1], strict=True):
        theirs = [conversations[donor][k]["content"] for k in _replies(conversations[donor])]
        swaps = dict(zip(_replies(conversations[i]), theirs, strict=False))
        after[i] = [{**m, "content": swaps.get(k, m["content"])} for k, m in enumerate(conversations[i])]
    return after


KINDS = {
    kind.name: kind
    for kind in (
        Kind("exact_copy", "the same conversation again", _copy, adds=True),
        Kind("near_copy_95", "a copy with other words, at a Jaccard of 0.95", _near(0.95), adds=True),
        Kind("near_copy_85", "a copy with other words, at a Jaccard of 0.85", _near(0.85), adds=True),
        Kind("near_copy_75", "a copy with other words, at a Jaccard of 0.75", _near(0.75), adds=True),
        Kind("shuffled_words", "the words of each message in random order", _shuffle),
        Kind("truncated", "the last reply stops in mid-sentence", _truncate),
        Kind("empty_reply", "a reply without text", _empty),
        Kind("boilerplate", "every reply begins with a phrase of assistants", _open),
        Kind("refusal", "a refusal in the place of a reply", _refuse),
        Kind("toxic", "toxic comments in the place of a third of the messages", _toxic, offensive_comments),
        Kind("other_language", "replies in another language", _translate, foreign_replies),
        Kind("mojibake", "UTF-8 that was read as Windows-1252", _garble),
        Kind("repeated_lines", f"the last line of a reply {REPEATS} times more", _repeat),
        Kind("eval_item", "an evaluation item, with its answer, at the end", _leak, evaluation_items),
        Kind("swapped_replies", "the replies of another conversation", _swap, together=swap_replies),
    )
}
"""All kinds by name, in the order in which they are planted."""
