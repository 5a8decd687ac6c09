"""Columns that no logit depends on, or that another column equals, are not computed.

Shapes: B rows, T columns, N columns of a packed batch, n columns that the answer is read from, h
heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from errata.backbones._overrides import attention_as, forward_as
from errata.core.backbone import PrefixState
from errata.core.hooks.dedup import DedupBatch

if TYPE_CHECKING:
    from errata.backbones._decoder import DecoderBackbone

_TEXT = ("input_ids", "inputs_embeds", "attention_mask", "position_ids")


def _shareable(bb: DecoderBackbone) -> bool:
    """Whether all live patches do the same to equal columns, and act between blocks only.

    What acts inside of a block is shown rows at several sites of each, which was measured to cost
    more than equal columns save.
    """
    live = {s: port.live for s, port in bb.hooks.ports.items() if port.live}
    return all(s.endswith(".in") for s in live) and all(
        p.causal or p.pointwise for patches in live.values() for p in patches
    )


def packable(bb: DecoderBackbone, state: PrefixState) -> DedupBatch | None:
    """How a state's equal columns can be run once; None where they cannot or there are none.

    Every block has to look back over all columns through an attention that can be put in the place
    of the model's own, and the live patches have to do the same to equal columns.
    """
    text: Any = bb.text
    mask = state.trunk.get("attention_mask")
    if (
        state.same is None
        or not getattr(text, "_supports_attention_backend", False)
        or text.config._attn_implementation != "sdpa"
        or bb._layer_types() != {"full_attention"}
        or not (isinstance(mask, Tensor) and mask.dim() == 2)
        or any(isinstance(v, Tensor) for k, v in state.trunk.items() if k not in _TEXT)
        or not _shareable(bb)
    ):
        return None
    return DedupBatch(state.same, mask)


def packed_trunk(dedup: DedupBatch, trunk: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of the text model's own forward for the packed row."""
    rest = {k: v for k, v in trunk.items() if k not in _TEXT}
    if isinstance(embeds := trunk.get("inputs_embeds"), Tensor):
        rest["inputs_embeds"] = dedup.pack(embeds)
    else:
        rest["input_ids"] = dedup.pack(trunk["input_ids"])
    rows, columns = dedup.shape
    given = trunk.get("position_ids")
    if not isinstance(given, Tensor):
        given = torch.arange(columns, device=dedup.kept.device)[None]
    axes = given.shape[:-2]
    whole = given.expand(*axes, rows, columns).flatten(-2)
    rest["position_ids"] = whole[..., dedup.kept.to(given.device)].unsqueeze(-2)
    return rest


@contextmanager
def attending(bb: DecoderBackbone, dedup: DedupBatch) -> Iterator[None]:
    """The text model's attention sees the rows of a packed batch; the rest sees the packed row."""
    calls = 0

    def heads(x: Tensor) -> Tensor:
        return dedup.unpack(x.transpose(1, 2)).transpose(1, 2)

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **k: Any
    ) -> tuple[Tensor, None]:
        nonlocal calls
        assert mask is None, "a packed batch has no mask: padding lies behind all that looks back"
        calls += 1
        out, _ = sdpa_attention_forward(module, heads(query), heads(key), heads(value), None, **k)
        return dedup.pack(out), None

    with attention_as(bb.text, "errata_packed", attend):
        yield
    assert calls, f"{bb.name} does not attend through the library's interface"


@contextmanager
def last_block_at(bb: DecoderBackbone, places: Tensor) -> Iterator[None]:
    """The last block's queries, output projection and FFN run at `places` [B, n] alone.

    `places` count over the stream's rows and columns together. These parts are five sixths of the
    block's work; keys and values are of all columns.
    """
    name = f"text.{bb.depth - 1}"
    behind = (f"{name}.attn", f"{name}.mlp", f"{name}.block", "final_norm")
    live = [p for s, port in bb.hooks.ports.items() if s.startswith(behind) for p in port.live]
    with ExitStack() as stack:
        if all(p.pointwise for p in live):
            for part in ("attn.q", "attn.o", "mlp"):
                site = bb.hooks.sites.get(f"{name}.{part}")
                if site is not None and site.last is site.first:
                    stack.enter_context(_at(site.first, places))
        yield


@contextmanager
def _at(module: nn.Module, places: Tensor) -> Iterator[None]:
    original = module.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        at = places.to(x.device)
        out = original(x.flatten(0, -2)[at], *args, **kwargs)
        y = out[0] if isinstance(out, tuple) else out
        y = torch.cat([y.flatten(0, 1), y.new_zeros(1, y.shape[-1])])
        # a place that stands there twice counts once
        source = torch.full((x.shape[:-1].numel(),), len(y) - 1, device=x.device)
        source[at.flatten()] = torch.arange(len(y) - 1, device=x.device)
        whole = y.index_select(0, source).view(*x.shape[:-1], y.shape[-1])
        return (whole, *out[1:]) if isinstance(out, tuple) else whole

    with forward_as(module, forward):
        yield
