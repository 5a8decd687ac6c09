"""Models with a mixture of experts whose experts are one 3-D parameter."""

from __future__ import annotations

from typing import Any

from errata.testing.tiny_models import randomise, tokenizer
from errata.testing.zoo import _parts
from errata.testing.zoo._parts import text_config, vocabulary


def qwen3_vl_moe() -> tuple[Any, Any]:
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    tok = tokenizer()
    config = Qwen3VLMoeConfig(
        text_config=text_config(
            len(tok),
            head_dim=8,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            rope_parameters=_parts.THREE_AXES,
        ),
        vision_config=_parts.qwen_vision(deepstack_visual_indexes=[0]),
        **_parts.QWEN_IDS,
    )
    return randomise(Qwen3VLMoeForConditionalGeneration(config)), _parts.qwen_processor(tok)


def llama4() -> tuple[Any, Any]:
    """Every second block has experts, and one that all tokens share; three attend in chunks."""
    from transformers import (
        Llama4Config,
        Llama4ForConditionalGeneration,
        Llama4ImageProcessor,
        Llama4Processor,
    )

    tok = vocabulary(
        "<|image|>",
        "<|image_start|>",
        "<|image_end|>",
        "<|patch|>",
        "<|tile_x_separator|>",
        "<|tile_y_separator|>",
    )
    config = Llama4Config(
        text_config=text_config(
            len(tok),
            head_dim=8,
            intermediate_size_mlp=64,
            num_local_experts=2,
            interleave_moe_layer_step=2,
            attention_chunk_size=256,
        ),
        vision_config=dict(
            hidden_size=24,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=28,
            patch_size=7,
            vision_output_dim=32,
            projector_input_dim=32,
            projector_output_dim=32,
        ),
        image_token_index=tok.convert_tokens_to_ids("<|patch|>"),
        boi_token_index=tok.convert_tokens_to_ids("<|image_start|>"),
        eoi_token_index=tok.convert_tokens_to_ids("<|image_end|>"),
    )
    images = Llama4ImageProcessor(size={"height": 28, "width": 28}, max_patches=4)
    model = randomise(Llama4ForConditionalGeneration(config))
    processor: Any = Llama4Processor
    return model, processor(images, tok, patch_size=7, pixel_shuffle_ratio=0.5, chat_template=None)


_EXPERTS = dict.fromkeys(("ft_l", "memit", "unike"), "mixture of experts")

MODELS = {
    "qwen3_vl_moe": ("Qwen3VLMoeForConditionalGeneration", qwen3_vl_moe, "", _EXPERTS),
    "llama4": ("Llama4ForConditionalGeneration", llama4),
}
