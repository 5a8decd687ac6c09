"""The approximate null space of a second moment, and the projection onto it.

Shapes: N vectors of d numbers, m columns of a basis.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class NullSpace:
    """P = B B^T, or I - B B^T where the complement has the smaller basis B [d, m].

    `rank` is that of P.
    """

    basis_dm: Tensor
    inside: bool

    @property
    def rank(self) -> int:
        d, m = self.basis_dm.shape
        return m if self.inside else d - m

    def project(self, x_Nd: Tensor, alpha: float = 1.0) -> Tensor:
        """[N, d] float64: P' x with P' = alpha P + (1 - alpha) I."""
        x = x_Nd.to(self.basis_dm.device, torch.float64)
        part = (x @ self.basis_dm) @ self.basis_dm.T
        return alpha * (part if self.inside else x - part) + (1 - alpha) * x


def null_space(moment_dd: Tensor, threshold: float) -> NullSpace:
    """Spanned by the eigenvectors whose eigenvalue is below `threshold`; float64 throughout.

    In float32 the noise of eigenvalues, about 1e-7 of the largest, reaches a usual threshold.
    """
    values, vectors = torch.linalg.eigh(moment_dd.double())
    small = values < threshold
    inside = bool(small.sum() * 2 <= len(small))
    return NullSpace(vectors[:, small if inside else ~small].contiguous(), inside)
