"""A random change as large as an edit's: what any change of that size would do."""

from __future__ import annotations

import torch
from torch import Tensor

from errata.core.patch import Patch, parts_of
from errata.patches.delta import Delta
from errata.patches.stack import Stack


def chance(patch: Patch, rng: torch.Generator) -> Patch | None:
    """Random changes of the same sites, ranks and Frobenius norms; None where it is no delta.

    The entries are independent and normal before they are scaled, so that every direction in
    weight space (of that rank) is as likely.
    """
    parts = parts_of(patch)
    if not parts or any(not isinstance(p, Delta) or p.rows is not None for p in parts):
        return None
    found = [_random(p, rng) for p in parts if isinstance(p, Delta)]
    return Stack(found) if len(found) > 1 else found[0]


def _random(patch: Delta, rng: torch.Generator) -> Patch:
    parts: dict[str, dict[str, Tensor]] = {}
    for site in patch.names:
        own = {k: v.detach() for k, v in patch.part(site).items()}
        made = {k: torch.randn(v.shape, generator=rng) for k, v in own.items()}
        if "A" in own:
            made["B"] = made["B"] * (_norm(own) / _norm(made)).cpu()
        for name in made.keys() - {"A", "B"}:
            made[name] = made[name] * (own[name].norm() / made[name].norm()).cpu()
        parts[site] = {k: v.to(own[k]) for k, v in made.items()}
    made_patch = Delta(parts).requires_grad_(False)
    return made_patch.with_header(patch.header, patch.edits)


def _norm(part: dict[str, Tensor]) -> Tensor:
    """The Frobenius norm of B A, from the small Gram matrices: ||BA||^2 = tr(A A^T B^T B)."""
    a, b = part["A"].double(), part["B"].double()
    return ((a @ a.T) * (b.T @ b)).sum().clamp_min(0).sqrt().float()
