"""Low-rank factors of a change of a weight, with the measured loss.

Shapes: dW [o, n] ~ B A with A [r, n], B [o, r].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from errata.artefacts.changes import WeightChange
from errata.core.errors import BadPatch
from errata.linalg.lowrank import norm

#: numbers of a matrix up to which its SVD is made in float64
_SMALL = 1 << 22


@dataclass(frozen=True)
class LoraFactors:
    """A and B as they are stored. error: |B A - dW|_F; size: |dW|_F."""

    a: Tensor
    b: Tensor
    error: float
    size: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def loss(self) -> float:
        """Relative Frobenius error; 0 for a change of zero."""
        return self.error / self.size if self.size else 0.0

    def padded(self, rank: int) -> LoraFactors:
        """The same with zeros up to a rank."""
        more = rank - self.rank
        a = torch.cat([self.a, self.a.new_zeros(more, self.a.shape[1])])
        b = torch.cat([self.b, self.b.new_zeros(self.b.shape[0], more)], 1)
        return LoraFactors(a, b, self.error, self.size)


def factors(
    change: WeightChange, rank: int | None = None, dtype: torch.dtype = torch.float32
) -> LoraFactors:
    """The best factors of at most `rank`; without `rank`, exact ones.

    Those that the change has already are kept as they are. A dense change is decomposed (SVD) up to
    its numerical rank. The loss is measured on what is returned, rounding to `dtype` included.
    Raises BadPatch where a number is too large for `dtype`.
    """
    out, into = change.shape
    most = min(out, into, rank or min(out, into))
    if change.dense is None and change.a.shape[0] <= most:
        a, b = change.a, change.b
    elif change.dense is None and change.a.shape[0] < min(out, into):
        a, b = _of_factors(change.a, change.b, most)
    else:
        a, b = _of_matrix(change.rows(0, out), most)
    if not a.shape[0]:
        a, b = torch.zeros(1, into), torch.zeros(out, 1)  # a LoRA has a rank of at least 1
    a, b = a.to(dtype).contiguous(), b.to(dtype).contiguous()
    if not (bool(a.isfinite().all()) and bool(b.isfinite().all())):
        raise BadPatch(f"the patch has numbers too large for {dtype}. Use --dtype float32.")
    return LoraFactors(a, b, *_measured(change, a, b))


def _of_factors(a_rn: Tensor, b_or: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The SVD of B A through those of small matrices: dW is never formed."""
    b_q, b_r = torch.linalg.qr(b_or.double())
    a_q, a_r = torch.linalg.qr(a_rn.double().T)
    u, s, v = torch.linalg.svd(b_r @ a_r.T, full_matrices=False)
    root = s[:most].sqrt()
    a, b = root[:, None] * (v[:most] @ a_q.T), (b_q @ u[:, :most]) * root
    return a.float(), b.float()


def _of_matrix(full_on: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The SVD of dW, without directions that are zero up to rounding in float32."""
    matrix = full_on if full_on.numel() <= _SMALL else full_on.float()
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    least = s.max() * max(full_on.shape) * torch.finfo(torch.float32).eps * 1e-2
    keep = min(most, int((s > least).sum()))
    root = s[:keep].sqrt()
    return (root[:, None] * v[:keep]).float(), (u[:, :keep] * root).float()


def _measured(change: WeightChange, a: Tensor, b: Tensor) -> tuple[float, float]:
    """(|B A - dW|_F, |dW|_F)."""
    if change.dense is None:
        size = norm(change.a, change.b)
        same = a.dtype == torch.float32 and a.shape == change.a.shape
        if same and torch.equal(a, change.a) and torch.equal(b, change.b):
            return 0.0, size
    error, total = 0.0, 0.0
    step = max(1, (1 << 22) // change.shape[1])
    for start in range(0, change.shape[0], step):
        exact = change.rows(start, min(start + step, change.shape[0]))
        made = b[start : start + step].double() @ a.double()
        error += float((made - exact).square().sum())
        total += float(exact.square().sum())
    return error**0.5, total**0.5
