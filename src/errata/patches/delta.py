"""Delta: y += x dW^T (dense) or y += (x A^T) B^T (low rank) at linear sites, with an optional bias.

The arithmetic is float32 whatever the model's dtype. With `rows` set, every tensor has a leading
row dimension and row b of the batch uses row ctx.rows[b].

Shapes: [B, T, n] -> [B, T, o]; dense [R?, o, n], A [R?, r, n], B [R?, o, r], bias [R?, o].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from errata.core.patch import Patch
from errata.core.ports import Ctx
from errata.patches._rows import padded, per_row, picked

_PARTS = ("dense", "A", "B", "bias")


class Delta(Patch):
    """An additive change of linear maps."""

    def __init__(
        self, parts: Mapping[str, Mapping[str, Tensor]], *, rows: int | None = None
    ) -> None:
        """`parts`: site -> {"dense": ...} or {"A": ..., "B": ...}, each with an optional "bias"."""
        super().__init__(tuple(parts))
        self.rows = rows
        self.names = {site: f"p{i}" for i, site in enumerate(parts)}
        self.parts_ = nn.ModuleDict(
            {
                self.names[site]: nn.ParameterDict({k: _parameter(v) for k, v in tensors.items()})
                for site, tensors in parts.items()
            }
        )

    def part(self, site: str) -> dict[str, nn.Parameter]:
        part = self.parts_[self.names[site]]
        assert isinstance(part, nn.ParameterDict)
        return dict(part.items())

    def site_of(self, tensor: str) -> str:
        by_name = {v: k for k, v in self.names.items()}
        return by_name[tensor.split(".")[1]]

    def at(self, site: str, x: Tensor, y: Tensor, ctx: Ctx) -> Tensor:
        part = self.part(site)
        x32 = x.float()
        if self.rows is None:
            change = _apply(x32, part)
        else:
            change = per_row(
                x32, ctx.rows_of(site, x), self.rows, lambda v, i: _apply(v, picked(part, i))
            )
        return y + change.to(y.dtype)

    def pack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        tensors: dict[str, Tensor] = {
            f"{s}/{k}": p for s in self.names for k, p in self.part(s).items()
        }
        return {"rows": self.rows}, tensors

    @classmethod
    def unpack(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            site, name = key.rsplit("/", 1)
            parts.setdefault(site, {})[name] = tensor
        return cls(parts, rows=settings["rows"])

    @classmethod
    def fuse(cls, patches: Sequence[Self]) -> Self | None:
        """Dense parts add up; low ranks stand side by side (their ranks add up)."""
        shape = {(p.sites, p.rows, _form(p)) for p in patches}
        if len(shape) != 1 or patches[0].rows is not None:
            return None
        parts = {}
        for site in patches[0].names:
            own = [p.part(site) for p in patches]
            parts[site] = {
                k: padded(torch.cat([o[k].detach() for o in own], dim="AB".index(k)), "AB".index(k))
                if k in "AB"
                else torch.stack([o[k].detach() for o in own]).sum(0)
                for k in own[0]
            }
        return cls(parts).requires_grad_(False)

    @classmethod
    def in_rows(cls, patches: Sequence[Self]) -> Self | None:
        shape = {(p.sites, p.rows, tuple(t.shape for t in p.parameters())) for p in patches}
        if len(shape) != 1 or patches[0].rows is not None:
            return None
        parts = {
            site: {
                k: torch.stack([p.part(site)[k].detach() for p in patches])
                for k in patches[0].part(site)
            }
            for site in patches[0].names
        }
        return cls(parts, rows=len(patches)).requires_grad_(False)

    def row(self, index: int) -> Delta:
        """Row `index` as a patch of its own."""
        assert self.rows is not None
        return Delta(
            {s: {k: p.detach()[index].clone() for k, p in self.part(s).items()} for s in self.names}
        )


def _parameter(value: Tensor) -> nn.Parameter:
    return value if isinstance(value, nn.Parameter) else nn.Parameter(value.detach().float())


def _form(patch: Delta) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(sorted(patch.part(s))) for s in sorted(patch.names))


def _apply(x: Tensor, part: Mapping[str, Tensor]) -> Tensor:
    """x [..., m, n] with tensors of matching leading dimensions."""
    if "dense" in part:
        y = x @ part["dense"].transpose(-1, -2)
    else:
        y = (x @ part["A"].transpose(-1, -2)) @ part["B"].transpose(-1, -2)
    if "bias" in part:
        bias = part["bias"]
        y = y + (bias if bias.dim() == 1 else bias[:, None])
    return y
