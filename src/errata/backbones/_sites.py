"""Finds the sites of a vision-language model by the structure of its module tree, not by class.

Rules: the text blocks are the largest ModuleList under the decoder whose children have an attention
and an MLP; the down projection is the Linear of the MLP that writes to the residual stream.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from errata.core.errors import BadBackbone
from errata.core.hooks.context import Site

_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_MLP = ("mlp", "feed_forward", "ffn")
_LINEARS = {
    "q": ("q_proj", "query"),
    "k": ("k_proj", "key"),
    "v": ("v_proj", "value"),
    "o": ("o_proj", "out_proj", "dense", "proj", "projection"),
}
_UP, _GATE, _DOWN = (
    ("up_proj", "fc1", "c_fc", "w3"),
    ("gate_proj", "w1"),
    ("down_proj", "fc2", "c_proj", "w2"),
)
_ATTENTION_NORMS = ("input_layernorm", "self_attn_layer_norm", "layer_norm1", "ln_1", "norm1")
_HEAD_NORMS = {"q_norm": ("q_norm",), "k_norm": ("k_norm",)}
_NORMS = ("norm", "final_layer_norm", "final_layernorm", "ln_f")
_TOWERS = ("vision_tower", "visual", "vision_model", "vision_encoder")
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
    """The modules and sites of one model. `missing`: the names of sites that it lacks."""

    text: nn.Module
    blocks: nn.ModuleList
    head: nn.Module
    embed: nn.Module
    tower: nn.Module | None
    bridge_in_tower: bool
    paths: dict[str, str]
    sites: list[Site] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def _child(module: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    for name in names:
        child = getattr(module, name, None)
        if isinstance(child, nn.Module):
            return child
    return None


def _linear(module: nn.Module | None, names: tuple[str, ...]) -> nn.Module | None:
    linear = _child(module, names) if module is not None else None
    return linear if linear is not None and hasattr(linear, "weight") else None


def _is_block(module: nn.Module) -> bool:
    has_mlp = _child(module, _MLP) is not None or _linear(module, _DOWN) is not None
    return _child(module, _ATTENTION) is not None and has_mlp


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _blocks_in(root: nn.Module) -> tuple[nn.Module, nn.ModuleList] | None:
    """(owner, blocks): the largest ModuleList of transformer blocks below `root`."""
    best: tuple[int, nn.Module, nn.ModuleList] | None = None
    for owner in root.modules():
        for child in owner.children():
            if isinstance(child, nn.ModuleList) and len(child) and all(_is_block(b) for b in child):
                size = _size(child)
                if best is None or size > best[0]:
                    best = (size, owner, child)
    return (best[1], best[2]) if best else None


def _named(model: nn.Module, names: tuple[str, ...], outside: nn.Module) -> dict[str, nn.Module]:
    """Outermost modules with one of these attribute names, outside the text model."""
    inside = set(outside.modules())
    modules: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        if path.rsplit(".", 1)[-1] in names and module not in inside:
            modules.setdefault(path.rsplit(".", 1)[-1], module)
    return modules


def _block_sites(prefix: str, block: nn.Module, stream: str, missing: list[str]) -> list[Site]:
    attn, mlp = _child(block, _ATTENTION), _child(block, _MLP)
    inner = attn
    if attn is not None and _linear(attn, _LINEARS["q"]) is None:
        inner = _child(attn, ("attention", "self"))  # a wrapper around the projections
    host = mlp if mlp is not None else block
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
    """The layout of any `AutoModelForImageTextToText` model. Raises BadBackbone."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    owner = _blocks_in(decoder) or _blocks_in(model)
    head, embed = model.get_output_embeddings(), model.get_input_embeddings()
    if owner is None or head is None or embed is None:
        what = (
            "no list of transformer blocks"
            if owner is None
            else "no output head or input embedding"
        )
        raise BadBackbone(
            f"{type(model).__name__}: {what} found. errata edits decoder-only vision-language "
            "models; see docs/add-a-backbone.md for a model of another architecture."
        )
    text, blocks = owner
    towers = _named(model, _TOWERS, text)
    tower = next(iter(towers.values()), None)
    bridges = _named(model, _BRIDGES, text)
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
    layout.paths = {s.name: names.get(id(s.first), "?") for s in sites}
    return layout
