"""Skips positions that no requested logit depends on; computes identical positions once.

Shapes: B rows, T columns, N distinct columns, n requested columns, h heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from errata.backbones._overrides import attention_as, forward_as
from errata.core.hooks.dedup import DedupBatch
from errata.core.hooks.hook import by_columns
from errata.core.hooks.manager import HookManager
from errata.core.model.batch import PrefixState


class NotPacked(Exception):
    """This model's attention cannot be given packed columns."""


class EarlierColumns(NamedTuple):
    """Columns in front of those of a batch: their KV cache, and the mask [B, 1, T, P + T]."""

    cache: Any
    mask: Tensor

    def check(self, module: Any, key: Tensor, mask: Tensor | None) -> None:
        """Raises NotPacked where the model makes masks of its own, or caches other keys."""
        layer = self.cache.layers[getattr(module, "layer_idx", None) or 0]
        if mask is not None or layer.keys.shape[1] != key.shape[1]:
            raise NotPacked


#: keywords of a text model's forward that hold its columns; any other tensor is not understood
TEXT_KEYWORDS = ("input_ids", "inputs_embeds", "attention_mask", "position_ids")


def deduplicated(
    state: PrefixState, text: nn.Module, hooks: HookManager, layer_types: AbstractSet[str]
) -> DedupBatch | None:
    """The batch of a state with identical columns run once; None if that is not possible.

    Every block must attend to all earlier columns through an attention that can be replaced, and
    the live hooks must do the same to identical columns.
    """
    mask = state.trunk.get("attention_mask")
    if (
        state.same is None
        or not packs(text, layer_types)
        or not (isinstance(mask, Tensor) and mask.dim() == 2)
        or any(isinstance(v, Tensor) for k, v in state.trunk.items() if k not in TEXT_KEYWORDS)
        or not _same_on_equal_columns(hooks)
    ):
        return None
    return DedupBatch(state.same, mask)


def _attention_of(text: Any) -> str:
    return str(text.config._attn_implementation)


def _same_on_equal_columns(hooks: HookManager) -> bool:
    """Whether all live hooks do the same to identical columns, and act between blocks only.

    A hook inside a block needs whole rows at several sites, which was measured to cost more than
    the identical columns save.
    """
    live = {s: point.live for s, point in hooks.points.items() if point.live}
    return all(s.endswith(".in") for s in live) and all(
        h.causal or h.pointwise for hooks_at in live.values() for h in hooks_at
    )


def dedup_keywords(dedup: DedupBatch, trunk: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of the text model's own forward for the distinct columns."""
    rest = {k: v for k, v in trunk.items() if k not in TEXT_KEYWORDS}
    if isinstance(embeds := trunk.get("inputs_embeds"), Tensor):
        rest["inputs_embeds"] = dedup.pack(embeds)
    else:
        rest["input_ids"] = dedup.pack(trunk["input_ids"])
    rows, columns = dedup.shape
    ids = trunk.get("position_ids")
    if not isinstance(ids, Tensor):
        ids = torch.arange(columns, device=dedup.kept.device)[None]
    axes = ids.shape[:-2]
    whole = ids.expand(*axes, rows, columns).flatten(-2)
    rest["position_ids"] = whole[..., dedup.kept.to(ids.device)].unsqueeze(-2)
    return rest


def packs(text: nn.Module, layer_types: AbstractSet[str]) -> bool:
    """Whether columns can run packed: every block attends to all earlier columns, and its attention
    can be replaced.
    """
    return (
        getattr(text, "_supports_attention_backend", False)
        and _attention_of(text) == "sdpa"
        and layer_types == {"full_attention"}
    )


@contextmanager
def dedup_attention(
    text: nn.Module, name: str, dedup: DedupBatch, earlier: EarlierColumns | None = None
) -> Iterator[None]:
    """The text model's attention gets whole rows; all other modules the distinct columns.

    earlier: keys and values that stand in front of those of the batch.
    """
    calls = 0

    def heads(x: Tensor) -> Tensor:
        return dedup.unpack(x.transpose(1, 2)).transpose(1, 2)

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **k: Any
    ) -> tuple[Tensor, None]:
        nonlocal calls
        if earlier is not None:
            earlier.check(module, key, mask)
        assert mask is None, "no mask is needed: padding comes after every column that attends"
        calls += 1
        query, key, value = heads(query), heads(key), heads(value)
        if earlier is None:
            out, _ = sdpa_attention_forward(module, query, key, value, None, **k)
        else:
            layer: Any = earlier.cache.layers[module.layer_idx]
            key, value = torch.cat([layer.keys, key], 2), torch.cat([layer.values, value], 2)
            out = few_queries(query, key, value, earlier.mask, k.get("scaling"))
        return dedup.pack(out), None

    with attention_as(text, f"errata_dedup_{id(text)}", attend):
        yield
    if earlier is not None and not calls:
        raise NotPacked
    assert calls, f"{name} does not attend through the library's interface"


def few_queries(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None
) -> Tensor:
    """[B, T, h, n] attention of queries [B, h, T, n] over keys and values [B, g, C, n].

    mask [B, 1, T, C]. For few queries a row: on a CPU the backward of the fused kernel is up to ten
    times slower. The heads that share keys are queries of one product.
    """
    rows, heads, columns, size = query.shape
    groups = key.shape[1]
    scale = size**-0.5 if scaling is None else scaling
    queries = (query * scale).reshape(rows, groups, -1, size)
    scores = (queries @ key.transpose(2, 3)).view(rows, groups, -1, columns, key.shape[2])
    scores = scores.masked_fill(~mask[:, None], torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    out = weights.view(rows, groups, -1, key.shape[2]) @ value
    return out.view(rows, heads, columns, value.shape[-1]).transpose(1, 2)


@contextmanager
def last_block_at(hooks: HookManager, depth: int, places: Tensor) -> Iterator[list[str]]:
    """The last block's queries, output projection and FFN run at `places` [B, n] only.

    Gives the sites that do, none where a live hook needs whole rows. `places` are flat indices over
    rows and columns. These parts are five sixths of the block's work; keys and values are computed
    for all columns.
    """
    name = f"text.{depth - 1}"
    above = (f"{name}.attn", f"{name}.mlp", f"{name}.block", "final_norm")
    live = [h for s, point in hooks.points.items() if s.startswith(above) for h in point.live]
    cut: list[str] = []
    with ExitStack() as stack:
        if by_columns(live):
            for part in ("attn.q", "attn.o", "mlp"):
                site = hooks.sites.get(f"{name}.{part}")
                if site is not None and site.last is site.first:
                    stack.enter_context(_at(site.first, places))
                    cut.append(site.name)
        yield cut


@contextmanager
def _at(module: nn.Module, places: Tensor) -> Iterator[None]:
    original = module.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        at, rows = places.to(x.device), x.shape[:-1]
        more = [
            a.flatten(0, -2)[at] if isinstance(a, Tensor) and a.shape[:-1] == rows else a
            for a in args  # the residual, in models that add it inside
        ]
        out = original(x.flatten(0, -2)[at], *more, **kwargs)
        y = out[0] if isinstance(out, tuple) else out
        y = torch.cat([y.reshape(-1, y.shape[-1]), y.new_zeros(1, y.shape[-1])])
        # a place that is listed twice is written once
        source = torch.full((x.shape[:-1].numel(),), len(y) - 1, device=x.device)
        source[at.flatten()] = torch.arange(len(y) - 1, device=x.device)
        whole = y.index_select(0, source).view(*x.shape[:-1], y.shape[-1])
        return (whole, *out[1:]) if isinstance(out, tuple) else whole

    with forward_as(module, forward):
        yield
