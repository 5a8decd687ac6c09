"""Models that see tiles of a picture between start and end tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import transformers as hf

from errata.testing.tiny_models import randomise
from errata.testing.zoo._parts import square, text_config, tower, vocabulary


def _cohere(size: int) -> dict[str, Any]:
    return text_config(
        size, sliding_window=9, layer_types=["sliding_attention", "full_attention"] * 2
    )


def aya_vision() -> tuple[Any, Any]:
    tok = vocabulary(
        "<|START_OF_IMG|>",
        "<|END_OF_IMG|>",
        "<|IMG_PATCH|>",
        "<|IMG_LINE_BREAK|>",
        "TILE",
        "TILE_GLOBAL",
    )
    images = hf.GotOcr2ImageProcessor(size=square(28), crop_to_patches=True, max_patches=4)
    processor = hf.AyaVisionProcessor(images, tok, patch_size=7, img_size=28, downsample_factor=2)
    config = hf.AyaVisionConfig(
        vision_config=hf.SiglipVisionConfig(**tower(28, 7), vision_use_head=False),
        text_config=hf.Cohere2Config(**_cohere(len(tok))),
        image_token_index=tok.convert_tokens_to_ids("<|IMG_PATCH|>"),
        downsample_factor=2,
    )
    return randomise(hf.AyaVisionForConditionalGeneration(config)), processor


def cohere2_vision() -> tuple[Any, Any]:
    tok = vocabulary(
        image_token="<image>",
        boi_token="<|vision_start|>",
        eoi_token="<|vision_end|>",
        img_line_break_token="<|IMG_LINE_BREAK|>",
    )
    images = hf.Cohere2VisionImageProcessor(size=square(8), patch_size=2, max_patches=4)
    config = hf.Cohere2VisionConfig(
        vision_config=hf.SiglipVisionConfig(**tower(8, 2), vision_use_head=False),
        text_config=hf.Cohere2Config(**_cohere(len(tok))),
        image_token_id=3,
        downsample_factor=2,
        alignment_intermediate_size=64,
    )
    processor = hf.Cohere2VisionProcessor(images, tok)
    return randomise(hf.Cohere2VisionForConditionalGeneration(config)), processor


def internvl() -> tuple[Any, Any]:
    tok = vocabulary(
        start_image_token="<|vision_start|>",
        end_image_token="<|vision_end|>",
        context_image_token="<|image_pad|>",
        video_token="<|video_pad|>",
    )
    images = hf.GotOcr2ImageProcessor(size=square(28), crop_to_patches=True, max_patches=4)
    processor = hf.InternVLProcessor(
        images, tok, hf.InternVLVideoProcessor(size=square(28)), image_seq_length=4
    )
    config = hf.InternVLConfig(
        vision_config=hf.InternVLVisionConfig(**tower([28, 28], [7, 7])),  # type: ignore[arg-type]
        text_config=hf.Qwen2Config(**text_config(len(tok))),
        image_token_id=6,
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    return randomise(hf.InternVLForConditionalGeneration(config)), processor


def got_ocr2() -> tuple[Any, Any]:
    tok = vocabulary("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<imgpad>")
    images = hf.GotOcr2ImageProcessor(size=square(128))
    processor = hf.GotOcr2Processor(images, tok)
    config = hf.GotOcr2Config(
        vision_config={
            "hidden_size": 24,
            "output_channels": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 128,
            "patch_size": 2,
            "window_size": 4,
            "global_attn_indexes": [],
            "mlp_dim": 48,
        },
        text_config=hf.Qwen2Config(**text_config(len(tok))),
        image_token_index=tok.convert_tokens_to_ids("<imgpad>"),
        image_seq_length=256,
    )
    return randomise(hf.GotOcr2ForConditionalGeneration(config)), processor


#: name -> (class, function that makes model and processor)
MODELS: Mapping[str, tuple[str, Callable[[], tuple[Any, Any]]]] = {
    "aya_vision": ("AyaVisionForConditionalGeneration", aya_vision),
    "cohere2_vision": ("Cohere2VisionForConditionalGeneration", cohere2_vision),
    "internvl": ("InternVLForConditionalGeneration", internvl),
    "got_ocr2": ("GotOcr2ForConditionalGeneration", got_ocr2),
}
