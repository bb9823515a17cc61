"""The choices of an experiment that override its preset: tokenizer, embeddings, sizes of the split."""

from dataclasses import dataclass
from pathlib import Path

from trainer.prepare import ppmi as tables
from trainer.prepare import pretrained, vocabulary
from trainer.prepare.ppmi import Embeddings
from trainer.prepare.streams import Stream
from trainer.prepare.vocabulary import Vocabulary
from trainer.presets import Preset

MIN_VOCABULARY, MAX_VOCABULARY = 257, 1 << 20
"""Limits on the number of ids of a trained vocabulary."""
SCRATCH = "ppmi-budget"
"""The kind of embeddings that each training run makes from its own budget."""


@dataclass(frozen=True)
class Choices:
    """Options that turn a corpus into the data of an experiment.

    Attributes:
        tokenizer: "bpe", "bpe:N" for N ids, "gpt2", or the path of a tokenizer.json; None for the preset's.
        embeddings: "ppmi" (from the training pool), "ppmi-budget" (from the tokens of each budget), "gpt2" (from the
            hub), "random", or the path of GPT-2's weights or of a .npy file; None for the preset's.
        test_tokens: minimum number of tokens of the test set, if the corpus is large enough.
        validation_tokens: the same of the validation set.
        split_seed: seed of the split, independent of the seed of a training run.
    """

    tokenizer: str | None = None
    embeddings: str | None = None
    test_tokens: int = 100_000
    validation_tokens: int = 10_000
    split_seed: int = 0


def load_vocabulary(preset: Preset, choices: Choices) -> Vocabulary | None:
    """The vocabulary of GPT-2 or of a file; None if it is to be trained on the pool.

    Raises:
        VocabularyError: the tokenizer is unknown, or its file cannot be used.
    """
    name = choices.tokenizer or preset.tokenizer
    if name == "gpt2":
        return vocabulary.gpt2()
    if name.partition(":")[0] == "bpe":
        size_of_bpe(preset, choices)
        return None
    path = Path(name).expanduser()
    if not path.exists():
        raise vocabulary.VocabularyError(
            f"there is no tokenizer {name!r}: take bpe, bpe:N, gpt2, or the path of a tokenizer.json"
        )
    return vocabulary.load(path)


def size_of_bpe(preset: Preset, choices: Choices) -> int:
    """Number of ids of the vocabulary to train.

    Raises:
        VocabularyError: it is not a number within the limits.
    """
    name = choices.tokenizer or preset.tokenizer
    size = name.partition(":")[2]
    if not size:
        return preset.vocabulary
    if not size.isascii() or not size.isdecimal() or not MIN_VOCABULARY <= int(size[:12]) <= MAX_VOCABULARY:
        raise vocabulary.VocabularyError(
            f"the tokenizer is {name!r}, expected bpe:N with a number from {MIN_VOCABULARY} (256 bytes and the end of "
            f"text) to {MAX_VOCABULARY:,}, such as bpe:8192"
        )
    return int(size)


def outside(preset: Preset, choices: Choices) -> Embeddings | None:
    """Embeddings from outside the corpus: GPT-2's or those of a file; None if they are to be made.

    Raises:
        EmbeddingsError: they are missing; there is no fallback to others.
    """
    kind = choices.embeddings or preset.embeddings
    if kind in {"ppmi", SCRATCH, "random"}:
        return None
    path = Path(kind).expanduser()
    if kind == "gpt2":
        return pretrained.gpt2()
    return pretrained.from_file(path) if kind.endswith(".npy") else pretrained.gpt2(path)


def embeddings(
    pool: Stream, words: Vocabulary, preset: Preset, choices: Choices, given: Embeddings | None
) -> Embeddings | None:
    """The embeddings of an experiment; None if each training run makes its own.

    Raises:
        EmbeddingsError: `given` has the wrong size.
    """
    kind, width = choices.embeddings or preset.embeddings, preset.shape.embedding
    if kind == SCRATCH:
        return None
    if kind == "ppmi":
        return tables.ppmi_svd(pool.ids, pool.starts, words.size, width)
    if kind == "random":
        return tables.random(words.size, width)
    if given is None or given.table.shape != (words.size, width):
        size = "none" if given is None else f"{given.table.shape[0]:,} x {given.table.shape[1]}"
        raise tables.EmbeddingsError(
            f"the embeddings {kind} are {size}, and preset {preset.name} with tokenizer {words.name} needs "
            f"{words.size:,} x {width}: choose others with --embeddings, or another --tokenizer"
        )
    return given
