"""The sequential scan of a context block as one compiled loop: a few microseconds per token instead of torch's 130.

The part of each layer that depends on the token alone is computed beforehand as one matrix product over many tokens.
That leaves L small matrix-vector products and layer norms per token.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def scan(  # noqa: PLR0917  compiled: arguments by position
    first: Floats,
    reset: NDArray[np.bool_],
    shapes: NDArray[np.int64],
    given: Floats,
    weights: Floats,
    residuals: Floats,
    norms: Floats,
    eps: np.float32,
    scratch: Floats,
    out: Floats,
) -> int:
    """Write c^i_t for every token t and layer i into `out`; the arrays of the layers stand one after the other.

    Args:
        first: [C]; context before the first token; overwritten with the last context.
        reset: [rows]; whether the context before a token is zero.
        shapes: [L, 4]; per layer D_{i-1}, D_i, whether it reads tokens, whether it projects the residual.
        given: per layer, the term that it adds before its ReLU: [rows, D_i] if it reads tokens, else its bias [D_i].
        weights: per layer [D_{i-1}, D_i]; context part of its matrix, transposed.
        residuals: per projecting layer [D_{i-1} + 1, D_i]; its projection, transposed, with its bias as the last row.
        norms: per layer [2, D_i]; scale and shift of its norm.
        eps: epsilon of the norms.
        scratch: [3, widest layer], overwritten.
        out: per layer [rows, D_i], filled.
    """
    state, moved, carried = scratch[0], scratch[1], scratch[2]
    for j in range(len(first)):
        state[j] = first[j]
    rows = len(reset)
    for t in range(rows):
        if reset[t]:
            state[:] = 0
        added = weight = residual = norm = written = 0
        for i in range(len(shapes)):
            before, width, takes, projects = shapes[i, 0], shapes[i, 1], shapes[i, 2], shapes[i, 3]
            row = added + (t * width if takes else 0)
            _product(given[row : row + width], state, weights[weight:], before, moved)
            if projects:
                bias = residual + before * width
                _product(residuals[bias : bias + width], state, residuals[residual:], before, carried)
                residual = bias + width
            else:
                for j in range(width):
                    carried[j] = state[j]
            at = written + t * width
            _norm(moved, carried, norms[norm : norm + 2 * width], eps, out[at : at + width], state)
            added += rows * width if takes else width
            weight, norm, written = weight + before * width, norm + 2 * width, written + rows * width
    for j in range(len(first)):
        first[j] = state[j]
    return rows


def _product(added: Floats, x: Floats, matrix: Floats, rows: int, out: Floats) -> None:
    """`added` + x @ matrix[:rows], four rows at a time: `out` is loaded and stored a quarter as often."""
    columns = len(added)
    for j in range(columns):
        out[j] = added[j]
    whole = rows // 4
    for k in range(whole):
        a, b, c, d = x[4 * k], x[4 * k + 1], x[4 * k + 2], x[4 * k + 3]
        four = matrix[4 * k * columns : (4 * k + 4) * columns]
        for j in range(columns):
            out[j] += a * four[j] + b * four[columns + j] + c * four[2 * columns + j] + d * four[3 * columns + j]
    for k in range(4 * whole, rows):
        a = x[k]
        for j in range(columns):
            out[j] += a * matrix[k * columns + j]


def _norm(  # noqa: PLR0917  the same
    moved: Floats, carried: Floats, norm: Floats, eps: np.float32, out: Floats, state: Floats
) -> None:
    """LN(carried + relu(moved)) into `state` and `out`."""
    width = len(out)
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
        state[j] = state[j] * scale * norm[j] + norm[width + j]
        out[j] = state[j]
