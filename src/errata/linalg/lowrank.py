"""Low-rank changes dW = B A of a matrix W [o, n]: norm, norm limit, and rounding error.

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
    """(B, factor): B scaled so that |B A|_F <= most; factor 1 if it was within the limit."""
    size = norm(a_rn, b_or)
    factor = most / size if size > most else 1.0
    return b_or * factor, factor


def rounding(weight_on: Tensor, a_rn: Tensor, b_or: Tensor, dtype: torch.dtype) -> float:
    """|dW' - dW|_F / |dW|_F where dW' = (W + dW rounded to dtype) - (W rounded to dtype)."""
    exact = (b_or.double() @ a_rn.double()).to(weight_on.device)
    rounded = (weight_on.double() + exact).to(dtype).double() - weight_on.to(dtype).double()
    return float((rounded - exact).norm() / exact.norm().clamp(min=1e-300))
