"""Rows: patch i acts on row i of the batch, so that different edits are measured in one forward.

Patches of one shape become one row patch with a row of tensors each (`Patch.batch`). Other patches
run one by one on their rows, which is slower and gives equal results.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from errata.core.hooks.context import HookContext, map_decision
from errata.core.model.live_patches import live_hooks
from errata.core.patch import (
    Patch,
    PromptEncoder,
    common_header,
    parts_of,
    settled,
    trainable,
)
from errata.core.types import Prompt
from errata.patches.stack import pack_parts, stacked, unpack_parts

if TYPE_CHECKING:
    from errata.core.model.backbone import Backbone


class Rows(Patch):
    """A patch per row: row b of a batch uses patch ctx.rows[b], or b where no rows are given.

    settled: the patches as they act, without edits that a later part of a row contradicts. A part
    that stands in several rows is another object in each: decisions are kept by object.
    """

    one_when_live = True
    rows: int

    def __init__(self, patches: Sequence[Patch]) -> None:
        super().__init__({s for p in patches for s in p.sites})
        self.rows = len(patches)
        self.patches = nn.ModuleList(patches)
        self.settled = tuple(_apart([_settled(p) for p in patches]))
        self.decides = any(p.decides for p in patches)
        self.edits = tuple(e for p in patches for e in p.edits)
        self.header = common_header(patches)
        self.layers = _layers(self.settled)
        if self.layers is not None:
            self.sites = frozenset(s for q in self.layers for s in q.sites)

    def members(self) -> list[Patch]:
        return list(self.patches)  # type: ignore[arg-type]

    @property
    def rewrites(self) -> bool:
        return any(p.rewrites for p in self.members())

    def rewrite(self, prompt: Prompt, model: PromptEncoder, row: int = 0) -> Prompt:
        return self.settled[row].rewrite(prompt, model, 0)

    def acting(self) -> list[Patch]:
        return [self] if self.layers is None else self.layers

    def read(self, prompts: Sequence[Prompt], model: Backbone, ctx: HookContext) -> None:
        of_row = ctx.rows if ctx.rows is not None else torch.arange(len(prompts))
        of_row = self._first(of_row)
        for i in torch.unique(of_row).tolist():
            index = (of_row == i).nonzero()[:, 0]
            with _kept(ctx, _of_rows(ctx, index), index, len(prompts)) as part:
                self.settled[i].read([prompts[b] for b in index.tolist()], model, part)

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        return self._each(site, x, y, ctx, lambda p, a, b, c: p.at(site, a, b, c))

    def before(self, site: str, x: Tensor, ctx: HookContext) -> Tensor:
        return self._each(site, x, x, ctx, lambda p, a, b, c: p.before(site, b, c))

    def _each(self, site: str, x: Tensor, y: Tensor, ctx: HookContext, run: Any) -> Tensor:
        """Runs each patch on its rows; decisions are stored in the memo for the whole batch."""
        pictures = ctx.sites[site].stream != "text"
        of_x, of_y = ctx.rows_of(site, x), ctx.rows_of(site, y)
        patches = self.settled
        of_x, of_y = self._first(of_x), self._first(of_y)
        parts = []
        for i in torch.unique(of_y).tolist():
            p = patches[i]
            index = (of_y == i).nonzero()[:, 0]
            if site not in p.sites:
                parts.append((index, y[index]))
                continue
            part_ctx = _of_images(ctx, index) if pictures else _of_rows(ctx, index)
            with _kept(ctx, part_ctx, index, y.shape[0]):
                parts.append((index, run(p, x[of_x == i], y[index], part_ctx)))
        order = torch.cat([i for i, _ in parts])
        return torch.cat([v for _, v in parts])[torch.argsort(order)]

    def _first(self, rows: Tensor) -> Tensor:
        """Rows that share one patch run together, under the first of them."""
        patches = self.settled
        first = [next(i for i, q in enumerate(patches) if q is p) for p in patches]
        return torch.tensor(first, device=rows.device)[rows]

    @classmethod
    def merge(cls, patches: Sequence[Self]) -> Self | None:
        """Row i gets a stack of all patches of row i."""
        if len({p.rows for p in patches}) != 1:
            return None
        return cls([stacked(*row) for row in zip(*(p.members() for p in patches), strict=True)])

    def between(self, below: Sequence[Patch], above: Sequence[Patch]) -> Rows:
        return type(self)([stacked(*below, p, *above) for p in self.members()])

    def to_devices(self, device_of: Callable[[str], torch.device]) -> None:
        for p in (*self.members(), *self.settled, *(self.layers or ())):
            p.to_devices(device_of)

    def pack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return pack_parts(self.members())

    @classmethod
    def unpack(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        return cls(unpack_parts(settings, tensors))


@contextmanager
def _kept(ctx: HookContext, part: HookContext, index: Tensor, rows: int) -> Iterator[HookContext]:
    """Decisions that are made inside for rows `index` are kept in `ctx`, for the whole batch."""
    before = set(part.memo)
    yield part
    spread = partial(_spread, index=index, rows=rows)
    for key in part.memo.keys() - before:
        ctx.memo[key] = map_decision(part.memo[key], spread)


def _of_rows(ctx: HookContext, index: Tensor) -> HookContext:
    """The context for rows `index` of the batch, all of which use row 0 of a single patch."""
    part = ctx.select(index) if ctx.lengths is not None else replace(ctx, memo={})
    part.rows = torch.zeros_like(index)
    return part


def _of_images(ctx: HookContext, index: Tensor) -> HookContext:
    """The same at a vision or drawing site, whose entries are not rows of the batch."""
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


def _settled(patch: Patch) -> Patch:
    """The patch of a row without edits that a later part of it contradicts."""
    parts = settled([patch]) if patch.members() else [patch]
    if parts == parts_of(patch):
        return patch
    return stacked(*(p for p in parts if isinstance(p, Patch)))


def _apart(patches: Sequence[Patch]) -> list[Patch]:
    """The same patches; parts that stand in several are copied, without their tensors."""
    seen: set[int] = set()
    first: dict[int, Patch] = {}
    for patch in patches:
        if id(patch) in first:
            continue
        parts = parts_of(patch) if patch.rows is None else [patch]
        if any(id(p) in seen for p in parts):
            own = [copy.copy(p) if id(p) in seen else p for p in parts]
            first[id(patch)] = stacked(*own)
        else:
            first[id(patch)] = patch
        seen |= {id(p) for p in parts}
    return [first[id(p)] for p in patches]


def _layers(patches: Sequence[Patch]) -> list[Patch] | None:
    """Stacks of equal height as row patches, one per level; None if the shapes differ."""
    if not patches or any(trainable(p) for p in patches):
        return None
    # patches without sites only rewrite prompts, which is done per row
    stacks = [[q for q in live_hooks([p]) if isinstance(q, Patch)] for p in patches]
    if len({len(s) for s in stacks}) != 1:
        return None
    layers: list[Patch] = []
    for level in zip(*stacks, strict=True):
        alike = len({type(p) for p in level}) == 1 and all(p.rows is None for p in level)
        one = type(level[0]).batch(level) if alike else None
        if one is None:
            return None
        layers.append(one)
    return layers
