"""Data of several arms: one split of their union, one vocabulary, one table, fixed test sets, paired streams.

An arm is a part of the union's conversations. All arms read the same prepared data and differ in the rows of the pool
that they draw from, so that two arms whose budgets hold the same conversations are one training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from trainer import TrainerError
from trainer.prepare import prepared as preparing
from trainer.prepare import split as splitting
from trainer.prepare.choices import SCRATCH, Choices
from trainer.prepare.ppmi import Embeddings
from trainer.prepare.prepared import Prepared
from trainer.prepare.split import Split
from trainer.prepare.streams import Stream, mixed
from trainer.presets import Preset

Mask = NDArray[np.bool_]


class ArmsError(TrainerError):
    """Arms cannot be compared as asked; the message says what they hold."""


@dataclass(frozen=True, eq=False)
class Union:
    """The conversations of all arms, each of them once.

    Attributes:
        frame: the columns "first" and "text", and what else there is; K rows.
        keys: uint64 [K], no two alike: copies of a text are told apart by their number.
        groups: int64 [K], near-duplicate clusters.
        members: bool [K] by arm, which conversations it has.
    """

    frame: pl.DataFrame
    keys: NDArray[np.uint64]
    groups: NDArray[np.int64]
    members: Mapping[str, Mask]

    def whole(self) -> str | None:
        """The arm that holds all others; None where none does."""
        return next((name for name, mask in self.members.items() if mask.all()), None)


@dataclass(frozen=True)
class Leaks:
    """What leaks.json says: how many test conversations have a near-duplicate among those trained on.

    Attributes:
        leaks: test conversations with a near-duplicate in the pool or the validation set.
        tested: test conversations.
        trained: conversations of the pool and the validation set.
        jaccard: word 5-gram similarity of a near-duplicate.
    """

    leaks: int
    tested: int
    trained: int
    jaccard: float


@dataclass(frozen=True, eq=False)
class Arms:
    """The prepared data of all arms; made by `prepare`.

    Attributes:
        common: what all share; its pool is that of the union.
        split: of the union's rows.
        pools: bool [pool] by arm.
        tests: bool [test conversations] by arm: those of its own.
        preset: sized for the vocabulary.
        evaluated: 16 hex digits of what all training runs share: both evaluated sets, vocabulary and embeddings.
        leaks: what a search of the texts found; None before it.
    """

    common: Prepared
    split: Split
    pools: Mapping[str, Mask]
    tests: Mapping[str, Mask]
    preset: Preset
    evaluated: str
    leaks: Leaks | None = None

    def tokens(self, arm: str) -> int:
        """Tokens of an arm's pool, the largest budget it serves."""
        sizes = self.common.pool.lengths() + int(self.common.pool.separated)
        return int(sizes[self.pools[arm]].sum()) + int(self.common.pool.separated)

    def largest(self) -> int:
        """The largest budget that all arms serve, in tokens."""
        return min(self.tokens(arm) for arm in self.pools)

    def stream(self, arm: str, tokens: int, seed: int) -> Stream:
        """The training stream of an arm at a budget, in the order of a seed.

        Raises:
            StreamError: the arm's pool is smaller than the budget.
        """
        return replace(self.common, rows=np.flatnonzero(self.pools[arm])).budget(self.preset, tokens, seed)

    def file(self, arm: str) -> str:
        """Name of the file in the data's folder that holds an arm's rows."""
        return _name(np.flatnonzero(self.pools[arm]))

    def digest(self, stream: Stream) -> str:
        """16 hex digits of all that a training sees."""
        state = hashlib.blake2b(self.evaluated.encode(), digest_size=8)
        for array in (stream.ids, stream.starts):
            state.update(np.ascontiguousarray(array).tobytes())
        return state.hexdigest()


def prepare(union: Union, preset: Preset, wanted: Choices, folder: Path, given: Embeddings | None = None) -> Arms:
    """Split the union and make the data of all arms in a folder, or load what lies there.

    Args:
        union: what is compared.
        preset: which text, tokenizer and embeddings; both are made of the union of the arms' training pools.
        wanted: what differs from it.
        folder: of the data.
        given: what `wanted.outside` found.

    Raises:
        ArmsError: the preset reports the set that chooses its weights, or an arm has nothing to train on.
        SplitError, StreamError, VocabularyError, EmbeddingsError: a corpus or an option does not serve.
    """
    check(preset, wanted)
    made = split(union, union.frame[preset.text.column], wanted)
    common = preparing.prepare(union.frame, union.keys, union.groups, preset, wanted, folder, given, made)
    arms = Arms(
        common,
        made,
        {name: mask[made.pool] for name, mask in union.members.items()},
        {name: mask[made.test] for name, mask in union.members.items()},
        preset.sized(common.record.vocabulary),
        _evaluated(common),
    )
    for name, mask in arms.pools.items():
        rows = np.flatnonzero(mask)
        if not len(rows):
            raise ArmsError(f"{name} has no conversation left to train on, after the split: take a larger corpus")
        np.save(folder / f"{_name(rows)}.npy", rows)
    return arms


def check(preset: Preset, wanted: Choices) -> None:
    """Refuse what no comparison can be made with.

    Raises:
        ArmsError: the preset reports the set that chooses its weights, or each training would have its own embeddings.
    """
    if preset.validation is not None or not preset.shuffled:
        raise ArmsError(
            f"preset {preset.name} reports the set that chooses its weights, and a comparison needs a test set of its "
            "own: take the preset house"
        )
    if (wanted.embeddings or preset.embeddings) == SCRATCH:
        raise ArmsError(
            f"a comparison takes one table of embeddings for both corpora, and {SCRATCH} makes one for each "
            "training: take ppmi, which is made of both training pools"
        )


def split(union: Union, texts: pl.Series, wanted: Choices) -> Split:
    """Pool, validation and test set of the union, by its near-duplicate clusters.

    Where one arm holds all others, its own split is that of the union, and the test set is drawn from it. Else each arm
    has its test set drawn from its own conversations; a group that is drawn by either is on that side for both.

    Raises:
        SplitError: a corpus is too small.
    """
    guessed = (
        texts.str.len_bytes().to_numpy().astype(np.int64) + preparing.BYTES_A_TOKEN - 1
    ) // preparing.BYTES_A_TOKEN
    whole = union.whole()
    masks = [union.members[whole]] if whole else list(union.members.values())
    drawn = [
        splitting.split(
            np.where(mask, guessed, 0),
            union.groups,
            union.keys,
            test_tokens=wanted.test_tokens,
            validation_tokens=max(wanted.validation_tokens // len(masks), 1),
            seed=wanted.split_seed,
        )
        for mask in masks
    ]
    test = np.isin(union.groups, np.concatenate([union.groups[one.test] for one in drawn]))
    choosing = np.isin(union.groups, np.concatenate([union.groups[one.validation] for one in drawn])) & ~test
    there = guessed > 0
    pool, selecting, tested = (np.flatnonzero(mask & there) for mask in (~test & ~choosing, choosing, test))
    return Split(pool, selecting, tested, tuple(dict.fromkeys(note for one in drawn for note in one.notes)))


def distinct(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Keys of which no two are alike: the n-th copy of one gets a key of its own, the first keeps its own.

    Copies would else stand next to each other in every order, and a small budget would hold all of them or none.
    """
    number = pl.DataFrame({"key": keys}).select(pl.int_range(pl.len()).over("key")).to_series().to_numpy()
    copies = number > 0
    made = keys.copy()
    made[copies] = mixed(mixed(keys[copies], 1) + number[copies].astype(np.uint64), 2)
    return made


def _name(rows: NDArray[np.int64]) -> str:
    return f"rows-{hashlib.blake2b(rows.tobytes(), digest_size=8).hexdigest()}"


def _evaluated(common: Prepared) -> str:
    state = hashlib.blake2b(str(common.record.vocabulary).encode(), digest_size=8)
    for stream in (common.validation, common.test):
        for array in (stream.ids, stream.starts):
            state.update(np.ascontiguousarray(array).tobytes())
    state.update(b"" if common.table is None else np.ascontiguousarray(common.table).tobytes())
    return state.hexdigest()
