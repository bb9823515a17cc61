"""Embeddings of tokens, made once before training and frozen: PPMI-SVD of the pool, or random ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from trainer import TrainerError

Table = NDArray[np.float32]
STD = 0.14
"""Elementwise standard deviation of tables, that of GPT-2's."""
SMOOTHING, WEIGHT = 0.75, 0.5
"""Powers of context counts and of singular values (Levy, Goldberg, Dagan 2015, sections 3.2 and 3.3)."""
UNSEEN = 0.1
"""Scale of rows of tokens that the pool does not hold, of `STD`."""
CHUNK = 1 << 20
"""Tokens whose pairs are counted at once."""
BLOCKS = 12
"""Blocks of the Krylov space, each of a quarter of the width and 16."""


class EmbeddingsError(TrainerError):
    """Embeddings are not there, or cannot be used; the message says what was found and what to do."""


@dataclass(frozen=True, eq=False)
class Embeddings:
    """A table of embeddings.

    Attributes:
        table: float32 [V, E].
        kind: "ppmi", "gpt2", "random" or "file".
        tokens_seen: tokens of training text that they were made from; 0 for random ones, -1 where it is not known.
        said: a sentence for the record.
    """

    table: Table
    kind: str
    tokens_seen: int
    said: str


def ppmi_svd(
    ids: NDArray[np.int32], starts: NDArray[np.int64], size: int, width: int, *, window: int = 2, seed: int = 0
) -> Embeddings:
    """Singular vectors of positive pointwise mutual information (Levy, Goldberg, Dagan 2015), cut to `width`.

    Contexts are the tokens at most `window` away on both sides in the same conversation, the nearer the heavier (1, 1/2
    ...). The same for the same ids: a fixed start, and of each vector the largest component is positive. Rows are
    scaled together to a standard deviation of `STD`; tokens that do not occur get small random ones. Where fewer tokens
    occur than `width`, the columns that are left are zero.

    Memory: 60 bytes a distinct pair of tokens (at most `window` pairs a token), 40 bytes a token of a chunk, and 24
    bytes times tokens that occur times `width`, twice.

    Args:
        ids: int32 [N].
        starts: int64 [K], where conversations begin.
        size: V, above every id.
        width: E.
        window: tokens to each side.
        seed: of the rows of tokens that do not occur.

    Raises:
        EmbeddingsError: there are no two tokens beside each other, or an id is not below `size`.
    """
    if width < 1 or window < 1 or (len(ids) and int(np.max(ids)) >= size):
        raise EmbeddingsError(
            f"embeddings of {size:,} x {width} from a window of {window} were asked for and the largest id is "
            f"{int(np.max(ids, initial=-1)):,}: expected a width and a window of 1 or more and ids below the size"
        )
    counts = _counts(ids, starts, size, window)
    seen = np.flatnonzero(counts.sum(axis=1))
    if len(seen) < 2:  # noqa: PLR2004  nothing to decompose
        raise EmbeddingsError(
            f"{len(ids):,} tokens hold {len(seen)} that stand beside another one, too few for embeddings: "
            "take a larger corpus"
        )
    vectors = _decomposed(_ppmi(counts[seen][:, seen]), width)
    table = np.random.default_rng(seed).normal(0, UNSEEN * STD, (size, width)).astype(np.float32)
    table[seen] = vectors * (STD / vectors.std())
    said = (
        f"embeddings: PPMI-SVD of {len(ids):,} tokens of the training pool, window {window}, {size:,} x {width}, "
        f"{size - len(seen):,} tokens that do not occur are random"
    )
    return Embeddings(table, "ppmi", len(ids), said)


def random(size: int, width: int, std: float = 0.02, seed: int = 0) -> Embeddings:
    """Normal embeddings: what a model without pre-trained ones starts from.

    Raises:
        EmbeddingsError: the shape or the deviation cannot be.
    """
    if size < 1 or width < 1 or not 0 < std < np.inf:
        raise EmbeddingsError(
            f"random embeddings of {size} x {width} with a standard deviation of {std:g} were asked for, expected "
            "numbers above 0"
        )
    table = np.random.default_rng(seed).normal(0, std, (size, width)).astype(np.float32)
    said = f"embeddings: random, {size:,} x {width}, standard deviation {std:g}, seed {seed}, no tokens seen"
    return Embeddings(table, "random", 0, said)


def _counts(ids: NDArray[np.int32], starts: NDArray[np.int64], size: int, window: int) -> sparse.csr_array:
    """Weighted co-occurrence counts, symmetric, float64 [V, V]."""
    keys, weights = np.empty(0, np.int64), np.empty(0)
    for found, counted in _pairs(ids, starts, size, window):
        keys, weights = _summed(np.concatenate([keys, found]), np.concatenate([weights, counted]))
    half = sparse.csr_array((weights, (keys // size, keys % size)), shape=(size, size))
    return sparse.csr_array(half + half.T)


def _pairs(
    ids: NDArray[np.int32], starts: NDArray[np.int64], size: int, window: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Distinct pairs of tokens of one conversation as `first * size + second`, sorted, with their weight."""
    opens = np.zeros(len(ids) + 1, np.bool_)
    opens[starts] = True
    for begin in range(0, len(ids), CHUNK):
        here = np.asarray(ids[begin : begin + CHUNK + window], np.int64)
        conversation = np.cumsum(opens[begin : begin + len(here)])
        for apart in range(1, min(window, len(here) - 1) + 1):
            same = (conversation[apart:] == conversation[:-apart])[:CHUNK]
            pairs = here[:-apart][:CHUNK][same] * size + here[apart:][:CHUNK][same]
            found, counted = np.unique(pairs, return_counts=True)
            yield found, counted / apart


def _summed(keys: NDArray[np.int64], weights: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Distinct keys, sorted, with the sum of their weights."""
    order = np.argsort(keys, kind="stable")  # two sorted runs: a merge
    keys, weights = keys[order], weights[order]
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[first], np.add.reduceat(weights, first) if len(first) else weights


def _ppmi(counts: sparse.csr_array) -> sparse.csr_array:
    """max(0, ln(P(a, b) / P(a) P_s(b))), P_s the contexts' distribution smoothed by the power `SMOOTHING`."""
    pairs = counts.tocoo()
    words = np.asarray(counts.sum(axis=1)).ravel()
    contexts = words**SMOOTHING
    value = np.log(pairs.data * contexts.sum() / (words[pairs.row] * contexts[pairs.col]))
    some = value > 0
    return sparse.csr_array((value[some], (pairs.row[some], pairs.col[some])), shape=counts.shape)


def _decomposed(matrix: sparse.csr_array, width: int) -> Table:
    """Left singular vectors times singular values to the power `WEIGHT`, the largest first, [rows, width].

    By a randomised block Krylov method (Musco, Musco 2015) from a fixed start: a tenth of ARPACK's time at 768 columns,
    and at 128 the subspace of it to a mean cosine of 0.994. A small matrix is decomposed whole.
    """
    rows = matrix.shape[0]
    count, block = min(width, rows), width // 4 + 16
    if rows <= BLOCKS * block:
        vectors, values = np.linalg.svd(matrix.toarray())[:2]
    else:
        basis, image = _krylov(matrix.astype(np.float32), block)
        squares, rotation = np.linalg.eigh((image.T @ image).astype(np.float64))
        largest_first = np.argsort(-squares, kind="stable")[:count]
        values = np.sqrt(np.maximum(squares[largest_first], 0))
        vectors = basis @ rotation[:, largest_first].astype(np.float32)
    vectors = vectors[:, :count] * values[:count] ** WEIGHT
    largest = vectors[np.argmax(np.abs(vectors), axis=0), np.arange(count)]
    made = np.zeros((rows, width), np.float32)
    made[:, :count] = vectors * np.where(largest < 0, -1.0, 1.0)
    return made


def _krylov(matrix: sparse.csr_array, block: int) -> tuple[Table, Table]:
    """An orthonormal basis of the block Krylov space of M M^T, [rows, BLOCKS * block], and M^T times it."""
    across = sparse.csr_array(matrix.T)
    start = np.random.default_rng(0).normal(size=(matrix.shape[0], block)).astype(np.float32)
    last = np.linalg.qr(matrix @ start)[0]
    basis = last
    for _ in range(BLOCKS - 1):
        moved = matrix @ (across @ last)
        moved /= max(float(np.abs(moved).max()), 1e-30)
        for _ in range(2):  # once leaves what rounding brought back
            moved -= basis @ (basis.T @ moved)
        last = np.linalg.qr(moved)[0]
        basis = np.hstack([basis, last])
    return basis, across @ basis
