"""The best approximation of a matrix at a rank: truncated singular value decompositions.

Differences of fine-tuned models have flat spectra, on which a few passes of subspace iteration are not enough. The Gram
matrix gives all singular values, so a rank can be chosen by energy; block Krylov iteration (Musco and Musco 2015) is
faster at a small rank of a wide matrix.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from trainer import TrainerError

Method = Literal["auto", "lapack"]
EXACT = 1024
"""Width up to which the Gram matrix is in float64; float32 loses singular values below 1e-3 of the first."""
OVERSAMPLING = 10
PASSES = 6
"""Passes of block Krylov iteration: its error is that of LAPACK to 1e-5."""
MIN_KRYLOV = 512
"""Width up to which the Gram matrix is used at any rank."""


class RankError(TrainerError):
    """A rank or an energy is out of its range."""


@dataclass(frozen=True, eq=False)
class LowRank:
    """Factors B A of a matrix D [out, in]: `b` [out, r] and `a` [r, in], each with the square roots of the values.

    `values` are the leading singular values, at least r of them, all if `whole`; `energy` is |D|_F^2.
    """

    b: Tensor
    a: Tensor
    values: Tensor
    energy: float
    whole: bool

    @property
    def rank(self) -> int:
        """The number r of columns of `b`."""
        return self.b.shape[1]

    @property
    def kept(self) -> float:
        """The share of |D|_F^2 that the factors keep."""
        kept = float((self.values[: self.rank].double() ** 2).sum())
        return min(kept / self.energy, 1.0) if self.energy else 1.0

    @property
    def stable_rank(self) -> float:
        """|D|_F^2 / s_1^2."""
        return self.energy / float(self.values[0]) ** 2 if self.energy else 0.0


def rank_for(values: Tensor, energy: float, share: float, floor: float = 0.0) -> int:
    """The smallest rank whose residual is at most (1 - `share`) of the energy above a noise `floor`; at least 1.

    `values` [m] are all singular values; the residual after k is `energy` less the sum of the first k squares.
    """
    if not 0 < share <= 1:
        raise RankError(f"--energy is {share}, expected above 0, up to 1")
    allowed = (1 - share) * max(energy - floor, 0.0) + min(floor, energy)
    residual = energy - torch.cumsum(values.double() ** 2, 0)
    enough = torch.nonzero(residual <= allowed * (1 + 1e-12) + 1e-14 * energy)
    return int(enough[0]) + 1 if len(enough) else len(values)


def factor(
    matrix: Tensor,
    rank: int | None,
    *,
    share: float = 0.9,
    most: int = 256,
    method: Method = "auto",
    name: str = "",
    floor: float = 0.0,
) -> LowRank:
    """Factor a matrix, float32 [out, in], at a rank, or at the smallest that keeps a share of its energy (None).

    At most `most` if the rank is chosen. `name` seeds the random start of the Krylov iteration, so that the result does
    not depend on order. `floor` is the energy of rounding, which is not worth a rank.
    """
    energy = energy_of(matrix)
    least = min(matrix.shape)
    if rank is not None and rank < 1:
        raise RankError(f"--rank is {rank}, expected at least 1")
    if method == "lapack":
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        r = min(rank if rank is not None else min(rank_for(s, energy, share, floor), most), least)
        root = s[:r].sqrt()
        return LowRank(u[:, :r] * root, root[:, None] * v[:r], s, energy, whole=True)
    if rank is not None and least > MIN_KRYLOV and (rank + OVERSAMPLING) * 4 < least:
        return _krylov(matrix, rank, energy, name)
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    s, u = _gram(wide)
    r = min(rank if rank is not None else min(rank_for(s, energy, share, floor), most), least)
    left = u[:, :r].to(matrix.dtype)
    rows = left.T @ wide  # B A = U U^T D exactly, whatever the accuracy of the eigenvalues
    root = rows.norm(dim=1).clamp(min=torch.finfo(rows.dtype).tiny).sqrt()
    b, a = left * root, rows / root[:, None]
    if wide is not matrix:
        b, a = a.T, b.T
    return LowRank(b.contiguous(), a.contiguous(), s, energy, whole=True)


def spectrum(gram: Tensor) -> Tensor:
    """Singular values of a matrix, descending, from its Gram matrix."""
    values: Tensor = torch.linalg.eigvalsh(gram)
    return values.flip(0).clamp(min=0).sqrt()


def _gram(wide: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values, descending, and left singular vectors of a matrix with at most as many rows as columns."""
    exact = wide.double() if len(wide) <= EXACT else wide
    values, vectors = torch.linalg.eigh(exact @ exact.T)
    return values.flip(0).clamp(min=0).sqrt(), vectors.flip(1)


def _krylov(matrix: Tensor, rank: int, energy: float, name: str) -> LowRank:
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest(), "little")
    start = torch.randn(wide.shape[1], rank + OVERSAMPLING, generator=torch.Generator().manual_seed(seed))
    block = torch.linalg.qr(wide @ start).Q
    basis = [block]
    for _ in range(PASSES):
        block = torch.linalg.qr(wide @ (wide.T @ block)).Q
        basis.append(block)
    q = torch.linalg.qr(torch.cat(basis, 1)).Q
    u, s, v = torch.linalg.svd(q.T @ wide, full_matrices=False)
    root = s[:rank].sqrt()
    b, a = (q @ u[:, :rank]) * root, root[:, None] * v[:rank]
    if wide is not matrix:
        b, a = a.T, b.T
    return LowRank(b.contiguous(), a.contiguous(), s[: rank + OVERSAMPLING], energy, whole=False)


def energy_of(matrix: Tensor) -> float:
    """|D|_F^2 in float64, a part at a time."""
    parts = torch.split(matrix, max((1 << 22) // max(matrix.shape[1], 1), 1))
    return float(sum(float((part.double() ** 2).sum()) for part in parts))
