"""Rows whose first columns are finished: their keys and values are kept, and only the rest runs.

In a causal model a change at column c leaves all earlier columns as they are. A search that changes
one column of every row therefore needs the blocks above its entry for that column and the later
ones alone; the earlier columns are keys and values that were computed once.

Shapes: B rows, T columns, S columns that still run, P finished columns, h heads, d stream width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from errata.backbones._pruning import TEXT_KEYWORDS, EarlierColumns
from errata.core.hooks.dedup import DedupBatch
from errata.core.hooks.hook import Hook
from errata.core.model.batch import Batch, PrefixState, SuffixState


def keeps_columns(state: PrefixState, running: Iterable[Hook]) -> bool:
    """Whether columns of a state can run without the columns before them.

    The forward must take no tensors but ids, mask and positions; the live hooks must act on each
    column by itself.
    """
    return (
        state.layer > 0
        and by_columns(state.trunk, state.batch)
        and all(h.pointwise or not h.sites for h in running)
    )


def by_columns(trunk: Mapping[str, Any], batch: Batch) -> bool:
    """Whether a text model's forward takes no tensors but ids, mask and positions."""
    mask = trunk.get("attention_mask")
    return (
        isinstance(mask, Tensor)
        and mask.dim() == 2
        and torch.equal(mask.long(), batch.mask.long())
        and not any(_holds_tensors(v) for k, v in trunk.items() if k not in TEXT_KEYWORDS)
    )


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_holds_tensors, value))
    return isinstance(value, Tensor)


def suffix_of(state: PrefixState, cache: Any, first_B: Tensor, depth: int) -> SuffixState | None:
    """The columns of a state from first_B on, behind the `cache` of all its columns.

    None if some block keeps no keys and values of its own.
    """
    assert state.stream is not None
    upper = cache.layers[state.layer : depth]
    if len(upper) < depth - state.layer or not all(layer.is_initialized for layer in upper):
        return None
    batch, device = state.batch, state.batch.ids.device
    first_B = first_B.to(device)
    targets = torch.tensor([len(t) for t in batch.targets], device=device)
    ends_B = torch.maximum(batch.lengths + targets, first_B + 1)  # of the columns that are read
    before, after = int(first_B.max()), int((ends_B - first_B).max())
    if not before:
        return None
    source = torch.arange(before, device=device) - (before - first_B)[:, None]
    at = (first_B[:, None] + torch.arange(after, device=device)).clamp(max=batch.ids.shape[1] - 1)
    runs = torch.arange(after, device=device) < (ends_B - first_B)[:, None]
    stream = _gathered(state.stream, at)
    trunk = {k: v for k, v in state.trunk.items() if k not in TEXT_KEYWORDS}
    trunk["inputs_embeds"] = stream
    trunk["attention_mask"] = torch.cat([source >= 0, runs], dim=1).long()
    positions = state.trunk.get("position_ids")
    trunk["position_ids"] = at if positions is None else _positions(positions, at)
    finished = DynamicCache()
    for i in range(depth):
        # blocks below the entry do not run, but the library counts the first block's columns
        layer = cache.layers[max(i, state.layer)]
        finished.update(columns_at(layer.keys, source), columns_at(layer.values, source), i)
    return SuffixState(
        batch, state.layer, first_B, trunk, stream, finished, state.rows, state.stack, state.memo
    )


def copied(cache: Any) -> Any:
    """The same columns; what a forward appends stays out of the original."""
    cache = copy.copy(cache)
    cache.layers = [copy.copy(layer) for layer in cache.layers]
    return cache


def packed(state: SuffixState) -> tuple[DedupBatch, EarlierColumns, dict[str, Any]]:
    """The columns that run, without padding, what stands in front of them, and the keywords."""
    mask, (rows, after) = state.trunk["attention_mask"], state.stream.shape[:2]
    runs = mask[:, -after:]
    index = torch.arange(rows * after, device=mask.device).view(rows, after)
    own = torch.ones(after, after, dtype=torch.bool, device=mask.device).tril()
    seen = mask[:, None, :-after].bool().expand(-1, after, -1)
    both = torch.cat([seen, own.expand(rows, -1, -1)], dim=2)[:, None]
    trunk = {**state.trunk, "attention_mask": runs}
    return DedupBatch(index, runs), EarlierColumns(state.finished, both), trunk


def _gathered(x: Tensor, at: Tensor) -> Tensor:
    """[B, T, d] -> [B, S, d]"""
    return x.gather(1, at.to(x.device)[..., None].expand(-1, -1, x.shape[-1]))


def columns_at(states: Tensor, source: Tensor) -> Tensor:
    """[B, h, T, n] -> [B, h, P, n]"""
    index = source.clamp(min=0).to(states.device)[:, None, :, None]
    return states.gather(2, index.expand(-1, states.shape[1], -1, states.shape[3])).detach()


def _positions(ids: Tensor, at: Tensor) -> Tensor:
    """[..., B or 1, T] -> [..., B, S]"""
    at = at.to(ids.device)
    return ids.expand(*ids.shape[:-2], at.shape[0], -1).gather(
        -1, at.expand(*ids.shape[:-2], *at.shape)
    )


def counted_from(state: SuffixState, columns: Tensor) -> Tensor:
    """Columns [B, n] of whole rows, counted from the first column that runs."""
    last = state.stream.shape[1] - 1
    return (columns - state.first.to(columns.device)[:, None]).clamp(min=0, max=last)
