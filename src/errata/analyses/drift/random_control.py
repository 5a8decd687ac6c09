"""Random control: Gaussian update of equal sites, rank and norm."""

from __future__ import annotations

import torch
from torch import Tensor

from errata.core.patch import Patch, parts_of
from errata.patches.delta import Delta
from errata.patches.stack import Stack


def random_control(patch: Patch, rng: torch.Generator) -> Patch | None:
    """A random delta with the sites, ranks and Frobenius norms of `patch`; None for other shapes.

    The entries are independent and Gaussian before they are scaled, so every direction in weight
    space (of that rank) is equally likely.
    """
    parts = parts_of(patch)
    if not parts or any(not isinstance(p, Delta) or p.rows is not None for p in parts):
        return None
    deltas = [_random(p, rng) for p in parts if isinstance(p, Delta)]
    return Stack(deltas) if len(deltas) > 1 else deltas[0]


def _random(patch: Delta, rng: torch.Generator) -> Patch:
    parts: dict[str, dict[str, Tensor]] = {}
    for site in patch.names:
        tensors = {k: v.detach() for k, v in patch.part(site).items()}
        random = {k: torch.randn(v.shape, generator=rng) for k, v in tensors.items()}
        if "A" in tensors:
            random["B"] = random["B"] * (_norm(tensors) / _norm(random)).cpu()
        for name in random.keys() - {"A", "B"}:
            random[name] = random[name] * (tensors[name].norm() / random[name].norm()).cpu()
        parts[site] = {k: v.to(tensors[k]) for k, v in random.items()}
    return Delta(parts).requires_grad_(False).with_header(patch.header, patch.edits)


def _norm(part: dict[str, Tensor]) -> Tensor:
    """The Frobenius norm of B A, from the small Gram matrices: ||BA||^2 = tr(A A^T B^T B)."""
    a, b = part["A"].double(), part["B"].double()
    return ((a @ a.T) * (b.T @ b)).sum().clamp_min(0).sqrt().float()
