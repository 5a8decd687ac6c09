"""Finds the sites of a model by the structure of its module tree, not by class.

Rules: the text blocks are the largest ModuleList in the decoder, outside a vision tower, whose
children all have a feed-forward network and of which some have an attention (others may have a
linear attention or a convolution instead). The list is as long as the configuration says. The down
projection is the linear module of the feed-forward network that writes to the residual stream.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any, cast

from torch import nn

from errata.backbones._text_blocks.recurrent import MIXERS
from errata.core.errors import BadBackbone
from errata.core.hooks.context import Site

_ATTENTION = ("self_attn", "attn", "attention", "self_attention", "cross_attn")
_MLP = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe")
_SHARED = ("shared_expert", "shared_experts", "shared_mlp")
_LINEARS = {
    "q": ("q_proj", "query"),
    "k": ("k_proj", "key"),
    "v": ("v_proj", "value"),
    "o": ("o_proj", "out_proj", "dense", "proj", "projection", "c_proj"),
}
#: one module for several of these projections, by the site that it is
_FUSED = {
    "attn.qkv": ("qkv_proj", "query_key_value", "c_attn", "Wqkv", "qkv"),
    "mlp.gate_up": ("gate_up_proj",),
}
_UP, _GATE, _DOWN = (
    ("up_proj", "fc1", "c_fc", "w3", "fc_in", "dense_h_to_4h"),
    ("gate_proj", "w1"),
    ("down_proj", "fc2", "c_proj", "w2", "fc_out", "dense_4h_to_h"),
)
_ATTENTION_NORMS = (
    *("input_layernorm", "self_attn_layer_norm", "layer_norm1", "ln_1", "norm1", "norm_1"),
    "operator_norm",
)
_HEAD_NORMS = {"q_norm": ("q_norm", "q_layernorm"), "k_norm": ("k_norm", "k_layernorm")}
_NORMS = ("norm", "final_layer_norm", "final_layernorm", "ln_f", "norm_f", "embedding_norm")
_TOWERS = ("vision_tower", "visual", "vision_model", "vision_encoder", "img_processor")
_BRIDGES = (
    "multi_modal_projector",
    "qformer",
    "language_projection",
    "merger",
    "connector",
    "aligner",
    "embed_vision",
)


@dataclass
class SiteLayout:
    """The modules and sites of one model.

    missing: the names of sites that it lacks. reasons: why, where that is known.
    """

    text: nn.Module
    blocks: nn.ModuleList
    head: nn.Module
    embed: nn.Module
    tower: nn.Module | None
    bridge_in_tower: bool
    paths: dict[str, str]
    sites: list[Site] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)


def _child(module: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    for name in names:
        child = getattr(module, name, None)
        if isinstance(child, nn.Module):
            return child
    return None


def _linear(module: nn.Module | None, names: tuple[str, ...]) -> nn.Module | None:
    linear = _child(module, names) if module is not None else None
    return linear if linear is not None and hasattr(linear, "weight") else None


def _has_mlp(block: nn.Module) -> bool:
    return _child(block, _MLP) is not None or _linear(block, _DOWN) is not None


def _is_list_of_blocks(module: nn.Module) -> bool:
    """Whether every child has a feed-forward network, and one of them an attention."""
    return (
        isinstance(module, nn.ModuleList)
        and len(module) > 0
        and all(_has_mlp(b) and _child(b, (*_ATTENTION, *MIXERS)) is not None for b in module)
        and any(_child(b, _ATTENTION) is not None for b in module)
    )


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _blocks_in(
    root: nn.Module, *, depth: int | None = None, outside: Container[nn.Module] = ()
) -> tuple[nn.Module, nn.ModuleList] | None:
    """(owner, blocks): the largest ModuleList of transformer blocks below `root`.

    depth: how many blocks it has, if that is known. outside: modules that do not own it.
    """
    best: tuple[int, nn.Module, nn.ModuleList] | None = None
    for owner in root.modules():
        if owner in outside:
            continue
        for child in owner.children():
            if not _is_list_of_blocks(child) or depth not in (None, len(cast(Any, child))):
                continue
            size = _size(child)
            if best is None or size > best[0]:
                best = (size, owner, cast(nn.ModuleList, child))
    return (best[1], best[2]) if best else None


def _text_blocks(model: Any) -> tuple[nn.Module, nn.ModuleList] | None:
    """The text model and its blocks."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    depth = getattr(config, "num_hidden_layers", None)
    towers = {m for tower in _outermost(model, _TOWERS).values() for m in tower.modules()}
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    for root in (decoder, model):
        found = _blocks_in(root, depth=depth, outside=towers)
        if found is not None:
            return found
    return None


def _outermost(
    model: nn.Module, names: tuple[str, ...], inside: Container[nn.Module] = ()
) -> dict[str, nn.Module]:
    """attribute name -> the outermost module of that name, if it is not one of `inside`."""
    modules: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        name = path.rsplit(".", 1)[-1]
        if name in names and module not in inside:
            modules.setdefault(name, module)
    return modules


def _without_experts(mlp: nn.Module) -> nn.Module:
    """The FFN, or of a mixture of experts the one that every token runs through.

    Not an expert whose output is scaled by a gate: it does not write to the stream.
    """
    shared = _child(mlp, _SHARED)
    gated = any(hasattr(mlp, f"{name}_gate") for name in _SHARED)
    return mlp if shared is None or gated or _linear(mlp, _DOWN) is not None else shared


def _reasons(layout: SiteLayout) -> dict[str, str]:
    """Why linear modules of text blocks are missing: experts, or several of them in one module."""
    sites, reasons = {s.name for s in layout.sites}, {}
    for i, block in enumerate(layout.blocks):
        fused = {"attn.qkv": ("q", "k", "v"), "mlp.gate_up": ("up",)}
        for whole, parts in fused.items():
            if f"text.{i}.{whole}" in sites:
                where = whole.partition(".")[0]
                for part in parts:
                    reasons[f"text.{i}.{where}.{part}"] = f"it is a part of text.{i}.{whole}"
        mlp = _child(block, _MLP)
        if mlp is not None and hasattr(mlp, "experts"):
            for part in ("up", "down"):
                reasons[f"text.{i}.mlp.{part}"] = (
                    "its FFN is a mixture of experts, none of which writes to the hidden state of "
                    "every token through a linear module"
                )
    return {name: why for name, why in reasons.items() if name in layout.missing}


def _block_sites(prefix: str, block: nn.Module, stream: str, missing: list[str]) -> list[Site]:
    attn, mlp = _child(block, (*_ATTENTION, *MIXERS)), _child(block, _MLP)
    inner = attn
    if attn is not None and _linear(attn, _LINEARS["q"]) is None:
        wrapped = _child(attn, ("attention", "self"))  # the projections are one level deeper
        inner = wrapped if wrapped is not None else attn
    host = _without_experts(mlp) if mlp is not None else block
    up, gate, down = _linear(host, _UP), _linear(host, _GATE), _linear(host, _DOWN)
    sites = [
        Site(f"{prefix}.in", block, None, stream),
        Site(f"{prefix}.block", block, block, stream),
    ]
    if attn is not None:
        sites.append(Site(f"{prefix}.attn", attn, attn, stream))
    for part, names in _LINEARS.items():
        linear = _linear(inner, names) if inner is not None else None
        if linear is not None:
            sites.append(Site(f"{prefix}.attn.{part}", linear, linear, stream))
        elif stream == "text":
            missing.append(f"{prefix}.attn.{part}")
    for part, norm in (
        ("norm", _child(block, _ATTENTION_NORMS)),
        *(
            (name, _child(inner, names) if inner is not None else None)
            for name, names in _HEAD_NORMS.items()
        ),
    ):
        if norm is not None:
            sites.append(Site(f"{prefix}.attn.{part}", norm, norm, stream))
    if mlp is not None:
        sites.append(Site(f"{prefix}.mlp", mlp, mlp, stream))
    elif up is not None and down is not None:
        sites.append(Site(f"{prefix}.mlp", up, down, stream))
    for part, linear in (("up", up), ("gate", gate), ("down", down)):
        if linear is not None:
            sites.append(Site(f"{prefix}.mlp.{part}", linear, linear, stream))
        elif stream == "text" and part != "gate":
            missing.append(f"{prefix}.mlp.{part}")
    for part, owner in (("attn.qkv", inner), ("mlp.gate_up", host)):
        fused = _linear(owner, _FUSED[part])
        if fused is not None:
            sites.append(Site(f"{prefix}.{part}", fused, fused, stream))
    return sites


def _bridge_sites(bridges: dict[str, nn.Module]) -> list[Site]:
    sites = []
    last = next((bridges[n] for n in ("language_projection", *_BRIDGES) if n in bridges), None)
    if last is not None:
        sites.append(Site("bridge", last, last, "vision"))
    for name, module in bridges.items():
        for path, child in module.named_modules():
            if isinstance(child, nn.Linear) or (
                not list(child.children())
                and getattr(child, "weight", None) is not None
                and child.weight.dim() == 2
                and "Linear" in type(child).__name__
            ):
                full = ".".join(p for p in ((name if len(bridges) > 1 else ""), path) if p) or name
                sites.append(Site(f"bridge.{full}", child, child, "vision"))
    return sites


def resolve(model: Any) -> SiteLayout:
    """The layout of a model with a decoder-only text model. Raises BadBackbone."""
    config: Any = getattr(model, "config", None)
    text_config: Any = config.get_text_config() if hasattr(config, "get_text_config") else config
    if any(getattr(c, "is_encoder_decoder", False) for c in (config, text_config)):
        raise BadBackbone(
            f"{type(model).__name__} is an encoder-decoder: an answer is written by a second stack "
            "of blocks, which does not hold the prompt. errata edits decoder-only models; take one "
            "whose text model is, such as BLIP-2 with OPT."
        )
    owner = _text_blocks(model)
    head, embed = model.get_output_embeddings(), model.get_input_embeddings()
    if owner is None or head is None or embed is None:
        what = (
            "no list of transformer blocks"
            if owner is None
            else "no output head or input embedding"
        )
        raise BadBackbone(
            f"{type(model).__name__}: {what} found. errata edits decoder-only models; see "
            "docs/add-a-backbone.md for a model of another architecture."
        )
    text, blocks = owner
    own = set(blocks.modules())
    tower = next(iter(_outermost(model, _TOWERS, own).values()), None)
    bridges = _outermost(model, _BRIDGES, own)
    inside = tower is not None and any(b in set(tower.modules()) for b in bridges.values())
    names = {id(m): path for path, m in model.named_modules()}
    layout = SiteLayout(text, blocks, head, embed, tower, inside, {})
    sites = layout.sites
    sites.append(Site("embed", embed, embed))
    for i, block in enumerate(blocks):
        sites.extend(_block_sites(f"text.{i}", block, "text", layout.missing))
    norm = _child(text, _NORMS)
    if norm is not None:
        sites.append(Site("final_norm", norm, norm))
    else:
        layout.missing.append("final_norm")
    sites.append(Site("head", head, head))
    if tower is not None:
        inner = _blocks_in(tower)
        for i, block in enumerate(inner[1] if inner else []):
            sites.extend(_block_sites(f"vision.{i}", block, "vision", layout.missing))
    else:
        layout.missing.append("vision")
    bridge = _bridge_sites(bridges)
    sites.extend(bridge)
    if not bridge:
        layout.missing.append("bridge")
    layout.reasons = _reasons(layout)
    layout.paths = {s.name: names.get(id(s.first), "?") for s in sites}
    return layout
