"""Low-rank changes dW = B A of a matrix W [o, n]: sizes, limits, and what rounding leaves of them.

Shapes: A [r, n], B [o, r].
"""

from __future__ import annotations

import torch
from torch import Tensor


def norm(a_rn: Tensor, b_or: Tensor) -> float:
    """|B A|_F without forming it."""
    a, b = a_rn.double(), b_or.double()
    return float(((b.T @ b) * (a @ a.T)).sum().clamp(min=0).sqrt())


def limited(a_rn: Tensor, b_or: Tensor, most: float) -> tuple[Tensor, float]:
    """(B, factor): B scaled so that |B A|_F <= most; factor 1 where nothing had to be done."""
    size = norm(a_rn, b_or)
    factor = most / size if size > most else 1.0
    return b_or * factor, factor


def rounding(weight_on: Tensor, a_rn: Tensor, b_or: Tensor, dtype: torch.dtype) -> float:
    """|dW' - dW|_F / |dW|_F where dW' is what is left of dW when W + dW is stored once in dtype."""
    change = (b_or.double() @ a_rn.double()).to(weight_on.device)
    kept = (weight_on.double() + change).to(dtype).double() - weight_on.to(dtype).double()
    return float((kept - change).norm() / change.norm().clamp(min=1e-300))
