"""The dense Qwen-VL models: pictures keep their shape, positions have three axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import transformers as hf

from errata.testing.tiny_models import randomise
from errata.testing.zoo._parts import text_config, vocabulary

_TOKENS = {
    "image_token_id": 6,
    "video_token_id": 7,
    "vision_start_token_id": 4,
    "vision_end_token_id": 5,
}
_TOWER = {"depth": 2, "num_heads": 2, "spatial_merge_size": 2, "temporal_patch_size": 2}
_SIZE = {"shortest_edge": 28 * 28, "longest_edge": 56 * 56}


def _rope(*section: int, **more: Any) -> dict[str, Any]:
    axes = {"rope_type": "default", "mrope_section": list(section), "rope_theta": 10000.0}
    return {"rope_parameters": {**axes, **more}}


def _processor(kind: Any, video: Any) -> Any:
    cut = {"patch_size": 7, "merge_size": 2, "temporal_patch_size": 2, "size": _SIZE}
    return kind(hf.Qwen2VLImageProcessor(**cut), vocabulary(), video(**cut))


def qwen2_vl() -> tuple[Any, Any]:
    processor = _processor(hf.Qwen2VLProcessor, hf.Qwen2VLVideoProcessor)
    config = hf.Qwen2VLConfig(
        text_config=text_config(len(processor.tokenizer), **_rope(1, 1, 2)),
        vision_config={
            **_TOWER,
            "embed_dim": 24,
            "hidden_size": 32,
            "mlp_ratio": 2,
            "patch_size": 7,
        },
        **_TOKENS,
    )
    return randomise(hf.Qwen2VLForConditionalGeneration(config)), processor


def qwen2_5_vl() -> tuple[Any, Any]:
    processor = _processor(hf.Qwen2_5_VLProcessor, hf.Qwen2VLVideoProcessor)
    config = hf.Qwen2_5_VLConfig(
        text_config=text_config(len(processor.tokenizer), **_rope(1, 1, 2)),
        vision_config={
            **_TOWER,
            "hidden_size": 32,
            "intermediate_size": 48,
            "patch_size": 7,
            "out_hidden_size": 32,
            "window_size": 28,
            "fullatt_block_indexes": [1],
        },
        **_TOKENS,
    )
    return randomise(hf.Qwen2_5_VLForConditionalGeneration(config)), processor


def qwen3_vl() -> tuple[Any, Any]:
    processor = _processor(hf.Qwen3VLProcessor, hf.Qwen3VLVideoProcessor)
    config = hf.Qwen3VLConfig(
        text_config=text_config(
            len(processor.tokenizer), head_dim=8, **_rope(2, 1, 1, mrope_interleaved=True)
        ),
        vision_config={
            **_TOWER,
            "hidden_size": 32,
            "intermediate_size": 48,
            "patch_size": 7,
            "out_hidden_size": 32,
            "deepstack_visual_indexes": [0],
            "num_position_embeddings": 16,
        },
        **_TOKENS,
    )
    return randomise(hf.Qwen3VLForConditionalGeneration(config)), processor


#: name -> (class, function that makes model and processor)
MODELS: Mapping[str, tuple[str, Callable[[], tuple[Any, Any]]]] = {
    "qwen2_vl": ("Qwen2VLForConditionalGeneration", qwen2_vl),
    "qwen2_5_vl": ("Qwen2_5_VLForConditionalGeneration", qwen2_5_vl),
    "qwen3_vl": ("Qwen3VLForConditionalGeneration", qwen3_vl),
}
