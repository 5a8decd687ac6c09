"""Continuations of models that cannot go on from a right-padded KV cache.

A linear attention or a convolution keeps one state per row, which has read the padding of the
shorter rows; a cross-attention keeps keys of pictures in place of columns. Their continuations are
answered by whole forwards over prompt and tokens so far. Right padding does not matter there:
no real column reads a later one.

Shapes: B rows, b of them that are continued, T columns, m new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from errata.backbones._forward import DecoderForward
from errata.backbones._text_blocks import cross
from errata.core.hooks.context import HookContext
from errata.core.model.batch import Batch

#: children of a block whose state after a prompt is not one entry per column
MIXERS = ("linear_attn", "conv", "short_conv", "mamba", "mixer", "recurrent")


def is_cacheable(text: nn.Module, blocks: Iterable[nn.Module]) -> bool:
    """Whether all blocks keep keys and values per column of the text."""
    return not cross.reads_pictures(text) and not any(
        isinstance(getattr(block, name, None), nn.Module) for block in blocks for name in MIXERS
    )


def with_targets(batch: Batch, targets: Sequence[Sequence[int]]) -> Batch:
    """The same prompts with other targets."""
    prompts = [batch.ids[b, :n].tolist() for b, n in enumerate(batch.lengths.tolist())]
    rows = [[*prompt, *target] for prompt, target in zip(prompts, targets, strict=True)]
    columns, device = max(map(len, rows)), batch.ids.device
    former, old = batch.ids.shape[1], dict(batch.inputs)
    ids = torch.tensor([row + [0] * (columns - len(row)) for row in rows], device=device)
    sizes = torch.tensor([len(row) for row in rows], device=device)
    mask = (torch.arange(columns, device=device) < sizes[:, None]).long()
    prompt = torch.arange(columns, device=device) < batch.lengths[:, None]

    def of_prompt(value: Tensor) -> Tensor:
        """[B, columns], zeros after the prompt."""
        value = nn.functional.pad(value[:, :columns], (0, max(0, columns - former)))
        return value * prompt.to(value.dtype)

    types = {k: of_prompt(v) for k, v in old.items() if k.endswith("token_type_ids")}
    inputs = {**old, **types, "input_ids": ids, "attention_mask": mask}
    if cross.MASK in old:
        inputs[cross.MASK] = cross.extended(old[cross.MASK], batch.lengths, columns)
    vision = of_prompt(batch.vision.long()).bool()
    return replace(batch, inputs=inputs, vision=vision, targets=tuple(map(tuple, targets)))


class Recomputed:
    """Tokens after the prompts of some rows of a question, read in whole forwards."""

    def __init__(
        self, bb: DecoderForward, batch: Batch, ctx: HookContext, index: Tensor, kept: Tensor
    ) -> None:
        """index [b]: which rows of the batch. kept [b]: how many target tokens they begin with.

        ctx: of the question, whose decisions hold.
        """
        self.bb, self.batch, self.ctx, self.index = bb, batch, ctx, index
        self.offset = kept.clone()
        self.tokens: list[list[int]] = [[] for _ in range(batch.size)]
        for b, n in zip(index.tolist(), kept.tolist(), strict=True):
            self.tokens[b] = list(batch.targets[b][:n]) if n else []
        self.tower: list[Any] = []

    def keep(self, at: Tensor) -> None:
        """Goes on with some of its rows only."""
        self.index, self.offset = self.index[at], self.offset[at]

    @torch.no_grad()
    def feed(self, ids: Tensor, real: Tensor | None = None) -> Tensor:
        """Appends ids [b, m] (columns where `real` is 0 are padding): logits [b, m, V]."""
        bb, batch, m = self.bb, self.batch, ids.shape[1]
        counts = [m] * len(ids) if real is None else real.sum(1).tolist()
        for b, row, n in zip(self.index.tolist(), ids.tolist(), counts, strict=True):
            self.tokens[b] += row[:n]
        whole = with_targets(batch, self.tokens)
        ctx = bb.context_of(whole, self.ctx.rows)
        ctx.memo.update(self.ctx.memo)
        first = (batch.lengths[self.index] + self.offset)[:, None]
        columns = first + torch.arange(m, device=first.device)
        columns = columns.clamp(max=whole.ids.shape[1] - 1)
        of_all = torch.zeros(batch.size, m, dtype=torch.long, device=columns.device)
        of_all[self.index] = columns
        stream = bb.whole_stream(whole, ctx, of_all, self.tower)
        self.offset = self.offset + m
        at = columns.to(stream.device)
        return bb.logits_of(stream[self.index.to(stream.device)[:, None], at], ctx)
