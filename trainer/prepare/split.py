"""Training pool, validation and test set: whole groups of near-duplicates on one side; or fixed samples, as presets."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer import TrainerError
from trainer.prepare.streams import Keys, Rows, mixed

SPREAD = 3.0
"""Standard deviation of a token's loss in nats, about, inside a conversation."""
BETWEEN = 0.35
"""Standard deviation of conversations' mean losses in nats, about: a topic or a way of writing is easy as a whole.

Bootstraps over two draws of the embedded default's test set say 0.27 and 0.48.
"""
FAIR = 100_000
"""Tokens of a fair test set; of a smaller one the standard error of its ln PPL is said."""
CONVERSATIONS = 20
"""The least in a test set from which anything may be concluded, counted as `effective` does."""
PART = 25
"""A group of more than 1 / PART of the test set is not drawn for it: one long conversation would decide what it says.

But for where most are so long: a group is drawn that is at most twice the median one, or, up to 1 / FEWEST of the set,
at most as large as it takes for groups of that size and less to hold SPOKEN of the tokens.
"""
FEWEST = 10
SPOKEN = 2 / 3
CHOOSING = 4
"""A group of more than 1 / CHOOSING of the validation set, and than twice the median one, is not drawn for it."""
COPIED = 0.9
"""Copies are named as a reason where a set says no more than this part of what it would say without them."""
RESERVED = 5
"""Of the groups that may be drawn for the test set 1 / RESERVED are left to the validation set and the pool."""
LEAST = 0.2
"""The validation set's share of the corpus is at least this part of the test set's, however large that is wanted."""
SALT = 0x5EED
"""Keeps the order of the split apart from the order of training under the same seed."""


class SplitError(TrainerError):
    """A corpus cannot be split as asked; the message says what it holds and what it takes."""


@dataclass(frozen=True, eq=False)
class Split:
    """Conversations by side.

    Attributes:
        pool: int64, ascending; what is trained on.
        validation: int64, ascending; it selects the checkpoint, nothing else, where there is a test set.
        test: int64, ascending; empty where the validation set is the one reported.
        notes: sentences for the record and the user, such as how little a small test set says.
    """

    pool: Rows
    validation: Rows
    test: Rows
    notes: tuple[str, ...] = ()

    @property
    def reported(self) -> Rows:
        """The conversations that the final number is of."""
        return self.test if len(self.test) else self.validation


def split(
    tokens: Rows,
    groups: Rows,
    keys: Keys,
    *,
    test_tokens: int = 100_000,
    validation_tokens: int = 20_000,
    share: float = 0.2,
    seed: int = 0,
) -> Split:
    """Split a corpus by groups, drawn in the order of a hash of their members' keys and the seed.

    A group is drawn as likely as another, however many are in it. The test set is filled first, until it has
    `test_tokens`, or as far as `share` of the corpus allows, and never with more than 4 of 5 groups that may be drawn
    (`RESERVED`); the validation set after it, with a share smaller by the ratio of the two sizes, down to a fifth.
    Other conversations do not move a group in the order. A large group is not drawn for the test set (`PART`), so that
    no few decide what it says: it stays in the pool, and the notes say how much of the corpus such are. The validation
    set may have groups of a quarter of it. Conversations without tokens are on no side.

    Args:
        tokens: int64 [K], of each conversation.
        groups: int64 [K], the same number for conversations that must be on one side.
        keys: uint64 [K], what names each conversation wherever it stands, such as a hash of its text.
        test_tokens: tokens of the test set at least.
        validation_tokens: of the validation set at least.
        share: of the corpus's tokens that the test set may take.
        seed: of the split; it is not the seed of a training.

    Raises:
        SplitError: the corpus is too small, or a parameter cannot have its value.
    """
    if test_tokens < 1 or validation_tokens < 1 or not 0 < share <= 0.5:  # noqa: PLR2004
        raise SplitError(
            f"the split asks for {test_tokens:,} test and {validation_tokens:,} validation tokens and a share of "
            f"{share:g}, expected 1 token or more of each and a share above 0, up to 0.5"
        )
    found = _Groups.of(tokens, groups, keys, seed)
    less = share * min(1.0, max(LEAST, validation_tokens / test_tokens))
    test = found.drawn("test", test_tokens, share)
    validation = found.drawn("validation", validation_tokens, less, test.chosen)
    side = np.where(test.chosen, 2, np.where(validation.chosen, 1, 0))[found.of_row]
    side[np.asarray(tokens) == 0] = -1
    pool, selecting, tested = (np.flatnonzero(side == one) for one in range(3))
    made = Split(pool, selecting, tested, (*test.notes, *validation.notes))
    sides = [np.unique(np.asarray(groups)[rows]) for rows in (made.pool, made.validation, made.test)]
    assert len(np.unique(np.concatenate(sides))) == sum(map(len, sides)), "a group is on two sides"  # noqa: S101
    return made


def fixed(conversations: int, *, validation: range, training: int | None = None) -> Split:
    """A split by position: the validation set is the reported one, as in the experiments of 2025-11 (no test set).

    Args:
        conversations: of the corpus.
        validation: positions, counted from 0: 500 to 509 or 1000 to 1049 in those experiments.
        training: the first that many are the pool; all before the validation set by default.

    Raises:
        SplitError: the corpus has too few conversations, or training would reach into the validation set.
    """
    where = f"samples {validation.start:,} to {validation.stop - 1:,}, counted from 0"
    if conversations < validation.stop:
        raise SplitError(
            f"the corpus has {conversations:,} conversations and the validation set is {where}: expected "
            f"{validation.stop:,} or more; take a larger corpus, or a split by clusters"
        )
    count = validation.start if training is None else training
    if not 0 < count <= validation.start:
        raise SplitError(
            f"the first {count:,} samples were to be trained on and the validation set is {where}: expected 1 to "
            f"{validation.start:,}"
        )
    return Split(np.arange(count), np.arange(validation.start, validation.stop), np.empty(0, np.int64))


def effective(sizes: Rows, clusters: Rows | None = None) -> float:
    """How many conversations of one length say as much as these: (sum t)^2 / sum t^2 (Kish 1965); 0 of none.

    Near-duplicates are as easy or as hard as each other, so that a cluster of them says as much as one conversation.

    Args:
        sizes: int64 [K], tokens of each.
        clusters: int64 [K] from 0, the same number for near-duplicates; none of them are by default.
    """
    each = np.bincount(np.arange(len(sizes)) if clusters is None else clusters, np.asarray(sizes, np.float64))
    return float(each.sum() ** 2 / max((each**2).sum(), 1.0))


def numbered(groups: Rows) -> Rows:
    """Groups numbered from 0 in the order in which they come first: int64 [K]."""
    _, first, of_row = np.unique(groups, return_index=True, return_inverse=True)
    number = np.empty(len(first), np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    return number[of_row]


def small(name: str, sizes: Rows, fair: int = FAIR, least: int = CONVERSATIONS, clusters: Rows | None = None) -> str:
    """What a set of few tokens, or of few conversations, is worth, as a sentence; nothing to say of another one.

    The error is that of tokens that vary by SPREAD in conversations that vary by BETWEEN.

    Args:
        name: of the set.
        sizes: int64 [K], tokens of each of its conversations.
        fair: tokens from which on it is no small one.
        least: conversations, counted as `effective` does, from which on it is no small one.
        clusters: int64 [K] from 0, the same number for near-duplicates.
    """
    count, alike = int(np.sum(sizes)), effective(sizes, clusters)
    few = [f"fewer than {fair:,}"] if count < fair else []
    if alike < least:
        apart = effective(sizes)  # as if none were copies
        why = ["of such lengths"] if apart < least or alike > COPIED * apart else []
        why += ["so many of them copies"] if alike <= COPIED * apart else []
        few.append(f"{', and '.join(why)} that they say as much as {int(alike)} alike")
    if not few:
        return ""
    error = math.sqrt(SPREAD**2 / max(count, 1) + BETWEEN**2 / max(alike, 1.0))
    return (
        f"the {name} set has {count:,} tokens of {len(sizes):,} conversations, {' and '.join(few)}: the standard error "
        f"of its ln PPL is about {error:.3f} nats, {math.expm1(error):.1%} of PPL"
    )


@dataclass(frozen=True)
class _Drawn:
    """Groups chosen for a set, bool [G], and what is to be said of it."""

    chosen: NDArray[np.bool_]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Groups:
    """Groups of conversations: the group of each row, and tokens and conversations of each group, in drawing order."""

    of_row: Rows
    tokens: Rows
    rows: Rows
    order: Rows

    @classmethod
    def of(cls, tokens: Rows, groups: Rows, keys: Keys, seed: int) -> _Groups:
        _, of_row = np.unique(groups, return_inverse=True)
        count = int(of_row.max(initial=-1)) + 1
        least = np.full(count, np.iinfo(np.uint64).max, np.uint64)
        np.minimum.at(least, of_row, mixed(np.asarray(keys, np.uint64), SALT))  # a new member seldom changes it
        sizes = np.zeros(count, np.int64)
        np.add.at(sizes, of_row, tokens)
        full = np.bincount(of_row[np.asarray(tokens) > 0], minlength=count)
        order = np.argsort(mixed(least, seed ^ SALT), kind="stable")  # mixed, for the least of many is small: no crowds
        return cls(of_row, sizes, full, order[sizes[order] > 0])

    def drawn(self, name: str, wanted: int, share: float, taken: NDArray[np.bool_] | None = None) -> _Drawn:
        """The first groups in order with `wanted` tokens, or with as many as the share allows, beside another set."""
        total, used = int(self.tokens.sum()), np.zeros(len(self.tokens), np.bool_) if taken is None else taken
        allowed = int(share * total)
        aim = min(wanted, allowed)
        order = self.order[~used[self.order]]
        most = self._most(aim, order) if taken is None else max(aim / CHOOSING, self._twice(order))
        left, order = len(order), order[self.tokens[order] <= most]
        sums = np.cumsum(self.tokens[order])
        count = int(np.searchsorted(sums, wanted)) + 1
        if count > len(sums) or sums[count - 1] > allowed:
            count = int(np.searchsorted(sums, allowed, side="right"))
        if taken is None:
            count = min(count, len(order) - len(order) // RESERVED)
        if count == 0:
            raise SplitError(
                f"no {name} set can be set apart: it may have {allowed:,} of the {total:,} tokens, and none of the "
                f"{left:,} conversations or groups of near-duplicates that are left is so small: take a larger corpus, "
                "or a smaller test set (--test-tokens)"
            )
        chosen = np.zeros(len(self.tokens), np.bool_)
        chosen[order[:count]] = True
        note = self._giants(name, used, most)
        return _Drawn(chosen, (note,) if note else ())

    def _most(self, aim: int, order: Rows) -> float:
        """The tokens that a group of the test set may have."""
        sizes = np.sort(self.tokens[order])
        held = np.cumsum(sizes)
        spoken = float(sizes[np.searchsorted(held, SPOKEN * held[-1])]) if len(sizes) else 0.0
        return max(aim / PART, self._twice(order), min(spoken, aim / FEWEST))

    def _twice(self, order: Rows) -> float:
        return 2 * float(np.median(self.tokens[order])) if len(order) else 0.0

    def _giants(self, name: str, used: NDArray[np.bool_], most: float) -> str:
        """Which groups were not drawn, if any."""
        giants = np.flatnonzero((self.tokens > most) & ~used)
        share = self.tokens[giants].sum() / max(self.tokens.sum(), 1)
        said = (
            f"not drawn for the {name} set, because a few would decide what it says: conversations, or groups of "
            f"near-duplicates, of more than about {int(most):,} tokens ({len(giants):,} groups of "
            f"{int(self.rows[giants].sum()):,} conversations, {share:.0%} of the corpus's tokens)"
        )
        return said if len(giants) else ""
