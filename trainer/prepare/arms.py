"""Data of several arms: one split of their union, one vocabulary, one embedding table, one test set per arm.

An arm is a subset of the union's conversations. All arms read the same prepared data and differ only in the rows of the
pool that they draw from, so two arms whose budgets hold the same conversations share a training run.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.files import save_json
from trainer import TrainerError
from trainer.prepare import prepared as preparing
from trainer.prepare import split as splitting
from trainer.prepare.choices import SCRATCH, Choices
from trainer.prepare.ppmi import Embeddings
from trainer.prepare.prepared import ExperimentData, PreparedError
from trainer.prepare.split import Split
from trainer.prepare.streams import Stream, digest, seeded_hashes
from trainer.presets import Preset

Mask = NDArray[np.bool_]
MEMBERS = "arms.json"
"""File of prepared data with the pool's file and the test rows of each arm."""


class ArmsError(TrainerError):
    """Arms cannot be compared with these options."""


@dataclass(frozen=True, eq=False)
class Union:
    """The conversations of all arms, each once: K rows with at least the columns of `streams.encode`.

    `keys` [K] are unique, `groups` [K] are near-duplicate clusters, `members` are masks [K] by arm. The conversations
    of `target` [K] are of no arm, and no group of theirs has one of an arm; they are only tested on.
    """

    frame: pl.DataFrame
    keys: NDArray[np.uint64]
    groups: NDArray[np.int64]
    members: Mapping[str, Mask]
    target: Mask | None = None

    def holds_all(self, arm: str) -> bool:
        """Whether all conversations of all arms are in this one."""
        others = ~self.members[arm] if self.target is None else ~self.members[arm] & ~self.target
        return not others.any()


@dataclass(frozen=True)
class Leaks:
    """The content of leaks.json: how many `tested` conversations have a near-duplicate among the `trained` ones.

    Those of the validation set count as trained; `jaccard` is the similarity at or above which two texts are
    near-duplicates.
    """

    leaks: int
    tested: int
    trained: int
    jaccard: float


@dataclass(frozen=True, eq=False)
class Arms:
    """The prepared data of all arms; made by `prepare`.

    `common` is the data of the union, whose rows `split` divides; `pools` and `tests` are masks of its conversations by
    arm, and `target` is the mask of the test conversations that are of no arm. `evaluated` are 16 hex digits of
    validation set, test set, vocabulary and embeddings, which all runs share.
    """

    common: ExperimentData
    split: Split
    pools: Mapping[str, Mask]
    tests: Mapping[str, Mask]
    preset: Preset
    evaluated: str
    leaks: Leaks | None = None
    target: Mask | None = None

    def tokens(self, arm: str) -> int:
        """Tokens of an arm's pool, which is its largest possible budget."""
        sizes = self.common.pool.lengths() + int(self.common.pool.separated)
        return int(sizes[self.pools[arm]].sum()) + int(self.common.pool.separated)

    def largest(self) -> int:
        """The largest budget in tokens that is possible for all arms."""
        return min(self.tokens(arm) for arm in self.pools)

    def stream(self, arm: str, tokens: int, seed: int) -> Stream:
        """The training stream of an arm at a budget; a StreamError if its pool is smaller."""
        return replace(self.common, rows=np.flatnonzero(self.pools[arm])).budget(self.preset, tokens, seed)

    def file(self, arm: str) -> str:
        """Name of the file in the data folder with the arm's rows."""
        return _name(np.flatnonzero(self.pools[arm]))

    def digest(self, stream: Stream) -> str:
        """16 hex digits of everything that a training run with this stream sees."""
        return digest(self.evaluated.encode(), [stream])


def prepare(
    union: Union,
    preset: Preset,
    choices: Choices,
    folder: Path,
    given: Embeddings | None = None,
    *,
    networks: bool = True,
) -> Arms:
    """Split the union and make the data of all arms in a folder, or load them if the folder holds the same data.

    Tokenizer and embeddings are made from the union of the arms' training pools; with `ppmi-budget` each training run
    makes embeddings of its own. `given` is what `choices.outside` returns. Without `networks` there are no embeddings,
    and no network can be trained. An ArmsError if an arm has no training conversations; another TrainerError if a
    corpus or an option cannot be used.
    """
    check(preset)
    choices = choices if networks else replace(choices, embeddings=SCRATCH)
    sides = split(union, union.frame[preset.text.column], choices)
    common = preparing.prepare(union.frame, union.keys, union.groups, preset, choices, folder, given, sides)
    preparing.check_loss(common, preset)
    size = common.record.vocabulary
    arms = Arms(
        common,
        sides,
        {name: mask[sides.pool] for name, mask in union.members.items()},
        {name: mask[sides.test] for name, mask in union.members.items()},
        preset.sized(size),
        digest(str(size).encode(), (common.validation, common.test), common.table),
        target=None if union.target is None else union.target[sides.test],
    )
    for name, mask in arms.pools.items():
        rows = np.flatnonzero(mask)
        if not len(rows):
            raise ArmsError(f"{name} has no training conversation left after the split: take a larger corpus")
        np.save(folder / f"{_name(rows)}.npy", rows)
    save_json(
        folder / MEMBERS, {name: [arms.file(name), np.flatnonzero(arms.tests[name]).tolist()] for name in arms.pools}
    )
    return arms


def load(folder: Path, preset: Preset) -> Arms | None:
    """Load the arms of a folder of prepared data, without their split; None if it holds no arms.

    Raises:
        PreparedError: a file is missing or damaged.
    """
    common = preparing.load(folder)
    if not (folder / MEMBERS).exists():
        return None
    pools, tests = {}, {}
    try:
        for name, (file, test) in json.loads((folder / MEMBERS).read_text(encoding="utf-8")).items():
            pools[name], tests[name] = np.zeros(len(common.pool), np.bool_), np.zeros(len(common.test), np.bool_)
            pools[name][np.load(folder / f"{file}.npy", allow_pickle=False)] = True
            tests[name][test] = True
    except (OSError, EOFError, ValueError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise PreparedError(f"the data in {folder} are damaged ({error}): remove that folder and start again") from None
    nothing = np.empty(0, np.int64)
    size = common.record.vocabulary
    evaluated = digest(str(size).encode(), (common.validation, common.test), common.table)
    return Arms(common, Split(nothing, nothing, nothing, ()), pools, tests, preset.sized(size), evaluated)


def check(preset: Preset) -> None:
    """Refuse a preset that rules out a comparison, with an ArmsError."""
    if preset.validation is not None or not preset.shuffled:
        raise ArmsError(
            f"preset {preset.name} reports the set that selects its weights, and a comparison needs a separate test "
            "set: take the preset house"
        )


def split(union: Union, texts: pl.Series, choices: Choices) -> Split:
    """Pool, validation and test set of the union, by near-duplicate clusters.

    If one arm holds all conversations, its split is the union's. Otherwise each arm draws clusters from its own
    conversations, and a cluster that any arm has drawn is on that side for all; the test set has precedence. The test
    set of the target is drawn beside these, and changes nothing of them. A SplitError if a corpus is too small.
    """
    estimated = preparing.estimated_tokens(texts)
    masks = [mask for arm, mask in union.members.items() if union.holds_all(arm)][:1] or list(union.members.values())
    drawn = [
        splitting.split(
            np.where(mask, estimated, 0),
            union.groups,
            union.keys,
            test_tokens=choices.test_tokens,
            validation_tokens=max(choices.validation_tokens // len(masks), 1),
            seed=choices.split_seed,
        )
        for mask in masks
    ]
    test = np.isin(union.groups, np.concatenate([union.groups[one.test] for one in drawn]))
    choosing = np.isin(union.groups, np.concatenate([union.groups[one.validation] for one in drawn])) & ~test
    there, notes = estimated > 0, [note for one in drawn for note in one.notes]
    if union.target is not None:
        most, seed = choices.test_tokens, choices.split_seed
        sizes = np.where(union.target, estimated, 0)
        rows, note = splitting.draw("target", sizes, union.groups, union.keys, most=most, seed=seed)
        there &= ~union.target
        there[rows], test[rows] = True, True
        notes += [note] if note else []
    pool, selecting, tested = (np.flatnonzero(mask & there) for mask in (~test & ~choosing, choosing, test))
    return Split(pool, selecting, tested, tuple(dict.fromkeys(notes)))


def distinct(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Unique keys: the first copy of a key keeps it, the n-th copy gets a new one.

    With equal keys, copies would be adjacent in every order, and a small budget would hold all of them or none.
    """
    number = pl.DataFrame({"key": keys}).select(pl.int_range(pl.len()).over("key")).to_series().to_numpy()
    copies = number > 0
    unique = keys.copy()
    unique[copies] = seeded_hashes(seeded_hashes(keys[copies], 1) + number[copies].astype(np.uint64), 2)
    return unique


def _name(rows: NDArray[np.int64]) -> str:
    return f"rows-{hashlib.blake2b(rows.tobytes(), digest_size=8).hexdigest()}"
