"""Rows: patch i on row i of the batch, so that different edits are asked in one forward.

Patches of one shape become one patch whose tensors have a row each (`Patch.in_rows`). Others run
one by one on their rows; that is slower and equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from errata.core.hooks.manager import map_decision
from errata.core.patch import Patch, common_header, fused
from errata.core.types import Prompt
from errata.patches.stack import Stack, pack_parts, unpack_parts

if TYPE_CHECKING:
    from errata.core.backbone import Backbone
    from errata.core.hooks.manager import HookContext


class Rows(Patch):
    """A patch per row: row b of a batch uses patch ctx.rows[b], or b where no rows are given."""

    def __init__(self, patches: Sequence[Patch]) -> None:
        super().__init__(tuple({s for p in patches for s in p.sites}))
        self.patches = nn.ModuleList(patches)
        self.decides = any(p.decides for p in patches)
        self.edits = tuple(e for p in patches for e in p.edits)
        self.header = common_header(patches)
        self.layers = _layers(patches)
        self.sites = (
            self.sites
            if self.layers is None
            else frozenset(s for q in self.layers for s in q.sites)
        )

    def join(self, other: Patch) -> Patch:
        """Row by row: what row i meets of both is one stack, with the unions that this makes."""
        if not isinstance(other, Rows) or other.count != self.count:
            return super().join(other)
        return Rows([Stack([a, b]) for a, b in zip(self.members(), other.members(), strict=True)])

    def _first(self, index: int) -> int:
        """The first row that has the patch of this row."""
        return next(i for i in range(self.count) if self.of(i) is self.of(index))

    def of(self, index: int) -> Patch:
        return self.patches[index]  # type: ignore[return-value]

    def members(self) -> list[Patch]:
        return list(self.patches)  # type: ignore[arg-type]

    def acting(self) -> list[Patch]:
        return self.layers or [self]

    def on_row(self, row: int) -> list[Patch]:
        return self.of(row).on_row(0)

    @property
    def count(self) -> int:
        return len(self.patches)

    @property
    def rewrites(self) -> bool:
        return any(p.rewrites for p in self.patches)

    def rewrite(self, prompt: Prompt, backbone: Backbone, row: int = 0) -> Prompt:
        return self.of(row).rewrite(prompt, backbone, 0)

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        return self._each(site, x, y, ctx, lambda p, a, b, c: p.at(site, a, b, c))

    def before(self, site: str, x: Tensor, ctx: HookContext) -> Tensor:
        return self._each(site, x, x, ctx, lambda p, a, b, c: p.before(site, b, c))

    def _each(self, site: str, x: Tensor, y: Tensor, ctx: HookContext, run: Any) -> Tensor:
        """Every patch on its own rows; the question's memo keeps its decisions at full height."""
        pictures = ctx.hooks.sites[site].stream != "text"
        of_x, of_y = ctx.rows_of(site, x), ctx.rows_of(site, y)
        parts = []
        first = torch.tensor([self._first(i) for i in range(self.count)], device=of_y.device)
        of_x, of_y = first[of_x], first[of_y]
        for i in torch.unique(of_y).tolist():
            p = self.of(i)
            index = (of_y == i).nonzero()[:, 0]
            if site not in p.sites:
                parts.append((index, y[index]))
                continue
            own = _of_images(ctx, index) if pictures else _of_rows(ctx, index)
            known = set(own.memo)
            parts.append((index, run(p, x[of_x == i], y[index], own)))
            spread = partial(_spread, index=index, rows=y.shape[0])
            for key in own.memo.keys() - known:
                ctx.memo[key] = map_decision(own.memo[key], spread)
        order = torch.cat([i for i, _ in parts])
        return torch.cat([v for _, v in parts])[torch.argsort(order)]

    def to_backbone(self, backbone: Backbone) -> Self:
        for p in self.patches:
            assert isinstance(p, Patch)
            p.to_backbone(backbone)
        for q in self.layers or ():
            q.to_backbone(backbone)
        return self

    def pack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return pack_parts(list(self.patches))  # type: ignore[arg-type]

    @classmethod
    def unpack(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        return cls(unpack_parts(settings, tensors))


def _of_rows(ctx: HookContext, index: Tensor) -> HookContext:
    """The question for rows `index` of the batch, as row 0 of a patch of its own."""
    own = ctx.select(index) if ctx.lengths is not None else replace(ctx, memo={})
    own.rows = torch.zeros_like(index)
    return own


def _of_images(ctx: HookContext, index: Tensor) -> HookContext:
    """The same at a site that sees or draws pictures: its entries are not rows of the batch."""
    return replace(
        ctx,
        lengths=None,
        mask=None,
        vision=None,
        rows=None,
        image_rows=torch.zeros_like(index),
        image_sizes=None,
        memo={},
    )


def _spread(value: Tensor, index: Tensor, rows: int) -> Tensor:
    full = value.new_zeros((rows, *value.shape[1:]))
    full[index] = value
    return full


def _layers(patches: Sequence[Patch]) -> list[Patch] | None:
    """Stacks of equal height as a list of row patches, one per height; None when shapes differ."""
    if not patches or any(q.requires_grad for p in patches for q in p.parameters()):
        return None
    stacks = [[q for q in fused([p]) if q.sites] for p in patches]  # rewriting is done row by row
    if len({len(s) for s in stacks}) != 1:
        return None
    layers: list[Patch] = []
    for level in zip(*stacks, strict=True):
        one = type(level[0]).in_rows(level) if len({type(p) for p in level}) == 1 else None
        if one is None:
            return None
        layers.append(one)
    return layers
