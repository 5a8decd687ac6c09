"""Base of the shapes that are named tensors per site: storage, rows, packing.

Tensors are float32. With `rows` set, each has a leading row dimension: row b of a batch uses row
ctx.rows[b]. A subclass defines what its tensors add (`change`) and how several patches are merged
(`merge`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from types import MappingProxyType
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from errata.core.hooks.context import HookContext
from errata.core.patch import Patch
from errata.patches._rows import per_row, picked, spread

Parts = Mapping[str, Mapping[str, Tensor]]


class PartsPatch(Patch):
    """Adds a function of a site's input, given by the site's tensors, to the site's output."""

    #: keyword arguments of the constructor beside `parts` and `rows`, JSON-ready attributes
    option_names: ClassVar[tuple[str, ...]] = ()

    pointwise = True
    #: site -> how many of its neurons or ranks are not zeros that `merge` has added
    filled: Mapping[str, int] = MappingProxyType({})

    def __init__(self, parts: Parts, *, rows: int | None = None) -> None:
        super().__init__(tuple(parts))
        self.rows = rows
        self.names = {site: f"p{i}" for i, site in enumerate(parts)}
        self.parts_ = nn.ModuleDict(
            {
                self.names[site]: nn.ParameterDict({k: _parameter(v) for k, v in tensors.items()})
                for site, tensors in parts.items()
            }
        )

    @abstractmethod
    def change(self, x: Tensor, part: Mapping[str, Tensor]) -> Tensor:
        """What is added for x [..., m, n]; the tensors' leading dimensions match x's."""

    def options(self) -> dict[str, Any]:
        """Settings beside the tensors."""
        return {name: getattr(self, name) for name in self.option_names}

    def part(self, site: str) -> dict[str, nn.Parameter]:
        part = self.parts_[self.names[site]]
        assert isinstance(part, nn.ParameterDict)
        return dict(part.items())

    def frozen_part(self, site: str, dims: Mapping[str, int]) -> dict[str, Tensor]:
        """The tensors of a site without the zeros that `merge` has added.

        dims: name -> the dimension along which neurons or ranks lie.
        """
        count = self.filled.get(site)
        part: dict[str, Tensor] = {k: p.detach() for k, p in self.part(site).items()}
        for name in dims:
            if count is not None and name in part:
                part[name] = part[name].narrow(dims[name], 0, count)
        return part

    def form(self) -> tuple[Any, ...]:
        """Equal for patches with the same sites, tensor names and options."""
        names = tuple((s, tuple(sorted(self.part(s)))) for s in sorted(self.names))
        return (names, tuple(sorted(self.options().items())))

    def site_of(self, tensor: str) -> str:
        by_name = {v: k for k, v in self.names.items()}
        return by_name[tensor.split(".")[1]]

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        columns = ctx.needed.get(site)
        if columns is None or len(columns) != len(x):
            return y + self._change(site, x.float(), ctx).to(y.dtype)
        columns = columns.to(x.device)
        rows = torch.arange(len(x), device=x.device)[:, None]
        change = self._change(site, x[rows, columns].float(), ctx).to(y.dtype)
        return y + spread(change, columns, x.shape[1])

    def _change(self, site: str, x: Tensor, ctx: HookContext) -> Tensor:
        """What is added for x [B, m, n]."""
        part = self.part(site)
        if self.rows is not None:
            rows = ctx.rows_of(site, x)
            return per_row(x, rows, self.rows, lambda v, i: self.change(v, picked(part, i)))
        searched = any(t.requires_grad for t in (x, *part.values()))
        if ctx.kept is None or searched or not torch.is_grad_enabled():
            return self.change(x, part)
        # in a search, what lies below the searched patch gives this site the same x at every step
        key, tensors = (id(self), site), list(part.values())
        known, versions = ctx.kept.get(key), [t._version for t in tensors]
        if (
            known is None
            or any(a is not b for a, b in zip_longest(known[0], tensors))
            or known[1] != versions
            or not torch.equal(known[2], x)
        ):
            known = ctx.kept[key] = (tensors, versions, x.clone(), self.change(x, part))
        change: Tensor = known[3]
        return change

    def pack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        tensors: dict[str, Tensor] = {
            f"{s}/{k}": p for s in self.names for k, p in self.part(s).items()
        }
        return {"rows": self.rows, **self.options()}, tensors

    @classmethod
    def unpack(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            site, name = key.rsplit("/", 1)
            parts.setdefault(site, {})[name] = tensor
        options = {name: settings[name] for name in cls.option_names}
        return cls(parts, rows=settings["rows"], **options)

    @classmethod
    def batch(cls, patches: Sequence[Self]) -> Self | None:
        first = patches[0]
        if any(p.form() != first.form() for p in patches):
            return None
        # by name: patches that were loaded hold their sites in any order
        stacks = {s: {k: [p._with_rows(s, k) for p in patches] for k in first.part(s)}
                  for s in first.names}  # fmt: skip
        all_stacks = [stack for part in stacks.values() for stack in part.values()]
        if any(len({t.shape[1:] for t in stack}) != 1 for stack in all_stacks):
            return None
        parts = {s: {k: torch.cat(v) for k, v in part.items()} for s, part in stacks.items()}
        rows = sum(1 if p.rows is None else p.rows for p in patches)
        return cls(parts, rows=rows, **first.options()).requires_grad_(False)

    def _with_rows(self, site: str, name: str) -> Tensor:
        """A tensor with a leading row dimension."""
        tensor = self.part(site)[name].detach()
        return tensor if self.rows is not None else tensor[None]

    def row(self, index: int) -> Self:
        """Row `index` as a single patch."""
        assert self.rows is not None
        parts = {
            s: {k: p.detach()[index].clone() for k, p in self.part(s).items()} for s in self.names
        }
        return type(self)(parts, **self.options())


def _parameter(value: Tensor) -> nn.Parameter:
    return value if isinstance(value, nn.Parameter) else nn.Parameter(value.detach().float())
