"""Token embeddings that are computed before training and frozen: PPMI-SVD of the pool, or random ones."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from trainer import TrainerError

Matrix = NDArray[np.float32]
STD = 0.14
"""Standard deviation of the components of a table, as in GPT-2's."""
SMOOTHING, WEIGHT = 0.75, 0.5
"""Exponents of context counts and of singular values (Levy, Goldberg, Dagan 2015, sections 3.2 and 3.3)."""
UNSEEN = 0.1
"""Standard deviation of the random rows of tokens that do not occur, as a share of `STD`."""
WINDOW = 2
"""Maximum distance of two tokens that are counted as a pair."""
CHUNK = 1 << 20
"""Tokens whose pairs are counted at a time."""
BLOCKS = 12
"""Number of blocks of the Krylov space; a block has width // 4 + 16 columns."""


class EmbeddingsError(TrainerError):
    """Embeddings are missing or cannot be used."""


@dataclass(frozen=True, eq=False)
class Embeddings:
    """A table [V, E] of embeddings, with one sentence for the record.

    `tokens_seen` is the number of tokens that they were made from; 0 for random ones, -1 if unknown.
    """

    table: Matrix
    tokens_seen: int
    description: str


def ppmi_svd(ids: NDArray[np.int32], starts: NDArray[np.int64], size: int, width: int, *, seed: int = 0) -> Embeddings:
    """Truncated SVD of positive pointwise mutual information (Levy, Goldberg, Dagan 2015).

    The contexts of a token are the tokens of its conversation at distance d <= `WINDOW`, with weight 1 / d. The result
    is deterministic. Rows are scaled to a common standard deviation of `STD`; tokens that do not occur get small random
    rows. If fewer tokens occur than `width`, the remaining columns are zero.

    Memory: 60 bytes per distinct pair of tokens (at most `WINDOW` pairs per token), 40 bytes per token of a chunk, and
    48 bytes * occurring tokens * `width`. An EmbeddingsError if no two tokens are adjacent.
    """
    if width < 1 or (len(ids) and int(np.max(ids)) >= size):
        raise EmbeddingsError(
            f"embeddings of {size:,} x {width} were requested and the largest id is {int(np.max(ids, initial=-1)):,}: "
            "expected a width of at least 1 and ids below the size"
        )
    counts = _counts(ids, starts, size)
    seen = np.flatnonzero(counts.sum(axis=1))
    if len(seen) < 2:  # noqa: PLR2004  nothing to decompose
        raise EmbeddingsError(
            f"{len(seen)} of {len(ids):,} tokens are adjacent to another one, too few for embeddings: "
            "take a larger corpus"
        )
    vectors = _decompose(_ppmi(counts[seen][:, seen]), width)
    table = np.random.default_rng(seed).normal(0, UNSEEN * STD, (size, width)).astype(np.float32)
    table[seen] = vectors * (STD / vectors.std())
    description = (
        f"embeddings: PPMI-SVD of {len(ids):,} tokens of the training pool, window {WINDOW}, {size:,} x {width}, "
        f"{size - len(seen):,} tokens that do not occur are random"
    )
    return Embeddings(table, len(ids), description)


def random(size: int, width: int, std: float = 0.02, seed: int = 0) -> Embeddings:
    """Normally distributed embeddings [size, width]."""
    table = np.random.default_rng(seed).normal(0, std, (size, width)).astype(np.float32)
    description = f"embeddings: random, {size:,} x {width}, standard deviation {std:g}, seed {seed}, no tokens seen"
    return Embeddings(table, 0, description)


def _counts(ids: NDArray[np.int32], starts: NDArray[np.int64], size: int) -> sparse.csr_array:
    """Weighted co-occurrence counts, symmetric, float64 [V, V]."""
    opens = np.zeros(len(ids) + 1, np.bool_)
    opens[starts] = True
    half = sparse.csr_array((size, size))
    for begin in range(0, len(ids), CHUNK):
        here = ids[begin : begin + CHUNK + WINDOW]
        conversation = np.cumsum(opens[begin : begin + len(here)])
        for distance in range(1, min(WINDOW, len(here) - 1) + 1):
            same = (conversation[distance:] == conversation[:-distance])[:CHUNK]
            pairs = here[:-distance][:CHUNK][same], here[distance:][:CHUNK][same]
            half += sparse.csr_array((np.full(len(pairs[0]), 1 / distance), pairs), shape=(size, size))
    return sparse.csr_array(half + half.T)


def _ppmi(counts: sparse.csr_array) -> sparse.csr_array:
    """max(0, ln(P(a, b) / P(a) P_s(b))), where P_s is the distribution of contexts to the power `SMOOTHING`."""
    pairs = counts.tocoo()
    words = np.asarray(counts.sum(axis=1)).ravel()
    contexts = words**SMOOTHING
    value = np.log(pairs.data * contexts.sum() / (words[pairs.row] * contexts[pairs.col]))
    some = value > 0
    return sparse.csr_array((value[some], (pairs.row[some], pairs.col[some])), shape=counts.shape)


def _decompose(matrix: sparse.csr_array, width: int) -> Matrix:
    """Left singular vectors times singular values to the power `WEIGHT`, in descending order, [rows, width].

    A randomised block Krylov method (Musco, Musco 2015) with a fixed start. At 7,197 tokens and 128 columns it takes
    0.8 CPU seconds and spans the exact subspace to a mean cosine of 0.9993. Alternatives: ARPACK takes 1.5 s; PROPACK
    takes 1.0 s but does not return on a matrix of low rank; scikit-learn's `randomized_svd` takes 0.8 s for a mean
    cosine of 0.97, and 1.5 s to import. A small matrix is decomposed in full.
    """
    rows = matrix.shape[0]
    count, block = min(width, rows), width // 4 + 16
    if rows <= BLOCKS * block:
        vectors, values = np.linalg.svd(matrix.toarray())[:2]
    else:
        basis, image = _krylov(matrix.astype(np.float32), block)
        squares, rotation = np.linalg.eigh((image.T @ image).astype(np.float64))
        descending = np.argsort(-squares, kind="stable")[:count]
        values = np.sqrt(np.maximum(squares[descending], 0))
        vectors = basis @ rotation[:, descending].astype(np.float32)
    vectors = vectors[:, :count] * values[:count] ** WEIGHT
    largest = vectors[np.argmax(np.abs(vectors), axis=0), np.arange(count)]
    table = np.zeros((rows, width), np.float32)
    table[:, :count] = vectors * np.where(largest < 0, -1.0, 1.0)  # the sign of a singular vector is arbitrary
    return table


def _krylov(matrix: sparse.csr_array, block: int) -> tuple[Matrix, Matrix]:
    """An orthonormal basis of the block Krylov space of M M^T, [rows, BLOCKS * block], and M^T times it."""
    across = sparse.csr_array(matrix.T)
    start = np.random.default_rng(0).normal(size=(matrix.shape[0], block)).astype(np.float32)
    last = np.linalg.qr(matrix @ start)[0]
    basis = last
    for _ in range(BLOCKS - 1):
        moved = matrix @ (across @ last)
        moved /= max(float(np.abs(moved).max()), 1e-30)
        for _ in range(2):  # the second time removes what rounding left
            moved -= basis @ (basis.T @ moved)
        last = np.linalg.qr(moved)[0]
        basis = np.hstack([basis, last])
    return basis, across @ basis
