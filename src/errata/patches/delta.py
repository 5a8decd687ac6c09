"""Delta: y += x dW^T (dense) or y += (x A^T) B^T (low rank) at linear sites, with an optional bias.

The arithmetic is float32 whatever the model's dtype. With `rows` set, every tensor has a leading
row dimension and row b of the batch uses row ctx.rows[b].

Shapes: [B, T, n] -> [B, T, o]; dense [R?, o, n], A [R?, r, n], B [R?, o, r], bias [R?, o].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from errata.patches._parts import PartsPatch
from errata.patches._rows import padded


class Delta(PartsPatch):
    """An additive change of linear maps.

    `parts`: site -> {"dense": ...} or {"A": ..., "B": ...}, each with an optional "bias".
    """

    def change(self, x: Tensor, part: Mapping[str, Tensor]) -> Tensor:
        if "dense" in part:
            y = x @ part["dense"].transpose(-1, -2)
        else:
            y = (x @ part["A"].transpose(-1, -2)) @ part["B"].transpose(-1, -2)
        if "bias" in part:
            bias = part["bias"]
            y = y + (bias if bias.dim() == 1 else bias[:, None])
        return y

    @classmethod
    def merge(cls, patches: Sequence[Self]) -> Self | None:
        """Dense parts are added; low-rank parts are concatenated (their ranks add up).

        Where they would hold more numbers than a dense part, they become one.
        """
        if len({p.form() for p in patches}) != 1 or any(p.rows is not None for p in patches):
            return None
        return cls(
            {site: _sum([p.part(site) for p in patches]) for site in patches[0].names}
        ).requires_grad_(False)


def _sum(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """One part that adds what all of them add; they have the same names."""
    total = {}
    for name in parts[0]:
        tensors = [part[name].detach() for part in parts]
        if name in ("A", "B"):
            total[name] = torch.cat(tensors, dim=0 if name == "A" else 1)
        else:
            total[name] = torch.stack(tensors).sum(0)
    if "A" not in total:
        return total
    a, b = total.pop("A"), total.pop("B")
    if a.numel() + b.numel() > a.shape[1] * b.shape[0]:
        return {"dense": b @ a, **total}
    return {"A": padded(a, 0), "B": padded(b, 1), **total}
