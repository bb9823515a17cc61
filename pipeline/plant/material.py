"""Texts that a conversation does not hold itself: comments, replies in another language, evaluation items.

What cannot be had is a `MissingTextError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import polars as pl

from stages.language import Language
from stages.overlap import evals as evaluation
from stages.stage import MissingModelError
from stages.text.messages import messages
from stages.toxicity.words import comments

Texts = Sequence[tuple[str, ...]]
"""Texts to plant: a comment, a reply, or the question and the answer of an item."""
MIN_FOREIGN = 100
"""Minimum number of replies in another language that a corpus must hold so that they can be planted elsewhere.

Fewer may be errors of the language model alone."""


class MissingTextError(Exception):
    """There is nothing of a kind to plant; the message says why."""


def offensive_comments(_raw: pl.DataFrame, _evals: str) -> Texts:
    """Comments labelled offensive, of the tenth on which the word model of `toxicity` is not trained."""
    try:
        labelled = comments(held_out=True)
    except MissingModelError as error:
        raise MissingTextError(str(error)) from error
    return labelled.filter(is_offensive=1).select("text").rows()


def foreign_replies(raw: pl.DataFrame, _evals: str) -> Texts:
    """Replies of the conversations of the corpus in another language than most of it."""
    language = Language().measure(raw)["language"]
    names = language.drop_nulls().value_counts().sort("count", "language", descending=[True, False])
    main = names["language"].head(1).to_list()
    others = raw["messages"].filter(language.is_not_null() & ~language.is_in(main))
    found = messages(others).filter(role="assistant").filter(pl.col("content").str.contains(r"\S"))
    if found.height < MIN_FOREIGN:
        raise MissingTextError(
            f"{found.height:,} replies of the corpus are in another language than {''.join(main) or 'a known one'}, "
            f"fewer than {MIN_FOREIGN}"
        )
    return found.select("content").rows()


def evaluation_items(_raw: pl.DataFrame, evals: str) -> Texts:
    """Items of evaluation sets: all that is asked, and all that answers it."""
    if not evals:
        raise MissingTextError("no evaluation set is named: --evals names a file or a folder of them")
    items = []
    for _, parts in groupby(evaluation.parts(evals), key=lambda part: (part.file, part.item)):
        texts = [(part.asks, part.text) for part in parts if part.text.strip()]
        if texts:
            items.append(tuple("\n".join(text for asks, text in texts if asks is side) for side in (True, False)))
    if not items:
        raise MissingTextError(f"{evals} holds no evaluation item")
    return items
