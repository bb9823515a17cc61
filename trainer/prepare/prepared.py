"""The data of an experiment: vocabulary, split, streams of ids, embeddings. Training runs read nothing else."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
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
from trainer.prepare.choices import Choices, embeddings, load_vocabulary, size_of_bpe
from trainer.prepare.ppmi import Embeddings
from trainer.prepare.split import Split
from trainer.prepare.streams import Stream
from trainer.prepare.vocabulary import Vocabulary
from trainer.presets import Preset

MIN_VALIDATION = 5
"""Effective conversations (`split.effective`) below which a note calls the validation set small."""
BYTES_PER_TOKEN = 5
"""Upper estimate of the bytes of text per token. The split precedes the tokenizer, which is trained on the pool."""

SETS = ("pool", "validation", "test")


class PreparedError(TrainerError):
    """Prepared data are damaged."""


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
    """The content of prepared.json.

    `identity` are 24 hex digits of everything that the data are made from, `digest` 16 of everything that training runs
    see. `embeddings` and `notes` are sentences for the reader. `embeddings_tokens` (-1 if unknown) and `table`, which
    is (V, E), are None if each training run makes its own embeddings.
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
        """Parse prepared.json; a KeyError, TypeError or ValueError if a field is missing or has the wrong type."""
        parsed = json.loads(text)
        values = {one.name: parsed[one.name] for one in fields(cls)}
        values |= {name: SetSize(**values[name]) for name in SETS}
        values["table"] = values["table"] and tuple(values["table"])
        return cls(**values | {"notes": tuple(values["notes"])})

    def as_dict(self) -> dict[str, Any]:
        """The record as JSON values."""
        return asdict(self)

    def sizes(self) -> dict[str, SetSize]:
        """Size of each set by name."""
        return {name: getattr(self, name) for name in SETS}

    def lines(self, *, networks: bool = True) -> list[str]:
        """The record as lines for a terminal; embeddings are for `networks` alone."""
        sets = ", ".join(
            f"{name} {size.tokens:,} tokens of {size.conversations:,} conversations"
            for name, size in self.sizes().items()
        )
        return [f"tokenizer {self.tokenizer}{f'; {self.embeddings}' if networks else ''}", sets, *self.notes]


@dataclass(frozen=True, eq=False)
class ExperimentData:
    """The data of an experiment, loaded from its folder.

    `test` is the reported stream; the validation stream if the preset splits by position. `table` [V, E] is None if
    each training run makes its own embeddings. `keys` [pool conversations] give the order; those of near-duplicates are
    equal if the preset cuts conversations into pieces. `clusters` [test conversations] count from 0 and are equal for
    near-duplicates. `rows` are the pool's conversations that one arm trains on; None for all.
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
        """16 hex digits of everything that training runs see."""
        return self.record.digest

    def budget(self, preset: Preset, count: int, seed: int) -> Stream:
        """The training stream of `count` tokens, or a StreamError; a shuffled preset has an order per seed."""
        if not preset.shuffled:
            return self.pool.prefix(count)
        return self.pool.draw(count, seed, self.keys, self.pool.pieces(preset.piece, self.rows))

    def embeddings_for(self, preset: Preset, train: Stream, seed: int) -> NDArray[np.float32]:
        """The embeddings of a training run: those of the experiment, or made from its own stream."""
        if self.table is not None:
            return self.table
        return tables.ppmi_svd(train.ids, train.starts, self.record.vocabulary, preset.shape.embedding, seed=seed).table

    def budgets(self, preset: Preset, asked: list[int] | None) -> list[int]:
        """Budgets in tokens, ascending: those of `asked`, or of the preset if they fit the pool; else a StreamError."""
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
                f"has {self.pool.tokens:,}: choose smaller budgets, or take a larger corpus"
            )
        return fitting


def prepare(  # noqa: PLR0917  a corpus, a preset, a place
    conversations: pl.DataFrame,
    keys: NDArray[np.uint64],
    groups: NDArray[np.int64] | None,
    preset: Preset,
    choices: Choices,
    folder: Path,
    given: Embeddings | None = None,
    split: Split | None = None,
) -> ExperimentData:
    """Make the data of an experiment in a folder, or load them if the folder holds the same data.

    `conversations` are K rows with the columns of `streams.encode`, with `keys` [K] and near-duplicate clusters
    `groups` [K], which may be None if the preset splits by position. `given` is what `choices.outside` returns. Without
    a `split`, one is made from the groups. A TrainerError if the corpus or an option cannot be used.
    """
    words = load_vocabulary(preset, choices)
    identity = _identity(keys, groups, preset, choices, words, given, split)
    texts = conversations[preset.text.column]
    columns = [texts, conversations["turns"]] if preset.text.chat else [texts]
    trained_on = np.stack([column.hash(0).to_numpy() for column in columns])  # keys ignore case and punctuation
    identity += hashlib.blake2b(trained_on.tobytes(), digest_size=4).hexdigest()
    with suppress(PreparedError):
        earlier = load(folder)
        if earlier.record.identity == identity:
            return earlier
    shutil.rmtree(folder, ignore_errors=True)  # other data, or an interrupted attempt
    sides = split or _split(texts, keys, groups, preset, choices)
    if words is None:
        size = size_of_bpe(preset, choices)
        words = vocabulary.train(texts.gather(sides.pool), size, chats=preset.text.chat)
    pool, validation, test = (
        streams.encode(conversations[rows.tolist()], words, preset.text)
        for rows in (sides.pool, sides.validation, sides.reported)
    )
    table = embeddings(pool, words, preset, choices, given)
    clusters = splitting.renumber(sides.reported if groups is None else groups[sides.reported])
    record = DataRecord(
        identity=identity,
        tokenizer=words.name,
        vocabulary=words.size,
        embeddings=table.description if table else "embeddings: PPMI-SVD of each budget's own tokens",
        embeddings_tokens=table.tokens_seen if table else None,
        table=(words.size, table.table.shape[1]) if table else None,
        notes=(*filter(None, _small(test, clusters, validation, preset, choices)), *sides.notes),
        pool=SetSize.of(pool),
        validation=SetSize.of(validation),
        test=SetSize.of(test),
        digest=streams.digest(b"", (pool, validation, test), table.table if table else None),
    )
    folder.mkdir(parents=True, exist_ok=True)
    words.save(folder / "tokenizer.json")
    for name, stream in zip(SETS, (pool, validation, test), strict=True):
        stream.save(folder / name)
    if preset.piece is not None and groups is not None:
        keys = streams.together(keys, groups)
    np.save(folder / "keys.npy", keys[sides.pool])
    np.save(folder / "clusters.npy", clusters)
    if table is not None:
        np.save(folder / "embeddings.npy", table.table)
    text = json.dumps(record.as_dict(), indent=2) + "\n"
    save(folder / "prepared.json", lambda aside: aside.write_text(text, encoding="utf-8"))
    return load(folder)


def check_loss(data: ExperimentData, preset: Preset) -> None:
    """Refuse to train on replies if the training pool or the validation set has none, with a PreparedError."""
    if preset.phase2.loss == "replies" and not (data.pool.replies and data.validation.replies):
        raise PreparedError(
            f"the loss is that of replies, and the {'validation set' if data.pool.replies else 'training pool'} has "
            "none: take a corpus of conversations, a preset with the chat template, or --loss all"
        )


def load(folder: Path, arm: str = "") -> ExperimentData:
    """Load the data of a folder, with the rows of an arm's file; a PreparedError if a file is missing or damaged."""
    try:
        record = DataRecord.parse((folder / "prepared.json").read_text(encoding="utf-8"))
        pool, validation, test = (streams.load(folder / name) for name in SETS)
        table = np.load(folder / "embeddings.npy", allow_pickle=False) if record.table else None
        rows = np.load(folder / f"{arm}.npy", allow_pickle=False) if arm else None
        keys, clusters = (np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("keys", "clusters"))
        whole = (table is None or table.shape == record.table) and len(keys) == len(pool)
        whole = whole and len(clusters) == len(test)
    except (OSError, EOFError, ValueError, KeyError, TypeError, RecursionError, streams.StreamError) as error:
        raise PreparedError(f"the data in {folder} are damaged ({error}): remove that folder and start again") from None
    if not whole:
        raise PreparedError(
            f"the data in {folder} are damaged (their sizes differ): remove that folder and start again"
        )
    return ExperimentData(folder, pool, validation, test, table, keys, clusters, record, rows)


def estimated_tokens(texts: pl.Series) -> NDArray[np.int64]:
    """A lower estimate of the tokens of each text, int64 [K], so that a set has as many as it should, or more."""
    return (texts.str.len_bytes().to_numpy().astype(np.int64) + BYTES_PER_TOKEN - 1) // BYTES_PER_TOKEN


def _split(
    texts: pl.Series,
    keys: NDArray[np.uint64],
    groups: NDArray[np.int64] | None,
    preset: Preset,
    choices: Choices,
) -> Split:
    if preset.validation is not None or groups is None:
        return splitting.split_by_position(len(texts), validation=preset.validation or range(0))
    return splitting.split(
        estimated_tokens(texts),
        groups,
        keys,
        test_tokens=choices.test_tokens,
        validation_tokens=choices.validation_tokens,
        seed=choices.split_seed,
    )


def _small(
    test: Stream, clusters: NDArray[np.int64], validation: Stream, preset: Preset, choices: Choices
) -> Iterator[str]:
    """Notes on sets that are smaller than requested, or too small to be reliable; empty strings otherwise."""
    reported = "test" if preset.validation is None else "validation"
    of_test, of_validation = (np.diff(one.starts, append=one.tokens) for one in (test, validation))
    yield splitting.small(reported, of_test, max(splitting.FAIR, choices.test_tokens), clusters=clusters)
    if preset.validation is None:
        yield splitting.small("validation", of_validation, choices.validation_tokens, least=MIN_VALIDATION)


def _identity(  # noqa: PLR0917  what `prepare` takes
    keys: NDArray[np.uint64],
    groups: NDArray[np.int64] | None,
    preset: Preset,
    choices: Choices,
    words: Vocabulary | None,
    given: Embeddings | None,
    split: Split | None,
) -> str:
    """16 hex digits of corpus and options; data with another identity are made anew."""
    shaped = replace(preset, phase1=type(preset.phase1)(), phase2=type(preset.phase2)(), name="", about="", flaws=())
    state = hashlib.blake2b(f"{shaped}{choices}".encode(), digest_size=8)
    state.update(np.ascontiguousarray(keys).tobytes())
    state.update(b"" if groups is None else np.ascontiguousarray(groups).tobytes())
    state.update(b"" if words is None else words.digest().encode())
    state.update(b"" if given is None else np.ascontiguousarray(given.table).tobytes())
    for rows in () if split is None else (split.pool, split.validation, split.test):
        state.update(rows.tobytes() + b"|")
    return state.hexdigest()
