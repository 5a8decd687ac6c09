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
from errata.patches._rows import joined

#: the dimension of the ranks
RANKS = {"A": 0, "B": 1}


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
        """One matrix or one factor pair per site: low-rank parts are concatenated, until they
        would hold more numbers than a dense part (about r > d/2); dense parts are added up.
        """
        if any(p.rows is not None for p in patches):
            return None
        held: dict[str, list[dict[str, Tensor]]] = {}
        for patch in patches:
            for site in patch.names:
                held.setdefault(site, []).append(patch.frozen_part(site, RANKS))
        sums = {site: _sum(parts) for site, parts in held.items()}
        one = cls({site: part for site, (part, _) in sums.items()}).requires_grad_(False)
        one.filled = {site: rank for site, (_, rank) in sums.items() if rank is not None}
        return one


def _sum(parts: Sequence[Mapping[str, Tensor]]) -> tuple[dict[str, Tensor], int | None]:
    """(one part that adds what all of them add, its rank before `joined` pads; None if dense)."""
    biases = [part["bias"] for part in parts if "bias" in part]
    rest = {"bias": torch.stack(biases).sum(0)} if biases else {}
    if all("A" in part for part in parts):
        rank = sum(len(part["A"]) for part in parts)
        a = joined([part["A"] for part in parts], 0)
        b = joined([part["B"] for part in parts], 1)
        if a.numel() + b.numel() <= a.shape[1] * b.shape[0]:
            return {"A": a, "B": b, **rest}, rank
    dense = None
    for part in parts:
        one = part["dense"] if "dense" in part else part["B"] @ part["A"]
        dense = one if dense is None else dense + one
    assert dense is not None
    return {"dense": dense, **rest}, None
