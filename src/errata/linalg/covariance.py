"""Uncentred second moments E[x x^T]: accumulating, merging, factoring.

Shapes: N vectors of d numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Moment:
    """A running sum of x x^T. Products are taken in float32 at least, the sum in float64."""

    def __init__(self, size: int) -> None:
        self.sum_dd = torch.zeros(size, size, dtype=torch.float64)
        self.count = 0

    def add(self, x_Nd: Tensor) -> None:
        self.add_product(product(x_Nd), len(x_Nd))

    def add_product(self, x_dd: Tensor, count: int) -> None:
        """Adds the `product` of `count` vectors."""
        self.sum_dd += x_dd.to(self.sum_dd)
        self.count += count

    def mean(self) -> Tensor:
        """[d, d] float64."""
        return self.sum_dd / max(1, self.count)


class Products:
    """What a `Moment` would add, in its order: another process adds it up to the same bytes."""

    def __init__(self) -> None:
        self.parts: list[tuple[Tensor, int]] = []

    def add(self, x_Nd: Tensor) -> None:
        self.parts.append((product(x_Nd).cpu(), len(x_Nd)))


def product(x_Nd: Tensor) -> Tensor:
    """[d, d] x^T x, in float32 at least."""
    x_Nd = x_Nd if x_Nd.dtype == torch.float64 else x_Nd.float()
    return x_Nd.T @ x_Nd


def merge(means: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """[d, d] the moment of all vectors, from the moments of parts of them."""
    total = sum(counts)
    return torch.stack([m.double() * (n / total) for m, n in zip(means, counts, strict=True)]).sum(
        0
    )


def scale(moment_dd: Tensor) -> float:
    """tr(C) / d: the mean square of a feature, the unit in which a moment is measured."""
    return float(moment_dd.diagonal().double().mean())


def factor(moment_dd: Tensor, weight: float, ridge: float = 0.0) -> Tensor | None:
    """[d, d] lower Cholesky factor (float64) of weight * (C + ridge * tr(C)/d * I).

    None where that is not positive definite: there were fewer vectors than features, or some
    feature was always zero.
    """
    a = moment_dd.double() * weight
    a.diagonal().add_(weight * ridge * scale(moment_dd))
    lower, info = torch.linalg.cholesky_ex(a)
    if int(info) or not bool(torch.isfinite(lower).all()):
        return None
    bottom, top = lower.diagonal().min(), lower.diagonal().max()
    return lower if float(bottom) > 1e-9 * float(top) else None
