"""Rows of several questions in one forward: each question keeps the decisions of its prefill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from errata.core.hooks.context import HookContext
from errata.core.hooks.hook import Hook, walk


@dataclass(eq=False)
class QuestionRows:
    """Some rows of a batch that were prefilled together: their context, and how many they are."""

    ctx: HookContext
    size: int


class Grouped(Hook):
    """A hook, run on each group of rows with the context of its own question.

    Decisions are made once per question, in forms that only the hook knows, so they are not joined.
    groups: of all rows of the batch, in order; the list is changed as rows join and leave.
    """

    def __init__(self, hook: Hook, groups: Sequence[QuestionRows]) -> None:
        super().__init__(hook.sites)
        self.hook, self.groups = hook, groups

    def before(self, site: str, x: Tensor, ctx: HookContext) -> Tensor:
        return self._each(x, x, lambda a, b, own: self.hook.before(site, b, own))

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        return self._each(x, y, lambda a, b, own: self.hook.at(site, a, b, own))

    def _each(
        self, x: Tensor, y: Tensor, run: Callable[[Tensor, Tensor, HookContext], Tensor]
    ) -> Tensor:
        if len(self.groups) == 1:
            return run(x, y, self.groups[0].ctx)
        sizes = [g.size for g in self.groups]
        parts = zip(torch.split(x, sizes), torch.split(y, sizes), self.groups, strict=True)
        return torch.cat([run(a, b, g.ctx) for a, b, g in parts])


def decides(hook: Hook) -> bool:
    """Whether a hook, or a member of it, keeps something from the prefill for later forwards."""
    return any(h.decides or h.ahead or h.reads_prompts or not h.pointwise for h in walk(hook))


def kept(group: QuestionRows, index: Tensor) -> QuestionRows:
    """The group with some of its rows."""
    if len(index) == group.size:
        return group
    ctx = group.ctx.select(index)
    return QuestionRows(replace(ctx, shape=(len(index), ctx.shape[1])), len(index))
