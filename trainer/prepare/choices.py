"""Which tokenizer and which embeddings an experiment has, where they differ from its preset's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.prepare import ppmi as tables
from trainer.prepare import pretrained, vocabulary
from trainer.prepare.ppmi import Embeddings
from trainer.prepare.streams import Stream
from trainer.prepare.vocabulary import Vocabulary
from trainer.presets import Preset

LEAST, MOST = 257, 1 << 20
"""Ids of a vocabulary that is trained."""
SCRATCH = "ppmi-budget"
"""The kind of embeddings that each training makes of its own budget alone."""


@dataclass(frozen=True)
class Choices:
    """How a corpus becomes the data of an experiment, where it differs from the preset.

    Attributes:
        tokenizer: "bpe", "bpe:N" for N ids, "gpt2", or a tokenizer.json.
        embeddings: "ppmi" (of the training pool), "ppmi-budget" (of each budget's own tokens), "gpt2" (the hub's), a
            file of GPT-2's weights, "random", or a .npy file.
        test_tokens: of the test set at least, where the corpus allows.
        validation_tokens: of the set that chooses the weights.
        split_seed: of the split; not that of a training.
    """

    tokenizer: str | None = None
    embeddings: str | None = None
    test_tokens: int = 100_000
    validation_tokens: int = 10_000
    split_seed: int = 0


def named(preset: Preset, wanted: Choices) -> Vocabulary | None:
    """GPT-2's vocabulary, or a file's; None where one is trained on the pool.

    Raises:
        VocabularyError: there is none of that name, or the file does not serve.
    """
    name = wanted.tokenizer or preset.tokenizer
    if name == "gpt2":
        return vocabulary.gpt2()
    if name.partition(":")[0] == "bpe":
        size_of_bpe(preset, wanted)
        return None
    path = Path(name).expanduser()
    if not path.exists():
        raise vocabulary.VocabularyError(
            f"there is no tokenizer {name!r}: take bpe, bpe:N, gpt2, or the path of a tokenizer.json that is there"
        )
    return vocabulary.load(path)


def size_of_bpe(preset: Preset, wanted: Choices) -> int:
    """Ids of the vocabulary that is trained."""
    name = wanted.tokenizer or preset.tokenizer
    size = name.partition(":")[2]
    if not size:
        return preset.vocabulary
    if not size.isascii() or not size.isdecimal() or not LEAST <= int(size[:12]) <= MOST:
        raise vocabulary.VocabularyError(
            f"the tokenizer is {name!r}, expected bpe:N with a number from {LEAST} (256 bytes and the end) to "
            f"{MOST:,}, such as bpe:8192"
        )
    return int(size)


def outside(preset: Preset, wanted: Choices) -> Embeddings | None:
    """Embeddings that do not come from the corpus: GPT-2's, or a file's; None where they will be made.

    Raises:
        EmbeddingsError: they are not there. A preset never falls back to others.
    """
    kind = wanted.embeddings or preset.embeddings
    if kind in {"ppmi", SCRATCH, "random"}:
        return None
    path = Path(kind).expanduser()
    if kind == "gpt2":
        return pretrained.gpt2()
    return pretrained.from_file(path) if kind.endswith(".npy") else pretrained.gpt2(path)


def embeddings(
    pool: Stream, words: Vocabulary, preset: Preset, wanted: Choices, given: Embeddings | None
) -> Embeddings | None:
    """The table of an experiment; None where each training makes its own.

    Raises:
        EmbeddingsError: those that were given have another size.
    """
    kind, width = wanted.embeddings or preset.embeddings, preset.shape.embedding
    if kind == SCRATCH:
        return None
    if kind == "ppmi":
        return tables.ppmi_svd(pool.ids, pool.starts, words.size, width)
    if kind == "random":
        return tables.random(words.size, width)
    if given is None or given.table.shape != (words.size, width):
        found = "none" if given is None else f"{given.table.shape[0]:,} x {given.table.shape[1]}"
        raise tables.EmbeddingsError(
            f"the embeddings {kind} are {found}, and preset {preset.name} with tokenizer {words.name} needs "
            f"{words.size:,} x {width}: choose others with --embeddings, or another --tokenizer"
        )
    return given
