"""The choices of an experiment that override its preset: tokenizer, embeddings, sizes of the split."""

from dataclasses import dataclass
from pathlib import Path

from trainer.prepare import ppmi as tables
from trainer.prepare import pretrained, vocabulary
from trainer.prepare.ppmi import Embeddings
from trainer.prepare.streams import Stream
from trainer.prepare.vocabulary import Vocabulary
from trainer.presets import Preset

MAX_VOCABULARY = 1 << 20
"""Maximum number of ids of a trained vocabulary."""
SCRATCH = "ppmi-budget"
"""The kind of embeddings that each training run makes from its own budget."""


@dataclass(frozen=True)
class Choices:
    """Options that turn a corpus into the data of an experiment; None takes the preset's.

    Tokenizer and embeddings are words or paths, as on the command line. Test and validation set have at least this many
    tokens if the corpus is large enough; the seed of the split is independent of a training run's.
    """

    tokenizer: str | None = None
    embeddings: str | None = None
    test_tokens: int = 100_000
    validation_tokens: int = 10_000
    split_seed: int = 0


def load_vocabulary(preset: Preset, choices: Choices) -> Vocabulary | None:
    """The vocabulary of GPT-2 or of a file, or a VocabularyError; None if it is to be trained on the pool."""
    name = choices.tokenizer or preset.tokenizer
    if name == "gpt2":
        return vocabulary.gpt2().for_chats() if preset.text.chat else vocabulary.gpt2()
    if name.partition(":")[0] == "bpe":
        size_of_bpe(preset, choices)
        return None
    path = Path(name).expanduser()
    if not path.exists():
        raise vocabulary.VocabularyError(
            f"there is no tokenizer {name!r}: take bpe, bpe:N, gpt2, or the path of a tokenizer.json"
        )
    loaded = vocabulary.load(path)
    return loaded.for_chats() if preset.text.chat else loaded


def size_of_bpe(preset: Preset, choices: Choices) -> int:
    """Number of ids of the vocabulary to train; a VocabularyError if it is not a number within the limits."""
    name = choices.tokenizer or preset.tokenizer
    size = name.partition(":")[2]
    if not size:
        return preset.vocabulary
    least = vocabulary.least(chats=preset.text.chat)
    if not size.isascii() or not size.isdecimal() or not least <= int(size[:12]) <= MAX_VOCABULARY:
        raise vocabulary.VocabularyError(
            f"the tokenizer is {name!r}, expected bpe:N with a number from {least} (256 bytes and the special "
            f"tokens) to {MAX_VOCABULARY:,}, such as bpe:8192"
        )
    return int(size)


def outside(preset: Preset, choices: Choices) -> Embeddings | None:
    """Embeddings from outside the corpus, or an EmbeddingsError: no fallback. None if they are to be made."""
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
    """The embeddings of an experiment; None if each training run makes its own."""
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
