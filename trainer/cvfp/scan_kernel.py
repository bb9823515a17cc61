"""The sequential scan of a context block as one compiled loop: a few microseconds per token instead of torch's 130.

The part of each layer that depends on the token alone is computed beforehand as one matrix product over many tokens.
That leaves L small matrix-vector products and layer norms per token.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def scan(  # noqa: PLR0917  compiled: arguments by position
    first: Floats,
    reset: NDArray[np.bool_],
    given: tuple[Floats, ...],
    weights: tuple[Floats, ...],
    residuals: tuple[Floats, ...],
    norms: tuple[Floats, ...],
    eps: np.float32,
    out: tuple[Floats, ...],
) -> None:
    """Write c^i_t for every token t and layer i into `out`.

    Args:
        first: [C]; context before the first token; overwritten with the last context.
        reset: [rows]; whether the context before a token is zero.
        given: L arrays; term that layer i adds before its ReLU: [rows, D_i] if it reads tokens, else its bias [1, D_i].
        weights: L arrays [D_{i-1}, D_i]; context part of each layer's matrix, transposed.
        residuals: L arrays [D_{i-1} + 1, D_i]; residual projection, transposed, with its bias as the last row; no rows
            if the residual is the context itself.
        norms: L arrays [2, D_i]; scale and shift of each layer's norm.
        eps: epsilon of the norms.
        out: L arrays [rows, D_i].
    """
    layers = len(out)
    widest = len(first)
    for i in range(layers):
        widest = max(widest, out[i].shape[1])
    state, moved, carried = np.zeros(widest, np.float32), np.zeros(widest, np.float32), np.zeros(widest, np.float32)
    state[: len(first)] = first
    for t in range(len(reset)):
        if reset[t]:
            state[:] = 0
        for i in range(layers):
            added = given[i]
            _product(added, t if len(added) > 1 else 0, state, weights[i], len(weights[i]), moved)
            if len(residuals[i]):
                _product(residuals[i], len(residuals[i]) - 1, state, residuals[i], len(residuals[i]) - 1, carried)
                _norm(moved, carried, norms[i], eps, out[i], t, state)
            else:
                _norm(moved, state, norms[i], eps, out[i], t, state)
    first[:] = state[: len(first)]


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _product(  # noqa: PLR0917  the same
    added: Floats, row: int, x: Floats, matrix: Floats, rows: int, out: Floats
) -> None:
    """added[row] + x @ matrix[:rows], four rows at a time, so `out` is loaded and stored a quarter as often.

    Indices instead of slices, because reference counting of slices costs more than the arithmetic.
    """
    columns = matrix.shape[1]
    for j in range(columns):
        out[j] = added[row, j]
    whole = rows // 4
    for k in range(whole):
        a, b, c, d = x[4 * k], x[4 * k + 1], x[4 * k + 2], x[4 * k + 3]
        for j in range(columns):
            out[j] += (
                a * matrix[4 * k, j] + b * matrix[4 * k + 1, j] + c * matrix[4 * k + 2, j] + d * matrix[4 * k + 3, j]
            )
    for k in range(4 * whole, rows):
        a = x[k]
        for j in range(columns):
            out[j] += a * matrix[k, j]


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _norm(  # noqa: PLR0917  the same
    moved: Floats, carried: Floats, norm: Floats, eps: np.float32, out: Floats, row: int, state: Floats
) -> None:
    """LN(carried + relu(moved)) into `state` and out[row]."""
    width = out.shape[1]
    total = np.float32(0)
    for j in range(width):
        state[j] = carried[j] + max(moved[j], np.float32(0))
        total += state[j]
    mean, spread = total / np.float32(width), np.float32(0)
    for j in range(width):
        state[j] -= mean
        spread += state[j] * state[j]
    scale = np.float32(1) / np.sqrt(spread / np.float32(width) + eps)
    for j in range(width):
        state[j] = state[j] * scale * norm[0, j] + norm[1, j]
        out[row, j] = state[j]
