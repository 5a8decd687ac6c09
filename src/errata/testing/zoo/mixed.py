"""Models whose text blocks are of two kinds: linear attention, convolution, cross-attention."""

from __future__ import annotations

from typing import Any

from errata.testing.tiny_models import randomise, tokenizer
from errata.testing.zoo import _parts
from errata.testing.zoo._parts import text_config, vocabulary


def _qwen3_5(model: Any, config: Any, **changes: Any) -> tuple[Any, Any]:
    """changes: to the text configuration."""
    tok = tokenizer()
    made = config(
        text_config=text_config(
            len(tok),
            head_dim=8,
            layer_types=["linear_attention", "full_attention"] * 2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            rope_parameters={**_parts.THREE_AXES, "partial_rotary_factor": 1.0},
            **changes,
        ),
        vision_config=_parts.qwen_vision(),
        **_parts.QWEN_IDS,
    )
    return randomise(model(made)), _parts.qwen_processor(tok)


def qwen3_5() -> tuple[Any, Any]:
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    return _qwen3_5(Qwen3_5ForConditionalGeneration, Qwen3_5Config)


def qwen3_5_moe() -> tuple[Any, Any]:
    """With experts, and one that all tokens share, scaled by a gate."""
    from transformers import Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration

    return _qwen3_5(
        Qwen3_5MoeForConditionalGeneration,
        Qwen3_5MoeConfig,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        num_experts=4,
        num_experts_per_tok=2,
    )


def lfm2_vl() -> tuple[Any, Any]:
    from transformers import (
        Lfm2VlConfig,
        Lfm2VlForConditionalGeneration,
        Lfm2VlImageProcessor,
        Lfm2VlProcessor,
    )

    tok = vocabulary("<|image_start|>", "<|image_end|>", "<|img_thumbnail|>")
    text = text_config(len(tok), layer_types=["conv", "full_attention"] * 2, block_multiple_of=8)
    vision = dict(
        model_type="siglip2_vision_model",
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        patch_size=7,
        num_patches=16,
    )
    config = Lfm2VlConfig(
        text_config={"model_type": "lfm2", **text},
        vision_config=vision,
        image_token_id=3,
        projector_hidden_size=32,
    )
    images = Lfm2VlImageProcessor(
        encoder_patch_size=7,
        tile_size=28,
        size={"height": 28, "width": 28},
        min_image_tokens=1,
        max_image_tokens=4,
        do_image_splitting=False,
    )
    model = randomise(Lfm2VlForConditionalGeneration(config))
    return model, Lfm2VlProcessor(images, tok)


def mllama() -> tuple[Any, Any]:
    from transformers import (
        MllamaConfig,
        MllamaForConditionalGeneration,
        MllamaImageProcessor,
        MllamaProcessor,
    )

    tok = vocabulary("<|image|>", "<|python_tag|>")
    config = MllamaConfig(
        text_config=text_config(
            len(tok),
            cross_attention_layers=[1],
            rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        ),
        vision_config=dict(
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=2,
            num_global_layers=1,
            attention_heads=2,
            image_size=28,
            patch_size=14,
            vision_output_dim=48,
            intermediate_layers_indices=[0],
        ),
        image_token_index=tok.convert_tokens_to_ids("<|image|>"),
    )
    images = MllamaImageProcessor(size={"height": 28, "width": 28})
    model = randomise(MllamaForConditionalGeneration(config))
    return model, MllamaProcessor(images, tok)  # type: ignore[no-untyped-call]


_NO_SEPARATE = {"unike": "no separate attention 'q'"}
_EXPERTS = dict.fromkeys(("ft_l", "memit"), "mixture of experts")

MODELS = {
    "qwen3_5": ("Qwen3_5ForConditionalGeneration", qwen3_5, "", _NO_SEPARATE),
    "qwen3_5_moe": (
        "Qwen3_5MoeForConditionalGeneration",
        qwen3_5_moe,
        "",
        _NO_SEPARATE | _EXPERTS,
    ),
    "lfm2_vl": ("Lfm2VlForConditionalGeneration", lfm2_vl, "", _NO_SEPARATE),
    "mllama": ("MllamaForConditionalGeneration", mllama),
}
