"""The data of an experiment, made once: vocabulary, split, streams of ids, embeddings. Trainings read nothing else."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.files import save
from trainer import TrainerError
from trainer.prepare import ppmi as tables
from trainer.prepare import split as splitting
from trainer.prepare import streams, vocabulary
from trainer.prepare.choices import Choices, embeddings, named, size_of_bpe
from trainer.prepare.ppmi import Embeddings
from trainer.prepare.split import Split
from trainer.prepare.streams import Stream
from trainer.prepare.vocabulary import Vocabulary
from trainer.presets import Preset

FEW = 5
"""Conversations, as `effective` counts them, below which a validation set is said to be small."""
BYTES_A_TOKEN = 5
"""Bytes of text for one token, an upper guess: the split is made before the tokenizer, which learns from the pool."""

SETS = ("pool", "validation", "test")


class PreparedError(TrainerError):
    """Prepared data are damaged; the message says where and what to do."""


@dataclass(frozen=True)
class SetSize:
    """The size of the pool, the validation set or the test set."""

    tokens: int
    conversations: int
    bytes: int

    @classmethod
    def of(cls, stream: Stream) -> Self:
        """The size of a stream."""
        return cls(stream.tokens, len(stream), int(stream.bytes.sum()))


@dataclass(frozen=True)
class DataRecord:
    """What prepared.json says of the data, and every record of a training run after it.

    Attributes:
        identity: 16 and 8 hex digits of all that the data are made from.
        tokenizer: its name.
        vocabulary: V.
        embeddings: one sentence about them.
        embeddings_tokens: tokens that they were made from, -1 if unknown; None if each training run makes its own.
        table: (V, E); None if each training run makes its own embeddings.
        notes: sentences that a reader of the results needs, such as how little a small test set tells.
        pool: size of the training pool.
        validation: size of the set that selects the weights.
        test: size of the reported set.
        digest: 16 hex digits of all that training runs see.
    """

    identity: str
    tokenizer: str
    vocabulary: int
    embeddings: str
    embeddings_tokens: int | None
    table: tuple[int, int] | None
    notes: tuple[str, ...]
    pool: SetSize
    validation: SetSize
    test: SetSize
    digest: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """The record in a JSON text.

        Raises:
            KeyError, TypeError, ValueError: it is not one.
        """
        found = json.loads(text)
        values = {one.name: found[one.name] for one in fields(cls)}
        values |= {name: SetSize(**values[name]) for name in SETS}
        values["table"] = values["table"] and tuple(values["table"])
        return cls(**values | {"notes": tuple(values["notes"])})

    def as_dict(self) -> dict[str, Any]:
        """The record as JSON has it."""
        return asdict(self)

    def sizes(self) -> dict[str, SetSize]:
        """Size of each set by its name."""
        return {name: getattr(self, name) for name in SETS}

    def lines(self) -> list[str]:
        """The record for a terminal."""
        sets = ", ".join(
            f"{name} {size.tokens:,} tokens of {size.conversations:,} conversations"
            for name, size in self.sizes().items()
        )
        return [f"tokenizer {self.tokenizer}; {self.embeddings}", sets, *self.notes]


@dataclass(frozen=True, eq=False)
class Prepared:
    """What trainings are given.

    Attributes:
        folder: where it lies.
        pool: the training pool, from which budgets are drawn.
        validation: chooses the weights.
        test: what is reported; the validation stream itself in the user's experiments.
        table: float32 [V, E]; None where each training makes its own.
        keys: uint64 [K] of the pool's conversations.
        clusters: int64 [test conversations] from 0, the same number for near-duplicates; presets that split by position
            look for none.
        record: what prepared.json says of all this.
        rows: int64, which of the pool's conversations are trained on: those of one arm; None for all.
    """

    folder: Path
    pool: Stream
    validation: Stream
    test: Stream
    table: NDArray[np.float32] | None
    keys: NDArray[np.uint64]
    clusters: NDArray[np.int64]
    record: DataRecord
    rows: NDArray[np.int64] | None = None

    @property
    def digest(self) -> str:
        """16 hex digits of all that trainings see."""
        return self.record.digest

    def budget(self, preset: Preset, count: int, seed: int) -> Stream:
        """The training stream of a budget: drawn by seed, or the first tokens in the corpus's order.

        Conversations that two arms share stand in the same order in both.

        Raises:
            StreamError: the pool is smaller.
        """
        if self.rows is not None:
            order = self.rows[streams.permutation(seed, len(self.rows), self.keys[self.rows])]
            ends = np.cumsum(self.pool.lengths()[order] + int(self.pool.separated))
            return self.pool.take(order[: int(np.searchsorted(ends, count)) + 1]).prefix(count)
        return self.pool.draw(count, seed, self.keys) if preset.shuffled else self.pool.prefix(count)

    def embedded(self, preset: Preset, train: Stream, seed: int) -> NDArray[np.float32]:
        """The embeddings of a training: those of the experiment, or made of its own stream."""
        if self.table is not None:
            return self.table
        made = tables.ppmi_svd(train.ids, train.starts, self.record.vocabulary, preset.shape.embedding, seed=seed)
        return made.table

    def budgets(self, preset: Preset, asked: list[int] | None) -> list[int]:
        """Budgets in tokens: those asked for, or those of the preset that the pool holds.

        Raises:
            StreamError: one is larger than the pool, or none fits.
        """
        if asked:
            for count in asked:
                self.pool.prefix(count)
            return sorted(set(asked))
        if preset.samples:
            return [self.pool.conversations(count).tokens for count in preset.samples]
        fitting = [count for count in preset.budgets if count <= self.pool.tokens]
        if not fitting:
            raise streams.StreamError(
                f"the smallest budget of preset {preset.name} is {min(preset.budgets):,} tokens, and the training pool "
                f"has {self.pool.tokens:,}: name smaller budgets, or take a larger corpus"
            )
        return fitting


def prepare(  # noqa: PLR0917  a corpus, a preset, a place
    conversations: pl.DataFrame,
    keys: NDArray[np.uint64],
    groups: NDArray[np.int64] | None,
    preset: Preset,
    wanted: Choices,
    folder: Path,
    given: Embeddings | None = None,
    split: Split | None = None,
) -> Prepared:
    """Make the data of an experiment in a folder, or load what lies there.

    Args:
        conversations: with the columns "first" and "text".
        keys: what names each conversation.
        groups: near-duplicate clusters; None for presets that split by position.
        preset: which text, which tokenizer, which embeddings.
        wanted: what differs from it.
        folder: the experiment's own.
        given: what `wanted.outside` found.
        split: instead of one that is made of `groups` here.

    Raises:
        SplitError, StreamError, VocabularyError, EmbeddingsError: the corpus or an option does not serve.
    """
    words = named(preset, wanted)
    identity = _identity(keys, groups, preset, wanted, words, given, split)
    trained_on = conversations[preset.text.column].hash(0).to_numpy()  # keys know nothing of case and punctuation
    identity += hashlib.blake2b(np.ascontiguousarray(trained_on).tobytes(), digest_size=4).hexdigest()
    there = _found(folder)
    if there is not None and there.record.identity == identity:
        return there
    shutil.rmtree(folder, ignore_errors=True)  # of other data, or of an attempt that was stopped
    texts = conversations[preset.text.column]
    made = split or _split(texts, keys, groups, preset, wanted)
    words = words or vocabulary.train(texts.gather(made.pool), size_of_bpe(preset, wanted))
    pool, validation, test = (
        streams.encode(conversations[rows.tolist()], words, preset.text)
        for rows in (made.pool, made.validation, made.reported)
    )
    table = embeddings(pool, words, preset, wanted, given)
    clusters = splitting.numbered(made.reported if groups is None else groups[made.reported])
    record = DataRecord(
        identity=identity,
        tokenizer=words.name,
        vocabulary=words.size,
        embeddings=table.said if table else "embeddings: PPMI-SVD of each budget's own tokens",
        embeddings_tokens=table.tokens_seen if table else None,
        table=(words.size, table.table.shape[1]) if table else None,
        notes=(*filter(None, _small(test, clusters, validation, preset, wanted)), *made.notes),
        pool=SetSize.of(pool),
        validation=SetSize.of(validation),
        test=SetSize.of(test),
        digest=_digest(pool, validation, test, table),
    )
    folder.mkdir(parents=True, exist_ok=True)
    words.save(folder / "tokenizer.json")
    for name, stream in zip(SETS, (pool, validation, test), strict=True):
        stream.save(folder / name)
    np.save(folder / "keys.npy", keys[made.pool])
    np.save(folder / "clusters.npy", clusters)
    if table is not None:
        np.save(folder / "embeddings.npy", table.table)
    text = json.dumps(record.as_dict(), indent=2) + "\n"
    save(folder / "prepared.json", lambda aside: aside.write_text(text, encoding="utf-8"))
    return load(folder)


def load(folder: Path, arm: str = "") -> Prepared:
    """What `prepare` left in a folder; of one arm, whose rows lie there under this name.

    Raises:
        PreparedError: something is missing there, or damaged.
    """
    try:
        record = DataRecord.parse((folder / "prepared.json").read_text(encoding="utf-8"))
        pool, validation, test = (streams.load(folder / name) for name in SETS)
        table = np.load(folder / "embeddings.npy", allow_pickle=False) if record.table else None
        rows = np.load(folder / f"{arm}.npy", allow_pickle=False) if arm else None
        keys, clusters = (np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("keys", "clusters"))
        whole = (table is None or table.shape == record.table) and len(keys) == len(pool)
        whole = whole and len(clusters) == len(test)
    except (OSError, EOFError, ValueError, KeyError, TypeError, streams.StreamError) as error:
        raise PreparedError(
            f"the data in {folder} are damaged ({error}): remove that folder, and start again"
        ) from None
    if not whole:
        raise PreparedError(
            f"the data in {folder} are damaged (their sizes differ): remove that folder, and start again"
        )
    return Prepared(folder, pool, validation, test, table, keys, clusters, record, rows)


def _found(folder: Path) -> Prepared | None:
    """What lies in a folder and is whole; damaged data are made again."""
    try:
        return load(folder)
    except PreparedError:
        return None


def _split(
    texts: pl.Series,
    keys: NDArray[np.uint64],
    groups: NDArray[np.int64] | None,
    preset: Preset,
    wanted: Choices,
) -> Split:
    if preset.validation is not None or groups is None:
        return splitting.fixed(len(texts), validation=preset.validation or range(0))
    estimated = (texts.str.len_bytes().to_numpy().astype(np.int64) + BYTES_A_TOKEN - 1) // BYTES_A_TOKEN
    return splitting.split(
        estimated,
        groups,
        keys,
        test_tokens=wanted.test_tokens,
        validation_tokens=wanted.validation_tokens,
        seed=wanted.split_seed,
    )


def _small(
    test: Stream, clusters: NDArray[np.int64], validation: Stream, preset: Preset, wanted: Choices
) -> Iterator[str]:
    """What is to be said of sets that are smaller than was wanted, or than is fair."""
    reported = "test" if preset.validation is None else "validation"
    yield splitting.small(reported, _sizes(test), max(splitting.FAIR, wanted.test_tokens), clusters=clusters)
    if preset.validation is None:
        yield splitting.small("validation", _sizes(validation), wanted.validation_tokens, least=FEW)


def _sizes(stream: Stream) -> NDArray[np.int64]:
    """Tokens of each conversation, that of its end among them."""
    return np.diff(stream.starts, append=stream.tokens)


def _identity(  # noqa: PLR0917  what `prepare` takes
    keys: NDArray[np.uint64],
    groups: NDArray[np.int64] | None,
    preset: Preset,
    wanted: Choices,
    words: Vocabulary | None,
    given: Embeddings | None,
    split: Split | None,
) -> str:
    """What the data are made of, as 16 hex digits: another corpus or another option makes them anew."""
    shaped = replace(preset, phase1=type(preset.phase1)(), phase2=type(preset.phase2)(), name="", about="")
    state = hashlib.blake2b(f"{shaped}{wanted}".encode(), digest_size=8)
    state.update(np.ascontiguousarray(keys).tobytes())
    state.update(b"" if groups is None else np.ascontiguousarray(groups).tobytes())
    state.update(b"" if words is None else words.digest().encode())
    state.update(b"" if given is None else np.ascontiguousarray(given.table).tobytes())
    for rows in () if split is None else (split.pool, split.validation, split.test):
        state.update(rows.tobytes() + b"|")
    return state.hexdigest()


def _digest(pool: Stream, validation: Stream, test: Stream, table: Embeddings | None) -> str:
    state = hashlib.blake2b(digest_size=8)
    for stream in (pool, validation, test):
        for array in (stream.ids, stream.starts):
            state.update(np.ascontiguousarray(array).tobytes())
    state.update(b"" if table is None else table.table.tobytes())
    return state.hexdigest()
