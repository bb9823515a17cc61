"""Training pool, validation and test set: by groups of near-duplicates, or by position."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer import TrainerError
from trainer.prepare.streams import Keys, Rows, seeded_hashes

TOKEN_STD = 3.0
"""Typical standard deviation of a token's loss within a conversation, in nats."""
CONVERSATION_STD = 0.35
"""Typical standard deviation of the mean losses of conversations, in nats.

Bootstraps over two draws of the embedded default's test set give 0.27 and 0.48.
"""
FAIR = 100_000
"""Minimum tokens of a test set without a note on its standard error."""
MIN_CONVERSATIONS = 20
"""Minimum effective conversations of a test set from which a conclusion may be drawn."""
MIN_TEST_GROUPS = 25
"""A group has at most 1 / `MIN_TEST_GROUPS` of the test set, so that no long conversation dominates it.

If most groups are longer than that, the limit is twice the median group, or the smallest size at which groups up to it
hold `TYPICAL_SHARE` of the tokens, but at most 1 / `MIN_LONG_GROUPS` of the set.
"""
MIN_LONG_GROUPS = 10
TYPICAL_SHARE = 2 / 3
MIN_VALIDATION_GROUPS = 4
"""A group has at most 1 / `MIN_VALIDATION_GROUPS` of the validation set, or twice the median group."""
COPIES_MATTER = 0.9
"""A note mentions copies if they reduce the effective conversations to this share or less."""
RESERVED = 5
"""1 / `RESERVED` of the eligible groups are left to the validation set and the pool."""
MIN_VALIDATION_RATIO = 0.2
"""Minimum ratio of the validation set's share of the corpus to the test set's."""
SALT = 0x5EED
"""Makes the order of the split independent of the order of training under the same seed."""

Groups = NDArray[np.bool_]
"""Mask of the groups of a set, bool [G]."""


class SplitError(TrainerError):
    """A corpus cannot be split with these parameters."""


@dataclass(frozen=True, eq=False)
class Split:
    """The rows of a corpus on each side, ascending; `test` is empty if the validation set is the reported one."""

    pool: Rows
    validation: Rows
    test: Rows
    notes: tuple[str, ...] = ()

    @property
    def reported(self) -> Rows:
        """The rows of the reported set."""
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

    Every group is equally likely, whatever its size, and its place in the order does not depend on other conversations.
    The test set is filled first, until it has `test_tokens` or `share` of the corpus, but with at most 4 of 5 eligible
    groups (`RESERVED`). The validation set follows; its share is smaller by the ratio of the two sizes, down to a
    fifth. Groups that would dominate a set are not eligible (`MIN_TEST_GROUPS`, `MIN_VALIDATION_GROUPS`); they stay in
    the pool, and a note tells how many there are. Conversations without tokens are on no side. `tokens`, `groups` and
    `keys`, hashes of the texts, are [K]. A SplitError if the corpus is too small.
    """
    if test_tokens < 1 or validation_tokens < 1 or not 0 < share <= 0.5:  # noqa: PLR2004
        raise SplitError(
            f"the split has {test_tokens:,} test tokens, {validation_tokens:,} validation tokens and a share of "
            f"{share:g}: expected at least 1 token each and a share above 0, up to 0.5"
        )
    each = _Groups.of(tokens, groups, keys, seed)
    less = share * min(1.0, max(MIN_VALIDATION_RATIO, validation_tokens / test_tokens))
    test, of_test = each.draw("test", test_tokens, share)
    validation, of_validation = each.draw("validation", validation_tokens, less, test)
    side = np.where(test, 2, np.where(validation, 1, 0))[each.of_row]
    side[np.asarray(tokens) == 0] = -1
    rows = [np.flatnonzero(side == one) for one in range(3)]
    sides = [np.unique(np.asarray(groups)[one]) for one in rows]
    assert len(np.unique(np.concatenate(sides))) == sum(map(len, sides)), "a group is on two sides"  # noqa: S101
    return Split(rows[0], rows[1], rows[2], tuple(filter(None, (of_test, of_validation))))


def draw(name: str, tokens: Rows, groups: Rows, keys: Keys, *, most: int, seed: int = 0) -> tuple[Rows, str]:
    """The rows of a test set that is drawn from conversations that nothing is trained on, ascending, and a note.

    Whole groups are drawn as in `split`, but all of them may be, up to `most` tokens; rows without `tokens` are none. A
    SplitError if the smallest group is larger than that.
    """
    each = _Groups.of(tokens, groups, keys, seed)
    chosen, note = each.draw(name, most, 1.0, reserved=0)
    return np.flatnonzero(chosen[each.of_row] & (np.asarray(tokens) > 0)), note


def split_by_position(conversations: int, *, validation: range) -> Split:
    """A split by position without a test set, as in the experiments of November 2025.

    The pool is everything before the positions of the validation set. A SplitError if the corpus is too small.
    """
    if conversations < validation.stop:
        raise SplitError(
            f"the corpus has {conversations:,} conversations and the validation set is samples {validation.start:,} to "
            f"{validation.stop - 1:,}, counted from 0: expected at least {validation.stop:,}; take a larger corpus, or "
            "a split by clusters"
        )
    return Split(np.arange(validation.start), np.arange(validation.start, validation.stop), np.empty(0, np.int64))


def effective(sizes: Rows, clusters: Rows | None = None) -> float:
    """Effective number of conversations: (sum t)^2 / sum t^2 (Kish 1965), for `sizes` [K] in tokens.

    A cluster of near-duplicates (`clusters` [K], from 0) counts as one conversation, because its members are equally
    hard to predict.
    """
    each = np.bincount(np.arange(len(sizes)) if clusters is None else clusters, np.asarray(sizes, np.float64))
    return float(each.sum() ** 2 / max((each**2).sum(), 1.0))


def renumber(groups: Rows) -> Rows:
    """Groups renumbered from 0 in order of first occurrence, int64 [K]."""
    _, first, of_row = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[of_row]


def small(
    name: str, sizes: Rows, fair: int = FAIR, least: int = MIN_CONVERSATIONS, clusters: Rows | None = None
) -> str:
    """A sentence on the standard error of a set below `fair` tokens or `least` effective conversations; else empty.

    The error assumes losses with `TOKEN_STD` within conversations and `CONVERSATION_STD` between them.
    """
    tokens, count = int(np.sum(sizes)), effective(sizes, clusters)
    few = [f"fewer than {fair:,} tokens"] if tokens < fair else []
    if count < least:
        unequal = effective(sizes)  # as if there were no copies
        why = ["their lengths differ"] if unequal < least or count > COPIES_MATTER * unequal else []
        why += ["many are copies"] if count <= COPIES_MATTER * unequal else []
        few.append(f"as informative as {int(count)} equal ones because {' and '.join(why)}")
    if not few:
        return ""
    error = math.sqrt(TOKEN_STD**2 / max(tokens, 1) + CONVERSATION_STD**2 / max(count, 1.0))
    return (
        f"the {name} set has {tokens:,} tokens of {len(sizes):,} conversations ({', '.join(few)}): the standard error "
        f"of its ln PPL is about {error:.3f} nats, {math.expm1(error):.1%} of PPL"
    )


@dataclass(frozen=True)
class _Groups:
    """Group of each row, int64 [K]; tokens and conversations of each group, int64 [G]; groups in drawing order."""

    of_row: Rows
    tokens: Rows
    rows: Rows
    order: Rows

    @classmethod
    def of(cls, tokens: Rows, groups: Rows, keys: Keys, seed: int) -> _Groups:
        _, of_row = np.unique(groups, return_inverse=True)
        count = int(of_row.max(initial=-1)) + 1
        least = np.full(count, np.iinfo(np.uint64).max, np.uint64)
        np.minimum.at(least, of_row, seeded_hashes(np.asarray(keys, np.uint64), SALT))  # a new member rarely changes it
        sizes = np.bincount(of_row, tokens, minlength=count).astype(np.int64)
        full = np.bincount(of_row[np.asarray(tokens) > 0], minlength=count)
        # Hashed again, because the minimum of many keys is small.
        order = np.argsort(seeded_hashes(least, seed ^ SALT), kind="stable")
        return cls(of_row, sizes, full, order[sizes[order] > 0])

    def draw(
        self, name: str, tokens: int, share: float, used: Groups | None = None, *, reserved: int = RESERVED
    ) -> tuple[Groups, str]:
        """Groups in order until they have `tokens` or the share, and a note; `used` are those of a test set.

        1 / `reserved` of the eligible groups are left to other sets; 0: none.
        """
        total, first = int(self.tokens.sum()), used is None
        used = np.zeros(len(self.tokens), np.bool_) if used is None else used
        allowed = int(share * total)
        aim = min(tokens, allowed)
        order = self.order[~used[self.order]]
        twice_median = 2 * float(np.median(self.tokens[order])) if len(order) else 0.0
        limit = max(self._typical_limit(aim, order) if first else aim / MIN_VALIDATION_GROUPS, twice_median)
        left, order = len(order), order[self.tokens[order] <= limit]
        sums = np.cumsum(self.tokens[order])
        count = int(np.searchsorted(sums, tokens)) + 1
        if count > len(sums) or sums[count - 1] > allowed:
            count = int(np.searchsorted(sums, allowed, side="right"))
        if first and reserved:
            count = min(count, len(order) - len(order) // reserved)
        if count == 0:
            raise SplitError(
                f"the corpus is too small for a {name} set: it may have {allowed:,} of the {total:,} tokens, and each "
                f"of the {left:,} remaining conversations or groups of near-duplicates is larger: take a larger corpus "
                "or a smaller test set (--test-tokens)"
            )
        chosen = np.zeros(len(self.tokens), np.bool_)
        chosen[order[:count]] = True
        return chosen, self._note(name, np.flatnonzero((self.tokens > limit) & ~used), limit)

    def _typical_limit(self, aim: int, order: Rows) -> float:
        """The maximum tokens of a group of the test set, unless twice the median group is larger."""
        sizes = np.sort(self.tokens[order])
        sums = np.cumsum(sizes)
        typical = float(sizes[np.searchsorted(sums, TYPICAL_SHARE * sums[-1])]) if len(sizes) else 0.0
        return max(aim / MIN_TEST_GROUPS, min(typical, aim / MIN_LONG_GROUPS))

    def _note(self, name: str, giants: Rows, limit: float) -> str:
        if not len(giants):
            return ""
        share = self.tokens[giants].sum() / max(self.tokens.sum(), 1)
        return (
            f"not eligible for the {name} set, because a few would dominate it: conversations, or groups of "
            f"near-duplicates, of more than about {int(limit):,} tokens ({len(giants):,} groups of "
            f"{int(self.rows[giants].sum()):,} conversations, {share:.0%} of the corpus's tokens)"
        )
