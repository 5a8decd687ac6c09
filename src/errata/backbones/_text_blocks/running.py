"""Continuous batching: rows of several questions in one forward, joining and leaving between steps.

The columns of every row are moved to the right, so that the newest token of all rows is the last
column, also for attention that counts columns. The columns before a row's prompt are masked. What a
hook has decided at a row's prefill stays with that row (`errata.core.hooks.grouped`).

Shapes: B rows, T columns of a prefill, K columns kept, V vocabulary, h heads, n features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from errata.backbones._forward import DecoderForward
from errata.backbones._scoring import DecoderQuestion
from errata.backbones._suffix import columns_at, copied
from errata.core.hooks.context import HookContext
from errata.core.hooks.grouped import Grouped, QuestionRows, decides, kept
from errata.core.hooks.hook import Hook
from errata.core.model.batch import DecodeBatch, Question
from errata.core.model.live_patches import live_hooks


class RunningRows(DecodeBatch):
    """The rows of a decoder-only model, with one KV cache for all of them.

    mask [B, K]; position [..., B, 1] of the next token, one axis or several; patch_rows [B]: the
    patch row of each.
    """

    def __init__(self, bb: DecoderForward, hooks: Sequence[Hook]) -> None:
        self.bb, self.hooks, self.size = bb, tuple(hooks), 0
        # merged once: decisions are kept under the hook that made them
        self.running = tuple(live_hooks(hooks))
        self.groups: list[QuestionRows] = []
        self.stepping = [Grouped(h, self.groups) if decides(h) else h for h in self.running]
        self.cache: Any = None
        self.mask = self.lengths = self.position = self.patch_rows = torch.empty(0)

    @contextmanager
    def asking(self) -> Iterator[None]:
        with self.bb.hooks.block(self.hooks, lambda _: self.running, alone=True):
            yield

    @torch.no_grad()
    def join(self, question: Question) -> None:
        assert isinstance(question, DecoderQuestion) and question.cache is not None
        batch, ctx = question.batch, question.ctx
        assert not any(batch.targets), "rows that join have no target"
        lengths, count = batch.lengths, batch.size
        longest = int(lengths.max())
        source = torch.arange(longest, device=lengths.device) - (longest - lengths)[:, None]
        cache, mask = copied(question.cache), (source >= 0).long()
        if not bool(mask.all()) or longest != batch.ids.shape[1]:
            _each_layer(cache, lambda states: columns_at(states, source))
        next_column = torch.zeros_like(lengths)
        position = self.bb.next_positions(question.trunk, lengths, next_column, 1)
        rows = torch.arange(count) if ctx.rows is None else ctx.rows
        self.groups.append(QuestionRows(ctx, count))
        if not self.size:
            self.cache, self.mask = cache, mask
            self.lengths, self.position, self.patch_rows = lengths, position, rows
        else:
            width = max(longest, self.mask.shape[1])
            _each_layer(self.cache, lambda states: _widened(states, width))
            _each_layer(cache, lambda states: _widened(states, width))
            for mine, new in zip(self.cache.layers, cache.layers, strict=True):
                if mine.is_initialized:
                    mine.keys = torch.cat([mine.keys, new.keys])
                    mine.values = torch.cat([mine.values, new.values])
            masks = (_widened(m[:, None, :, None], width)[:, 0, :, 0] for m in (self.mask, mask))
            self.mask = torch.cat(list(masks))
            self.lengths = torch.cat([self.lengths, lengths])
            self.position = _joined([self.position, position])
            self.patch_rows = torch.cat([self.patch_rows, rows])
        self.size += count

    def keep(self, rows: Sequence[int]) -> None:
        if len(rows) == self.size:
            return
        index = torch.tensor(list(rows), dtype=torch.long, device=self.mask.device)
        left, start = [], 0
        for group in self.groups:
            own = index[(index >= start) & (index < start + group.size)] - start
            start += group.size
            if len(own):
                left.append(kept(group, own))
        self.groups[:] = left
        self.size = len(rows)
        if not rows:
            self.cache = None
            self.mask = self.lengths = self.position = self.patch_rows = torch.empty(0)
            return
        self.mask, self.lengths = self.mask[index], self.lengths[index]
        self.position = self.position.index_select(-2, index.to(self.position.device))
        self.patch_rows = self.patch_rows[index.to(self.patch_rows.device)]
        first = int(self.mask.any(0).int().argmax())  # columns that no row needs any more
        self.mask = self.mask[:, first:]
        _each_layer(self.cache, lambda s: s[index.to(s.device)][:, :, first:])

    @torch.no_grad()
    def feed(self, ids: Tensor) -> Tensor:
        bb = self.bb
        column = torch.ones(self.size, 1, dtype=self.mask.dtype, device=self.mask.device)
        self.mask = torch.cat([self.mask, column], dim=1)
        ctx = bb.hooks.context(
            lengths=self.lengths, rows=self.patch_rows, mask=self.mask, prefilled=True,
            shape=(self.size, 1),
        )  # fmt: skip
        self._tell_groups()
        trunk = {
            "input_ids": ids[:, None].to(self.mask.device),
            "attention_mask": self.mask,
            "position_ids": self.position,
        }
        with bb.hooks.block(self.hooks, lambda _: self.stepping, alone=True):
            stream = bb.run_text(trunk, ctx, cache=self.cache)
            self.position = self.position + 1
            return bb.logits_of(stream, ctx)[:, -1]

    def _tell_groups(self) -> None:
        """Gives each group's context the columns of its rows."""
        start = 0
        for group in self.groups:
            own: HookContext = group.ctx
            own.shape, own.prefilled = (group.size, 1), True
            own.mask = self.mask[start : start + group.size]
            start += group.size


def _each_layer(cache: Any, run: Callable[[Tensor], Tensor]) -> None:
    """Changes keys and values [B, h, K, n] of every block that has its own."""
    for layer in cache.layers:
        if layer.is_initialized:
            layer.keys, layer.values = run(layer.keys), run(layer.values)


def _joined(positions: Sequence[Tensor]) -> Tensor:
    """[B, 1] or [axes, B, 1] each; a question without a picture has one position for all axes."""
    axes = next((p.shape[0] for p in positions if p.dim() == 3), None)
    if axes is not None:
        positions = [p if p.dim() == 3 else p.expand(axes, -1, -1) for p in positions]
    return torch.cat(list(positions), dim=-2)


def _widened(states: Tensor, width: int) -> Tensor:
    """[B, h, K, n] -> [B, h, width, n], zeros in front."""
    return nn.functional.pad(states, (0, 0, width - states.shape[2], 0))
