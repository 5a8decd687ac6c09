"""The names of MiniGPT-4's published weights, and what each is in `Blip2ForConditionalGeneration`.

Three files of torch: the vision tower (LAVIS, `eva_vit_g.pth`), the Q-Former of BLIP-2 (LAVIS,
`blip2_pretrained_flant5xxl.pth`) and the checkpoint of MiniGPT-4 with the projection. Sizes are
read from the shapes; numbers of heads, which no shape tells, follow from the published head sizes.

Shapes: d width of the tower (1408), q width of the Q-Former (768), h width of the text model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from errata.core.errors import BadBackbone, BadSpec

Shapes = Mapping[str, tuple[int, ...]]
#: width -> (heads, blocks that are used: EVA's last one is left out in BLIP-2 and MiniGPT-4)
_TOWERS = {1408: (16, 39)}
_QFORMER_HEAD = 64  # of BERT
TOWER = "visual_encoder."
_LAYER = r"Qformer\.bert\.encoder\.layer\.(\d+)"
_TO = r"qformer.encoder.layer.\1"
_ENDS = r"(weight|bias)"

#: pattern of a published name -> the name in transformers. q_bias and v_bias become one: `QKV_BIAS`
_RENAMES: tuple[tuple[str, str], ...] = (
    (r"visual_encoder\.cls_token", "vision_model.embeddings.class_embedding"),
    (r"visual_encoder\.pos_embed", "vision_model.embeddings.position_embedding"),
    (
        rf"visual_encoder\.patch_embed\.proj\.{_ENDS}",
        r"vision_model.embeddings.patch_embedding.\1",
    ),
    (
        rf"visual_encoder\.blocks\.(\d+)\.norm([12])\.{_ENDS}",
        r"vision_model.encoder.layers.\1.layer_norm\2.\3",
    ),
    (
        r"visual_encoder\.blocks\.(\d+)\.attn\.qkv\.weight",
        r"vision_model.encoder.layers.\1.self_attn.qkv.weight",
    ),
    (
        rf"visual_encoder\.blocks\.(\d+)\.attn\.proj\.{_ENDS}",
        r"vision_model.encoder.layers.\1.self_attn.projection.\2",
    ),
    (
        rf"visual_encoder\.blocks\.(\d+)\.mlp\.fc([12])\.{_ENDS}",
        r"vision_model.encoder.layers.\1.mlp.fc\2.\3",
    ),
    (rf"ln_vision\.{_ENDS}", r"vision_model.post_layernorm.\1"),
    (r"query_tokens", "query_tokens"),
    (rf"Qformer\.bert\.embeddings\.LayerNorm\.{_ENDS}", r"qformer.layernorm.\1"),
    (
        rf"{_LAYER}\.(attention|crossattention)\.self\.(query|key|value)\.{_ENDS}",
        rf"{_TO}.\2.attention.\3.\4",
    ),
    (
        rf"{_LAYER}\.(attention|crossattention)\.output\.(dense|LayerNorm)\.{_ENDS}",
        rf"{_TO}.\2.output.\3.\4",
    ),
    (rf"{_LAYER}\.intermediate_query\.dense\.{_ENDS}", rf"{_TO}.intermediate_query.dense.\2"),
    (
        rf"{_LAYER}\.output_query\.(dense|LayerNorm)\.{_ENDS}",
        rf"{_TO}.output_query.\2.\3",
    ),
    (rf"llama_proj\.{_ENDS}", r"language_projection.\1"),
)
QKV_BIAS = re.compile(r"visual_encoder\.blocks\.(\d+)\.attn\.([qv])_bias")
#: known names without a place in the model: EVA's norm and head behind the tower, the Q-Former's
#: branches for texts, the heads and projections of BLIP-2's trainings
_IGNORED = (
    rf"visual_encoder\.(norm|fc_norm|head)\.{_ENDS}",
    r"visual_encoder\.mask_token",
    r"Qformer\.bert\.embeddings\.(position_ids|(word|position)_embeddings\.weight)",
    rf"{_LAYER}\.intermediate\.dense\.{_ENDS}",
    rf"{_LAYER}\.output\.(dense|LayerNorm)\.{_ENDS}",
    r"Qformer\.cls\..*",
    rf"(t5|opt|vision|text)_proj\.{_ENDS}",
    rf"itm_head\.{_ENDS}",
    r"temp",
)
#: option -> (a name that tells the file, what the file is)
FILES: Mapping[str, tuple[str, str]] = {
    "vit": (f"{TOWER}blocks.0.attn.qkv.weight", "the vision tower (eva_vit_g.pth)"),
    "qformer": (
        "Qformer.bert.encoder.layer.0.crossattention.self.key.weight",
        "the Q-Former (blip2_pretrained_flant5xxl.pth)",
    ),
    "checkpoint": ("llama_proj.weight", "the checkpoint of MiniGPT-4 with llama_proj"),
}


def full_names(keys: Iterable[str]) -> dict[str, str]:
    """Name in the file -> name in MiniGPT-4: a file of the tower alone has no `visual_encoder.`."""
    own = re.compile(r"(cls_token|pos_embed|mask_token|(patch_embed|blocks|norm|fc_norm|head)\..*)")
    return {k: f"{TOWER}{k}" if own.fullmatch(k) else k for k in keys}


def renamed(name: str) -> str | None:
    """The name in transformers; "" for a name that is known and not needed, None if unknown."""
    for pattern, target in _RENAMES:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(target)
    return "" if any(re.fullmatch(pattern, name) for pattern in _IGNORED) else None


def bias_of(block: int) -> str:
    """The name in transformers of the joint bias of q, k and v; that of k is zero."""
    return f"vision_model.encoder.layers.{block}.self_attn.qkv.bias"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of tower and Q-Former, as keyword arguments of their configurations."""

    vision: Mapping[str, int]
    qformer: Mapping[str, int]
    queries: int
    """Number of image tokens."""


def sizes(shapes: Shapes, *, vit_heads: int | None, qformer_heads: int | None) -> Sizes:
    """The sizes, from the shapes of the published tensors by their full names.

    vit_heads, qformer_heads: where None, those of the published sizes. Raises BadBackbone for
    a tensor that is missing or has another number of axes, BadSpec for heads that do not divide a
    width or are not known.
    """
    width = _shape(shapes, f"{TOWER}cls_token", 3)[-1]
    patch = _shape(shapes, f"{TOWER}patch_embed.proj.weight", 4)[-1]
    positions = _shape(shapes, f"{TOWER}pos_embed", 3)[1] - 1
    grid = round(positions**0.5)
    if grid * grid != positions:
        raise BadBackbone(
            f"{TOWER}pos_embed has {positions} patches, which form no square. Download the file "
            "again."
        )
    blocks = 1 + max(_numbers(shapes, r"visual_encoder\.blocks\.(\d+)\..*"), default=-1)
    known, used = _TOWERS.get(width, (0, blocks))
    qwidth = _shape(shapes, "query_tokens", 3)[-1]
    layers = 1 + max(_numbers(shapes, rf"{_LAYER}\..*"), default=-1)
    crossed = sorted(set(_numbers(shapes, rf"{_LAYER}\.crossattention\.self\.key\.weight")))
    every = crossed[1] if len(crossed) > 1 else max(layers, 1)
    if crossed != list(range(0, layers, every)):
        raise BadBackbone(
            f"the Q-Former has cross attention in layers {crossed}, not in every n-th. Download "
            "the file again."
        )
    up = "Qformer.bert.encoder.layer.0.intermediate_query.dense.weight"
    return Sizes(
        vision={
            "hidden_size": width,
            "intermediate_size": _shape(shapes, f"{TOWER}blocks.0.mlp.fc1.weight", 2)[0],
            "num_hidden_layers": min(blocks, used),
            "num_attention_heads": _heads("vit", width, vit_heads, known),
            "image_size": grid * patch,
            "patch_size": patch,
        },
        qformer={
            "hidden_size": qwidth,
            "intermediate_size": _shape(shapes, up, 2)[0],
            "num_hidden_layers": layers,
            "num_attention_heads": _heads(
                "qformer", qwidth, qformer_heads, qwidth // _QFORMER_HEAD
            ),
            "encoder_hidden_size": width,
            "cross_attention_frequency": every,
        },
        queries=_shape(shapes, "query_tokens", 3)[1],
    )


def _shape(shapes: Shapes, name: str, axes: int) -> tuple[int, ...]:
    if name not in shapes:
        raise BadBackbone(f"no file holds {name}. Download the files again.")
    if len(shapes[name]) != axes:
        raise BadBackbone(
            f"{name} has the shape {list(shapes[name])}, not {axes} axes. Download the file again."
        )
    return shapes[name]


def _numbers(shapes: Shapes, pattern: str) -> list[int]:
    matches = (re.fullmatch(pattern, name) for name in shapes)
    return [int(m[1]) for m in matches if m]


def _heads(option: str, width: int, given: int | None, known: int) -> int:
    heads = known if given is None else given
    if heads < 1:
        raise BadSpec(
            f"a width of {width} is none of the published ones, so the number of heads is not "
            f"known. Give --{option}-heads."
        )
    if width % heads:
        raise BadSpec(f"--{option}-heads {heads} does not divide the width {width}.")
    return heads


def is_used(name: str, blocks: int) -> bool:
    """False for a tensor of a tower's block that is left out."""
    match = re.match(r"visual_encoder\.blocks\.(\d+)\.", name)
    return match is None or int(match[1]) < blocks


def configuration(found: Sizes, text: Any, image_id: int) -> Any:
    """The `Blip2Config`. text: the `LlamaConfig`. image_id: of the image token."""
    from transformers import Blip2Config

    make: Any = Blip2Config  # its own fields are typed, and `minigpt4` is none of them
    return make(
        vision_config={**found.vision, "layer_norm_eps": 1e-6, "qkv_bias": True},
        qformer_config={**found.qformer, "layer_norm_eps": 1e-12},
        text_config=text.to_dict(),
        num_query_tokens=found.queries,
        image_token_index=image_id,
        minigpt4={"ln_vision_eps": 1e-5, "end": "###"},
    )
